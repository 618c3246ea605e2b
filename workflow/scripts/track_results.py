"""Log the tables of one platform, and figures of it, to Weights & Biases as one run, and print where that is.

python workflow/scripts/track_results.py PLATFORM_FOLDER PNG...
"""

import sys
from pathlib import Path

from heteroring.bench.tracking import log_run
from heteroring.results.results import Results


def track(folder: Path, *figures: Path) -> str:
    """Load the platform's results from `folder`, and log them. Returns where, in words."""
    results = Results.load(folder)
    tables = {name: getattr(results, name) for name in ("cells", "profile", "model", "trace")}
    record = {key: value for key, value in results.provenance.items() if key != "jobs"}  # each has a run of its own
    return log_run(
        "results",
        results.device_label,
        results.platform,
        {"provenance": record},
        {name: table for name, table in tables.items() if len(table)},
        images={path.stem: path for path in figures},
    )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(track(*map(Path, sys.argv[1:])))

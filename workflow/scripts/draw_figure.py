"""Draw one figure of one platform, in the format of each output's suffix.

python workflow/scripts/draw_figure.py NAME PLATFORM_FOLDER OUTPUT...
"""

import sys
from pathlib import Path

from heteroring import figures
from heteroring.results.results import Results


def draw(name: str, folder: Path, *outputs: Path) -> None:
    """Load the platform's results from `folder` and save the figure to every path in `outputs`."""
    figures.save(name, Results.load(folder), *outputs)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    draw(sys.argv[1], *map(Path, sys.argv[2:]))

"""Draw one figure of one platform as PNG and PDF."""

import sys
from pathlib import Path

from heteroring import figures
from heteroring.bench.results import Results


def draw(name: str, folder: Path, *outputs: Path) -> None:
    """Load the platform's results from `folder` and save the figure to every path in `outputs`."""
    figures.save(name, Results.load(folder), *outputs)


if __name__ == "__main__":
    sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w")  # noqa: SIM115
    draw(
        snakemake.params.name,
        Path(snakemake.params.folder),
        Path(snakemake.output.png),
        Path(snakemake.output.pdf),
    )

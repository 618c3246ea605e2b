"""`heteroring figure`: one figure of one platform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heteroring.cli.options import WHAT, WRITE, announce, examples, option, printing, reporting
from heteroring.figures.catalog import NAMES, entry

EXAMPLES = examples(
    "heteroring figure speedup_heatmap",
    "heteroring figure rank_order --platform-dir data/cpu --output rank_order.pdf --output rank_order.png",
)


@reporting
def figure(
    name: Annotated[str, typer.Argument(help=f"{', '.join(NAMES)}.", autocompletion=lambda: list(NAMES))],
    platform_dir: Annotated[Path, option(WHAT, "Folder of the platform.")] = Path("data/h200x2"),
    output: Annotated[
        list[Path] | None,
        option(WRITE, "PNG or PDF to write; may be given several times.", show_default="NAME.png"),
    ] = None,
) -> None:
    """Draw one figure. Where a platform's tables are missing, they are derived first, as `aggregate` does."""
    entry(name)
    if not platform_dir.is_dir():
        raise ValueError(f"--platform-dir {platform_dir} is not a folder")
    outputs = output or [Path(f"{name}.png")]
    announce(f"figure {name} of {platform_dir}")
    from heteroring import figures
    from heteroring.interrupts import raise_on_ctrl_c
    from heteroring.results.aggregate import aggregate
    from heteroring.results.results import Results

    figures.check_outputs(name, outputs)
    raise_on_ctrl_c()
    if not (platform_dir / "derived").exists():
        aggregate(platform_dir)
    figures.save(name, Results.load(platform_dir), *outputs)
    with printing():
        print(*outputs, sep="\n")

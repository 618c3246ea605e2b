"""`heteroring figure`: one figure of one platform, or all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from heteroring.cli.options import WHAT, WRITE, examples, option, printing, reporting, say
from heteroring.figures.catalog import NAMES, entry

EXAMPLES = examples(
    "heteroring figure speedup_heatmap",
    "heteroring figure rank_order --platform-dir data/cpu --output rank_order.pdf --output rank_order.png",
    "heteroring figure all --platform-dir data/cpu --output-dir figures",
)


@reporting
def figure(
    name: Annotated[str, typer.Argument(help=f"{', '.join(NAMES)}; or all.", autocompletion=lambda: [*NAMES, "all"])],
    platform_dir: Annotated[Path, option(WHAT, "Folder of the platform.")] = Path("data/h200x2"),
    output: Annotated[
        list[Path] | None,
        option(WRITE, "PNG or PDF to write; may be given several times.", show_default="NAME.png"),
    ] = None,
    output_dir: Annotated[
        Path | None, option(WRITE, "Folder for NAME.png and NAME.pdf of all figures.", show_default="this one")
    ] = None,
) -> None:
    """Draw one figure, or all. Where a platform's tables are missing, they are derived first, as `aggregate` does."""
    every = name == "all"
    if not every:
        entry(name)
    if every and output:
        raise ValueError("all figures take --output-dir, and not --output")
    if output_dir and not every:
        raise ValueError(f"--output-dir is for all figures; name the files of {name} with --output")
    if not platform_dir.is_dir():
        raise ValueError(f"--platform-dir {platform_dir} is not a folder")
    say(f"figure {name} of {platform_dir}")
    from heteroring import figures
    from heteroring.interrupts import raise_on_ctrl_c
    from heteroring.results.aggregate import aggregate
    from heteroring.results.results import Results

    outputs = output or [Path(f"{name}.png")]
    figures.check_outputs(name, outputs)
    raise_on_ctrl_c()
    if not (platform_dir / "derived").exists():
        aggregate(platform_dir)
    results = Results.load(platform_dir)
    if every:
        folder = output_dir or Path()
        for reason in figures.save_all(results, folder):
            print(f"heteroring: note: {reason}", file=sys.stderr)
        outputs = [folder / f"{each}.png" for each in NAMES]
    else:
        figures.save(name, results, *outputs)
    with printing():
        print(*outputs, sep="\n")

"""`heteroring plan`: from a fleet to `block_lens`, rank order, time and memory."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heteroring.cli.options import (
    HOW,
    WHAT,
    WRITE,
    Json,
    PrefixLens,
    examples,
    integer,
    integers,
    option,
    print_json,
    printing,
    reporting,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from heteroring.planning.plan import Plan
    from heteroring.planning.work import Work

# Up to how many ranks the table has one line per rank; beyond, one per kind.
LISTED = 32

EXAMPLES = examples(
    "heteroring plan docs/fleets/mixed.yaml --seq-len 1048576 --model llama/3-8b",
    "heteroring plan docs/fleets/mixed.yaml --seq-len 1048576 --model llama/3-8b --chunk 32768",
)

FleetFile = Annotated[Path, typer.Argument(help="YAML of ranks and links; docs/planning.md.", metavar="FLEET_YAML")]
SeqLen = Annotated[int, integer(WHAT, "Tokens to share out.")]
PlannedModel = Annotated[
    str, option(WHAT, "Prefill of this FMS architecture/variant.", show_default="the profiles' attention call")
]
PlannedDtype = Annotated[str, option(WHAT, "float32, float16 or bfloat16, of --model.")]
PlannedLayout = Annotated[str, option(WHAT, "contiguous or zigzag.")]
PlannedChunk = Annotated[int | None, integer(WHAT, "Most tokens at a time, in the same shares.", show_default="all")]
PlannedMultiple = Annotated[int, integer(HOW, "Tokens given out at a time, where that divides --seq-len, or --chunk.")]


@reporting
def plan(
    fleet: FleetFile,
    seq_len: SeqLen,
    model: PlannedModel = "",
    dtype: PlannedDtype = "bfloat16",
    layout: PlannedLayout = "zigzag",
    chunk: PlannedChunk = None,
    prefix_lens: PrefixLens = "",
    multiple: PlannedMultiple = 256,
    picture: Annotated[Path | None, option(WRITE, "Picture to draw: .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Say which ranks of a fleet should hold how many tokens, in which order, and how long that takes and why."""
    if picture is not None:
        from heteroring.figures.fleet_plan import check_picture

        check_picture(picture)

    earlier = integers("--prefix-lens", prefix_lens) if prefix_lens else ()
    from heteroring.planning.fleet import read_fleet
    from heteroring.planning.plan import plan as planned

    found = planned(
        read_fleet(fleet),
        seq_len,
        work_of(model, dtype),
        layout=layout,
        multiple=multiple,
        chunk=chunk,
        prefix_lens=earlier,
    )
    if picture is not None:
        from heteroring.figures.fleet_plan import save_plan

        save_plan(found, picture)
    if as_json:
        print_json(found.to_json())
        return

    for note in found.notes:
        print(f"heteroring: note: {note}", file=sys.stderr)
    console = wide_console()
    with printing():
        console.print(_ranks(found))
        console.print(_splits(found))
        console.print(f"limit: {found.limit}")
        if len(found.order) <= LISTED:
            console.print(f"order: {' '.join(map(str, found.order))}")
            console.print(f"block_lens: {' '.join(map(str, found.block_lens))}")
            if len(found.simulations) > 1:
                console.print(f"chunks: {len(found.simulations)}, all in these shares: ring_prefill(chunk={chunk})")
        else:
            console.print(f"order and block_lens of more than {LISTED} ranks: --json")


def work_of(model: str, dtype: str) -> Work | None:
    """The prefill of `model`, or None for the attention call of the fleet's profiles."""
    if not model:
        return None
    from heteroring.fms.sizes import prefill_work

    return prefill_work(model, dtype)


def wide_console() -> Console:
    """A console for tables, which is as wide as the terminal, or 120 columns into a file."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    return console


def milliseconds(time: float) -> str:
    """A time for people: four digits, or all digits before the point if there are more."""
    return f"{time:.4g}" if time < 1e4 else f"{time:.0f}"


def _ranks(plan: Plan) -> Table:
    """A line for each place in the ring, or for each kind of rank where there are many."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{plan.title}: predicted"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("place", "rank", "device", "node", "tokens", "busy ms", "waiting ms", "GB of memory"):
        table.add_column(name, justify="left" if name in ("device", "node") else "right", no_wrap=True)
    groups = defaultdict(list)
    for place, rank in enumerate(plan.order):
        spec = plan.fleet.ranks[rank]
        groups[place if len(plan.order) <= LISTED else (spec.name, spec.memory_gb)].append(place)
    for places in groups.values():
        ranks = [plan.order[place] for place in places]
        spec = plan.fleet.ranks[ranks[0]]
        name = spec.name + ("" if spec.data_sheet is None else " (data sheet)")
        many = len(places) > 1

        def shown(values: Sequence[float], text: Callable[[float], str] = milliseconds, at: list = places) -> str:
            return " to ".join(dict.fromkeys(text(pick(values[place] for place in at)) for pick in (min, max)))

        table.add_row(
            f"{len(places)} of" if many else str(places[0]),
            "" if many else str(ranks[0]),
            name,
            "" if many else spec.node,
            shown(plan.block_lens, str),
            shown(plan.busy_ms),
            shown(plan.waiting_ms),
            f"{shown(plan.memory_gb, '{:.1f}'.format)} of {spec.memory_gb:g}",
        )
    return table


def _splits(plan: Plan) -> Table:
    """The plan beside the splits over all ranks."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("split", "ms", "of the bound", "fits"):
        table.add_column(name, justify="left" if name == "split" else "right", no_wrap=True)
    name = f"plan: {plan.split} over {len(plan.order)} of {len(plan.fleet.ranks)} ranks"
    table.add_row(name, milliseconds(plan.latency_ms), f"{plan.bound_fraction:.3f}", "yes")
    for name, split in plan.beside.items():
        fits = "yes" if split.fits else "no"
        table.add_row(name, milliseconds(split.latency_ms), f"{plan.bound_ms / split.latency_ms:.3f}", fits)
    return table

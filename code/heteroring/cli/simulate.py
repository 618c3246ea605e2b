"""`heteroring simulate`: how long splits of a sequence take over a fleet, step by step and link by link."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

from heteroring.cli.options import (
    HOW,
    LISTED,
    WHAT,
    Json,
    PrefixLens,
    examples,
    integer,
    integers,
    number,
    option,
    print_json,
    printing,
    reporting,
)
from heteroring.cli.plan import (
    FleetFile,
    PlannedChunk,
    PlannedDtype,
    PlannedModel,
    SeqLen,
    milliseconds,
    wide_console,
    work_of,
)
from heteroring.words import listed

EXAMPLES = examples(
    "heteroring simulate docs/fleets/mixed.yaml --seq-len 65536 --strategies contiguous/even,zigzag/balanced"
)


@reporting
def simulate(
    fleet: FleetFile,
    seq_len: SeqLen,
    strategies: Annotated[
        str, option(WHAT, f"layout/split, {LISTED}; splits: even, proportional, balanced.")
    ] = "zigzag/even,zigzag/proportional,zigzag/balanced",
    block_lens: Annotated[str, option(WHAT, f"Tokens of each rank, {LISTED}, in zigzag, as well.")] = "",
    model: PlannedModel = "",
    dtype: PlannedDtype = "bfloat16",
    chunk: PlannedChunk = None,
    prefix_lens: PrefixLens = "",
    transport: Annotated[str, option(HOW, "p2p or copy-engine; auto: copy-engine within a single node.")] = "auto",
    fused: Annotated[bool, option(HOW, "Own and first peer's keys in one pass, by copy-engine.")] = True,
    host_us: Annotated[float, number(HOW, "Microseconds that the host takes to issue a step.")] = 0.0,
    multiple: Annotated[int, integer(HOW, "Tokens that balanced gives out at a time.")] = 256,
    tile: Annotated[int, integer(HOW, "Queries, and keys, of a kernel's tile.")] = 128,
    as_json: Json = False,
) -> None:
    """Simulate splits of a sequence over a fleet in its own rank order: time, busy and waiting. Nothing is measured."""
    explicit = integers("--block-lens", block_lens) if block_lens else ()
    earlier = integers("--prefix-lens", prefix_lens) if prefix_lens else ()
    import numpy as np

    from heteroring.allocators.apportion import apportion
    from heteroring.arguments import prefix_lengths
    from heteroring.planning.chunks import chunks_over, middle, split_over
    from heteroring.planning.fleet import read_fleet
    from heteroring.planning.simulate import simulate as simulated
    from heteroring.planning.splits import bound, coarse, split
    from heteroring.results.strategy import parts_of
    from heteroring.ring.partition import Partition, check_layout

    for name, value, least in (
        ("seq_len", seq_len, 1),
        ("multiple", multiple, 1),
        ("tile", tile, 1),
        ("host_us", host_us, 0),
    ):
        if not least <= value < float("inf"):
            raise ValueError(f"{name} is {value}: it must be {least} or more")
    ranks = read_fleet(fleet)
    work = work_of(model, dtype) or ranks.attention()
    earlier = prefix_lengths("prefix_lens", earlier, len(ranks.ranks))
    tokens, ahead = middle(seq_len, chunk)
    costs, notes = ranks.costs(work, tokens, ahead + sum(earlier))
    step = multiple if tokens % multiple == 0 else 1
    notes += coarse(tokens, len(costs), step)
    if transport == "auto":
        transport = "copy-engine" if len(set(ranks.network.nodes)) == 1 else "p2p"
    partitions = {}
    for strategy in listed("--strategies", strategies):
        layout, name = parts_of(strategy)
        check_layout(layout)
        share = split_over(partial(split, name, tokens, costs, layout, step), ahead, earlier)
        partitions[strategy] = Partition(layout, apportion(share, seq_len))
    if explicit:
        partitions["zigzag, as given"] = Partition.zigzag(explicit)
        if sum(explicit) != seq_len:
            raise ValueError(f"--block-lens {block_lens} sum to {sum(explicit)}: --seq-len is {seq_len}")
    rows = []
    for strategy, partition in partitions.items():
        latency_us, least_us, busy_us = 0.0, 0.0, np.zeros(len(costs))
        for part, held in chunks_over(partition, chunk, earlier):
            costs, _ = ranks.costs(work, part.seq_len, sum(held))
            found = simulated(
                part,
                costs,
                ranks.network,
                work.key_bytes,
                transport=transport,
                fused=fused,
                host_us=host_us,
                tile=tile,
                prefix_lens=held,
            )
            latency_us, busy_us = latency_us + found.latency_us, busy_us + found.busy_us
            least_us += bound(costs, part.seq_len, sum(held))
        rows.append(
            {
                "strategy": strategy,
                "latency_ms": work.layers * latency_us / 1e3,
                "bound_fraction": least_us / latency_us,
                "busy_ms": (work.layers * busy_us / 1e3).tolist(),
                "block_lens": list(partition.block_lens),
            }
        )
    if as_json:
        whole = {"work": work.name, "seq_len": seq_len, "chunk": chunk, "prefix_lens": list(earlier)}
        whole |= {"transport": transport, "bound_ms": work.layers * least_us / 1e3, "splits": rows}
        print_json(whole | {"notes": list(notes)})
        return

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    for note in notes:
        print(f"heteroring: note: {note}", file=sys.stderr)
    chunks = f" in chunks of {chunk}" if ahead else ""
    title = f"{work.name}, {seq_len} tokens{chunks}, {len(costs)} ranks, {transport}: simulated"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("strategy", "ms", "of the bound", "busy ms", "waiting ms"):
        table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
    for row in rows:
        waiting = [row["latency_ms"] - busy for busy in row["busy_ms"]]
        spans = [
            " to ".join(dict.fromkeys(milliseconds(pick(each)) for pick in (min, max)))
            for each in (row["busy_ms"], waiting)
        ]
        table.add_row(row["strategy"], milliseconds(row["latency_ms"]), f"{row['bound_fraction']:.3f}", *spans)
    with printing():
        wide_console().print(table)

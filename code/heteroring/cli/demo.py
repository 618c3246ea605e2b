"""`heteroring demo`: the gain from uneven shards on unequal ranks, in under a minute, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heteroring.cli.options import (
    HOW,
    RANKS,
    WHAT,
    WRITE,
    Label,
    Seed,
    check_measured,
    examples,
    integer,
    label_of,
    option,
    printing,
    reporting,
    say,
)
from heteroring.interrupts import raise_on_ctrl_c

EXAMPLES = examples(
    "heteroring demo",
    "heteroring demo --percentage 10 --seq-len 1024",
    "heteroring demo --rebalance",
    "heteroring demo --rebalance --platform gpu --seq-len 65536 --chunk 4096 --output rebalancing.csv",
)


@reporting
def demo(
    seq_len: Annotated[
        int | None, integer(WHAT, "Tokens of the prompt.", show_default="1536; with --rebalance 6144, 65536 on gpu")
    ] = None,
    percentage: Annotated[
        int | None, integer(RANKS, "Speed of the second rank, 1 to 100.", show_default="25; 30 with --rebalance")
    ] = None,
    new_tokens: Annotated[int, integer(WHAT, "Tokens to generate, checked against one process.")] = 16,
    seed: Seed = 0,
    rebalance: Annotated[
        bool,
        option(WHAT, "Instead: split chunks anew while the second rank slows down and recovers.", "--rebalance"),
    ] = False,
    chunk: Annotated[
        int | None, integer(WHAT, "Rebalancing: tokens of a chunk.", show_default="a 32nd of the prompt, a 16th on gpu")
    ] = None,
    platform: Annotated[str, option(RANKS, "Rebalancing: cpu or gpu.")] = "cpu",
    throttle: Annotated[
        str,
        option(RANKS, "Rebalancing: pacing, green or neighbour.", show_default="pacing on cpu, green on gpu"),
    ] = "",
    label: Label = "",
    repetitions: Annotated[int, integer(HOW, "Rebalancing: prefills of each split.")] = 3,
    output: Annotated[
        Path | None, option(WRITE, "Rebalancing: CSV of rows to write; a .json record goes beside it.")
    ] = None,
) -> None:
    """Prefill a small LLaMA on two unequal CPU ranks, evenly and balanced; exit 1 if what it generates is wrong."""
    if rebalance:
        _rebalance(seq_len, chunk, percentage, platform, throttle, label, repetitions, seed, output)
        return
    if (chunk, platform, throttle, label, repetitions, output) != (None, "cpu", "", "", 3, None):
        raise ValueError("--chunk, --platform, --throttle, --label, --repetitions and --output go with --rebalance")
    if new_tokens < 3:
        raise ValueError(f"new_tokens is {new_tokens}: it must be 3 or more, of which two are not timed")
    say("a small LLaMA on two unequal CPU ranks")
    from rich.console import Console

    from heteroring.bench import demo as stage

    raise_on_ctrl_c()
    job = stage.demo_job(
        1536 if seq_len is None else seq_len, 25 if percentage is None else percentage, new_tokens, seed
    )
    with stage.progress_display(Console(stderr=True)) as progress:
        found = stage.run(job, progress)
    console = Console()
    bound = f"bound: {found.bound_ms:.0f} ms, both ranks busy all the time; speedup: against {stage.EVEN}"
    verdict = f"the {new_tokens} tokens generated are those of one process"
    if not found.right:
        verdict = f"generated {found.generated}, one process {found.expected}: they differ"
    with printing():
        console.print(stage.table(found))
        console.print(bound, highlight=False)
        console.print(verdict, style="green" if found.right else "red", highlight=False)
    if not found.right:
        raise typer.Exit(1)


def _rebalance(
    seq_len: int | None,
    chunk: int | None,
    percentage: int | None,
    platform: str,
    throttle: str,
    label: str,
    repetitions: int,
    seed: int,
    output: Path | None,
) -> None:
    """Run the demo with `--rebalance`."""
    if output is not None:
        check_measured(output)
    say("a prefill in chunks")
    from rich.console import Console

    from heteroring.bench import rebalancing as stage
    from heteroring.bench.measure import measure

    given = {"prompt_len": seq_len, "chunk": chunk, "slow_percentage": percentage}
    job = stage.demo_job(
        platform,
        label_of(label, platform),
        throttle,
        repetitions=repetitions,
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )

    def show(done: stage.JobResult) -> None:
        with printing():
            Console().print(stage.table(done.rows))

    measure(stage, job, stage.HANG_SECONDS, output, "Rebalancing", show)

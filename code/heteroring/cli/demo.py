"""`heteroring demo`: the gain from uneven shards on unequal ranks, in under a minute, on any machine."""

from __future__ import annotations

from typing import Annotated

import typer

from heteroring.cli.options import RANKS, WHAT, Seed, announce, examples, integer, printing, reporting
from heteroring.interrupts import raise_on_ctrl_c

EXAMPLES = examples("heteroring demo", "heteroring demo --percentage 10 --seq-len 1024")


@reporting
def demo(
    seq_len: Annotated[int, integer(WHAT, "Tokens of the prompt.")] = 1536,
    percentage: Annotated[int, integer(RANKS, "Speed of the second rank, 1 to 100.")] = 25,
    new_tokens: Annotated[int, integer(WHAT, "Tokens to generate, checked against one process.")] = 16,
    seed: Seed = 0,
) -> None:
    """Prefill a small LLaMA on two unequal CPU ranks, evenly and balanced; exit 1 if what it generates is wrong."""
    if new_tokens < 3:
        raise ValueError(f"new_tokens is {new_tokens}: it must be 3 or more, of which two are not timed")
    announce("a small LLaMA on two unequal CPU ranks")
    from rich.console import Console

    from heteroring.bench import demo as stage

    raise_on_ctrl_c()
    job = stage.demo_job(seq_len, percentage, new_tokens, seed)
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

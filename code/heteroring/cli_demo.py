"""`heteroring demo`: what unequal ranks gain from unequal shares, in under a minute, on any machine."""

from __future__ import annotations

from typing import Annotated

import typer

from heteroring.cli_options import Seed, reporting


@reporting
def demo(
    seq_len: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 1536,
    percentage: Annotated[int, typer.Option(help="Speed of the second rank, 1 to 100.")] = 25,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate, checked against one process.")] = 16,
    seed: Seed = 0,
) -> None:
    """Prefill a small LLaMA on two unequal CPU ranks, evenly and balanced; exit 1 if what it generates is wrong."""
    from rich.console import Console

    from heteroring.bench import demo as stage

    if new_tokens < 1:
        raise ValueError(f"new_tokens is {new_tokens}: it must be 1 or more")
    job = stage.demo_job(seq_len, percentage, new_tokens, seed)
    with stage.progress_display(Console(stderr=True)) as progress:
        found = stage.run(job, progress)
    console = Console()
    console.print(stage.table(found))
    console.print(
        f"bound: {found.bound_ms:.0f} ms, both ranks busy all the time; speedup: against {stage.EVEN}", highlight=False
    )
    if not found.right:
        console.print(f"generated {found.generated}, one process {found.expected}: they differ", style="red")
        raise typer.Exit(1)
    console.print(f"the {new_tokens} tokens generated are those of one process", style="green", highlight=False)

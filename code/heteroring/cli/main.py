"""The command line: `heteroring profile | fit | allocate | bench | model | aggregate | demo`.

Torch, pandas and the like are imported by the command that needs them, so that help and mistakes cost no
wait. Exit codes: 0 done; 1 a run failed; 2 wrong usage or input; 128 + n ended by signal n.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from heteroring import __version__
from heteroring.bench.defaults import grid_of, strategies_of
from heteroring.cli import demo as cli_demo
from heteroring.cli import model as cli_model
from heteroring.cli.options import (
    Batch,
    Block,
    Condition,
    CsvOutput,
    GridDtype,
    HangTimeout,
    HeadDim,
    Heads,
    KvHeads,
    Label,
    Models,
    Multiple,
    Number,
    Percentages,
    Platform,
    Repetitions,
    Seed,
    ShapeHeadDim,
    ShapeHeads,
    ShapeKvHeads,
    ThrottleName,
    Track,
    Transport,
    Warmup,
    check_measured,
    check_output,
    integers,
    label_of,
    of_each_platform,
    printing,
    reporting,
    say_error,
)
from heteroring.interrupts import quit_on_ctrl_c, raise_on_ctrl_c
from heteroring.throttle import DEFAULTS

app = typer.Typer(
    name="heteroring",
    help="Ring attention over unequal ranks: measure it, fit its speed, share out its tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"heteroring {__version__}")
        raise typer.Exit


@app.callback()
def heteroring(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ring attention over unequal ranks: measure it, fit its speed, share out its tokens."""


@app.command()
@reporting
def profile(
    output: CsvOutput,
    seq_lens: Annotated[str, typer.Option(help="Sequence lengths, separated by commas: of all kinds but matmul.")] = "",
    sizes: Annotated[str, typer.Option(help="n of n x n x n matmuls, separated by commas.")] = "",
    kinds: Annotated[
        str, typer.Option(help="What to time, separated by commas: matmul, attention, fold, layer, block.")
    ] = "matmul,attention,fold",
    model: Annotated[str, typer.Option(help="FMS architecture/variant whose transformer block `block` is.")] = "",
    fms_seq_lens: Annotated[
        str, typer.Option(help="Sequence lengths of kind layer.", show_default="those of --seq-lens")
    ] = "",
    percentage: Annotated[int, typer.Option(help="Speed of the rank, 1 to 100.")] = 100,
    platform: Platform = "cpu",
    label: Label = "",
    throttle: ThrottleName = "",
    batch: Batch = 1,
    heads: ShapeHeads = 0,
    kv_heads: ShapeKvHeads = 0,
    head_dim: ShapeHeadDim = 0,
    dtype: GridDtype = "",
    block: Block = "auto",
    repetitions: Repetitions = 5,
    warmup: Warmup = 1,
    seed: Seed = 0,
    hang_timeout: HangTimeout = 120.0,
    track: Track = "none",
) -> None:
    """Measure how fast one rank computes at one percentage: matmuls, causal attention, folds of a visit and more."""
    named = {
        "sizes": ("--sizes", sizes),
        "seq_lens": ("--seq-lens", seq_lens),
        "fms_seq_lens": ("--fms-seq-lens", fms_seq_lens),
    }
    lengths = {name: integers(option, text) if text else () for name, (option, text) in named.items()}
    check_measured(output)

    from heteroring.bench.profile import run as stage
    from heteroring.bench.run import measure

    job = stage.ProfileJob(
        platform=platform,
        label=label_of(label, platform),
        throttle=throttle or DEFAULTS.get(platform, "none"),
        percentage=percentage,
        **lengths,
        kinds=tuple(kinds.split(",")),
        model=model,
        shape=_shape(platform, model, batch, heads, kv_heads, head_dim, dtype),
        block=block,
        repetitions=repetitions,
        warmup=warmup,
        seed=seed,
    )
    measure(stage, job, (percentage,), hang_timeout, output, f"profile at {percentage} %", track=track)


def _shape(platform: str, model: str, batch: int, heads: int, kv_heads: int, head_dim: int, dtype: str) -> Any:
    """The Shape that was asked for; what is left open is that of `model`, if one is named, or else of the grid."""
    from heteroring.bench.shape import Shape

    own = grid_of(platform)
    dtype = dtype or own.dtype
    if model:
        from heteroring.bench.model.spec import ModelSpec

        own = ModelSpec(model, dtype, heads=heads, kv_heads=kv_heads, emb_dim=heads * head_dim).sizes
    return Shape(batch, heads or own.heads, kv_heads or own.kv_heads, head_dim or own.head_dim, dtype)


@app.command()
@reporting
def bench(
    output: Annotated[
        Path | None, typer.Option(help="CSV of rows to write, beside printing; a .json record goes beside it.")
    ] = None,
    seq_lens: Annotated[
        str | None,
        typer.Option(help="Sequence lengths, separated by commas.", show_default=of_each_platform("seq_lens")),
    ] = None,
    percentages: Percentages = "100,100",
    strategies: Annotated[
        str | None,
        typer.Option(
            help="layout/allocator, separated by commas; zigzag/lut@attention is of a lut fitted to that profile.",
            show_default="all; without --models, all that need none",
        ),
    ] = None,
    models: Models = None,
    platform: Platform = "cpu",
    label: Label = "",
    throttle: ThrottleName = "",
    batch: Batch = 1,
    heads: Heads = None,
    kv_heads: KvHeads = None,
    head_dim: HeadDim = None,
    dtype: GridDtype = "",
    block: Block = "auto",
    module: Annotated[
        str,
        typer.Option(
            help="What to measure, separated by commas: attention, or fms, the layer of the Foundation Model Stack."
        ),
    ] = "attention",
    fms_seq_lens: Annotated[
        str, typer.Option(help="Sequence lengths of module fms.", show_default="those of --seq-lens")
    ] = "",
    condition: Condition = "rested",
    job: Number = 1,
    transport: Transport = "auto",
    peers: Annotated[
        bool, typer.Option("--peers", help="Measure PyTorch's attention on one GPU and its context_parallel, too.")
    ] = False,
    multiple: Multiple = 0,
    repetitions: Repetitions = 5,
    warmup: Warmup = 1,
    seed: Seed = 0,
    hang_timeout: HangTimeout = 120.0,
    track: Track = "none",
) -> None:
    """Measure the ring under one throttle setting, all lengths and strategies, and each rank alone; print medians."""
    grid = grid_of(platform)
    lengths = grid.seq_lens if seq_lens is None else integers("--seq-lens", seq_lens)
    asked = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "dtype": dtype or None}
    speeds = integers("--percentages", percentages)
    if output is not None:
        check_measured(output)

    from rich.console import Console

    from heteroring.bench.ring import run as stage
    from heteroring.bench.ring.job import Job
    from heteroring.bench.run import measure
    from heteroring.bench.shape import Shape
    from heteroring.results.summary import summary

    setting = Job(
        platform=platform,
        label=label_of(label, platform),
        throttle=throttle or DEFAULTS.get(platform, "none"),
        percentages=speeds,
        seq_lens=lengths,
        strategies=strategies_of(models) if strategies is None else tuple(strategies.split(",")),
        shape=Shape(batch, **{name: getattr(grid, name) if it is None else it for name, it in asked.items()}),
        models=models,
        block=block,
        modules=tuple(module.split(",")),
        fms_seq_lens=integers("--fms-seq-lens", fms_seq_lens) if fms_seq_lens else (),
        condition=condition,
        number=job,
        transport=transport,
        peers=peers,
        multiple=multiple,
        repetitions=repetitions,
        warmup=warmup,
        seed=seed,
    )

    def show(done: stage.Sweep) -> None:
        with printing():
            Console().print(summary(done.rows))

    measure(stage, setting, speeds, hang_timeout, output, f"ring at {percentages} %", show=show, track=track)


@app.command()
@reporting
def fit(
    profiles: Annotated[
        list[Path], typer.Argument(help="CSVs that `heteroring profile` wrote.", metavar="PROFILE_CSV...")
    ],
    output: Annotated[Path, typer.Option(help="JSON of the model to write.")],
    kind: Annotated[str, typer.Option(help="lut, formula or cost.")] = "lut",
    source: Annotated[
        str,
        typer.Option(
            help="Operator to fit to: matmul or attention; for cost attention, layer or block.",
            show_default="matmul; attention for cost",
        ),
    ] = "",
) -> None:
    """Fit a model of speed or of cost, by length and percentage, to profiles."""
    check_output(output, ".json")
    from heteroring.allocators import fit

    raise_on_ctrl_c()
    fit(kind, source or ("attention" if kind == "cost" else "matmul"), profiles).save(output)


@app.command()
@reporting
def allocate(
    allocator: Annotated[str, typer.Argument(help="even, uneven, lut, formula or balanced.")],
    seq_len: Annotated[int, typer.Option(help="Tokens to share out.")],
    percentages: Percentages,
    model: Annotated[
        Path | None, typer.Option(help="Fitted model, or profile CSV, for lut, formula, balanced.")
    ] = None,
    layout: Annotated[str, typer.Option(help="contiguous or zigzag; balanced plans for it.")] = "zigzag",
) -> None:
    """Print how many tokens each rank gets; what is odd about the answer goes to stderr."""
    speeds = integers("--percentages", percentages)
    from heteroring.allocators import allocation

    answer = allocation(allocator, seq_len, percentages=speeds, profile=model, layout=layout)
    for note in answer.notes:
        print(f"heteroring: note: {note}", file=sys.stderr)
    with printing():
        print(*answer.block_lens)


@app.command()
@reporting
def aggregate(
    platform_dir: Annotated[Path, typer.Option(help="Folder of a platform: holds bench/ and profile/.")],
    percentages: Annotated[
        str, typer.Option(help="Throttle settings of the profiles, separated by commas.", show_default="all there")
    ] = "",
    model_percentages: Annotated[
        str,
        typer.Option(help="Those of whole models, separated by commas, or: none.", show_default="all there"),
    ] = "",
    bench: Annotated[
        str,
        typer.Option(
            help="Jobs of the ring, separated by commas: the names of their files in bench/, without suffix.",
            show_default="all there",
        ),
    ] = "",
) -> None:
    """Derive a platform's tables from the rows of its jobs."""
    chosen = integers("--percentages", percentages) if percentages else None
    of_models = None
    if model_percentages:
        of_models = () if model_percentages == "none" else integers("--model-percentages", model_percentages)
    from heteroring.results.aggregate import aggregate

    raise_on_ctrl_c()
    tables = aggregate(platform_dir, chosen, of_models, tuple(bench.split(",")) if bench else None)
    with printing():
        print(*tables, sep="\n")


app.command()(cli_model.model)
app.command()(cli_demo.demo)


def main() -> None:
    """Run the command line, to the last character that it prints."""
    quit_on_ctrl_c()
    try:
        try:
            app()
        finally:
            quit_on_ctrl_c()
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        # What could not be written is still there, and would be tried again, and complained about, at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno != errno.EPIPE:  # `| head` has seen enough
            say_error(f"cannot write to stdout: {error.strerror}")
        sys.exit(1)

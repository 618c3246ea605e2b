"""`heteroring bench`: the ring, and each rank alone, measured under one throttle setting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from heteroring.bench.default_grid import default_strategies, grid_of
from heteroring.cli.options import (
    LISTED,
    WHAT,
    WRITE,
    Batch,
    Block,
    Condition,
    GridDtype,
    HangTimeout,
    HeadDim,
    Heads,
    Json,
    KvHeads,
    Label,
    Models,
    Multiple,
    Number,
    Percentages,
    Platform,
    Repetitions,
    Seed,
    ThrottleName,
    Track,
    Transport,
    Warmup,
    check_measured,
    examples,
    integers,
    label_of,
    measuring,
    of_each_kind,
    option,
    print_json,
    printing,
    say,
)
from heteroring.throttle import DEFAULTS
from heteroring.words import listed

EXAMPLES = examples(
    "heteroring bench --percentages 100,50 --seq-lens 512,1024 --strategies zigzag/even,zigzag/uneven",
    "heteroring bench --platform gpu --peers",
)


@measuring
def bench(
    output: Annotated[
        Path | None, option(WRITE, "CSV of rows to write, beside printing; a .json record goes beside it.")
    ] = None,
    seq_lens: Annotated[
        str | None,
        option(WHAT, f"Sequence lengths, {LISTED}.", show_default=of_each_kind("seq_lens")),
    ] = None,
    percentages: Percentages = "100,100",
    strategies: Annotated[
        str | None,
        option(
            WHAT,
            f"layout/allocator, {LISTED}; zigzag/lut@attention is of a lut fitted to that profile, "
            "zigzag/balanced:p2p a variant (docs/recording.md).",
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
        option(WHAT, f"What to measure, {LISTED}: attention, or fms, the layer of the Foundation Model Stack."),
    ] = "attention",
    fms_seq_lens: Annotated[
        str, option(WHAT, "Sequence lengths of module fms.", show_default="those of --seq-lens")
    ] = "",
    condition: Condition = "rested",
    job: Number = 1,
    transport: Transport = "auto",
    peers: Annotated[
        bool, option(WHAT, "Measure baselines, too: PyTorch's attention on one GPU, context_parallel.", "--peers")
    ] = False,
    multiple: Multiple = 0,
    repetitions: Repetitions = 5,
    warmup: Warmup = 1,
    seed: Seed = 0,
    hang_timeout: HangTimeout = 120.0,
    track: Track = "none",
    as_json: Json = False,
) -> None:
    """Measure the ring under one throttle setting, all lengths and strategies, and each rank alone; print medians."""
    grid = grid_of(platform)
    lengths = grid.seq_lens if seq_lens is None else integers("--seq-lens", seq_lens)
    asked = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "dtype": dtype or None}
    by_rank, modules = integers("--percentages", percentages), listed("--module", module)
    wanted = default_strategies(models) if strategies is None else listed("--strategies", strategies)
    if output is not None:
        check_measured(output)
    description = f"ring at {percentages} %"
    say(description)

    from rich.console import Console

    from heteroring.bench.measure import measure
    from heteroring.bench.ring import run as stage
    from heteroring.bench.ring.job import RingJob
    from heteroring.bench.shape import Shape
    from heteroring.results.summary import records, summary

    setting = RingJob(
        device_kind=platform,
        platform=label_of(label, platform),
        throttle=throttle or DEFAULTS.get(platform, "none"),
        percentages=by_rank,
        seq_lens=lengths,
        strategies=wanted,
        shape=Shape(batch, **{name: getattr(grid, name) if it is None else it for name, it in asked.items()}),
        fitted_models=models,
        backend=block,
        modules=modules,
        fms_seq_lens=integers("--fms-seq-lens", fms_seq_lens) if fms_seq_lens else (),
        condition=condition,
        number=job,
        transport=transport,
        baselines=peers,
        multiple=multiple,
        repetitions=repetitions,
        warmup=warmup,
        seed=seed,
    )

    def show(done: stage.JobResult) -> None:
        if as_json:
            print_json(records(done.rows))
            return
        with printing():
            Console().print(summary(done.rows))

    measure(stage, setting, hang_timeout, output, description, show=show, track=track)

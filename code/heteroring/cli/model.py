"""`heteroring model`: a whole model over the ring, measured under one throttle setting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from heteroring.bench.default_grid import grid_of
from heteroring.cli.options import (
    HOW,
    SHAPE,
    WHAT,
    WRITE,
    Batch,
    Block,
    CsvOutput,
    GridDtype,
    HangTimeout,
    Label,
    Models,
    Multiple,
    Number,
    Percentages,
    Platform,
    Repetitions,
    Seed,
    SeqLens,
    Strategies,
    ThrottleName,
    Track,
    Transport,
    check_measured,
    check_output,
    examples,
    integer,
    integers,
    label_of,
    measuring,
    number,
    of_each_kind,
    option,
    printing,
    say,
)
from heteroring.throttle import DEFAULTS
from heteroring.words import listed

EXAMPLES = examples(
    "heteroring model --percentages 100,50 --seq-lens 512 --strategies zigzag/even,zigzag/uneven --output pct-050.csv",
    "heteroring model --percentages 100 --seq-lens 512 --strategies zigzag/even --peers --output pct-100.csv",
    "heteroring model --percentages 100,100 --seq-lens 256,512 --strategies zigzag/even --decode-only --batch 8 "
    "--output batch-8.csv",
)

Layers = Annotated[int, integer(SHAPE, "Layers; 0: the model's own.")]
EmbDim = Annotated[int, integer(SHAPE, "Width of hidden states; 0: the model's own.")]
ModelHeads = Annotated[int, integer(SHAPE, "Query heads; 0: the model's own.")]
ModelKvHeads = Annotated[int, integer(SHAPE, "KV heads; 0: the model's own.")]
Vocabulary = Annotated[int, integer(SHAPE, "Tokens in the vocabulary; 0: the model's own.")]


@measuring
def model(
    output: CsvOutput,
    seq_lens: SeqLens,
    percentages: Percentages,
    strategies: Strategies,
    model: Annotated[
        str,
        option(WHAT, "FMS architecture/variant; its weights are random.", show_default=of_each_kind("model")),
    ] = "",
    layers: Layers = 0,
    emb_dim: EmbDim = 0,
    heads: ModelHeads = 0,
    kv_heads: ModelKvHeads = 0,
    vocabulary: Vocabulary = 0,
    max_seq_len: Annotated[
        int, integer(SHAPE, "Positions of the model; 0: those that the longest prompt and its new tokens need.")
    ] = 0,
    new_tokens: Annotated[int, integer(WHAT, "Tokens to decode behind the longest prompt.")] = 32,
    decode_only: Annotated[
        bool, option(WHAT, "Compute no prompt; decode at every length, behind synthetic KV.", "--decode-only")
    ] = False,
    peers: Annotated[bool, option(WHAT, "Measure FMS's own generate on each rank, too.", "--peers")] = False,
    eager: Annotated[
        bool, option(HOW, "Launch each kernel of a decode step; else a CUDA graph is replayed.", "--eager")
    ] = False,
    compiled: Annotated[bool, option(HOW, "Call model.compile() before anything is measured.", "--compile")] = False,
    models: Models = None,
    platform: Platform = "cpu",
    label: Label = "",
    throttle: ThrottleName = "",
    batch: Batch = 1,
    dtype: GridDtype = "",
    block: Block = "auto",
    job: Number = 1,
    transport: Transport = "auto",
    multiple: Multiple = 0,
    repetitions: Repetitions = 3,
    cell_seconds: Annotated[
        float, number(HOW, "A strategy at a length that has taken so long is not repeated.")
    ] = 10.0,
    trace: Annotated[
        Path | None,
        option(
            WRITE,
            "CSV of the timeline of one layer, of contiguous/even and zigzag/balanced.",
            show_default="trace-NNN.csv beside an output pct-NNN.csv",
        ),
    ] = None,
    seed: Seed = 0,
    hang_timeout: HangTimeout = 120.0,
    track: Track = "none",
) -> None:
    """Measure a whole model: time to first token of every strategy and of each rank alone, then tokens decoded."""
    lengths, by_rank = integers("--seq-lens", seq_lens), integers("--percentages", percentages)
    grid, wanted = grid_of(platform), listed("--strategies", strategies)
    model, dtype = model or grid.model, dtype or grid.dtype
    asked, trace = trace, trace or output.with_name(f"trace-{output.stem.removeprefix('pct-')}.csv")
    check_measured(output)
    check_output(trace, ".csv")
    if trace.resolve() == output.resolve():
        raise ValueError(f"output and trace are both {output}: they are two files")
    description = f"{model} at {percentages} %"
    say(description)

    from rich.console import Console

    from heteroring.bench.measure import measure
    from heteroring.bench.model import run as stage
    from heteroring.bench.model.job import ModelJob
    from heteroring.bench.model.spec import ModelSpec
    from heteroring.results.model_rows import TRACED
    from heteroring.results.rows import write_rows
    from heteroring.results.summary import model_summary

    setting = ModelJob(
        device_kind=platform,
        platform=label_of(label, platform),
        throttle=throttle or DEFAULTS.get(platform, "none"),
        percentages=by_rank,
        model=ModelSpec(
            model, dtype, layers, emb_dim, heads, kv_heads, vocabulary, max_seq_len or max(lengths) + new_tokens
        ),
        seq_lens=lengths,
        strategies=wanted,
        fitted_models=models,
        batch=batch,
        new_tokens=new_tokens,
        backend=block,
        transport=transport,
        repetitions=repetitions,
        cell_seconds=cell_seconds,
        number=job,
        seed=seed,
        multiple=multiple,
        eager=eager,
        compiled=compiled,
        baselines=peers,
        decode_only=decode_only,
    )

    if asked and not set(TRACED) & set(setting.strategies):
        raise ValueError(f"--trace {asked} is given, but none of {', '.join(TRACED)}, which are traced, is a strategy")

    def write_trace(done: stage.JobResult) -> None:
        if done.trace:
            write_rows(trace, done.trace)
        else:
            trace.unlink(missing_ok=True)  # a trace there is that of an earlier job

    def show(done: stage.JobResult) -> None:
        with printing():
            Console().print(model_summary(done.rows))

    measure(stage, setting, hang_timeout, output, description, show, write_trace, track)

"""`heteroring profile`: how fast one rank computes at one percentage."""

from __future__ import annotations

from typing import Annotated, Any

from heteroring.bench.default_grid import grid_of
from heteroring.cli.options import (
    LISTED,
    RANKS,
    WHAT,
    Batch,
    Block,
    CsvOutput,
    GridDtype,
    HangTimeout,
    Label,
    Platform,
    Repetitions,
    Seed,
    ShapeHeadDim,
    ShapeHeads,
    ShapeKvHeads,
    ThrottleName,
    Track,
    Warmup,
    check_measured,
    examples,
    integer,
    integers,
    label_of,
    measuring,
    option,
    say,
)
from heteroring.throttle import DEFAULTS
from heteroring.words import listed

EXAMPLES = examples("heteroring profile --percentage 50 --sizes 256,512 --seq-lens 512,1024 --output pct-050.csv")


@measuring
def profile(
    output: CsvOutput,
    seq_lens: Annotated[str, option(WHAT, f"Sequence lengths, {LISTED}: of all kinds but matmul.")] = "",
    sizes: Annotated[str, option(WHAT, f"n of n x n x n matmuls, {LISTED}.")] = "",
    kinds: Annotated[
        str, option(WHAT, f"What to time, {LISTED}: matmul, attention, fold, layer, block.")
    ] = "matmul,attention,fold",
    model: Annotated[str, option(WHAT, "FMS architecture/variant whose transformer block `block` is.")] = "",
    fms_seq_lens: Annotated[
        str, option(WHAT, "Sequence lengths of kind layer.", show_default="those of --seq-lens")
    ] = "",
    percentage: Annotated[int, integer(RANKS, "Speed of the rank, 1 to 100.")] = 100,
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
    """Measure how fast one rank computes at one percentage: matmuls, attention, the merge of a ring step and more."""
    named = {
        "sizes": ("--sizes", sizes),
        "seq_lens": ("--seq-lens", seq_lens),
        "fms_seq_lens": ("--fms-seq-lens", fms_seq_lens),
    }
    lengths = {name: integers(option, text) if text else () for name, (option, text) in named.items()}
    timed = listed("--kinds", kinds)
    check_measured(output)
    description = f"profile at {percentage} %"
    say(description)

    from heteroring.bench.measure import measure
    from heteroring.bench.profile import run as stage
    from heteroring.bench.profile.job import ProfileJob

    job = ProfileJob(
        device_kind=platform,
        platform=label_of(label, platform),
        throttle=throttle or DEFAULTS.get(platform, "none"),
        percentages=(percentage,),
        **lengths,
        kinds=timed,
        model=model,
        shape=_shape(platform, model, batch, heads, kv_heads, head_dim, dtype),
        backend=block,
        repetitions=repetitions,
        warmup=warmup,
        seed=seed,
    )
    measure(stage, job, hang_timeout, output, description, track=track)


def _shape(platform: str, model: str, batch: int, heads: int, kv_heads: int, head_dim: int, dtype: str) -> Any:
    """The requested Shape; values not given are those of `model`, if one is named, or else of the default grid."""
    from heteroring.bench.shape import Shape

    own = grid_of(platform)
    dtype = dtype or own.dtype
    if model:
        from heteroring.bench.model.spec import ModelSpec

        own = ModelSpec(model, dtype, heads=heads, kv_heads=kv_heads, emb_dim=heads * head_dim).sizes
    return Shape(batch, heads or own.heads, kv_heads or own.kv_heads, head_dim or own.head_dim, dtype)

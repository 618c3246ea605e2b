"""The command line: `heteroring profile | fit | allocate | bench | aggregate`.

Torch, pandas and the like are imported by the command that needs them, so that help and mistakes cost no
wait. Exit codes: 0 done; 1 a run failed; 2 wrong usage or input; 128 + n ended by signal n.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from heteroring import __version__
from heteroring.bench.errors import RunError
from heteroring.files import atomic_path
from heteroring.throttle import DEFAULTS, THROTTLES

app = typer.Typer(
    name="heteroring",
    help="Ring attention over unequal ranks: measure it, fit its speed, share out its tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Platform = Annotated[str, typer.Option(help="cpu (gloo) or gpu (NCCL).")]
Label = Annotated[str, typer.Option(help="What to call the platform in what is written.", show_default="platform")]
ThrottleName = Annotated[
    str,
    typer.Option(
        help=f"What makes ranks slow: {', '.join(THROTTLES)}.",
        show_default=", ".join(f"{name} on {platform}" for platform, name in DEFAULTS.items()),
    ),
]
SeqLens = Annotated[str, typer.Option(help="Sequence lengths, separated by commas.")]
Batch = Annotated[int, typer.Option(help="Sequences.")]
Heads = Annotated[int, typer.Option(help="Query heads.")]
KvHeads = Annotated[int, typer.Option(help="KV heads; heads is a multiple of them.")]
HeadDim = Annotated[int, typer.Option(help="Elements of a head.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Block = Annotated[str, typer.Option(help="What computes a block of attention; auto: the best one there.")]
Repetitions = Annotated[int, typer.Option(help="Timed repetitions of everything.")]
Warmup = Annotated[int, typer.Option(help="Untimed calls before them; one is made in any case.")]
Seed = Annotated[int, typer.Option(help="Of inputs and of the order in which things are measured.")]
HangTimeout = Annotated[float, typer.Option(help="Seconds without a sign of life after which a rank hangs.")]
CsvOutput = Annotated[Path, typer.Option(help="CSV of rows to write; a .json record goes beside it.")]


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with bad input and failed runs turned into a message on stderr and an exit code."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            _fail(str(error), 2)
        except RunError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted", 130)

    return wrapper


def _fail(message: str, code: int) -> None:
    print(f"heteroring: error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def integers(option: str, text: str) -> tuple[int, ...]:
    """The integers in `text`, separated by commas. Raises ValueError, naming `option`, if one is none."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of integers separated by commas") from None


class _Probed(Exception):
    """The output can be written."""


def check_output(path: Path, suffix: str) -> None:
    """Raise ValueError unless `path` ends in `suffix` and a file can be written there. Leaves nothing behind."""
    if path.suffix != suffix:
        raise ValueError(f"output {path} does not end in {suffix}")
    missing = [folder for folder in path.parents if not folder.exists()]
    with suppress(_Probed), atomic_path(path):
        raise _Probed
    for folder in missing:
        with suppress(OSError):  # another job has begun to write there
            folder.rmdir()


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
    percentage: Annotated[int, typer.Option(help="Speed of the rank, 1 to 100.")] = 100,
    platform: Platform = "cpu",
    label: Label = "",
    throttle: ThrottleName = "",
    batch: Batch = 1,
    heads: Heads = 4,
    kv_heads: KvHeads = 4,
    head_dim: HeadDim = 64,
    dtype: Dtype = "float32",
    block: Block = "auto",
    repetitions: Repetitions = 5,
    warmup: Warmup = 1,
    seed: Seed = 0,
    hang_timeout: HangTimeout = 120.0,
) -> None:
    """Measure how fast one rank computes at one percentage: matmuls, causal attention, folds of a visit and more."""
    named = {"sizes": ("--sizes", sizes), "seq_lens": ("--seq-lens", seq_lens)}
    lengths = {name: integers(option, text) if text else () for name, (option, text) in named.items()}
    check_output(output, ".csv")

    from heteroring.bench import profile as stage
    from heteroring.bench.shape import Shape

    job = stage.ProfileJob(
        platform=platform,
        label=label or platform,
        throttle=throttle or DEFAULTS.get(platform, "none"),
        percentage=percentage,
        **lengths,
        kinds=tuple(kinds.split(",")),
        model=model,
        shape=Shape(batch, heads, kv_heads, head_dim, dtype),
        block=block,
        repetitions=repetitions,
        warmup=warmup,
        seed=seed,
    )
    _measure(stage, job, (percentage,), hang_timeout, output, f"profile at {percentage} %")


@app.command()
@reporting
def bench(
    output: CsvOutput,
    seq_lens: SeqLens,
    percentages: Annotated[str, typer.Option(help="Speed of each rank, 1 to 100, separated by commas.")],
    strategies: Annotated[str, typer.Option(help="layout/allocator, separated by commas.")],
    models: Annotated[Path | None, typer.Option(help="Folder of the fitted models.")] = None,
    model_source: Annotated[
        str, typer.Option(help="Profile that lut and formula were fitted to: matmul or attention.")
    ] = "matmul",
    platform: Platform = "cpu",
    label: Label = "",
    throttle: ThrottleName = "",
    batch: Batch = 1,
    heads: Heads = 4,
    kv_heads: KvHeads = 4,
    head_dim: HeadDim = 64,
    dtype: Dtype = "float32",
    block: Block = "auto",
    transport: Annotated[
        str, typer.Option(help="How KV moves: p2p or copy-engine; auto: the best way there.")
    ] = "auto",
    peers: Annotated[
        bool, typer.Option("--peers", help="Measure PyTorch's attention on one GPU and its context_parallel, too.")
    ] = False,
    multiple: Annotated[
        int, typer.Option(help="Tokens that balanced gives out at a time; 0: 256 on GPUs, 1 on CPUs.")
    ] = 0,
    repetitions: Repetitions = 5,
    warmup: Warmup = 1,
    seed: Seed = 0,
    hang_timeout: HangTimeout = 120.0,
) -> None:
    """Measure the ring under one throttle setting: all lengths and strategies, and each rank alone."""
    lengths, speeds = integers("--seq-lens", seq_lens), integers("--percentages", percentages)
    check_output(output, ".csv")

    from heteroring.bench import sweep as stage
    from heteroring.bench.job import Job
    from heteroring.bench.shape import Shape

    job = Job(
        platform=platform,
        label=label or platform,
        throttle=throttle or DEFAULTS.get(platform, "none"),
        percentages=speeds,
        seq_lens=lengths,
        strategies=tuple(strategies.split(",")),
        shape=Shape(batch, heads, kv_heads, head_dim, dtype),
        models=models,
        model_source=model_source,
        block=block,
        transport=transport,
        peers=peers,
        multiple=multiple,
        repetitions=repetitions,
        warmup=warmup,
        seed=seed,
    )
    _measure(stage, job, speeds, hang_timeout, output, f"ring at {percentages} %")


def _measure(
    stage: Any, job: Any, percentages: tuple[int, ...], hang_timeout: float, output: Path, description: str
) -> None:
    """Run `job` by `stage` (the module sweep or profile), and write its record and then its rows."""
    from heteroring.bench.progress import progress_bar
    from heteroring.bench.provenance import provenance, settings_of, write_json
    from heteroring.bench.records import write_rows

    if not hang_timeout > 0:
        raise ValueError(f"--hang-timeout {hang_timeout} is not positive")
    with progress_bar(description, stage.steps(job)) as on_progress:
        done = stage.run(job, hang_timeout=hang_timeout, on_progress=on_progress)
    record = provenance(
        platform=job.label,
        throttle=job.throttle,
        percentages=percentages,
        ranks=done.ranks,
        settings=settings_of(job),
        notes=done.notes,
    )
    write_json(output.with_suffix(".json"), record)
    write_rows(output, done.rows)


@app.command()
@reporting
def fit(
    profiles: Annotated[
        list[Path], typer.Argument(help="CSVs that `heteroring profile` wrote.", metavar="PROFILE_CSV...")
    ],
    output: Annotated[Path, typer.Option(help="JSON of the model to write.")],
    kind: Annotated[str, typer.Option(help="lut or formula.")] = "lut",
    source: Annotated[str, typer.Option(help="Operator to fit to: matmul or attention.")] = "matmul",
) -> None:
    """Fit a model of speed, by length and percentage, to profiles."""
    check_output(output, ".json")
    from heteroring.allocate import fit

    fit(kind, source, profiles).save(output)


@app.command()
@reporting
def allocate(
    allocator: Annotated[str, typer.Argument(help="even, uneven, lut, formula or balanced.")],
    seq_len: Annotated[int, typer.Option(help="Tokens to share out.")],
    percentages: Annotated[str, typer.Option(help="Speed of each rank, 1 to 100, separated by commas.")],
    model: Annotated[
        Path | None, typer.Option(help="Fitted model, or profile CSV, for lut, formula, balanced.")
    ] = None,
    layout: Annotated[str, typer.Option(help="contiguous or zigzag; balanced plans for it.")] = "zigzag",
) -> None:
    """Print how many tokens each rank gets; what is odd about the answer goes to stderr."""
    speeds = integers("--percentages", percentages)
    from heteroring.allocate import allocation

    answer = allocation(allocator, seq_len, percentages=speeds, profile=model, layout=layout)
    for note in answer.notes:
        print(f"heteroring: note: {note}", file=sys.stderr)
    print(*answer.block_lens)


@app.command()
@reporting
def aggregate(
    platform_dir: Annotated[Path, typer.Option(help="Folder of a platform: holds bench/ and profile/.")],
) -> None:
    """Derive a platform's tables from the rows of its jobs."""
    from heteroring.bench.aggregate import aggregate

    for path in aggregate(platform_dir):
        print(path)


def main() -> None:
    """Run the command line."""
    app()

"""What the commands have in common: their options, how they fail, and how a job's results are written."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heteroring.bench.defaults import GRIDS
from heteroring.bench.errors import RunError
from heteroring.bench.rules import NAME
from heteroring.cli_interrupt import check_ctrl_c, noting_ctrl_c
from heteroring.files import atomic_path
from heteroring.throttle import DEFAULTS, THROTTLES

if TYPE_CHECKING:
    from heteroring.bench.commit import Commit


def of_each_platform(name: str) -> str:
    """What is measured on each platform unless something else is asked for, for an option's help."""

    def shown(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return "; ".join(f"{shown(getattr(grid, name))} on {platform}" for platform, grid in GRIDS.items())


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
Percentages = Annotated[str, typer.Option(help="Speed of each rank, 1 to 100, separated by commas.")]
Strategies = Annotated[str, typer.Option(help="layout/allocator, separated by commas.")]
Models = Annotated[Path | None, typer.Option(help="Folder of the fitted models.")]
Condition = Annotated[str, typer.Option(help="How calls are timed: rested, sustained, eager or captured.")]
Number = Annotated[int, typer.Option(help="Which of several independently started jobs this is, from 1.")]
Batch = Annotated[int, typer.Option(help="Sequences.")]
Heads = Annotated[int | None, typer.Option(help="Query heads.", show_default=of_each_platform("heads"))]
KvHeads = Annotated[
    int | None, typer.Option(help="KV heads; heads is a multiple of them.", show_default=of_each_platform("kv_heads"))
]
HeadDim = Annotated[int | None, typer.Option(help="Elements of a head.", show_default=of_each_platform("head_dim"))]
GridDtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.", show_default=of_each_platform("dtype"))]
_OR_MODEL = "; or the model's"
ShapeHeads = Annotated[int, typer.Option(help="Query heads.", show_default=of_each_platform("heads") + _OR_MODEL)]
ShapeKvHeads = Annotated[int, typer.Option(help="KV heads.", show_default=of_each_platform("kv_heads") + _OR_MODEL)]
ShapeHeadDim = Annotated[
    int, typer.Option(help="Elements of a head.", show_default=of_each_platform("head_dim") + _OR_MODEL)
]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Block = Annotated[str, typer.Option(help="What computes a block of attention; auto: the best one there.")]
Transport = Annotated[str, typer.Option(help="How KV moves: p2p or copy-engine; auto: the best way there.")]
Multiple = Annotated[int, typer.Option(help="Tokens that balanced gives out at a time; 0: 256 on GPUs, 1 on CPUs.")]
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
            with noting_ctrl_c():
                command(*args, **kwargs)
        except ValueError as error:
            _fail(str(error), 2)
        except RunError as error:
            _fail(str(error), error.exit_code)
        except OSError as error:
            _fail(str(error), 1)
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


def check_measured(path: Path) -> None:
    """Raise ValueError unless a measurement's rows, a CSV, can be written to `path`, and its record beside it."""
    check_output(path, ".csv")
    check_output(path.with_suffix(".json"), ".json")


def label_of(label: str, platform: str) -> str:
    """What rows call the platform. Raises ValueError if `label` is given and rows could not hold it."""
    try:
        NAME.check(label or platform)
    except ValueError as error:
        raise ValueError(f"--label {error}") from None
    return label or platform


def measure(
    stage: Any,
    job: Any,
    percentages: tuple[int, ...],
    hang_timeout: float,
    output: Path | None,
    description: str,
    show: Callable[[Any], None] = lambda done: None,
    write_beside: Callable[[Any], None] = lambda done: None,
) -> None:
    """Run `job` by `stage`, the module of a measurement, and `show` the results before anything is written.

    Where there is an `output`, `write_beside` is given the results, their record is written, and then their rows to
    `output`: where rows are, the rest is, and belongs to them. What cannot be written leaves an older result alone, and
    is an OSError that says what is lost.
    """
    from heteroring.bench.commit import read_commit
    from heteroring.bench.progress import progress_bar
    from heteroring.bench.telemetry import telemetry

    if not 0 < hang_timeout < inf:
        raise ValueError(f"--hang-timeout {hang_timeout} is not a positive, finite number of seconds")
    commit = read_commit()  # the one that is measured, and not one that is made meanwhile
    check_ctrl_c()
    start = time.monotonic()
    with progress_bar(description, stage.steps(job)) as on_progress, telemetry(job.platform) as gpus:
        done = stage.run(job, hang_timeout=hang_timeout, on_progress=on_progress)
    took = {"seconds": time.monotonic() - start, "gpus": gpus}
    try:
        show(done)
    finally:  # a terminal that is gone costs no rows
        if output is not None:
            _write(job, percentages, commit, done, took, output, write_beside)


def _write(
    job: Any,
    percentages: tuple[int, ...],
    commit: Commit,
    done: Any,
    took: dict[str, Any],
    output: Path,
    write_beside: Callable[[Any], None],
) -> None:
    from heteroring.bench.provenance import dump_json, provenance, settings_of
    from heteroring.bench.records import dump_rows

    record = provenance(
        platform=job.label,
        throttle=job.throttle,
        percentages=percentages,
        ranks=done.ranks,
        settings=settings_of(job),
        commit=commit,
        row_count=len(done.rows),
        notes=done.notes,
        **took,
    )
    # All is on the disk before the older result goes; then the record takes its place, and the rows last.
    try:
        with atomic_path(output) as rows:
            dump_rows(rows, done.rows)
            with atomic_path(output.with_suffix(".json")) as beside:
                dump_json(beside, record)
                write_beside(done)
                output.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OSError(f"{error}: the {len(done.rows)} rows that were measured for {output} are lost") from error

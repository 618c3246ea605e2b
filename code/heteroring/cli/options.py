"""What the commands have in common: their options, how they fail, and checks of where they write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from heteroring.bench.defaults import GRIDS
from heteroring.files import atomic_path
from heteroring.interrupts import INTERRUPTED, ctrl_c_held
from heteroring.launch.errors import RunError
from heteroring.results.columns import NAME
from heteroring.throttle import DEFAULTS, THROTTLES


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
Block = Annotated[str, typer.Option(help="What computes a block of attention; auto: the best one there.")]
Transport = Annotated[str, typer.Option(help="How KV moves: p2p or copy-engine; auto: the best way there.")]
Multiple = Annotated[int, typer.Option(help="Tokens that balanced gives out at a time; 0: 256 on GPUs, 1 on CPUs.")]
Repetitions = Annotated[int, typer.Option(help="Timed repetitions of everything.")]
Warmup = Annotated[int, typer.Option(help="Untimed calls before them; one is made in any case.")]
Seed = Annotated[int, typer.Option(help="Of inputs and of the order in which things are measured.")]
HangTimeout = Annotated[float, typer.Option(help="Seconds without a sign of life after which a rank hangs.")]
Track = Annotated[
    str,
    typer.Option(help="Where to log the job beside its files: none, or wandb.", envvar="HETERORING_TRACK"),
]
CsvOutput = Annotated[Path, typer.Option(help="CSV of rows to write; a .json record goes beside it.")]


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with bad input and failed runs turned into a message on stderr and an exit code."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            for name, value in kwargs.items():
                if isinstance(value, int):
                    _check_width(f"--{name.replace('_', '-')}", value)
            command(*args, **kwargs)
        except ValueError as error:
            _fail(str(error), 2)
        except RunError as error:
            _fail(str(error), error.exit_code)
        except StdoutError:
            raise
        except OSError as error:
            _fail(str(error), 1)
        except KeyboardInterrupt:
            _fail(INTERRUPTED, 130)

    return wrapper


class StdoutError(OSError):
    """What a command found could not be printed."""


@contextmanager
def printing() -> Iterator[None]:
    """Let what the block prints out. Raises StdoutError if stdout does not take it."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise StdoutError(error.errno, error.strerror) from error


def say_error(message: str) -> None:
    """Print why a command ends. Where stderr takes nothing, the exit code has to do."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"heteroring: error: {message}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> None:
    say_error(message)
    raise typer.Exit(code)


def integers(option: str, text: str) -> tuple[int, ...]:
    """The integers in `text`, separated by commas. Raises ValueError, naming `option`, if one is none or absurd."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of integers separated by commas") from None
    for number in numbers:
        _check_width(option, number)
    return numbers


def _check_width(option: str, number: int) -> None:
    """Raise ValueError for a number that what is written in C could not take."""
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{option} {number} does not fit in 64 bits")


class _Probed(Exception):
    """The output can be written."""


def check_output(path: Path, suffix: str) -> None:
    """Raise ValueError unless `path` ends in `suffix` and a file can be written there. Leaves nothing behind."""
    if path.suffix != suffix:
        raise ValueError(f"output {path} does not end in {suffix}")
    missing = [folder for folder in path.parents if not folder.exists()]
    with ctrl_c_held():
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

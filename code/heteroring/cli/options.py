"""Common options of commands, the reporting of errors, and checks of output paths."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from heteroring.bench.default_grid import GRIDS
from heteroring.files import atomic_path
from heteroring.interrupts import INTERRUPTED, ctrl_c_held
from heteroring.launch.errors import RunError
from heteroring.launch.external_ranks import leads, together
from heteroring.results.column_rules import NAME
from heteroring.throttle import DEFAULTS, THROTTLES
from heteroring.words import in_one_line, listed, shown


def of_each_kind(name: str) -> str:
    """The default of a Grid's field on each device kind, for an option's help."""

    def shown(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return "; ".join(f"{shown(getattr(grid, name))} on {kind}" for kind, grid in GRIDS.items())


# The groups in which help shows commands, and options.
MEASURE, SPLIT, SHOW = "Measure", "Fit and share out", "Show"
WHAT, RANKS, SHAPE, HOW, WRITE = "What", "Ranks", "Shape", "How it is timed", "What is written"


def option(group: str, help: str, *names: str, **settings: Any) -> Any:
    """A typer option, shown in `group`."""
    return typer.Option(*names, help=help, rich_help_panel=group, **settings)


def integer(group: str, help: str, **settings: Any) -> Any:
    """An option that takes an integer."""
    return option(group, help, parser=_integer, metavar="<int>", **settings)


def number(group: str, help: str, **settings: Any) -> Any:
    """An option that takes a number."""
    return option(group, help, parser=_number, metavar="<float>", **settings)


def _integer(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise typer.BadParameter(f"{shown(text)} is not an integer") from None
    if not -(2**63) <= value < 2**63:  # code in C could not represent it
        raise typer.BadParameter(f"{shown(value)} does not fit in 64 bits")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{shown(text)} is not a number") from None


def examples(*commands: str) -> str:
    """The examples below the help of a command."""
    return "\n\n".join([f"{'Examples' if len(commands) > 1 else 'Example'}:", *commands])


LISTED = "separated by commas or spaces"
Platform = Annotated[str, option(RANKS, "cpu (gloo) or gpu (NCCL).")]
Label = Annotated[str, option(WRITE, "Name of the platform in rows.", show_default="platform")]
ThrottleName = Annotated[
    str,
    option(
        RANKS,
        f"What makes ranks slow: {', '.join(THROTTLES)}.",
        show_default=", ".join(f"{name} on {kind}" for kind, name in DEFAULTS.items()),
    ),
]
SeqLens = Annotated[str, option(WHAT, f"Sequence lengths, {LISTED}.")]
Percentages = Annotated[str, option(RANKS, f"Speed of each rank, 1 to 100, {LISTED}.")]
PrefixLens = Annotated[
    str, option(WHAT, f"Earlier tokens of each rank, which the new ones see, {LISTED}.", show_default="none")
]
Strategies = Annotated[str, option(WHAT, f"layout/allocator, {LISTED}.")]
Models = Annotated[Path | None, option(WHAT, "Folder of the fitted models.")]
Condition = Annotated[str, option(HOW, "How calls are timed: rested, sustained, eager or captured.")]
Number = Annotated[int, integer(HOW, "Which of several independently started jobs this is, from 1.")]
Batch = Annotated[int, integer(SHAPE, "Sequences.")]
Heads = Annotated[int | None, integer(SHAPE, "Query heads.", show_default=of_each_kind("heads"))]
KvHeads = Annotated[
    int | None, integer(SHAPE, "KV heads; heads is a multiple of them.", show_default=of_each_kind("kv_heads"))
]
HeadDim = Annotated[int | None, integer(SHAPE, "Elements of a head.", show_default=of_each_kind("head_dim"))]
GridDtype = Annotated[str, option(SHAPE, "float32, float16 or bfloat16.", show_default=of_each_kind("dtype"))]
_OR_MODEL = "; or the model's"
ShapeHeads = Annotated[int, integer(SHAPE, "Query heads.", show_default=of_each_kind("heads") + _OR_MODEL)]
ShapeKvHeads = Annotated[int, integer(SHAPE, "KV heads.", show_default=of_each_kind("kv_heads") + _OR_MODEL)]
ShapeHeadDim = Annotated[int, integer(SHAPE, "Elements of a head.", show_default=of_each_kind("head_dim") + _OR_MODEL)]
Block = Annotated[str, option(HOW, "What computes attention; auto: the best one there.")]
Transport = Annotated[str, option(HOW, "How KV moves: p2p or copy-engine; auto: the best way there.")]
Multiple = Annotated[int, integer(WHAT, "Tokens that balanced gives out at a time; 0: 256 on GPUs, 1 on CPUs.")]
Repetitions = Annotated[int, integer(HOW, "Timed repetitions of everything.")]
Warmup = Annotated[int, integer(HOW, "Untimed calls before them; one is made in any case.")]
Seed = Annotated[int, integer(HOW, "Of inputs and of the order in which things are measured.")]
HangTimeout = Annotated[float, number(HOW, "Seconds without a sign of life after which a rank hangs.")]
Track = Annotated[
    str, option(WRITE, "Where to log the job beside its files: none, or wandb.", envvar="HETERORING_TRACK")
]
CsvOutput = Annotated[Path, option(WRITE, "CSV of rows to write; a .json record goes beside it.")]
Json = Annotated[bool, option(WRITE, "Print JSON, for scripts.", "--json")]


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with bad input and failed runs turned into a message on stderr and an exit code."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            _fail(in_one_line(str(error)), 2)
        except RunError as error:
            _fail(str(error), error.exit_code)
        except StdoutError:
            raise
        except OSError as error:
            _fail(in_one_line(str(error)), 1)
        except KeyboardInterrupt:
            _fail(INTERRUPTED, 130)

    return wrapper


class StdoutError(OSError):
    """The output of a command could not be printed."""


def measuring(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as wrapped by `reporting`, run by all ranks together where torchrun or srun started several."""

    @reporting
    @wraps(command)
    def wrapper(*args: Any, hang_timeout: float, **kwargs: Any) -> None:
        with together(hang_timeout):
            command(*args, hang_timeout=hang_timeout, **kwargs)

    return wrapper


@contextmanager
def printing() -> Iterator[None]:
    """Flush stdout on leaving. Raises StdoutError if it cannot be written."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise StdoutError(error.errno, error.strerror) from error


def print_json(content: Any) -> None:
    """Print `content` as JSON. Raises StdoutError if stdout cannot be written."""
    with printing():
        print(json.dumps(content, indent=2, allow_nan=False))


def say(what: str) -> None:
    """Print on a terminal which command starts: its imports take seconds."""
    if sys.stderr is not None and sys.stderr.isatty():
        with suppress(OSError):
            print(f"heteroring: {what} ...", file=sys.stderr, flush=True)


def say_error(message: str) -> None:
    """Print why a command ends. If stderr cannot be written, there is only the exit code."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"heteroring: error: {message}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> None:
    say_error(message)
    raise typer.Exit(code)


def integers(name: str, text: str) -> tuple[int, ...]:
    """The integers in `text`, a list. Raises ValueError, naming the option `name`, if one is invalid or too large."""
    try:
        return tuple(map(_integer, listed(name, text)))
    except typer.BadParameter as error:
        raise ValueError(f"{name} {shown(text)} is not a list of integers: {error.message}") from None


class _Probed(Exception):
    """Marker that the output has been found writable."""


def check_output(path: Path, suffix: str) -> None:
    """Raise ValueError unless `path` ends in `suffix` and a file can be written there. Leaves nothing behind.

    Of ranks that torchrun or srun started, only rank 0 must be able to write it.
    """
    if path.suffix != suffix:
        raise ValueError(f"output {path} does not end in {suffix}")
    if not leads():
        return
    missing = [folder for folder in path.parents if not folder.exists()]
    with ctrl_c_held():
        with suppress(_Probed), atomic_path(path):
            raise _Probed
        for folder in missing:
            with suppress(OSError):  # another job has started to write there
                folder.rmdir()


def check_measured(path: Path) -> None:
    """Raise ValueError unless a measurement's rows, a CSV, can be written to `path`, and its record beside it."""
    check_output(path, ".csv")
    check_output(path.with_suffix(".json"), ".json")


def label_of(label: str, platform: str) -> str:
    """The platform's name in rows. Raises ValueError if `label` is given and is no valid name."""
    try:
        NAME.check(label or platform)
    except ValueError as error:
        raise ValueError(f"--label {error}") from None
    return label or platform

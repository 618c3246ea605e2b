"""Row types of measurements and profiles: a frozen dataclass is a CSV row, its fields are the columns."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import combinations, product
from math import isclose
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from heteroring.files import atomic_path, read_json, sync
from heteroring.results.column_rules import (
    BOOLEAN,
    COUNT,
    INDEX,
    INDICES,
    NAME,
    PERCENTAGE,
    PERCENTAGES,
    POSITIVE,
    TIMES,
    Rule,
    one_of,
)
from heteroring.results.operator_kinds import FOLD_KEYS, KINDS
from heteroring.results.reader import read_lines
from heteroring.ring.partition import LAYOUTS
from heteroring.ring.workload import causal_flops, total_pairs
from heteroring.throttle import THROTTLES
from heteroring.words import shown

SYSTEMS = ("ring", "subset", "alone", "context_parallel", "sdpa")
MODULES = ("attention", "fms")
CONDITIONS = ("rested", "sustained", "eager", "captured")
FIT_SOURCES = tuple(kind for kind in KINDS if kind not in ("fold", "join"))
DTYPES = ("float32", "float16", "bfloat16")
_AGAIN = ": delete it and measure again"
# Relative tolerance of latency times speed: a file keeps 9 digits of each.
_ROUNDING = 1e-7


def column(rule: Rule, default: Any = MISSING) -> Any:
    """A column; `default` is its value in files that were written before the column existed."""
    return field(metadata={"rule": rule}, default=default)


class Identity(NamedTuple):
    """Which rows of a type belong together.

    Rows that agree in `cell` measured the same thing, and differ in `repetition` if they are `repeated`. Rows that
    agree in `group` must agree in the columns `alike`, or they could not be compared. Where `job` is given, these
    columns identify a job, which repeats everything equally often.
    """

    cell: tuple[str, ...]
    alike: tuple[str, ...]
    group: tuple[str, ...] = ()
    job: tuple[str, ...] | None = None
    repeated: bool = True


_SPLIT = ("layout", "allocator", "model_source", "seq_len", "percentages", "block_lens")


@dataclass(frozen=True)
class Measurement:
    """One repetition of one strategy at one length. Times in milliseconds; lists have one entry per rank.

    system: `ring`, or a baseline: `subset` (the ring over the k fastest ranks, called fastestK in column allocator,
    the others hold nothing), `alone` (one rank computes the whole attention, the others hold nothing),
    `context_parallel` (PyTorch's) or `sdpa` (`alone` by PyTorch's attention). condition, how calls are timed:
    `rested`, one call after a rest, which the host has queued ahead; `sustained`, the mean of calls back to back
    (`heteroring.bench.timing.sustained_calls`); `eager`, one call by the host's clock, synchronized before and
    after; `captured`, the same of its replay as a CUDA graph. job: which of the independently started jobs of its
    kind, from 1; repetitions count from 0 in each. latency_ms is that of the slowest rank. busy_ms is time inside
    the backend, the time that the throttle adds included; 0 for PyTorch's baselines, and under condition `captured`.
    In a fused first step, where the kernel itself waits for the first peer's keys, that wait counts as busy: a transfer
    in the call, and in a layer also the peer's work before it has keys. bytes_moved sums the KV that all ranks receive.
    clamped: a prediction on which block_lens is based had to be clamped.

    Raises ValueError, naming column, value and rule, if a value breaks its rule.
    """

    identity: ClassVar = Identity(
        cell=("job", "condition", "module", "system", *_SPLIT),
        alike=("platform", "batch", "heads", "kv_heads", "head_dim", "dtype", "causal", "throttle"),
        group=("module",),
        job=("percentages", "condition", "module", "job"),
    )

    platform: str = column(NAME)
    system: str = column(one_of(*SYSTEMS))
    module: str = column(one_of(*MODULES))
    condition: str = column(one_of(*CONDITIONS))
    seq_len: int = column(COUNT)
    batch: int = column(COUNT)
    heads: int = column(COUNT)
    kv_heads: int = column(COUNT)
    head_dim: int = column(COUNT)
    dtype: str = column(one_of(*DTYPES))
    causal: bool = column(BOOLEAN)
    layout: str = column(one_of(*LAYOUTS))
    allocator: str = column(NAME)
    model_source: str = column(one_of("", *FIT_SOURCES))
    clamped: bool = column(BOOLEAN)
    throttle: str = column(one_of(*THROTTLES))
    percentages: tuple[int, ...] = column(PERCENTAGES)
    block_lens: tuple[int, ...] = column(INDICES)
    block: str = column(NAME)
    transport: str = column(NAME)
    job: int = column(COUNT)
    repetition: int = column(INDEX)
    latency_ms: float = column(POSITIVE)
    busy_ms: tuple[float, ...] = column(TIMES)
    bytes_moved: int = column(INDEX)

    def __post_init__(self) -> None:
        check_columns(self)
        check_split(self, "block_lens", "busy_ms")


@dataclass(frozen=True)
class ProfileRow:
    """One repetition of one operator on one throttled rank.

    kind `matmul`: size x size x size; head counts and head_dim are 0, causal is False. kind `fold`: size queries by
    FOLD_KEYS keys, merged into a running result; causal is False. kind `join`: causal attention of size tokens fused
    with that to FOLD_KEYS keys that all of them see, in one pass. Other kinds (`attention`, FMS's attention `layer`, a
    whole transformer `block`): size is the sequence length. tflops counts the operations that the result needs, masked
    pairs not among them: latency_ms times tflops is their number.

    Raises ValueError, naming column, value and rule, if a value breaks its rule.
    """

    identity: ClassVar = Identity(
        cell=("kind", "size", "percentage"),
        alike=("platform", "batch", "heads", "kv_heads", "head_dim", "dtype", "causal", "throttle"),
        group=("kind",),
        job=("percentage",),
    )

    platform: str = column(NAME)
    kind: str = column(one_of(*KINDS))
    size: int = column(COUNT)
    batch: int = column(INDEX)
    heads: int = column(INDEX)
    kv_heads: int = column(INDEX)
    head_dim: int = column(INDEX)
    dtype: str = column(one_of(*DTYPES))
    causal: bool = column(BOOLEAN)
    throttle: str = column(one_of(*THROTTLES))
    percentage: int = column(PERCENTAGE)
    repetition: int = column(INDEX)
    latency_ms: float = column(POSITIVE)
    tflops: float = column(POSITIVE)

    def __post_init__(self) -> None:
        check_columns(self)
        if self.causal != (self.kind not in ("matmul", "fold")):
            raise ValueError(f"column causal: {self.causal} in kind {self.kind}")
        if (needed := self._needed_flops()) is not None and not isclose(self.flops, needed, rel_tol=_ROUNDING):
            raise ValueError(
                f"columns latency_ms and tflops: {self.latency_ms:.9g} ms at {self.tflops:.9g} TFLOP/s are "
                f"{self.flops:.9g} operations, and a {self.kind} of size {self.size} takes {needed}"
            )

    @property
    def flops(self) -> float:
        """Floating-point operations, as the product of latency and speed."""
        return self.latency_ms * self.tflops * 1e9

    def _needed_flops(self) -> int | None:
        """The operations that the operator needs; None where they depend on more of a model than the columns tell."""
        if self.kind == "matmul":
            return 2 * self.size**3
        whole, further = total_pairs(self.size), self.size * FOLD_KEYS
        pairs = {"attention": whole, "fold": further, "join": whole + further}.get(self.kind)
        return pairs and causal_flops(self.batch, self.heads, self.head_dim, pairs)


class Kept(Protocol):
    """A dataclass of rows that are kept in files, with the columns that identify one."""

    identity: ClassVar[Identity]


Row = TypeVar("Row", bound=Kept)
_RULES: dict[type, dict[str, Rule]] = {}


def _needed(row_type: type) -> list[str]:
    """The columns that every file has."""
    return [f.name for f in fields(row_type) if f.default is MISSING]


def _rules(row_type: type) -> dict[str, Rule]:
    if row_type not in _RULES:
        _RULES[row_type] = {f.name: f.metadata["rule"] for f in fields(row_type)}
    return _RULES[row_type]


def check_columns(row: Any) -> None:
    """Raise ValueError, naming column, value and rule, if a value of a row breaks its rule."""
    for name, rule in _rules(type(row)).items():
        try:
            rule.check(getattr(row, name))
        except ValueError as error:
            raise ValueError(f"column {name}: {error}") from None


def check_split(row: Any, *per_rank: str) -> None:
    """Raise ValueError unless columns `per_rank` have an entry for each percentage, and block_lens sum to seq_len."""
    ranks = len(row.percentages)
    for name in per_rank:
        if len(getattr(row, name)) != ranks:
            raise ValueError(
                f"column {name}: {getattr(row, name)} has not one entry for each of the {ranks} percentages"
            )
    if sum(row.block_lens) != row.seq_len:
        raise ValueError(f"column block_lens: {row.block_lens} does not sum to seq_len {row.seq_len}")


def to_text(row: Any) -> list[str]:
    """The fields of `row` as text, in column order."""
    return [rule.show(getattr(row, name)) for name, rule in _rules(type(row)).items()]


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write rows as a CSV that is there whole or not at all.

    Args:
        path: The CSV.
        rows: Rows, all of one type.

    Raises:
        ValueError: If there are no rows, or if `path` cannot be written.
    """
    rows = list(rows)
    if not rows:
        raise ValueError(f"no rows to write to {path}")
    with atomic_path(path) as temporary:
        dump_rows(temporary, rows)


def dump_rows(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Write rows over a file, and wait until they are on the disk.

    Args:
        path: Path of the CSV.
        rows: One row or more, of one type.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_rules(type(rows[0])))
        writer.writerows(map(to_text, rows))
    sync(path)


class _Placed(NamedTuple):
    """A row, and where it stands: "FILE, line 3"."""

    place: str
    row: Any


def read_rows(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], row_type: type[Row]) -> list[Row]:
    """Read the rows of a CSV that `write_rows` wrote, or of several as one.

    Args:
        paths: One CSV, or several.
        row_type: The type of their rows, such as Measurement.

    Returns:
        The rows, file by file.

    Raises:
        ValueError: Naming file and, where there is one, line, column and value, if a file is missing, empty or cut
            short, if columns are missing, unknown or repeated, if a value breaks its rule, if a row is there twice or a
            repetition is missing, if rows were measured on different things (`Identity`), and if a profile is not
            whole.
    """
    placed: list[_Placed] = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        placed += (found := list(_placed(path, row_type)))
        _check_whole(path, found, row_type.identity)
    _check_once(placed, row_type.identity)
    _check_alike(placed, row_type.identity)
    if row_type is ProfileRow:
        _check_profile(placed)
    return [row for _, row in placed]


def _placed(path: str | os.PathLike[str], row_type: type[Row]) -> Iterator[_Placed]:
    rules = _rules(row_type)
    columns, lines = read_lines(path, _AGAIN)
    for name in _needed(row_type):
        if name not in columns:
            raise ValueError(f"{path}: column {name} is missing")
    for name in columns:
        if name not in rules:
            raise ValueError(f"{path}: column {shown(name)} is unknown")
    for line, texts in lines:
        place = f"{path}, line {line}"
        yield _Placed(place, _row(row_type, dict(zip(columns, texts, strict=True)), place))


def _row(row_type: type[Row], texts: dict[str, str], where: str) -> Row:
    values = {}
    for name, text in texts.items():
        try:
            values[name] = _rules(row_type)[name].read(text)
        except ValueError as error:
            raise ValueError(f"{where}, column {name}: {error}") from None
    try:
        return row_type(**values)
    except ValueError as error:
        raise ValueError(f"{where}, {error}") from None


def _key(row: Any, columns: Iterable[str]) -> tuple:
    return tuple(getattr(row, name) for name in columns)


def _named(row: Any, columns: Iterable[str]) -> str:
    return ", ".join(f"{name} {_rules(type(row))[name].show(getattr(row, name))}" for name in columns)


def _check_whole(path: str | os.PathLike[str], placed: Sequence[_Placed], identity: Identity) -> None:
    """Raise ValueError if lines are missing at the end, as far as rows and the record beside them can show.

    Every cell has its repetitions from 0 on, all cells of a job equally many and as many as were asked for, and there
    are as many rows as were written.
    """
    beside = Path(path).with_suffix(".json")
    record = read_json(beside) if beside.is_file() else None
    if (written := _entry(record, "row_count")) not in (None, len(placed)):
        raise ValueError(f"{path}: {len(placed)} rows, and {beside} says that {shown(written)} were written{_AGAIN}")
    if not identity.repeated:
        return
    asked = _entry(record, "settings", "repetitions") if identity.job else None
    cells: dict[tuple, list[Any]] = defaultdict(list)
    most: dict[tuple, int] = defaultdict(lambda: asked if isinstance(asked, int) else 0)
    for _, row in placed:
        job = _key(row, identity.job or identity.cell)
        cells[_key(row, identity.cell)].append(row)
        most[job] = max(most[job], row.repetition + 1)
    for rows in cells.values():
        there, needed = len({row.repetition for row in rows}), most[_key(rows[0], identity.job or identity.cell)]
        if there < needed:
            raise ValueError(
                f"{path}: rows are missing, {there} of {needed} repetitions are there: "
                f"{_named(rows[0], identity.cell)}{_AGAIN}"
            )


def _entry(record: Any, *names: str) -> Any:
    """A nested entry of a record, by `names` from the outside in; None where there is none."""
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _check_once(placed: Iterable[_Placed], identity: Identity) -> None:
    first: dict[tuple, str] = {}
    columns = (*identity.cell, "repetition") if identity.repeated else identity.cell
    for place, row in placed:
        if (other := first.setdefault(_key(row, columns), place)) != place:
            raise ValueError(f"{place}: the same was measured in {other}: {_named(row, columns)}")


def _check_alike(placed: Iterable[_Placed], identity: Identity) -> None:
    first: dict[tuple, _Placed] = {}
    for place, row in placed:
        for name in identity.alike:
            # A rank at full speed may be profiled without the throttle of the others.
            if name == "throttle" and row.throttle == "none" and getattr(row, "percentage", None) == 100:
                continue
            other = first.setdefault((name, *_key(row, identity.group)), _Placed(place, row))
            if getattr(row, name) != getattr(other.row, name):
                raise ValueError(
                    f"{name} is {shown(getattr(other.row, name))} in {other.place} and {shown(getattr(row, name))} in "
                    f"{place}: rows that are read together are of one platform, throttle, dtype and shape"
                )


def _check_profile(placed: Sequence[_Placed]) -> None:
    """Raise ValueError unless every operator was timed at every percentage, and plausibly.

    An operator of one size needs as many operations in every row, and not far less time on a far slower rank.
    """
    first: dict[tuple, _Placed] = {}
    times: dict[str, dict[int, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for place, row in placed:
        times[row.kind][row.percentage][row.size].append(row.latency_ms)
        other = first.setdefault((row.kind, row.size), _Placed(place, row))
        if not isclose(row.flops, other.row.flops, rel_tol=_ROUNDING):
            raise ValueError(
                f"columns latency_ms and tflops: a {row.kind} of size {row.size} takes {other.row.flops:.9g} "
                f"operations in {other.place} and {row.flops:.9g} in {place}"
            )
    files = ", ".join(dict.fromkeys(place.rpartition(", line ")[0] for place, _ in placed))
    percentages = sorted({row.percentage for _, row in placed})
    for (kind, size), percentage in product(first, percentages):
        if size not in times[kind][percentage]:
            raise ValueError(
                f"{files}: no {kind} row of size {size} at {percentage} %: every size is needed at every percentage"
            )
    for kind, by_percentage in times.items():
        for slow, fast in combinations(sorted(by_percentage), 2):
            slower, faster = by_percentage[slow], by_percentage[fast]
            ratios = [median(slower[size]) / median(faster[size]) for size in slower]
            # Half way, on a log scale, from no difference to swapped columns. Nearer percentages may differ by noise.
            if 4 * slow <= fast and (ratio := geometric_mean(ratios)) < (slow / fast) ** 0.5:
                raise ValueError(
                    f"{files}: {kind} takes {ratio:.3g} times as long at {slow} % as at {fast} %: "
                    "columns latency_ms and tflops are swapped, or percentages are"
                )

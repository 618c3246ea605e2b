"""The rows that measurements are kept as: a frozen dataclass is the CSV row, its fields are the columns."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from heteroring.allocate.profile_table import KINDS
from heteroring.bench.rules import (
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
from heteroring.files import atomic_path

SYSTEMS = ("ring", "alone", "context_parallel", "sdpa")
MODULES = ("attention", "fms")
CONDITIONS = ("rested", "sustained", "eager", "captured")
MODEL_SOURCES = tuple(kind for kind in KINDS if kind not in ("fold", "join"))
DTYPES = ("float32", "float16", "bfloat16")


def column(rule: Rule):
    return field(metadata={"rule": rule})


@dataclass(frozen=True)
class Measurement:
    """One repetition of one strategy at one length. Times in milliseconds; lists have one entry a rank.

    system: `ring`, or a baseline: `alone` (one rank computes the whole attention, the others hold nothing),
    `context_parallel` (PyTorch's) or `sdpa` (PyTorch's attention on rank 0 alone). condition, how calls are timed:
    `rested`, one call that the host has asked for ahead, after a rest; `sustained`, the mean of calls back to back
    (`heteroring.bench.timing.sustained_calls`); `eager`, one call by the host's clock, synchronized before and after;
    `captured`, the same of its replay as a CUDA graph. job: which of the independently started jobs of its kind, from
    1; repetitions count from 0 in each. latency_ms is that of the slowest rank. busy_ms is time inside the attention
    block, what the throttle adds included; 0 for what is not ours, and under condition `captured`. Where the kernel
    itself waits for the first peer's keys (`heteroring.ring.transport.Joinable`), that counts as busy: a transfer in
    the call, and in a layer also whatever that peer still has to do before it has keys. bytes_moved sums the KV that
    all ranks receive. clamped: a prediction behind block_lens had to be clamped.

    Raises ValueError, naming column, value and rule, if a value breaks its rule.
    """

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
    layout: str = column(one_of("contiguous", "zigzag"))
    allocator: str = column(NAME)
    model_source: str = column(one_of("", *MODEL_SOURCES))
    clamped: bool = column(BOOLEAN)
    throttle: str = column(NAME)
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
    FOLD_KEYS keys, folded into a running result; causal is False. kind `join`: causal attention of size tokens, joined
    with FOLD_KEYS keys that all of them see, in one pass. Other kinds (`attention`, FMS's attention `layer`, a
    whole transformer `block`): size is the sequence length. tflops counts the operations that the result needs, masked
    pairs not among them.

    Raises ValueError, naming column, value and rule, if a value breaks its rule.
    """

    platform: str = column(NAME)
    kind: str = column(one_of(*KINDS))
    size: int = column(COUNT)
    batch: int = column(INDEX)
    heads: int = column(INDEX)
    kv_heads: int = column(INDEX)
    head_dim: int = column(INDEX)
    dtype: str = column(one_of(*DTYPES))
    causal: bool = column(BOOLEAN)
    throttle: str = column(NAME)
    percentage: int = column(PERCENTAGE)
    repetition: int = column(INDEX)
    latency_ms: float = column(POSITIVE)
    tflops: float = column(POSITIVE)

    def __post_init__(self) -> None:
        check_columns(self)


Row = TypeVar("Row")


@cache
def _rules(row_type: type) -> dict[str, Rule]:
    return {f.name: f.metadata["rule"] for f in fields(row_type)}


def check_columns(row: Any) -> None:
    """Raise ValueError, naming column, value and rule, if a value of a row's breaks its rule."""
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
    """The cells of `row`, in column order."""
    return [rule.show(getattr(row, name)) for name, rule in _rules(type(row)).items()]


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write `rows`, all of one type, as a CSV that is there whole or not at all.

    Raises ValueError if there are no rows, or if `path` cannot be written.
    """
    rows = list(rows)
    if not rows:
        raise ValueError(f"no rows to write to {path}")
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_rules(type(rows[0])))
        writer.writerows(map(to_text, rows))


def read_rows(path: str | os.PathLike[str], row_type: type[Row]) -> list[Row]:
    """The rows of a CSV that `write_rows` wrote.

    Raises ValueError, naming the file and, where there is one, line, column and value, if the file is
    missing, empty or cut short, if columns are missing, unknown or repeated, or if a value breaks its rule.
    """
    text = _text(path)
    rules = _rules(row_type)
    reader = csv.reader(text.splitlines())
    header = next(reader)
    for name in rules:
        if name not in header:
            raise ValueError(f"{path}: column {name} is missing")
    for name in header:
        if name not in rules or header.count(name) > 1:
            raise ValueError(f"{path}: column {name!r} is unknown or repeated")
    rows = []
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(cells)} cells for {len(header)} columns")
        rows.append(_row(row_type, dict(zip(header, cells, strict=True)), where))
    if not rows:
        raise ValueError(f"{path}: no rows below the header")
    return rows


def _text(path: str | os.PathLike[str]) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    if not text.endswith("\n"):
        raise ValueError(f"{path}: the file is cut short, its last line has no end")
    return text


def _row(row_type: type[Row], cells: dict[str, str], where: str) -> Row:
    values = {}
    for name, rule in _rules(row_type).items():
        try:
            values[name] = rule.read(cells[name])
        except ValueError as error:
            raise ValueError(f"{where}, column {name}: {error}") from None
    try:
        return row_type(**values)
    except ValueError as error:
        raise ValueError(f"{where}, {error}") from None

"""The cost model: measured times per score pair, token and ring step's query row, by length and percentage."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np

from heteroring.allocators.fitted_model import FittedModel
from heteroring.allocators.profile_table import PathLike, ProfileTable, read_latencies
from heteroring.allocators.unit_costs import Cost
from heteroring.allocators.waves import KernelGrid
from heteroring.results.operator_kinds import FOLD_KEYS
from heteroring.results.provenance import read_record
from heteroring.ring.workload import total_pairs


class CostPrediction(NamedTuple):
    """A rank's cost; `clamped` if it is not the model's own value there; and why."""

    cost: Cost
    clamped: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CostModel(FittedModel):
    """Medians by lengths[i] and percentages[j], from the profile of one rank.

    attention_ms: causal attention of the whole sequence, alone. token_us: the further time per token where `source` is
    more than attention, (time of the source - time of the attention) / tokens; 0 for source attention. A source cannot
    be faster than its attention: where noise makes it so, token_us is 0 and predictions near it are clamped.

    revisit_us: time of a query row in a ring step beyond the own KV, without its pairs, (time of a `fold` / rows) -
    (time of FOLD_KEYS pairs); 0 everywhere without rows of kind `fold`. join_us: the same for a fused first step, (time
    of a `join` - time of the attention) / rows - (time of FOLD_KEYS pairs), but no more than revisit_us; revisit_us
    itself without rows of kind `join`, since the backend then has no fused first step. A step that takes no longer than
    its pairs costs 0.

    sms: the SMs that each percentage leaves, from the profiles' provenance, where kind `join` was profiled: only the
    kernel with a fused first step is known to use its SMs as `waves` reckons. Empty otherwise.

    The lengths are those of the source; attention, `fold` and `join` may have been profiled at others, too. Between the
    levels, attention is interpolated as a speed, in pairs per microsecond, and the others as multiples of a pair's
    time, which depend on length and percentage much less than the times: linear in the logarithm of the length and in
    the percentage. On the levels predictions equal the measurements; outside, those at the edge.
    """

    kind: ClassVar[str] = "cost"
    sources: ClassVar[tuple[str, ...]] = ("attention", "layer", "block")
    units: ClassVar[dict[str, str]] = {
        "attention_ms": "ms, causal, whole sequence",
        "token_us": "us per token, beside attention",
        "revisit_us": "us per query row of a further ring step, without its pairs",
        "join_us": "us per query row of a ring step fused with the step over the own KV, without its pairs",
    }

    attention_ms: tuple[tuple[float, ...], ...]
    token_us: tuple[tuple[float, ...], ...]
    revisit_us: tuple[tuple[float, ...], ...]
    join_us: tuple[tuple[float, ...], ...]
    sms: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_table("attention_ms", "attention_ms")
        self.check_table("token_us", "token_us", zero=True)
        self.check_table("revisit_us", "revisit_us", zero=True)
        self.check_table("join_us", "join_us", zero=True)
        object.__setattr__(self, "sms", tuple(self.sms))
        if self.sms and not (
            len(self.sms) == len(self.percentages) and all(type(n) is int and n > 0 for n in self.sms)
        ):
            raise ValueError(f"sms are {self.sms}: they must be one positive integer for each percentage, or none")

    @classmethod
    def from_profiles(cls, paths: PathLike | Iterable[PathLike], source: str | None) -> Self:
        """Fit the model to the latencies in profile CSVs; see `FittedModel.from_profiles`."""
        source = source or "attention"
        cls.check_source(source)
        files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        return cls.fit(source, read_latencies(files), _sms_recorded(files))

    @classmethod
    def fit(cls, source: str, latencies: dict[str, ProfileTable], sms: Mapping[float, int] | None = None) -> Self:
        """Fit a cost model to profiles of attention, of `source`, and of kinds `fold` and `join` where there are any.

        Args:
            source: The operator whose time per token is modelled, one of `sources`.
            latencies: Tables of milliseconds by kind, from `read_latencies`.
            sms: SMs at each percentage, as far as known.

        Returns:
            The fitted model.

        Raises:
            ValueError: If attention or `source` is missing, or if the tables differ in levels, platform or shape.
        """
        for kind in ("attention", source):
            if kind not in latencies:
                raise ValueError(
                    f"a cost model of source {source!r} needs a profile of kind {kind!r}; there is "
                    f"{', '.join(latencies)} only"
                )
        kinds = [kind for kind in ("attention", source, "fold", "join") if kind in latencies]
        used = {kind: _at(latencies[kind], latencies[source].lengths) for kind in kinds}
        attention, whole, merged, fused = used["attention"], used[source], used.get("fold"), used.get("join")
        for kind, table in used.items():
            _check_alike(attention, kind, table)

        def by_cell(value: Callable[[int, int], float]) -> tuple[tuple[float, ...], ...]:
            return tuple(
                tuple(value(i, j) for j in range(len(attention.percentages))) for i in range(len(attention.lengths))
            )

        def token_us(i: int, j: int) -> float:
            return max(0.0, 1e3 * (whole.values[i][j] - attention.values[i][j]) / attention.lengths[i])

        def row_us(i: int, j: int, latency_ms: float) -> float:
            length = attention.lengths[i]
            pairs_us = FOLD_KEYS * 1e3 * attention.values[i][j] / total_pairs(length)
            return max(0.0, 1e3 * latency_ms / length - pairs_us)

        revisit_us = by_cell(lambda i, j: row_us(i, j, merged.values[i][j]) if merged else 0.0)
        known = all((sms or {}).get(each) for each in attention.percentages)
        join_us = by_cell(
            lambda i, j: (
                min(revisit_us[i][j], row_us(i, j, fused.values[i][j] - attention.values[i][j])) if fused else 0.0
            )
        )
        return cls(
            source=source,
            platform=attention.platform,
            setup=attention.setup,
            rows=sum(table.rows for table in used.values()),
            lengths=attention.lengths,
            percentages=attention.percentages,
            attention_ms=attention.values,
            token_us=by_cell(token_us),
            revisit_us=revisit_us,
            join_us=join_us if fused else revisit_us,
            sms=tuple((sms or {}).get(each, 0) for each in attention.percentages) if fused and known else (),
        )

    def predict(self, length: int, percentage: float, earlier: int = 0) -> CostPrediction:
        """Predict the cost of a rank in a call.

        pair_us, and revisit_us and join_us as multiples of it, are read at earlier + length tokens, because the speed
        of a kernel depends on how many keys a tile of queries meets. token_us is read at `length`: only new tokens go
        through the products.

        Args:
            length: New tokens, 1 or more.
            percentage: Nominal speed in percent, 1 to 100.
            earlier: Tokens before them, which they all see.

        Returns:
            The cost, in microseconds.
        """
        whole = earlier + length
        pair = self._pair_us(whole, percentage)

        def beside(table: tuple[tuple[float, ...], ...], at: int) -> float:
            return self._pair_us(at, percentage) * self.interpolated(table / self._pairs_us, at, percentage)

        cost = Cost(pair, beside(self.token_us, length), beside(self.revisit_us, whole), beside(self.join_us, whole))
        lengths = {whole} if self.source == "attention" else {whole, length}
        places = dict.fromkeys(place for at in sorted(lengths) for place in self.outside(at, percentage))
        notes = [f"cost: {place}, read at its edge" for place in places]
        notes += self._held_at_zero(length, percentage)
        return CostPrediction(cost, bool(notes), tuple(notes))

    @cached_property
    def _pairs_us(self) -> np.ndarray:
        """Microseconds of a score pair at each length and percentage."""
        pairs = [[float(total_pairs(length))] for length in self.lengths]
        return 1e3 * np.array(self.attention_ms, float) / pairs

    def _pair_us(self, length: int, percentage: float) -> float:
        return 1 / self.interpolated(1 / self._pairs_us, length, percentage)

    def grid(self, length: int, percentage: float, earlier: int = 0) -> KernelGrid | None:
        """The kernel's tiles on a rank whose cost `predict` gives, for counting whole waves.

        Args:
            length: New tokens, 1 or more.
            percentage: Nominal speed in percent, 1 to 100.
            earlier: Tokens before them, which they all see.

        Returns:
            The grid; None where the SMs at this percentage are not known, or the Hopper kernel does not take the
            operands.
        """
        sms = self.sms_at(percentage)
        cost = self.predict(length, percentage, earlier).cost
        return KernelGrid.of(cost, earlier + length, sms, self.setup) if sms else None

    def sms_at(self, percentage: float) -> int:
        """SMs that `percentage` leaves, 0 where that is not known."""
        return round(np.interp(percentage, self.percentages, self.sms)) if self.sms else 0

    def _held_at_zero(self, length: int, percentage: float) -> list[str]:
        """A note for each cell that a prediction rests on and whose source was no slower than its attention."""
        if self.source == "attention":
            return []
        cells = product(_neighbours(self.lengths, length), _neighbours(self.percentages, percentage))
        return [
            f"cost: the {self.source} took no longer than its attention at {self.lengths[i]} tokens and "
            f"{self.percentages[j]:g} %, token_us held at 0"
            for i, j in cells
            if self.token_us[i][j] == 0
        ]


def _sms_recorded(files: Iterable[PathLike]) -> dict[float, int]:
    """SMs by percentage, from those profiles of one rank that have their provenance beside them."""
    found: dict[float, int] = {}
    for path in map(Path, files):
        try:
            record = read_record(path.with_suffix(".json"))
        except (OSError, ValueError):  # none, or a file of another kind that has this name
            continue
        if len(record["percentages"]) == len(record["multiprocessors"]) == 1:
            achieved = record.get("achieved")
            seen = achieved[0] if isinstance(achieved, list) and achieved else None
            whole = record["multiprocessors"][0]
            sms = seen.get("multiprocessors", whole) if isinstance(seen, dict) else whole
            found[float(record["percentages"][0])] = sms
    return found


def _neighbours(levels: tuple[float, ...], value: float) -> list[int]:
    """Indices of the levels that an interpolation to `value` weighs."""
    if value in levels:
        return [levels.index(value)]
    above = sum(level < value for level in levels)
    return [index for index in (above - 1, above) if 0 <= index < len(levels)]


def _at(table: ProfileTable, lengths: tuple[int, ...]) -> ProfileTable:
    """The table at `lengths` alone, if it has them all."""
    if not set(lengths) <= set(table.lengths):
        return table
    values = dict(zip(table.lengths, table.values, strict=True))
    return table._replace(lengths=lengths, values=tuple(values[length] for length in lengths))


def _check_alike(attention: ProfileTable, kind: str, table: ProfileTable) -> None:
    for name in ("platform", "lengths", "percentages"):
        if getattr(table, name) != getattr(attention, name):
            raise ValueError(
                f"{name} of the {kind} profile are {getattr(table, name)}, those of the attention profile "
                f"{getattr(attention, name)}: they must be the same"
            )
    for name in table.setup.keys() & attention.setup.keys() - {"causal"}:
        if table.setup[name] != attention.setup[name]:
            raise ValueError(
                f"{name} is {table.setup[name]} in the {kind} profile and {attention.setup[name]} in the attention "
                "profile: they must be the same"
            )

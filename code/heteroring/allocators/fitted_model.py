"""The base class of models fitted to profiles: the lengths and percentages that they cover, and their JSON file."""

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np

from heteroring.allocators.profile_table import SOURCES, PathLike
from heteroring.files import atomic_path
from heteroring.words import choices


@dataclass(frozen=True)
class FittedModel(ABC):
    """A speed or cost model of one platform, by length and nominal percentage.

    `source` is the operator whose profile was fitted, one of `sources`; `setup` its dtype and shape, `rows` the number
    of profile rows, `lengths` and `percentages` the ascending levels that they cover.

    Raises ValueError if a field breaks its rule: a damaged or hand-edited file is refused when it is loaded.
    """

    kind: ClassVar[str]
    sources: ClassVar[tuple[str, ...]] = SOURCES
    units: ClassVar[dict[str, str]]

    source: str
    platform: str
    setup: dict[str, str]
    rows: int
    lengths: tuple[int, ...]
    percentages: tuple[float, ...]

    def __post_init__(self) -> None:
        self.check_source(self.source)
        for axis in ("lengths", "percentages"):
            levels = tuple(getattr(self, axis))
            if not levels or not all(a < b for a, b in pairwise((0, *levels, math.inf))):
                raise ValueError(f"{axis} are {levels}: they must be positive and ascending, one or more")
            object.__setattr__(self, axis, levels)

    @classmethod
    def check_source(cls, source: str) -> None:
        """Raise ValueError unless a model of this kind can be fitted to `source`."""
        if source not in cls.sources:
            raise ValueError(f"source {source!r} is unknown: choose {choices(source, cls.sources)}")

    def outside(self, length: int, percentage: float) -> tuple[str, ...]:
        """A phrase for each coordinate that lies outside the levels of the profile."""
        return tuple(
            f"{axis} {value:g} lies outside the profile ({levels[0]:g} to {levels[-1]:g})"
            for axis, value, levels in (
                ("length", length, self.lengths),
                ("percentage", percentage, self.percentages),
            )
            if not levels[0] <= value <= levels[-1]
        )

    def to_json(self) -> dict:
        """The content of the model's file."""
        lengths = "n of an n x n x n product" if self.source == "matmul" else "tokens"
        units = {"lengths": lengths, "percentages": "nominal % of a device", **self.units}
        return {"kind": self.kind, "units": units, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict) -> Self:
        """The inverse of `to_json`. Raises ValueError naming an entry that is missing or breaks its rule."""
        missing = [field.name for field in fields(cls) if field.name not in content and field.default is MISSING]
        if missing:
            raise ValueError(f"entry {missing[0]!r} is missing")
        try:
            return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"an entry has the wrong type ({error})") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model's JSON file. Raises ValueError if `path` cannot be written."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @abstractmethod
    def predict(self, length: int, percentage: float) -> Any:
        """Predict a rank's speed or cost.

        Args:
            length: Tokens, or n of an n x n x n product, 1 or more.
            percentage: Nominal speed in percent, 1 to 100.

        Returns:
            A NamedTuple with `clamped` and `notes`.
        """

    @classmethod
    @abstractmethod
    def from_profiles(cls, paths: PathLike | Iterable[PathLike], source: str | None) -> Self:
        """Fit the model to profile CSVs.

        Args:
            paths: One path of a CSV, or several.
            source: The operator to fit; None for what this kind of model is made for, as far as present.

        Returns:
            The fitted model.

        Raises:
            ValueError: For an unknown source and for whatever cannot be read or fitted.
        """

    def check_table(self, name: str, value: str, zero: bool = False) -> None:
        """Keep a field of the model as tuples, one row per length and one column per percentage, and check it.

        Args:
            name: The field.
            value: What one entry is, for error messages.
            zero: Whether entries may be 0.

        Raises:
            ValueError: Unless the table is whole and its entries are positive, or not negative if they may be 0.
        """
        table = tuple(tuple(row) for row in getattr(self, name))
        shape = (len(self.lengths), len(self.percentages))
        if len(table) != shape[0] or any(len(row) != shape[1] for row in table):
            raise ValueError(f"{name} must have {shape[0]} rows (lengths) of {shape[1]} values (percentages)")
        for length, row in zip(self.lengths, table, strict=True):
            for percentage, entry in zip(self.percentages, row, strict=True):
                if not (math.isfinite(entry) and (entry > 0 or (zero and entry == 0))):
                    rule = "not negative" if zero else "positive"
                    raise ValueError(f"{value} at {length} and {percentage:g} % is {entry}: it must be {rule}")
        object.__setattr__(self, name, table)

    def interpolated(self, table: Iterable[Iterable[float]], length: int, percentage: float) -> float:
        """The value of a table between its levels: linear in the logarithm of the length and in the percentage.

        Args:
            table: One row per length of the profile, one column per percentage.
            length: Tokens, or n of an n x n x n product.
            percentage: Nominal speed in percent.

        Returns:
            The value, in the table's unit; outside of the levels that at the edge.
        """
        # As floats: a file may hold integers that NumPy has no type for.
        values, lengths, percentages = (np.asarray(x, float) for x in (table, self.lengths, self.percentages))
        above = int(np.searchsorted(percentages, percentage))
        around = slice(max(above - 1, 0), above + 1)
        at_length = [np.interp(math.log(length), np.log(lengths), column) for column in values.T[around]]
        return float(np.interp(percentage, percentages[around], at_length))

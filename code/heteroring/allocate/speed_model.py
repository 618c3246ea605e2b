"""What the fitted models have in common: a speed for every (length, percentage), and a JSON file."""

import json
import math
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from heteroring.allocate.profile_table import SOURCES, ProfileTable
from heteroring.files import atomic_path

_LENGTH_UNITS = {"matmul": "n of an n x n x n product", "attention": "tokens"}


class Prediction(NamedTuple):
    """A speed in TFLOP/s, always positive; `clamped` if it is not the model's own value there; and why."""

    speed: float
    clamped: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpeedModel(ABC):
    """Predicted speed (TFLOP/s) of one platform at a length and a nominal percentage.

    `source` is the operator whose profile was fitted (matmul or attention), `setup` its dtype and shape,
    `rows` the number of profile rows, `lengths` and `percentages` the ascending levels that they cover.

    Raises ValueError if a field breaks its rule: a damaged or hand-edited file is refused when it is loaded.
    """

    kind: ClassVar[str]

    source: str
    platform: str
    setup: dict[str, str]
    rows: int
    lengths: tuple[int, ...]
    percentages: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source!r} is unknown: choose one of {', '.join(SOURCES)}")
        for axis in ("lengths", "percentages"):
            levels = tuple(getattr(self, axis))
            if not levels or not all(a < b for a, b in pairwise((0, *levels, math.inf))):
                raise ValueError(f"{axis} are {levels}: they must be positive and ascending, one or more")
            object.__setattr__(self, axis, levels)

    @classmethod
    @abstractmethod
    def fit(cls, profile: ProfileTable) -> Self:
        """The model of a profile."""

    @abstractmethod
    def predict(self, length: int, percentage: float) -> Prediction:
        """Speed at `length` (>= 1) and `percentage` (1 to 100)."""

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
        units = {
            "lengths": _LENGTH_UNITS[self.source],
            "percentages": "nominal % of a device",
            "speeds": "TFLOP/s",
        }
        return {"kind": self.kind, "units": units, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict) -> Self:
        """The inverse of `to_json`. Raises ValueError naming an entry that is missing or breaks its rule."""
        missing = [field.name for field in fields(cls) if field.name not in content]
        if missing:
            raise ValueError(f"entry {missing[0]!r} is missing")
        try:
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"an entry has the wrong type ({error})") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model's JSON file. Raises ValueError if `path` cannot be written."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """The JSON object in `path`. Raises ValueError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read model {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a model file (a JSON object is needed)")
    return content

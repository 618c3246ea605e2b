"""The look-up table: measured speeds, interpolated between the lengths and percentages that were measured."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from heteroring.allocate.profile_table import ProfileTable
from heteroring.allocate.speed_model import Prediction, SpeedModel


@dataclass(frozen=True)
class LookupTable(SpeedModel):
    """speeds[i][j]: median TFLOP/s at lengths[i] and percentages[j].

    Between the levels it is linear in the logarithm of the length and linear in the percentage; on them it
    returns what was measured. Outside, it holds the value at the edge and says so.
    """

    kind: ClassVar[str] = "lut"

    speeds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "speeds", tuple(tuple(row) for row in self.speeds))
        shape = (len(self.lengths), len(self.percentages))
        if len(self.speeds) != shape[0] or any(len(row) != shape[1] for row in self.speeds):
            raise ValueError(f"speeds must have {shape[0]} rows (lengths) of {shape[1]} values (percentages)")
        for length, row in zip(self.lengths, self.speeds, strict=True):
            for percentage, speed in zip(self.percentages, row, strict=True):
                if not (math.isfinite(speed) and speed > 0):
                    raise ValueError(f"speed at {length} and {percentage} % is {speed}: it must be positive")

    @classmethod
    def fit(cls, profile: ProfileTable) -> Self:
        """The table of a profile, as it is."""
        return cls(**vars(profile))

    def predict(self, length: int, percentage: float) -> Prediction:
        table = np.asarray(self.speeds)
        at_length = [np.interp(math.log(length), np.log(self.lengths), column) for column in table.T]
        speed = float(np.interp(percentage, self.percentages, at_length))
        notes = tuple(f"lut: {place}, read at its edge" for place in self.outside(length, percentage))
        return Prediction(speed, bool(notes), notes)

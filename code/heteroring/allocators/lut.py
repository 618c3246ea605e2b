"""The speed model `lut`: measured speeds, interpolated between the lengths and percentages that were measured."""

from dataclasses import dataclass
from typing import ClassVar, Self

from heteroring.allocators.profile_table import ProfileTable
from heteroring.allocators.speed_model import Prediction, SpeedModel


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
        self.check_table("speeds", "speed")

    @classmethod
    def fit(cls, profile: ProfileTable) -> Self:
        """The table of a profile's medians."""
        return cls(**profile.axes(), speeds=profile.values)

    def predict(self, length: int, percentage: float) -> Prediction:
        """The speed at a length and a percentage, from the table.

        Args:
            length: Tokens, or n of an n x n x n product, 1 or more.
            percentage: Nominal speed in percent, 1 to 100.

        Returns:
            The speed in TFLOP/s; `clamped` outside the levels of the profile, where it is that at the edge.
        """
        notes = tuple(f"lut: {place}, read at its edge" for place in self.outside(length, percentage))
        return Prediction(self.interpolated(self.speeds, length, percentage), bool(notes), notes)

"""The base class of speed models, which predict TFLOP/s by length and percentage."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple, Self

from heteroring.allocators.fitted_model import FittedModel
from heteroring.allocators.profile_table import PathLike, ProfileTable, read_profile


class Prediction(NamedTuple):
    """A speed in TFLOP/s, always positive; `clamped` if it is not the model's own value there; and why."""

    speed: float
    clamped: bool = False
    notes: tuple[str, ...] = ()


class SpeedModel(FittedModel):
    """Predicted speed (TFLOP/s) of one platform at a length and a nominal percentage."""

    units: ClassVar[dict[str, str]] = {"speeds": "TFLOP/s"}

    @classmethod
    @abstractmethod
    def fit(cls, profile: ProfileTable) -> Self:
        """The model of a profile."""

    @classmethod
    def from_profiles(cls, paths: PathLike | Iterable[PathLike], source: str | None) -> Self:
        """Fit the model to the speeds of `source` in profile CSVs; see `FittedModel.from_profiles`."""
        return cls.fit(read_profile(paths, source))

    @abstractmethod
    def predict(self, length: int, percentage: float) -> Prediction:
        """Predict a rank's speed.

        Args:
            length: Tokens, or n of an n x n x n product, 1 or more.
            percentage: Nominal speed in percent, 1 to 100.

        Returns:
            The speed in TFLOP/s.
        """

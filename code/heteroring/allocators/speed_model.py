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
        return cls.fit(read_profile(paths, source))

    @abstractmethod
    def predict(self, length: int, percentage: float) -> Prediction:
        """Speed at `length` (>= 1) and `percentage` (1 to 100)."""

"""The speed model `formula`: a quadratic surface fitted to the whole profile by least squares."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from heteroring.allocators.profile_table import ProfileTable
from heteroring.allocators.speed_model import Prediction, SpeedModel

LOSS = "sum of squared errors in TFLOP/s over the cells (length x percentage), each a median, equal weights"

# Exponents of (log10 length, percentage), in the order of scikit-learn's PolynomialFeatures.
TERMS = {
    "intercept": (0, 0),
    "log10_length": (1, 0),
    "percentage": (0, 1),
    "log10_length^2": (2, 0),
    "log10_length*percentage": (1, 1),
    "percentage^2": (0, 2),
}


@dataclass(frozen=True)
class Formula(SpeedModel):
    """TFLOP/s = c0 + c1 x + c2 p + c3 x^2 + c4 x p + c5 p^2, x = log10(length), p = percentage.

    The form is the published study's. It is fitted by ordinary least squares: the loss is the sum of squared
    errors in TFLOP/s over the profile's cells (length x percentage), each the median of its repetitions, all
    of equal weight. `r2` is 1 - loss / (sum of squares about the mean) on those cells. For the two
    leave-one-out scores every cell is predicted from a fit without its percentage level, or without its
    length level; None where the profile has a single one.

    A polynomial may turn negative away from its cells, and a negative speed would give a rank negative tokens
    (on another GPU the published formula gave one -142,116). `min_speed`, the slowest cell fitted, takes the
    place of such a value, and the prediction says so.
    """

    kind: ClassVar[str] = "formula"

    coefficients: dict[str, float]
    min_speed: float
    r2: float
    r2_leave_one_percentage_out: float | None
    r2_leave_one_length_out: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.coefficients) != set(TERMS):
            raise ValueError(f"coefficients are {', '.join(self.coefficients)}: {', '.join(TERMS)} are needed")
        for name, value in self.coefficients.items():
            if not math.isfinite(value):
                raise ValueError(f"coefficient {name} is {value}: it must be finite")
        if not (math.isfinite(self.min_speed) and self.min_speed > 0):
            raise ValueError(f"min_speed is {self.min_speed}: it must be positive")

    @property
    def equation(self) -> str:
        """The fitted surface, for people."""
        first, *others = ((self.coefficients[name], name) for name in TERMS)
        terms = [f"{'-' if value < 0 else '+'} {abs(value):.6g} * {name}" for value, name in others]
        return f"TFLOP/s = {first[0]:.6g} {' '.join(terms)}"

    @classmethod
    def fit(cls, profile: ProfileTable) -> Self:
        """Least squares over the cells of a profile. Raises ValueError if it has fewer than two cells."""
        import numpy as np
        from sklearn.linear_model import LinearRegression
        from sklearn.metrics import r2_score
        from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures

        lengths, percentages = (
            axis.ravel() for axis in np.meshgrid(profile.lengths, profile.percentages, indexing="ij")
        )
        speeds = np.ravel(profile.values)
        if speeds.size < 2:
            raise ValueError(f"a formula needs 2 cells or more to fit; the {profile.source} profile has one")
        features = np.column_stack([np.log10(lengths), percentages])
        pipeline = make_pipeline(PolynomialFeatures(degree=2, include_bias=False), LinearRegression())

        def leave_one_out(levels: np.ndarray) -> float | None:
            if np.unique(levels).size < 2:
                return None
            held_out = cross_val_predict(pipeline, features, speeds, groups=levels, cv=LeaveOneGroupOut())
            return float(r2_score(speeds, held_out))

        fitted = pipeline.fit(features, speeds)
        regression = fitted[-1]
        return cls(
            **profile.axes(),
            coefficients=dict(zip(TERMS, map(float, (regression.intercept_, *regression.coef_)), strict=True)),
            min_speed=float(speeds.min()),
            r2=float(r2_score(speeds, fitted.predict(features))),
            r2_leave_one_percentage_out=leave_one_out(percentages),
            r2_leave_one_length_out=leave_one_out(lengths),
        )

    def predict(self, length: int, percentage: float) -> Prediction:
        """The speed at a length and a percentage, by the formula.

        Args:
            length: Tokens, or n of an n x n x n product, 1 or more.
            percentage: Nominal speed in percent, 1 to 100.

        Returns:
            The speed in TFLOP/s; `clamped` to `min_speed` where the formula is not positive. `notes` say where it
            extrapolates.
        """
        x = math.log10(length)
        speed = sum(self.coefficients[name] * x**i * percentage**j for name, (i, j) in TERMS.items())
        notes = [f"formula: {place}, extrapolated" for place in self.outside(length, percentage)]
        levels = len(self.lengths), len(self.percentages)
        if min(levels) < 3:
            notes.append(f"formula: fitted to {levels[0]} lengths x {levels[1]} percentages, 3 x 3 determine it")
        if speed <= 0:
            notes.append(
                f"formula: predicted {speed:.4g} TFLOP/s at length {length} and {percentage:g} %, "
                f"replaced by the slowest speed fitted, {self.min_speed:.4g}"
            )
        return Prediction(speed if speed > 0 else self.min_speed, speed <= 0, tuple(notes))

    def to_json(self) -> dict:
        """The content of the model's file, with the equation and the loss in words."""
        return {**super().to_json(), "equation": self.equation, "loss": LOSS}

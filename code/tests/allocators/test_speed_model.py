"""The look-up table against SciPy, the formula against scikit-learn and hand-made least squares."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from heteroring.allocators import fit, load_model
from heteroring.allocators.formula import TERMS, Formula
from heteroring.allocators.lut import LookupTable
from heteroring.allocators.profile_table import ProfileTable

# Square fp16 matmuls on one NVIDIA L40 under MPS, TFLOP/s: some cells of l40_matmul_mps_sweep.csv of the
# published study. Rows: n; columns: percentage.
L40 = ProfileTable(
    source="matmul",
    platform="l40",
    setup={"dtype": "float16"},
    lengths=(1024, 4096, 8192, 16384),
    percentages=(10, 20, 30, 50),
    values=(
        (24.91, 38.52, 47.50, 73.20),
        (33.95, 67.57, 98.82, 157.00),
        (33.35, 66.53, 98.80, 156.57),
        (35.74, 68.06, 104.28, 155.30),
    ),
    rows=16,
)

SCORES = {"r2": 1.0, "r2_leave_one_percentage_out": None, "r2_leave_one_length_out": None}
CELLS = [(length, percentage) for length in L40.lengths for percentage in L40.percentages]
SPEEDS = np.ravel(L40.values)


def design(cells):
    """The quadratic's columns, written out: the reference for scikit-learn's features."""
    x, p = np.array([(math.log10(length), percentage) for length, percentage in cells]).T
    return np.stack([np.ones_like(x), x, p, x * x, x * p, p * p], axis=1)


def held_out_r2(levels):
    """R2 of predictions for each level from a least-squares fit to the cells of the other levels."""
    predicted = np.empty_like(SPEEDS)
    levels = np.asarray(levels)
    for level in set(levels):
        left, kept = levels == level, levels != level
        solution = np.linalg.lstsq(design(CELLS)[kept], SPEEDS[kept], rcond=None)[0]
        predicted[left] = design(CELLS)[left] @ solution
    return 1 - ((SPEEDS - predicted) ** 2).sum() / ((SPEEDS - SPEEDS.mean()) ** 2).sum()


def formula_of(**coefficients):
    """A formula with these coefficients, the others 0, and a slowest cell of 0.01 TFLOP/s."""
    levels = {"lengths": (128, 256, 512), "percentages": (10, 50, 100)}
    values = dict.fromkeys(TERMS, 0.0) | coefficients
    return Formula("matmul", "cpu", {}, rows=9, **levels, coefficients=values, min_speed=0.01, **SCORES)


class TestLookupTable:
    table = LookupTable.fit(L40)

    def test_measured_cells_come_back_as_measured(self):
        for (length, percentage), speed in zip(CELLS, SPEEDS, strict=True):
            prediction = self.table.predict(length, percentage)
            assert prediction.speed == pytest.approx(speed, rel=1e-14)
            assert (prediction.clamped, prediction.notes) == (False, ())

    @given(st.integers(1024, 16384), st.floats(10, 50))
    def test_interpolation_is_linear_in_log_length_and_in_percentage(self, length, percentage):
        reference = RegularGridInterpolator((np.log(L40.lengths), L40.percentages), np.array(L40.values))
        prediction = self.table.predict(length, percentage)
        assert prediction.speed == pytest.approx(reference((math.log(length), percentage)).item(), rel=1e-12)
        assert not prediction.clamped

    def test_the_middle_by_hand(self):
        # Half-way in log length between 1024 and 4096 is 2048: not half-way in length.
        assert self.table.predict(2048, 10).speed == pytest.approx((24.91 + 33.95) / 2)
        assert self.table.predict(8192, 40).speed == pytest.approx((98.80 + 156.57) / 2)

    @pytest.mark.parametrize(
        ("length", "percentage", "edge", "named"),
        [
            (512, 20, (1024, 20), ["length 512 lies outside the profile (1024 to 16384)"]),
            (65536, 20, (16384, 20), ["length 65536 lies outside the profile (1024 to 16384)"]),
            (4096, 1, (4096, 10), ["percentage 1 lies outside the profile (10 to 50)"]),
            (65536, 100, (16384, 50), ["length 65536 lies", "percentage 100 lies"]),
        ],
    )
    def test_outside_it_holds_the_edge_and_says_so(self, length, percentage, edge, named):
        prediction = self.table.predict(length, percentage)
        assert prediction.speed == self.table.predict(*edge).speed
        assert prediction.clamped
        assert len(prediction.notes) == len(named)
        for note, text in zip(prediction.notes, named, strict=True):
            assert text in note

    def test_one_cell_is_a_table(self):
        one = LookupTable("attention", "cpu", {}, 1, (512,), (100,), ((2.5,),))
        assert one.predict(512, 100) == (2.5, False, ())
        assert one.predict(4096, 10).speed == 2.5


class TestFormula:
    formula = Formula.fit(L40)

    @given(st.integers(1024, 16384), st.floats(20, 50))
    def test_predictions_are_those_of_the_scikit_learn_pipeline(self, length, percentage):
        pipeline = make_pipeline(PolynomialFeatures(2), LinearRegression())
        pipeline.fit([(math.log10(length), percentage) for length, percentage in CELLS], SPEEDS)
        expected = pipeline.predict([(math.log10(length), percentage)])[0]
        assert self.formula.predict(length, percentage).speed == pytest.approx(expected, rel=1e-9)

    def test_coefficients_are_named_after_their_terms(self):
        solution = np.linalg.lstsq(design(CELLS), SPEEDS, rcond=None)[0]
        assert self.formula.coefficients == pytest.approx(dict(zip(TERMS, solution, strict=True)), rel=1e-8)

    def test_r2_by_hand(self):
        solution = np.linalg.lstsq(design(CELLS), SPEEDS, rcond=None)[0]
        loss = ((SPEEDS - design(CELLS) @ solution) ** 2).sum()
        assert self.formula.r2 == pytest.approx(1 - loss / ((SPEEDS - SPEEDS.mean()) ** 2).sum(), abs=1e-12)

    def test_leave_one_level_out_r2_by_hand(self):
        by_length = held_out_r2([length for length, _ in CELLS])
        by_percentage = held_out_r2([percentage for _, percentage in CELLS])
        assert self.formula.r2_leave_one_length_out == pytest.approx(by_length, abs=1e-9)
        assert self.formula.r2_leave_one_percentage_out == pytest.approx(by_percentage, abs=1e-9)
        assert by_length < self.formula.r2
        assert by_percentage < self.formula.r2

    def test_negative_prediction_is_replaced_and_flagged(self):
        # The published formula, asked for 65,536 tokens at 10 %, gave one rank -142,116 of them.
        raw = (design([(65536, 10)]) @ np.array([self.formula.coefficients[name] for name in TERMS])).item()
        assert raw < 0
        prediction = self.formula.predict(65536, 10)
        assert prediction.speed == self.formula.min_speed == 24.91
        assert prediction.clamped
        assert any(f"predicted {raw:.4g} TFLOP/s at length 65536 and 10 %" in note for note in prediction.notes)

    @given(st.integers(1, 2**24), st.floats(1, 100))
    def test_speed_is_positive_everywhere(self, length, percentage):
        prediction = self.formula.predict(length, percentage)
        assert prediction.speed > 0
        assert prediction.clamped == any("replaced by" in note for note in prediction.notes)

    def test_extrapolation_is_noted_and_not_called_a_clamp(self):
        prediction = self.formula.predict(20000, 50)
        assert prediction.notes == ("formula: length 20000 lies outside the profile (1024 to 16384), extrapolated",)
        assert not prediction.clamped

    def test_equation_gives_the_prediction(self):
        left, right = self.formula.equation.split(" = ")
        assert left == "TFLOP/s"
        value = eval(right.replace("^", "**"), {"log10_length": math.log10(8192), "percentage": 20})
        assert value == pytest.approx(self.formula.predict(8192, 20).speed, rel=1e-3)

    def test_equation_has_the_signs_of_the_coefficients(self):
        text = formula_of(intercept=-0.5, percentage=0.25, log10_length=-0.75).equation
        assert text.startswith("TFLOP/s = -0.5 - 0.75 * log10_length + 0.25 * percentage + 0 * log10_length^2")

    @pytest.mark.parametrize(("speed", "clamped"), [(0.5, False), (1e-9, False), (0.0, True), (-0.5, True)])
    def test_only_a_speed_that_is_not_positive_is_replaced(self, speed, clamped):
        """A CPU's speeds are below 1 TFLOP/s."""
        prediction = formula_of(intercept=speed).predict(256, 50)
        assert prediction.speed == (0.01 if clamped else speed)
        assert prediction.clamped == clamped == bool(prediction.notes)

    def test_profile_too_small_to_determine_the_quadratic(self):
        two = ProfileTable("matmul", "cpu", {}, (128,), (50, 100), ((1.0, 2.0),), 2)
        formula = Formula.fit(two)
        assert formula.r2_leave_one_length_out is None
        assert any("1 lengths x 2 percentages" in note for note in formula.predict(128, 50).notes)
        one = ProfileTable("matmul", "cpu", {}, (128,), (100,), ((2.0,),), 1)
        with pytest.raises(ValueError, match="a formula needs 2 cells or more"):
            Formula.fit(one)


MODELS = [LookupTable.fit(L40), Formula.fit(L40)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
class TestFile:
    def test_round_trip(self, tmp_path, model):
        model.save(tmp_path / "model.json")
        assert load_model(tmp_path / "model.json") == model

    def test_file_says_what_was_fitted(self, tmp_path, model):
        model.save(tmp_path / "model.json")
        content = json.loads((tmp_path / "model.json").read_text())
        assert content["kind"] == model.kind
        assert (content["source"], content["platform"], content["rows"]) == ("matmul", "l40", 16)
        assert content["units"] == {
            "lengths": "n of an n x n x n product",
            "percentages": "nominal % of a device",
            "speeds": "TFLOP/s",
        }
        assert content.get("equation") == (model.equation if model.kind == "formula" else None)
        assert content["lengths"] == [1024, 4096, 8192, 16384]

    def test_missing_entry_is_named(self, tmp_path, model):
        for entry in ("source", "lengths", "speeds" if model.kind == "lut" else "coefficients"):
            content = model.to_json()
            del content[entry]
            path = tmp_path / "model.json"
            path.write_text(json.dumps(content))
            with pytest.raises(ValueError, match=f"{path}: not a valid model file: entry '{entry}' is missing"):
                load_model(path)

    @pytest.mark.parametrize(
        ("entry", "value", "message"),
        [
            ("kind", "spline", "model kind 'spline' is unknown: choose one of lut, formula"),
            ("kind", None, "model kind None is unknown"),
            ("kind", [], "model kind .* is unknown"),
            ("source", "conv", "source 'conv' is unknown"),
            ("lengths", [4096, 1024, 8192, 16384], "lengths are .* positive and ascending"),
            ("lengths", [], "lengths are .* one or more"),
            ("percentages", [0, 20, 30, 50], "percentages are .* positive"),
            ("percentages", "10", "wrong type"),
            ("lengths", 4096, "wrong type"),
        ],
    )
    def test_entry_that_breaks_its_rule(self, tmp_path, model, entry, value, message):
        path = tmp_path / "model.json"
        path.write_text(json.dumps(model.to_json() | {entry: value}))
        with pytest.raises(ValueError, match=f"{path}: not a valid model file: .*{message}"):
            load_model(path)


@pytest.mark.parametrize(
    ("model", "entry", "value", "message"),
    [
        (MODELS[0], "speeds", [[1.0] * 4] * 3, "4 rows .* of 4 values"),
        (MODELS[0], "speeds", [[1.0] * 3] * 4, "4 rows .* of 4 values"),
        (MODELS[0], "speeds", [[1.0, 1.0, 1.0, -1.0]] * 4, "speed at 1024 and 50 % is -1.0"),
        (MODELS[0], "speeds", [[float("nan")] * 4] * 4, "speed at 1024 and 10 % is nan"),
        (MODELS[0], "speeds", [[float("inf")] * 4] * 4, "speed at 1024 and 10 % is inf"),
        (MODELS[1], "coefficients", {"intercept": 1.0}, "log10_length\\^2.* are needed"),
        (MODELS[1], "coefficients", dict.fromkeys(TERMS, float("nan")), "coefficient intercept is nan"),
        (MODELS[1], "coefficients", list(TERMS), "wrong type"),
        (MODELS[1], "min_speed", 0, "min_speed is 0"),
        (MODELS[1], "min_speed", float("inf"), "min_speed is inf"),
    ],
)
def test_damaged_numbers_are_refused(tmp_path, model, entry, value, message):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(model.to_json() | {entry: value}))
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize("content", ["", '{"kind": "lut"', "[1, 2]", "\x00"])
def test_file_that_is_no_model(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}(: not a model file| is not JSON)"):
        load_model(path)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.json: No such file"):
        load_model(tmp_path / "nowhere.json")


def test_fit_names_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="model kind 'spline' is unknown"):
        fit("spline", "matmul", tmp_path / "p.csv")
    with pytest.raises(ValueError, match="source 'conv' is unknown"):
        fit("lut", "conv", tmp_path / "p.csv")


@pytest.mark.ranks
def test_a_saved_formula_predicts_without_scikit_learn(tmp_path):
    MODELS[1].save(tmp_path / "formula.json")
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('sklearn', 'scipy', 'pandas', 'torch', 'matplotlib')))\n"
        "import heteroring\n"
        "print(*heteroring.allocate('formula', 8192, percentages=(50, 20), profile=sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "formula.json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    speeds = [MODELS[1].predict(8192, percentage).speed for percentage in (50, 20)]
    first, second = map(int, done.stdout.split())
    assert first + second == 8192
    assert first == pytest.approx(8192 * speeds[0] / sum(speeds), abs=1)

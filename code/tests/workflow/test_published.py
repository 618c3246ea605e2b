"""The analysis of the public study's record, recomputed from its files by plain arithmetic."""

import csv
import math
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from workflow.preflight import platforms

import paper_numbers
from heteroring import allocate
from heteroring.allocators.formula import TERMS
from paper import study
from tree import ROOT

FOLDER = ROOT / "data" / "published"
RING, MATMUL, FORMULA = (FOLDER / f"{name}.csv" for name in ("l40x2_ring_sweep", "l40_matmul_mps_sweep", "l40_formula"))


@pytest.fixture(scope="module")
def macros() -> dict[str, str]:
    return paper_numbers.model() | paper_numbers.study(study.read(FOLDER))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ring(split: str) -> dict[tuple[int, int], dict]:
    """Rows of one split by (tokens, percentage)."""
    return {(int(r["seq_len"]), int(r["slowdown_pct"])): r for r in rows(RING) if r["split_type"] == split}


def latency(split: str) -> dict[tuple[int, int], float]:
    return {cell: float(row["overall_latency_ms"]) for cell, row in ring(split).items()}


def number(text: str) -> float:
    """A macro's value."""
    return float(re.sub(r"\\,\\%|[{}$,]", "", text))


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[:-2].split("&")] for line in text.splitlines() if "&" in line]


def test_the_record_is_the_published_one():
    """Values that the study's own text states: over 6 s, under 1.4 s, 4.4 times."""
    cell = (65536, 10)
    assert latency("even")[cell] == 6196.21
    assert latency("uneven")[cell] == 1395.67
    assert latency("even")[cell] / latency("uneven")[cell] == pytest.approx(4.4, abs=0.05)
    assert len(rows(RING)) == 5 * 5 * 9
    assert len(rows(MATMUL)) == 5 * 10


def test_the_record_is_not_a_platform():
    recorded = platforms.recorded_platforms(FOLDER.parent)
    assert FOLDER.name not in recorded
    chosen = platforms.choose("auto", 0, recorded)
    assert FOLDER.name not in (*chosen.known, *chosen.shown)
    with pytest.raises(ValueError, match="no measurements are recorded"):
        platforms.choose(FOLDER.name, 0, recorded)
    assert not (FOLDER / "derived").exists(), "where the notebook looks for platforms"


def test_every_file_and_column_is_described():
    for folder in (FOLDER, FOLDER.with_name("h200x2_short")):
        text = (folder / "README.md").read_text()
        for path in folder.glob("*.csv"):
            assert f"`{path.name}`" in text
            for column in rows(path)[0]:
                assert f"`{column}`" in text, column


def test_model_constants_solve_their_equations(macros):
    """Golden ratio; the speedup of proportional over even shards counted in score pairs, not by its formula."""
    f = (math.sqrt(5) - 1) / 2
    assert (macros["GoldenShare"], macros["GoldenGain"]) == (f"{f:.3f}", f"{0.5 / (1 - f):.2f}")
    s, tokens = number(macros["SlowSpeed"]), 1_000_000
    pairs = [0.5 * tokens**2 - 0.5 * first**2 for first in (tokens / 2, tokens / (1 + s))]
    assert number(macros["SpeedupLast"]) == pytest.approx(pairs[0] / pairs[1], abs=0.05)
    least = 0.5 * tokens**2 / (1 + s)
    assert number(macros["FractionLast"]) == pytest.approx(least / (pairs[1] / s), abs=0.005)


def test_the_best_masked_share_is_the_best():
    shares = np.linspace(0, 1, 100_001)
    for speed in (0.1, 0.5, 0.9, 1.0):
        times = [study.time(study.masked_tiles, share, (1, speed)) for share in shares]
        assert study.best_masked_share(speed) == pytest.approx(shares[int(np.argmin(times))], abs=2e-5)


def test_errors_are_recorded_over_predicted_time(macros):
    """From the CSV alone: homogeneous, N/2 queries of rank 1 meet N keys; rank 0 computes n0 x n0, rank 1 n1 x N."""
    homogeneous, even, found = latency("reference_homogeneous"), latency("even"), []
    for split in ("uneven", "lut", "formula"):
        for cell, row in ring(split).items():
            if cell[0] >= 16384:
                n0, n1 = int(row["rank0_tokens"]), int(row["rank1_tokens"])
                fast, slow = (cell[0] ** 2 / 2 / each[cell] for each in (homogeneous, even))
                found.append((n0 & -n0, float(row["overall_latency_ms"]) / max(n0**2 / fast, n1 * cell[0] / slow)))
    aligned, every = [value for tile, value in found if tile >= 64], [value for _, value in found]
    assert (len(aligned), len(every)) == (7, 81)
    assert sorted(study.read(FOLDER).excesses()) == pytest.approx(sorted(every))
    first = table(macros["CheckTable"])[2]
    assert first[0] == "masked tiles"
    for shown, values in ((first[1:3], aligned), (first[5:7], every)):
        error, scatter = max(abs(each - 1) for each in values), statistics.stdev(math.log(each) for each in values)
        assert [number(each) for each in shown] == pytest.approx([100 * error, 100 * scatter], rel=0.05)
    unaligned = [value for tile, value in found if tile < 64]
    assert number(macros["UnalignedCost"]) == pytest.approx(100 * statistics.median(unaligned) - 100, abs=0.5)


def test_the_released_code_in_both_orders_is_predicted_by_masked_tiles(macros):
    """Slow rank first at 10 %, 17,664 tokens in front: n0^2 on the slow rank, n1 x N on the fast one."""
    slow = 592.9 / 6455.6
    predicted = max((17664 / 65536) ** 2 / slow, 47872 / 65536) * 2 * 592.9
    found = study.read(FOLDER).released_excesses()
    assert any(each == pytest.approx(947.8 / predicted) for each in found)
    assert len(found) == 10
    assert max(abs(each - 1) for each in found) < 0.05
    assert number(macros["AlignedError"]) == pytest.approx(100 * max(abs(each - 1) for each in found), abs=0.05)
    for other in (study.exact_causal, study.tokens_alone):
        assert max(abs(each - 1) for each in study.read(FOLDER).released_excesses(other)) > 0.3


def test_one_cell_by_hand():
    """16,384 tokens, 60 %: 60.09 ms homogeneous, 83.07 even, and 63.94 with 10,240 and 6,144 tokens."""
    record, cell = study.read(FOLDER), (16384, 60)
    assert record.speed(cell) == pytest.approx(60.09 / 83.07)
    assert record.share("uneven", cell) == 0.625
    # Rank 0: 0.625^2 = 0.3906; rank 1: 0.375 x 83.07 / 60.09 = 0.5184, in units of 2 x 60.09 ms: 62.30 ms.
    assert record.excess("uneven", cell) == pytest.approx(63.94 / 62.30, rel=1e-3)


def test_speeds_and_losses_in_the_middle(macros):
    """Times by scanning all shares, not by the closed form of the best one."""
    products = {(int(r["size"]), int(r["mps_pct"])): float(r["tflops"]) for r in rows(MATMUL)}
    speed = 765.96 / 1286.59
    assert number(macros["AttentionSpeed"]) == pytest.approx(speed, abs=0.0005)
    assert number(macros["ProductSpeed"]) == pytest.approx(products[16384, 50] / products[16384, 100], abs=0.0005)
    assert number(macros["TableRatio"]) == pytest.approx(30069 / 35467, abs=0.0005)
    shares = np.linspace(0.4, 1, 60_001)
    least = np.maximum(shares**2, (1 - shares) / speed).min()
    for name, share in (("Label", 1 / 1.5), ("Speed", 1 / (1 + speed))):
        loss = max(share**2, (1 - share) / speed) / least
        assert number(macros[f"{name}Loss"]) == pytest.approx(loss, abs=0.006), name


def least_squares(keep=lambda n, p: True) -> tuple[np.ndarray, list[tuple[int, int, float]]]:
    """The six coefficients by the normal equations, from the CSV alone, and all points."""
    points = [(int(r["size"]), int(r["mps_pct"]), float(r["tflops"])) for r in rows(MATMUL)]
    kept = [point for point in points if keep(*point[:2])]
    design = np.array([terms(n, p) for n, p, _ in kept])
    return np.linalg.lstsq(design, np.array([v for *_, v in kept]), rcond=None)[0], points


def terms(n: int, p: float) -> list[float]:
    x = math.log10(n)
    return [1, x, p, x * x, x * p, p * p]


def held_out(axis: int) -> float:
    """1 - (errors at a level predicted from the others)^2 / (deviations from the mean)^2."""
    _, points = least_squares()
    errors = []
    for n, p, v in points:
        level = (n, p)[axis]
        fitted, _ = least_squares(lambda n, p, level=level: (n, p)[axis] != level)
        errors.append(v - fitted @ terms(n, p))
    values = np.array([v for *_, v in points])
    return 1 - np.square(errors).sum() / np.square(values - values.mean()).sum()


def test_the_formula_is_the_released_one(macros):
    fitted, points = least_squares()
    values = np.array([v for *_, v in points])
    residuals = values - [fitted @ terms(n, p) for n, p, _ in points]
    r2 = 1 - np.square(residuals).sum() / np.square(values - values.mean()).sum()
    assert macros["FormulaRsquared"] == f"{r2:.3f}" == "0.922"
    released = {row["term"]: float(row["coefficient"]) for row in rows(FORMULA)}
    assert list(released) == list(TERMS)
    assert 100 / values.max() * fitted == pytest.approx(list(released.values()), rel=5e-6)
    assert macros["FormulaAgree"] == macros["FormulaTerms"] == "6"
    assert number(macros["FormulaHeldLength"]) == pytest.approx(held_out(0), abs=0.0005)
    assert number(macros["NegativeSpeed"]) == pytest.approx(fitted @ terms(65536, 10), abs=0.05)


def test_recorded_splits_are_those_of_our_allocators(macros):
    fitted, _ = least_squares()
    negative = {cell for cell in ring("formula") if fitted @ terms(cell[0], cell[1]) <= 0}
    starved = {cell for cell, row in ring("formula").items() if row["rank1_tokens"] == "0"}
    assert negative == starved == {(32768, 10), (65536, 10), (65536, 20), (65536, 30)}
    assert macros["Starved"] == "4"
    for (length, percentage), row in ring("uneven").items():
        recorded = int(row["rank0_tokens"]), int(row["rank1_tokens"])
        assert allocate("uneven", length, percentages=(100, percentage)) == recorded


def spoilt(folder: Path, name: str, change) -> Path:
    """A copy of the record with the lines of one file changed by `change`."""
    shutil.copytree(FOLDER, folder / "published")
    path = folder / "published" / f"{name}.csv"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    return path.parent


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "l40x2_ring_sweep",
            lambda lines: lines[:-1],
            "224 rows, where its split_type, seq_len, slowdown_pct make 225",
        ),
        ("l40x2_ring_sweep", lambda lines: [*lines, lines[-1]], "two rows for the same split_type, seq_len"),
        ("l40x2_ring_sweep", lambda lines: [lines[0].replace("seq_len", "tokens"), *lines[1:]], "'seq_len' is missing"),
        (
            "l40x2_ring_sweep",
            lambda lines: [lines[0], "even,4096,,2048,7.9,2048,7.9,90\n", *lines[2:]],
            "row 2 has an empty field",
        ),
        ("l40x2_ring_sweep", lambda lines: [], "the file is empty"),
        ("l40_matmul_mps_sweep", lambda lines: [lines[0], *lines[2:]], "49 rows, where its size, mps_pct make 50"),
        ("l40_formula", lambda lines: lines[:-1], "terms intercept"),
    ],
)
def test_what_the_record_lacks_is_named(tmp_path, name, change, message):
    with pytest.raises(study.MissingRecord, match=f"{name}.*{message}"):
        study.read(spoilt(tmp_path, name, change))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(study.MissingRecord, match=r"cannot read .*l40x2_ring_sweep"):
        study.read(tmp_path)

"""What the analysis says of the published record, worked out again from its files with nothing but arithmetic."""

import csv
import math
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from workflow.preflight import platforms

from heteroring import allocate
from heteroring.allocators.formula import TERMS
from paper import published_study as study

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "data" / "published"
RING, MATMUL, FORMULA = (FOLDER / f"{name}.csv" for name in ("l40x2_ring_sweep", "l40_matmul_mps_sweep", "l40_formula"))


@pytest.fixture(scope="module")
def macros() -> dict[str, str]:
    return study.numbers(study.read(FOLDER))


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
    assert macros["ModelGoldenShare"] == f"{f:.3f}" == "0.618"
    assert macros["ModelGoldenTime"] == f"{1 - f:.3f}" == "0.382"
    assert macros["ModelGoldenGain"] == f"{0.5 / (1 - f):.2f}" == "1.31"
    s, tokens = number(macros["ModelSlowSpeed"]), 1_000_000
    pairs = [0.5 * tokens**2 - 0.5 * first**2 for first in (tokens / 2, tokens / (1 + s))]
    assert number(macros["ModelSlowSpeedup"]) == pytest.approx(pairs[0] / pairs[1], abs=0.05)
    least = 0.5 * tokens**2 / (1 + s)
    assert number(macros["ModelSlowFraction"]) == pytest.approx(least / (pairs[1] / s), abs=0.005)
    assert (macros["ModelSlowLost"], macros["ModelSlowLeft"]) == (r"45\,\%", r"55\,\%")


def test_the_best_masked_share_is_the_best():
    shares = np.linspace(0, 1, 100_001)
    for speed in (0.1, 0.5, 0.9, 1.0):
        times = [study.masked_time(share, speed) for share in shares]
        assert study.best_masked_share(speed) == pytest.approx(shares[int(np.argmin(times))], abs=2e-5)


def excesses(least: int, most: int) -> dict[int, list[float]]:
    """Recorded over predicted time by the largest power of two in rank 0's tokens, from the CSV alone."""
    homogeneous, even, found = latency("reference_homogeneous"), latency("even"), {}
    for split in ("uneven", "lut", "formula"):
        for cell, row in ring(split).items():
            if not least <= cell[0] <= most:
                continue
            n0, n1 = int(row["rank0_tokens"]), int(row["rank1_tokens"])
            # Homogeneous: N/2 queries of rank 1 meet N keys in t_hom. Rank 0 computes n0 x n0, rank 1 n1 x N.
            pairs_per_ms = cell[0] ** 2 / 2 / homogeneous[cell]
            slow_pairs_per_ms = cell[0] ** 2 / 2 / even[cell]
            predicted = max(n0**2 / pairs_per_ms, n1 * cell[0] / slow_pairs_per_ms)
            found.setdefault(n0 & -n0, []).append(float(row["overall_latency_ms"]) / predicted)
    return found


def test_the_check_table_is_recorded_over_predicted_time(macros):
    found = excesses(16384, 65536)
    groups = [
        [value for tile, values in found.items() if keep(tile) for value in values]
        for keep in (lambda tile: tile >= 64, lambda tile: tile == 32, lambda tile: tile < 32)
    ]
    body = table(macros["PublishedCheckTable"])[1:]
    assert [int(row[1]) for row in body] == [len(values) for values in groups] == [7, 2, 72]
    for row, values in zip(body, groups, strict=True):
        expected = min(values), statistics.median(values), max(values)
        assert [float(text) for text in row[2:]] == pytest.approx(expected, abs=0.005)
    together = [value for values in groups for value in values]
    assert int(macros["PublishedCheckedCells"]) == len(together) == 81
    assert number(macros["PublishedModelLeast"]) == pytest.approx(min(together), abs=0.0005)
    assert number(macros["PublishedModelMost"]) == pytest.approx(max(together), abs=0.005)
    assert number(macros["PublishedAlignedError"]) == pytest.approx(100 * max(abs(v - 1) for v in groups[0]), abs=0.05)
    assert number(macros["PublishedUnalignedCost"]) == pytest.approx(100 * statistics.median(groups[2]) - 100, abs=0.5)
    short = [value for values in excesses(4096, 8192).values() for value in values]
    assert number(macros["PublishedShortMedian"]) == pytest.approx(statistics.median(short), abs=0.005)
    assert number(macros["PublishedShortMost"]) == pytest.approx(max(short), abs=0.005)


def test_one_cell_by_hand():
    """16,384 tokens, 60 %: 60.09 ms homogeneous, 83.07 even, and 63.94 with 10,240 and 6,144 tokens."""
    record, cell = study.read(FOLDER), (16384, 60)
    assert record.speed(cell) == pytest.approx(60.09 / 83.07)
    assert record.share("uneven", cell) == 0.625
    assert record.ratio("uneven", cell) == pytest.approx(0.6)
    # Rank 0: 0.625^2 = 0.3906; rank 1: 0.375 x 83.07 / 60.09 = 0.5184, in units of 2 x 60.09 ms: 62.30 ms.
    assert record.excess("uneven", cell) == pytest.approx(63.94 / 62.30, rel=1e-3)


def test_where_proportional_shards_lose_to_even_ones(macros):
    even, uneven = latency("even"), latency("uneven")
    lengths = (16384, 32768, 65536)
    losing = [p for p in range(10, 100, 10) if all(uneven[n, p] > even[n, p] for n in lengths)]
    assert losing == [80, 90]
    assert macros["PublishedLabelLosses"] == r"80 and 90\,\%"


def test_the_table_of_speeds(macros):
    homogeneous, even = latency("reference_homogeneous"), latency("even")
    products = {(int(r["size"]), int(r["mps_pct"])): float(r["tflops"]) for r in rows(MATMUL)}
    head, attention, product = table(macros["PublishedNominalTable"])
    shown = [int(text) for text in head[1:]]
    assert shown == [10, 30, 50, 70, 90]
    speeds = [homogeneous[65536, p] / even[65536, p] for p in shown]
    assert [float(text) for text in attention[1:]] == pytest.approx(speeds, abs=0.0005)
    relative = [products[16384, p] / products[16384, 100] for p in shown]
    assert [float(text) for text in product[1:]] == pytest.approx(relative, abs=0.0005)
    assert number(macros["PublishedAttentionSpeed"]) == pytest.approx(765.96 / 1286.59, abs=0.0005)
    assert number(macros["PublishedProductSpeed"]) == pytest.approx(155.30 / 192.09, abs=0.0005)
    assert number(macros["PublishedTableRatio"]) == pytest.approx(30069 / 35467, abs=0.0005)
    for p, text in zip(shown, attention[1:], strict=True):
        assert p / 100 < float(text), "the label understates attention"


def test_in_the_model_the_label_beats_the_true_speed(macros):
    """Times by scanning all shares, not by the closed form of the best one."""
    homogeneous, even = latency("reference_homogeneous"), latency("even")
    shares = np.linspace(0.4, 1, 60_001)

    def time(share, speed):
        return np.maximum(share**2, (1 - share) / speed)

    wins = {"LabelWins": [], "LabelWinsShort": []}
    for cell, hom in homogeneous.items():
        speed = hom / even[cell]
        assert cell[1] / 100 < speed
        better = time(1 / (1 + cell[1] / 100), speed) < time(1 / (1 + speed), speed)
        wins["LabelWins" if cell[0] >= 16384 else "LabelWinsShort"].append(better)
    assert {name: (sum(each), len(each)) for name, each in wins.items()} == {
        "LabelWins": (27, 27),
        "LabelWinsShort": (18, 18),
    }
    assert (macros["PublishedLabelWins"], macros["PublishedLabelWinsShort"]) == ("all 27", "all 18")
    assert macros["PublishedCells"] == "45"

    speed = 765.96 / 1286.59
    least = time(shares, speed).min()
    best = shares[time(shares, speed).argmin()]
    assert number(macros["PublishedBestRatio"]) == pytest.approx((1 - best) / best, abs=0.001)
    for name, share in (("Label", 1 / 1.5), ("Speed", 1 / (1 + speed)), ("Table", 35467 / 65536)):
        assert number(macros[f"Published{name}Loss"]) == pytest.approx(time(share, speed) / least, abs=0.006), name


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
    assert number(macros["PublishedFormulaRsquared"]) == pytest.approx(r2, abs=5e-5)
    quoted = (ROOT / "latex" / "sections" / "published.tex").read_text()
    assert re.search(r"\\PublishedRsquared\}\{([\d.]+)\}", quoted)[1] == f"{r2:.3f}" == "0.922"

    released = {row["term"]: float(row["coefficient"]) for row in rows(FORMULA)}
    assert list(released) == list(TERMS)
    assert 100 / values.max() * fitted == pytest.approx(list(released.values()), rel=5e-6)
    assert macros["PublishedFormulaAgree"] == macros["PublishedFormulaTerms"] == "6"

    assert number(macros["PublishedFormulaHeldPercentage"]) == pytest.approx(held_out(1), abs=0.0005)
    assert number(macros["PublishedFormulaHeldLength"]) == pytest.approx(held_out(0), abs=0.0005)
    assert number(macros["PublishedNegativeSpeed"]) == pytest.approx(fitted @ terms(65536, 10), abs=0.05)


def test_the_formulas_splits_are_the_recorded_ones(macros):
    fitted, _ = least_squares()
    apart, negative, starved = [], set(), set()
    for cell, row in ring("formula").items():
        slow, fast = (fitted @ terms(cell[0], p) for p in (cell[1], 100))
        if slow <= 0:
            negative.add(cell)
        if row["rank1_tokens"] == "0":
            starved.add(cell)
        else:
            apart.append(abs(round(cell[0] * slow / (slow + fast)) - int(row["rank1_tokens"])))
    assert negative == starved == {(32768, 10), (65536, 10), (65536, 20), (65536, 30)}
    assert macros["PublishedStarved"] == "4"
    assert macros["PublishedFormulaCells"] == str(len(apart)) == "41"
    assert macros["PublishedFormulaExact"] == str(apart.count(0))
    assert macros["PublishedFormulaApart"] == str(max(apart))

    model = study.Formula.fit(study.read(FOLDER).profile)
    assert allocate("formula", 4096, percentages=(100, 10), profile=model) == (3205, 891)


def test_proportional_splits_are_the_recorded_ones(macros):
    for (length, percentage), row in ring("uneven").items():
        recorded = int(row["rank0_tokens"]), int(row["rank1_tokens"])
        assert allocate("uneven", length, percentages=(100, percentage)) == recorded
    assert macros["PublishedLabelSplits"] == macros["PublishedCells"]


def spoilt(folder: Path, name: str, change) -> Path:
    """A copy of the record whose lines of one file went through `change`."""
    shutil.copytree(FOLDER, folder / "published")
    path = folder / "published" / f"{name}.csv"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    return path.parent


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("l40x2_ring_sweep", lambda lines: lines[:-1], "no row for .*reference_homogeneous.*65536, 10"),
        ("l40x2_ring_sweep", lambda lines: [*lines, lines[-1]], "226 rows for 225"),
        ("l40x2_ring_sweep", lambda lines: [lines[0].replace("seq_len", "tokens"), *lines[1:]], "'seq_len' is missing"),
        (
            "l40x2_ring_sweep",
            lambda lines: [lines[0], "even,4096,,2048,7.9,2048,7.9,90\n", *lines[2:]],
            "empty in row 2",
        ),
        ("l40x2_ring_sweep", lambda lines: [], "the file is empty"),
        ("l40_matmul_mps_sweep", lambda lines: [lines[0], *lines[2:]], r"no row for \(1024, 10\)"),
        ("l40_formula", lambda lines: lines[:-1], r"no row for percentage\^2"),
    ],
)
def test_what_the_record_lacks_is_named(tmp_path, name, change, message):
    with pytest.raises(study.MissingRecord, match=f"{name}.*{message}"):
        study.numbers(study.read(spoilt(tmp_path, name, change)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(study.MissingRecord, match=r"cannot read .*l40x2_ring_sweep"):
        study.read(tmp_path)


def test_a_sentence_that_the_record_contradicts_is_refused(tmp_path):
    """A rank without tokens where the formula is positive."""

    def change(lines):
        return [line.replace("20966,260.6,11802", "32768,260.6,0") for line in lines]

    record = study.read(spoilt(tmp_path, "l40x2_ring_sweep", change))
    with pytest.raises(study.MissingRecord, match="without tokens"):
        study.formula(record)

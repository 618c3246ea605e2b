"""The checks in the workflow find every way in which measurements can be incomplete or impossible."""

from itertools import product

import pandas as pd
import pytest

from check_measurements import main, violations

GRID = {
    "percentages": [100, 50],
    "seq_lens": {"attention": [256, 512], "fms": [256]},
    "strategies": ["contiguous/even", "zigzag/balanced"],
    "repetitions": 3,
}


def rows_of(grid: dict) -> pd.DataFrame:
    """Complete measurements of `grid`: even shards for every strategy, and each rank alone."""
    rows = []
    lengths = [(module, n) for module, seq_lens in grid["seq_lens"].items() for n in seq_lens]
    for percentage, (module, n) in product(grid["percentages"], lengths):
        measured = [("ring", *strategy.split("/"), f"{n // 2} {n // 2}") for strategy in grid["strategies"]]
        measured += [("alone", "contiguous", "alone", lens) for lens in (f"{n} 0", f"0 {n}")]
        rows += [
            {
                "system": system,
                "module": module,
                "seq_len": n,
                "layout": layout,
                "allocator": allocator,
                "percentages": f"100 {percentage}",
                "block_lens": lens,
                "repetition": repetition,
                "latency_ms": 2.0,
                "busy_ms": "1.5 0",
            }
            for system, layout, allocator, lens in measured
            for repetition in range(grid["repetitions"])
        ]
    return pd.DataFrame(rows)


@pytest.fixture
def rows() -> pd.DataFrame:
    return rows_of(GRID)


@pytest.fixture
def cells() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "module": "attention",
            "strategy": ["zigzag/balanced", "contiguous/even"],
            "seq_len": 256,
            "percentages": "100 50",
            "bound_fraction": [1.04, 0.5],
        }
    )


def check(rows, cells, grid=GRID, noise=0.05) -> list[str]:
    return violations(rows, cells, grid, noise)


@pytest.mark.parametrize("grid", [GRID, None])
def test_whole_measurements_pass(rows, cells, grid):
    assert check(rows, cells, grid) == []


@pytest.mark.parametrize("grid", [GRID, None])
def test_missing_cell_is_named(rows, cells, grid):
    gone = (rows.seq_len == 512) & (rows.percentages == "100 50") & (rows.layout == "zigzag")
    assert check(rows[~gone], cells, grid) == ["missing: attention zigzag/balanced at 512 tokens and 100 50 %"]


@pytest.mark.parametrize("grid", [GRID, None])
@pytest.mark.parametrize("rank", [0, 1])
def test_missing_baseline_is_named(rows, cells, grid, rank):
    lens = "512 0" if rank == 0 else "0 512"
    gone = (rows.block_lens == lens) & (rows.percentages == "100 50")
    assert check(rows[~gone], cells, grid) == [f"missing: attention alone/rank{rank} at 512 tokens and 100 50 %"]


@pytest.mark.parametrize("grid", [GRID, None])
def test_missing_repetition_is_named(rows, cells, grid):
    (found,) = check(rows.drop(index=1), cells, grid)
    assert found == "repetitions [0, 2] instead of [0, 1, 2]: attention contiguous/even at 256 tokens and 100 100 %"


def test_repeated_row_is_named(rows, cells):
    (found,) = check(pd.concat([rows, rows.iloc[[0]]]), cells)
    assert found.startswith("repetitions [0, 0, 1, 2] instead of [0, 1, 2]")


def test_cell_outside_the_grid_is_named(rows, cells):
    smaller = GRID | {"percentages": [100]}
    found = check(rows, cells, smaller)
    assert len(found) == 12
    assert all(line.startswith("not in the configured grid:") and "100 50 %" in line for line in found)


def test_every_module_has_a_grid_of_its_own(rows, cells):
    longer = GRID | {"seq_lens": {"attention": [256, 512], "fms": [256, 512]}}
    found = check(rows, cells, longer)
    assert len(found) == 8
    assert all(line.startswith("missing: fms") and "at 512 tokens" in line for line in found)
    found = check(rows, cells, GRID | {"seq_lens": {"attention": [256, 512]}})
    assert len(found) == 8
    assert all(line.startswith("not in the configured grid: fms") for line in found)


def test_other_systems_are_extras(rows, cells):
    peer = rows.iloc[:3].assign(system="context_parallel")
    assert check(pd.concat([rows, peer]), cells, None) == []


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("block_lens", "128 127", "do not share out 256 tokens"),
        ("block_lens", "300 -44", "do not share out 256 tokens"),
        ("block_lens", "128 64 64", "not one entry per rank"),
        ("busy_ms", "1.5", "not one entry per rank"),
        ("busy_ms", "1.5 -0.1", "not all finite and non-negative"),
        ("busy_ms", "1.5 nan", "not all finite and non-negative"),
        ("latency_ms", 0.0, "not positive and finite"),
        ("latency_ms", -1.0, "not positive and finite"),
        ("latency_ms", float("nan"), "not positive and finite"),
        ("latency_ms", float("inf"), "not positive and finite"),
    ],
)
def test_impossible_value_is_named_with_its_row(rows, cells, column, value, says):
    rows.loc[1, column] = value
    (found,) = check(rows, cells)
    assert says in found
    assert found.endswith("attention contiguous/even at 256 tokens and 100 100 %, repetition 1")


def test_bound_fraction_beyond_noise_is_named(rows, cells):
    (found,) = check(rows, cells, noise=0.03)
    cell = "attention zigzag/balanced at 256 tokens and 100 50 %"
    assert found == f"bound fraction 1.040 exceeds 1 by more than 0.03: {cell}"


def test_no_bound_at_all_is_a_violation(rows, cells):
    assert check(rows, cells.assign(bound_fraction=float("nan"))) == ["no cell has a bound fraction"]


def test_no_measurements_is_a_violation(rows, cells):
    assert check(rows.iloc[:0], cells) == ["no measurements"]


def test_every_violation_is_listed_and_no_report_is_left(rows, cells, tmp_path):
    rows.loc[0, "latency_ms"] = -1.0
    rows.loc[5, "block_lens"] = "1 1"
    rows.to_csv(tmp_path / "measurements.csv", index=False)
    cells.to_csv(tmp_path / "cells.csv", index=False)
    report = tmp_path / "checks.txt"
    with pytest.raises(SystemExit) as stop:
        main(tmp_path / "measurements.csv", tmp_path / "cells.csv", report, GRID, 0.01)
    assert "3 violations" in stop.value.code
    for part in ("latency -1.0", "(1, 1)", "bound fraction 1.040"):
        assert part in stop.value.code
    assert not report.exists()


def test_report_says_what_was_checked(rows, cells, tmp_path):
    rows.to_csv(tmp_path / "measurements.csv", index=False)
    cells.to_csv(tmp_path / "cells.csv", index=False)
    report = tmp_path / "checks.txt"
    main(tmp_path / "measurements.csv", tmp_path / "cells.csv", report, GRID, 0.05)
    text = report.read_text()
    assert f"{len(rows)} repetitions in 2 cells" in text
    assert "1.040" in text
    assert "modules: attention, fms\n" in text


def test_report_says_what_was_not_measured(rows, cells, tmp_path):
    rows[rows.module == "attention"].to_csv(tmp_path / "measurements.csv", index=False)
    cells.to_csv(tmp_path / "cells.csv", index=False)
    main(tmp_path / "measurements.csv", tmp_path / "cells.csv", tmp_path / "checks.txt", None, 0.05)
    assert "modules: attention; not measured: fms\n" in (tmp_path / "checks.txt").read_text()

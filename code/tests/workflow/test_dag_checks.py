"""The workflow's checks find incomplete and impossible measurements."""

import pandas as pd
import pytest

from check_measurements import main, violations
from heteroring.results.aggregate import write_table
from heteroring.results.metrics import measurement_table
from heteroring.results.rows import write_rows
from heteroring.results.strategy import Strategy
from rows import measurement


def job(percentages, number=1, condition="rested", strategies=("contiguous/even", "zigzag/balanced"), **seq_lens):
    return {
        "percentages": list(percentages),
        "condition": condition,
        "job": number,
        "strategies": list(strategies),
        "seq_lens": seq_lens or {"attention": [256, 512], "fms": [256]},
    }


ORDERS = ((100, 100), (100, 50), (50, 100))
GRID = {
    "repetitions": 3,
    "jobs": [
        *(job(percentages, number) for percentages in ORDERS for number in (1, 2)),
        job((100, 50), condition="sustained", strategies=["zigzag/balanced"], attention=[512]),
    ],
}


def measured(grid: dict = GRID) -> list:
    """Complete measurements of `grid`: even shards for every strategy, and each rank alone."""
    rows = []
    for each in grid["jobs"]:
        where = {"percentages": tuple(each["percentages"]), "condition": each["condition"], "job": each["job"]}
        for module, n in ((module, n) for module, seq_lens in each["seq_lens"].items() for n in seq_lens):
            named = map(Strategy, each["strategies"])
            cells = [("ring", one.layout, one.with_variants, (n // 2, n // 2)) for one in named]
            cells += [("alone", "contiguous", "alone", lens) for lens in ((n, 0), (0, n))]
            names = ("system", "layout", "allocator", "block_lens")
            rows += [
                measurement(
                    module=module, seq_len=n, repetition=repetition, **dict(zip(names, cell, strict=True)), **where
                )
                for cell in cells
                for repetition in range(grid["repetitions"])
            ]
    return rows


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return measurement_table(measured())


@pytest.fixture
def cells() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "module": "attention",
            "condition": "rested",
            "strategy": ["zigzag/balanced", "contiguous/even"],
            "seq_len": 256,
            "percentages": [(100, 50)] * 2,
            "bound_fraction": [1.04, 0.5],
        }
    )


def check(rows, cells, grid=GRID, noise=0.05) -> list[str]:
    return violations(rows, cells, grid, noise)


@pytest.mark.parametrize("grid", [GRID, None])
def test_whole_measurements_pass(rows, cells, grid):
    assert check(rows, cells, grid) == []


@pytest.mark.parametrize("grid", [GRID, None])
@pytest.mark.parametrize("strategy", ["zigzag/balanced", "alone/rank0", "alone/rank1"])
def test_missing_cell_is_named(rows, cells, grid, strategy):
    gone = (rows.seq_len == 512) & (rows.percentages == (50, 100)) & (rows.strategy == strategy) & (rows.job == 2)
    assert gone.sum() == 3
    assert check(rows[~gone], cells, grid) == [
        f"missing: attention {strategy} at 512 tokens and 50 100 %, rested, job 2"
    ]


def test_missing_repetition_is_named(rows, cells):
    (found,) = check(rows.drop(index=1), cells)
    where = "attention contiguous/even at 256 tokens and 100 100 %, rested, job 1"
    assert found == f"repetitions [0, 2] instead of [0, 1, 2]: {where}"


def test_repeated_row_is_named(rows, cells):
    (found,) = check(pd.concat([rows, rows.iloc[[0]]]), cells)
    assert found.startswith("repetitions [0, 0, 1, 2] instead of [0, 1, 2]")


def test_a_job_outside_the_grid_is_named(rows, cells):
    smaller = GRID | {"jobs": [each for each in GRID["jobs"] if each["percentages"] != [50, 100]]}
    found = check(rows, cells, smaller)
    assert len(found) == 2 * 12
    assert all(line.startswith("not in the configured grid:") and "50 100 %" in line for line in found)


def test_a_job_that_was_not_measured_is_named(rows, cells):
    found = check(rows[rows.condition == "rested"], cells)
    assert len(found) == 3
    assert all(line.startswith("missing: ") and line.endswith("100 50 %, sustained, job 1") for line in found)


def test_other_systems_are_extras(rows, cells):
    baseline = rows.iloc[:3].assign(system="context_parallel")
    for grid in (None, GRID):
        assert check(pd.concat([rows, baseline]), cells, grid) == []


def test_bound_fraction_beyond_noise_is_named(rows, cells):
    (found,) = check(rows, cells, noise=0.03)
    cell = "attention zigzag/balanced at 256 tokens and 100 50 %, rested"
    assert found == f"bound fraction 1.040 exceeds 1 by more than 0.03: {cell}"


def test_no_bound_at_all_is_a_violation(rows, cells):
    assert check(rows, cells.assign(bound_fraction=float("nan"))) == ["no cell has a bound fraction"]


@pytest.fixture
def tables(cells, tmp_path):
    write_table(tmp_path / "cells.csv", cells)
    return tmp_path / "measurements.csv", tmp_path / "cells.csv", tmp_path / "checks.txt"


def test_every_violation_is_listed_and_no_report_is_left(tables):
    write_rows(tables[0], [row for row in measured() if (row.layout, row.seq_len) != ("zigzag", 512)])
    with pytest.raises(SystemExit) as stop:
        main(*tables, GRID, 0.01)
    assert "8 violations" in stop.value.code
    assert "bound fraction 1.040" in stop.value.code
    assert stop.value.code.count("missing: ") == 7
    assert not tables[2].exists()


def test_report_says_what_was_checked(tables):
    write_rows(tables[0], measured())
    main(*tables, GRID, 0.05)
    text = tables[2].read_text()
    assert f"{len(measured())} repetitions in 2 cells" in text
    assert "1.040" in text
    assert "modules: attention, fms\n" in text


def test_report_says_what_was_not_measured(tables):
    write_rows(tables[0], [row for row in measured() if row.module == "attention"])
    main(*tables, None, 0.05)
    assert "modules: attention; not measured: fms\n" in tables[2].read_text()

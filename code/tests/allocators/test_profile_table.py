"""Profile CSVs: read into a complete table of medians, or refused with the defect named."""

import pytest

from heteroring.allocators.profile_table import read_profile
from heteroring.results.rows import write_rows
from rows import profile_row

GOOD = [profile_row(size=size, percentage=percentage) for size in (128, 256) for percentage in (50, 100)]


def write(path, rows):
    write_rows(path, rows)
    return path


def test_raw_rows_become_medians_over_repetitions(tmp_path):
    # One file per throttle setting, as the measurement jobs write them; an outlier must not change the table.
    half = write(
        tmp_path / "pct-050.csv",
        [profile_row(size=n, repetition=r, tflops=v) for n in (256, 128) for r, v in enumerate((0.5, 0.01, 0.75))]
        + [profile_row("attention", 512, repetition=r, tflops=9.0) for r in range(3)],
    )
    full = write(
        tmp_path / "pct-100.csv",
        [profile_row(size=n, percentage=100, repetition=r, tflops=v) for n in (128, 256) for r, v in enumerate((1, 2))]
        + [profile_row("attention", 512, percentage=100, repetition=r, tflops=9.0) for r in range(2)],
    )
    table = read_profile([full, half], "matmul")
    assert table.lengths == (128, 256)
    assert table.percentages == (50, 100)
    assert table.values == ((0.5, 1.5), (0.5, 1.5))
    assert table.rows == 10
    assert (table.source, table.platform) == ("matmul", "cpu")
    assert table.setup == {
        "dtype": "float32",
        "batch": "0",
        "heads": "0",
        "kv_heads": "0",
        "head_dim": "0",
        "causal": "False",
    }


def test_source_left_open_is_matmul_where_there_is_some(tmp_path):
    attention = [profile_row("attention", 512, percentage=percentage) for percentage in (50, 100)]
    assert read_profile(write(tmp_path / "both.csv", [*attention, *GOOD]), None).source == "matmul"
    assert read_profile(write(tmp_path / "only.csv", attention), None).source == "attention"


def test_a_whole_rank_may_have_run_without_the_throttle_of_the_others(tmp_path):
    rows = [
        profile_row(size=row.size, percentage=100, throttle="none") if row.percentage == 100 else row for row in GOOD
    ]
    assert read_profile(write(tmp_path / "p.csv", rows), "matmul") == read_profile(
        write(tmp_path / "q.csv", GOOD), "matmul"
    )


def test_missing_cell(tmp_path):
    path = write(tmp_path / "p.csv", GOOD[:3])
    with pytest.raises(ValueError, match=f"{path}: no matmul row of size 256 at 100 %"):
        read_profile(path, "matmul")


def test_no_file_no_rows_of_the_kind_no_such_source(tmp_path):
    path = write(tmp_path / "p.csv", GOOD)
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.csv: No such file"):
        read_profile(tmp_path / "nowhere.csv", "matmul")
    with pytest.raises(ValueError, match=f"{path}: no row of kind 'attention', only of matmul"):
        read_profile(path, "attention")
    with pytest.raises(ValueError, match="source 'conv' is unknown: choose one of matmul, attention"):
        read_profile(path, "conv")
    with pytest.raises(ValueError, match="no profile CSV is given"):
        read_profile([], "matmul")

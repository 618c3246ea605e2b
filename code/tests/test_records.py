"""Rows survive the way to a file and back, and nothing that breaks a rule gets into or out of one."""

import math

import pytest
from rows import measurement, profile_row

from heteroring.bench.records import Measurement, ProfileRow, read_rows, write_rows

HEADER = (
    "platform,system,module,condition,seq_len,batch,heads,kv_heads,head_dim,dtype,causal,layout,allocator,model_source,"
    "clamped,throttle,percentages,block_lens,block,transport,job,repetition,latency_ms,busy_ms,bytes_moved"
)
LINE = (
    "cpu,ring,attention,rested,100,1,4,2,64,float32,True,zigzag,even,,False,pacing,100 50,50 50,cpu,p2p,1,0,1.25,"
    "0.5 1,4096"
)


def test_the_file_is_the_documented_text(tmp_path):
    write_rows(tmp_path / "rows.csv", [measurement()])
    assert (tmp_path / "rows.csv").read_text() == f"{HEADER}\n{LINE}\n"


@pytest.mark.parametrize(
    ("row_type", "rows"),
    [
        (
            Measurement,
            [
                measurement(),
                measurement(system="alone", allocator="alone", block_lens=(0, 100), busy_ms=(0.0, 7.5)),
                measurement(allocator="formula", model_source="matmul", clamped=True, latency_ms=1234.56789),
                measurement(percentages=(100, 70, 10), block_lens=(60, 30, 10), busy_ms=(1.0, 2.0, 3.0)),
            ],
        ),
        (ProfileRow, [profile_row(), profile_row(kind="attention", batch=1, heads=4, causal=True, tflops=3e-07)]),
    ],
    ids=["measurements", "profile"],
)
def test_round_trip(tmp_path, row_type, rows):
    write_rows(tmp_path / "rows.csv", rows)
    back = read_rows(tmp_path / "rows.csv", row_type)
    assert [{**vars(row), "tflops": 0} for row in back] == [{**vars(row), "tflops": 0} for row in rows]
    for row, original in zip(back, rows, strict=True):
        assert getattr(row, "tflops", 1.0) == pytest.approx(getattr(original, "tflops", 1.0), rel=1e-8)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"latency_ms": 0.0}, "column latency_ms: 0.0 is not a positive, finite number"),
        ({"latency_ms": math.nan}, "column latency_ms: nan"),
        ({"latency_ms": math.inf}, "column latency_ms: inf"),
        ({"seq_len": 0}, "column seq_len: 0 is not an integer from 1"),
        ({"dtype": "int8"}, "column dtype: 'int8' is not one of"),
        ({"system": "rings"}, "column system: 'rings'"),
        ({"percentages": (100, 101)}, r"column percentages: \(100, 101\)"),
        ({"block_lens": (60, 50)}, r"column block_lens: \(60, 50\) does not sum to seq_len 100"),
        ({"block_lens": (110, -10)}, r"column block_lens: \(110, -10\)"),
        ({"block_lens": (100,)}, r"block_lens: \(100,\) has not one entry for each of the 2"),
        ({"busy_ms": (1.0, math.nan)}, "column busy_ms"),
        ({"busy_ms": (1.0, 2.0, 3.0)}, "column busy_ms"),
    ],
)
def test_a_row_refuses_what_breaks_a_rule(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        measurement(**changes)


def without(column):
    names = HEADER.split(",")
    at = names.index(column)
    return "\n".join(",".join(part for i, part in enumerate(text.split(",")) if i != at) for text in (HEADER, LINE))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (f"{HEADER}\n", "no rows below the header"),
        (f"{HEADER}\n{LINE}", "cut short"),
        (f"{HEADER}\n{LINE}\n{LINE[:60]}\n", "line 3: 13 cells for 25 columns"),
        (without("latency_ms") + "\n", "column latency_ms is missing"),
        (f"{HEADER},colour\n{LINE},red\n", "column 'colour' is unknown"),
        (f"{HEADER},dtype\n{LINE},float32\n", "column 'dtype' is unknown or repeated"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',,')}\n", "line 2, column latency_ms: '' is not a positive"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',nan,')}\n", "line 2, column latency_ms: 'nan'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',0,')}\n", "line 2, column latency_ms: '0'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',-3,')}\n", "line 2, column latency_ms: '-3'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',fast,')}\n", "line 2, column latency_ms: 'fast'"),
        (f"{HEADER}\n{LINE}\n{LINE.replace(',100,', ',99.5,')}\n", "line 3, column seq_len: '99.5'"),
        (f"{HEADER}\n{LINE.replace('True', 'yes')}\n", "line 2, column causal: 'yes' is not True or False"),
        (f"{HEADER}\n{LINE.replace('50 50', '50 49')}\n", r"line 2, column block_lens: \(50, 49\) does not sum"),
        (f"{HEADER}\n{LINE.replace('0.5 1', '')}\n", "line 2, column busy_ms: '' is not a space-separated list"),
    ],
)
def test_a_malformed_file_is_named_with_line_and_column(tmp_path, text, complaint):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_rows(path, Measurement)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text_or_is_not_there_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    with pytest.raises(ValueError, match=f"cannot read {path}: No such file"):
        read_rows(path, Measurement)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"cannot read {path}"):
        read_rows(path, Measurement)


def test_columns_may_come_in_another_order(tmp_path):
    order = sorted(range(25), reverse=True)
    lines = [",".join(text.split(",")[i] for i in order) for text in (HEADER, LINE)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    assert read_rows(tmp_path / "rows.csv", Measurement) == [measurement()]


def test_nothing_is_written_without_rows(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        write_rows(tmp_path / "rows.csv", [])
    assert list(tmp_path.iterdir()) == []

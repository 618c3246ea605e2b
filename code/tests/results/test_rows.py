"""Rows are unchanged by writing and reading, and rows that break a rule are neither written nor read."""

import math
from dataclasses import replace

import pytest

from heteroring.results.provenance import write_json
from heteroring.results.rows import Measurement, ProfileRow, read_rows, write_rows
from model_rows import model_row
from rows import measurement, profile_row

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
        (ProfileRow, [profile_row(), profile_row(kind="attention", tflops=3e-07)]),
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
        ({"throttle": "sand"}, "column throttle: 'sand' is not one of 'none', 'pacing', 'mps', 'green'"),
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
        ("", "the file is empty: delete it and measure again"),
        ("\n\n", "the file is empty"),
        (f"{HEADER}\n", "no rows below the header: delete it and measure again"),
        (f"{HEADER}\n{LINE}", "cut short"),
        (f"{HEADER}\n{LINE}\n{LINE[:60]}\n", "line 3: 13 fields for 25 columns"),
        (without("latency_ms") + "\n", "column latency_ms is missing"),
        (f"{HEADER},colour\n{LINE},red\n", "column 'colour' is unknown"),
        (f"{HEADER},dtype\n{LINE},float32\n", "column 'dtype' is there 2 times"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',,')}\n", "line 2, column latency_ms: '' is not a positive"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',nan,')}\n", "line 2, column latency_ms: 'nan'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',0,')}\n", "line 2, column latency_ms: '0'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',-3,')}\n", "line 2, column latency_ms: '-3'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',fast,')}\n", "line 2, column latency_ms: 'fast'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',5e-324,')}\n", "line 2, column latency_ms: '5e-324'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',1e308,')}\n", "line 2, column latency_ms: '1e308'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', ',1_0,')}\n", "line 2, column latency_ms: '1_0'"),
        (f"{HEADER}\n{LINE.replace(',1.25,', f',{10**30},')}\n", "line 2, column latency_ms: '10000"),
        (f"{HEADER}\n{LINE.replace(',4096', f',{2**63}')}\n", "line 2, column bytes_moved: '9223372036854775808'"),
        (f"{HEADER}\n{LINE.replace('cpu', 'x' * 131_073, 1)}\n", "line 2: not a line of a CSV .*field larger"),
        (f'{HEADER}\n"{LINE}\n', "not a line of a CSV"),
        (f"{HEADER}\n{LINE.replace('cpu', 'a' + chr(0x2028), 1)}\n", "line 2, column platform: .* is not a name"),
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
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


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


@pytest.mark.parametrize("change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path, change):
    (tmp_path / "rows.csv").write_bytes(change(f"{HEADER}\n{LINE}\n").encode())
    assert read_rows(tmp_path / "rows.csv", Measurement) == [measurement()]


PROFILE = [
    profile_row(kind, size, percentage=percentage, repetition=repetition, latency_ms=50 / percentage)
    for percentage in (100, 10)
    for kind in ("attention", "layer", "matmul")
    for size in (64, 128)
    for repetition in (0, 1)
]


def refused(tmp_path, *files):
    """The error message for files of profile rows."""
    for index, rows in enumerate(files):
        write_rows(tmp_path / f"{index}.csv", rows)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        read_rows([tmp_path / f"{index}.csv" for index in range(len(files))], ProfileRow)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_what_was_measured_counts_once(tmp_path):
    said = "the same was measured in 0.csv, line 2: kind attention, size 64, percentage 100, repetition 0"
    assert refused(tmp_path, [*PROFILE, PROFILE[0]]) == f"0.csv, line 26: {said}"
    assert refused(tmp_path, PROFILE, PROFILE) == f"1.csv, line 2: {said}"


def test_rows_of_different_things_are_not_read_together(tmp_path):
    for name, value in {"platform": "gpu", "dtype": "float16", "throttle": "green"}.items():
        other = [replace(row, **{name: value}) for row in PROFILE if row.percentage == 10]
        said = refused(tmp_path, [row for row in PROFILE if row.percentage == 100], other)
        assert said.startswith(
            f"{name} is {getattr(PROFILE[0], name)!r} in 0.csv, line 2 and {value!r} in 1.csv, line 2"
        )


@pytest.mark.parametrize(
    ("row", "name", "value"),
    [
        (measurement, "heads", 8),
        (measurement, "throttle", "none"),
        (model_row, "variant", "7b"),
        (model_row, "layers", 2),
    ],
)
def test_what_is_compared_is_of_one_platform_and_shape(tmp_path, row, name, value):
    one, other = row(), row(percentages=(100, 100), **{name: value})
    write_rows(tmp_path / "rows.csv", [one, other])
    with pytest.raises(
        ValueError, match=rf"^{name} is {getattr(one, name)!r} in .* line 2 and {value!r} in .* line 3: "
    ):
        read_rows(tmp_path / "rows.csv", type(one))


def test_a_file_cut_at_a_line_end_lacks_repetitions_or_what_its_record_says(tmp_path):
    job = [row for row in PROFILE if row.percentage == 100]
    for end in range(3, len(job), 2):
        assert "0.csv: rows are missing, 1 of 2 repetitions are there: kind" in refused(tmp_path, job[:end])
    write_json(tmp_path / "0.json", {"settings": {"repetitions": 2}})
    assert "0.csv: rows are missing, 1 of 2 repetitions are there: kind" in refused(tmp_path, job[:1])
    write_json(tmp_path / "0.json", {"row_count": len(job)})
    for end in range(2, len(job), 2):
        assert refused(tmp_path, job[:end]) == (
            f"0.csv: {end} rows, and 0.json says that 12 were written: delete it and measure again"
        )


def test_latency_and_speed_that_contradict_each_other_are_told(tmp_path):
    with pytest.raises(
        ValueError, match=r"columns latency_ms and tflops: 1 ms at 1 TFLOP/s are 1e.09 operations, and a"
    ):
        replace(PROFILE[0], latency_ms=1.0, tflops=1.0)
    layer = [replace(row, latency_ms=3.0) if row == PROFILE[4] else row for row in PROFILE]
    assert "a layer of size 64 takes" in refused(tmp_path, layer)
    swapped = [replace(row, latency_ms=row.tflops, tflops=row.latency_ms) for row in PROFILE]
    assert (
        "0.csv: attention takes 0.1 times as long at 10 % as at 100 %: columns latency_ms and tflops are swapped"
        in (refused(tmp_path, swapped))
    )


@pytest.mark.parametrize("kind", ["matmul", "fold", "attention", "join", "layer", "block"])
def test_causal_goes_with_the_kind(kind):
    row = profile_row(kind)
    with pytest.raises(ValueError, match=f"column causal: {not row.causal} in kind {kind}"):
        replace(row, causal=not row.causal)


def test_nothing_is_written_without_rows(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        write_rows(tmp_path / "rows.csv", [])
    assert list(tmp_path.iterdir()) == []

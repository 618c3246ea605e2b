"""Profile CSVs: read into a complete table of medians, or refused with the defect named."""

import re

import pytest

from heteroring.allocate.profile_table import read_profile

HEADER = (
    "platform,kind,size,batch,heads,kv_heads,head_dim,dtype,causal,throttle,percentage,repetition,latency_ms,tflops"
)
DERIVED_HEADER = (
    "platform,kind,size,percentage,dtype,repetitions,latency_ms,latency_p20_ms,latency_p80_ms,tflops,relative_speed"
)


def matmul(size, percentage, repetition, tflops):
    return f"cpu,matmul,{size},1,0,0,0,float32,False,pacing,{percentage},{repetition},1.5,{tflops}"


def attention(size, percentage, repetition, tflops):
    return f"cpu,attention,{size},1,4,4,64,float32,True,pacing,{percentage},{repetition},1.5,{tflops}"


GOOD = [
    matmul(128, 50, 0, 0.5),
    matmul(128, 100, 0, 1.0),
    matmul(256, 50, 0, 0.625),
    matmul(256, 100, 0, 1.25),
]


def write(path, rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_raw_rows_become_medians_over_repetitions(tmp_path):
    # One file a throttle setting, as the measurement jobs leave them; an outlier must not move the table.
    half = write(
        tmp_path / "pct-050.csv",
        [matmul(size, 50, r, v) for size in (256, 128) for r, v in enumerate((0.5, 0.01, 0.75))]
        + [attention(512, 50, 0, 9.0)],
    )
    full = write(tmp_path / "pct-100.csv", [matmul(s, 100, r, v) for s in (128, 256) for r, v in enumerate((1, 2))])
    table = read_profile([full, half], "matmul")
    assert table.lengths == (128, 256)
    assert table.percentages == (50, 100)
    assert table.speeds == ((0.5, 1.5), (0.5, 1.5))
    assert table.rows == 10
    assert (table.source, table.platform) == ("matmul", "cpu")
    assert table.setup["dtype"] == "float32"


def test_derived_medians_are_read_too(tmp_path):
    row = "h200x2,attention,512,50.0,bfloat16,5,1,1,1,310.5,0.54"
    path = write(tmp_path / "profile.csv", [row], DERIVED_HEADER)
    table = read_profile(path, "attention")
    assert (table.lengths, table.percentages, table.speeds) == ((512,), (50,), ((310.5,),))
    assert table.setup == {"dtype": "bfloat16"}


def test_source_left_open_is_matmul_where_there_is_some(tmp_path):
    both = write(tmp_path / "both.csv", [attention(512, 50, 0, 9.0), *GOOD])
    only = write(tmp_path / "only.csv", [attention(512, 50, 0, 9.0)])
    assert read_profile(both, None).source == "matmul"
    assert read_profile(only, None).source == "attention"


def replaced(line, column, value):
    """GOOD with one value, in the row on the given line of the file, replaced."""
    rows = [row.split(",") for row in GOOD]
    rows[line - 2][HEADER.split(",").index(column)] = value
    return [",".join(row) for row in rows]


@pytest.mark.parametrize("column", ["tflops", "latency_ms", "size", "percentage"])
@pytest.mark.parametrize("value", ["nan", "NaN", "", "inf", "0", "0.0", "-3", "fast"])
def test_value_that_is_not_a_positive_number(tmp_path, column, value):
    path = write(tmp_path / "p.csv", replaced(3, column, value))
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3: {column} is {value!r}: it must be a positive")):
        read_profile(path, "matmul")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("percentage", "100.5", "line 4: percentage is 100.5: it must lie in 1..100"),
        ("percentage", "0.5", "line 4: percentage is 0.5: it must lie in 1..100"),
        ("size", "128.5", "line 4: size is 128.5: it must be a whole number"),
        ("kind", "conv", "line 4: kind is 'conv': choose one of matmul, attention, fold"),
        ("dtype", "float16", "dtype is 'float32' in {path}, line 2 and 'float16' in {path}, line 4"),
        ("platform", "gpu", "platform is 'cpu' in {path}, line 2 and 'gpu' in {path}, line 4"),
        ("throttle", "green", "throttle is 'pacing' in {path}, line 2 and 'green' in {path}, line 4"),
        ("causal", "True", "causal is 'False' in {path}, line 2 and 'True' in {path}, line 4"),
    ],
)
def test_value_that_breaks_a_rule(tmp_path, column, value, message):
    path = write(tmp_path / "p.csv", replaced(4, column, value))
    with pytest.raises(ValueError, match=re.escape(message.format(path=path))):
        read_profile(path, "matmul")


def test_a_whole_rank_may_have_run_without_the_throttle_of_the_others(tmp_path):
    rows = [row.replace(",pacing,", ",none,") if ",100," in row else row for row in GOOD]
    assert read_profile(write(tmp_path / "p.csv", rows), "matmul") == read_profile(
        write(tmp_path / "q.csv", GOOD), "matmul"
    )


@pytest.mark.parametrize("column", ["platform", "kind", "size", "percentage", "dtype", "latency_ms", "tflops"])
def test_missing_column(tmp_path, column):
    path = write(tmp_path / "p.csv", GOOD, HEADER.replace(column, "other"))
    with pytest.raises(ValueError, match=f"{path}: column '{column}' is missing"):
        read_profile(path, "matmul")


def test_missing_cell(tmp_path):
    path = write(tmp_path / "p.csv", GOOD[:3])
    with pytest.raises(ValueError, match=f"{path}: no matmul row of size 256 at 100 %"):
        read_profile(path, "matmul")


def test_file_cut_short_anywhere_inside_a_line(tmp_path):
    whole = write(tmp_path / "p.csv", GOOD).read_bytes()
    path = tmp_path / "cut.csv"
    for end in range(1, len(whole)):
        if whole[end - 1 : end] != b"\n":
            path.write_bytes(whole[:end])
            with pytest.raises(ValueError, match=f"{path}: the last line has no line end: the file is cut short"):
                read_profile(path, "matmul")


def test_line_with_too_few_or_too_many_values(tmp_path):
    for row in ("cpu,matmul,128", GOOD[0] + ",1"):
        path = write(tmp_path / "p.csv", [*GOOD, row])
        with pytest.raises(ValueError, match=f"{path}, line 6: {row.count(',') + 1} values for 14 columns"):
            read_profile(path, "matmul")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (HEADER.encode() + b"\n", "the file has a header and no rows"),
        (b"\xff\xfe\x00", "not a UTF-8 text file"),
    ],
    ids=["empty", "blank", "header", "binary"],
)
def test_file_without_rows(tmp_path, content, message):
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        read_profile(path, "matmul")


def test_no_file_no_rows_of_the_kind_no_such_source(tmp_path):
    path = write(tmp_path / "p.csv", GOOD)
    with pytest.raises(ValueError, match=r"cannot read profile .*nowhere\.csv: No such file"):
        read_profile(tmp_path / "nowhere.csv", "matmul")
    with pytest.raises(ValueError, match=f"{path}: no row of kind 'attention', only of matmul"):
        read_profile(path, "attention")
    with pytest.raises(ValueError, match="source 'conv' is unknown: choose one of matmul, attention"):
        read_profile(path, "conv")
    with pytest.raises(ValueError, match="no profile CSV is given"):
        read_profile([], "matmul")

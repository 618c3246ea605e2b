"""From a damaged file of rows, fit and aggregate read the same as before, or refuse it in one line."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import examples
from heteroring.allocators.profile_table import read_profile
from heteroring.results.aggregate import aggregate
from heteroring.results.tables import read_table
from synthetic import TINY, write_platform

pytestmark = pytest.mark.slow

GRID = replace(
    TINY, percentages=(25, 100), lengths=(128,), strategies=("contiguous/even",), modules=("attention",), model=False
)
VALUES = (b"nan", b"NaN", b"inf", b"", b"-1", b"0", b"5e-324", b"1e308", b"1e999", b"9" * 5000, b"x" * 140_000, b"\0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("platform")
    write_platform(folder, GRID)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return tables(folder)


def lines(data):
    return data.splitlines(keepends=True)


def swapped(data, i, j):
    """Two columns change names."""
    header, *rows = lines(data)
    names = header.strip().split(b",")
    i, j = i % len(names), j % len(names)
    names[i], names[j] = names[j], names[i]
    return b",".join(names) + b"\n" + b"".join(rows)


def with_value(data, i, j, value):
    found = lines(data)
    cells = found[i % len(found)].rstrip(b"\n").split(b",")
    cells[j % len(cells)] = value
    found[i % len(found)] = b",".join(cells) + b"\n"
    return b"".join(found)


def flipped(data, i, bit):
    i %= len(data)
    return data[:i] + bytes([data[i] ^ (1 << bit)]) + data[i + 1 :]


def without(data, i):
    found = lines(data)
    del found[i % len(found)]
    return b"".join(found)


def doubled(data, i):
    return data + lines(data)[i % len(lines(data))]


place = st.integers(0, 10_000)
damage = st.one_of(
    st.tuples(st.just(lambda data, i: data[: i % len(data)]), place),
    st.tuples(st.just(lambda data, i: b"".join(lines(data)[: i % len(lines(data))])), place),
    st.tuples(st.just(without), place),
    st.tuples(st.just(doubled), place),
    st.tuples(st.just(swapped), place, place),
    st.tuples(st.just(flipped), place, st.integers(0, 7)),
    st.tuples(st.just(with_value), place, place, st.sampled_from(VALUES)),
    st.tuples(st.just(lambda data: b"\xef\xbb\xbf" + data)),
    st.tuples(st.just(lambda data: data.replace(b"\n", b"\r\n"))),
)


def result_of(read):
    """The result of `read`, or None where it raises a ValueError of one line."""
    try:
        return read()
    except ValueError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    assert len(said) < 1500
    return None


def tables(folder):
    """The tables that aggregate derives from the rows, and the one that models are fitted to."""
    aggregate(folder)
    return [read_table(folder / "derived" / f"{name}.csv") for name in ("cells", "profile")]


def profile(folder):
    found = read_profile(sorted((folder / "profile").glob("*.csv")), "matmul")
    return pd.DataFrame(found.values, found.lengths, found.percentages)


@pytest.mark.parametrize("stage", ["profile", "bench"])
@examples(30)
@given(change=damage, recorded=st.booleans())
def test_damage_is_refused_or_does_none(folder, whole, tmp_path_factory, stage, change, recorded):
    damaged = shutil.copytree(folder, tmp_path_factory.mktemp("damaged") / "x")
    path, (how, *where) = next((damaged / stage).glob("pct-*025*.csv")), change
    path.write_bytes(how(path.read_bytes(), *where))
    if not recorded:  # as in measurements that were recorded before rows were counted
        record = json.loads(path.with_suffix(".json").read_text())
        del record["row_count"]
        path.with_suffix(".json").write_text(json.dumps(record))
    if (fitted := result_of(lambda: profile(damaged))) is not None:
        pd.testing.assert_frame_equal(fitted, profile(folder), rtol=1e-6)
    if (found := result_of(lambda: tables(damaged))) is None:
        return
    if recorded:
        assert [len(table) for table in found] == [len(table) for table in whole]
    if stage == "profile":
        assert fitted is not None
    # A changed time of the ring cannot be detected; everything else that is there is unchanged.
    names = ["strategy", "seq_len", "percentages", "block_lens", "bytes_moved", "clamped"]
    if recorded:  # without a count of rows, a cut between two repetitions cannot be detected
        names.append("repetitions")
    rows = set(found[0][names].astype(str).itertuples(index=False, name=None))
    assert rows <= set(whole[0][names].astype(str).itertuples(index=False, name=None))
    pd.testing.assert_frame_equal(
        found[1], whole[1].merge(found[1][["kind", "size", "percentage"]]), rtol=1e-6, check_dtype=False
    )

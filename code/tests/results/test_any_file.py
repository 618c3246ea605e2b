"""Fuzzed files are refused in one line, or read as they are."""

import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fuzz
from heteroring.allocators import allocation, fit, load_model
from heteroring.launch import machine_lock
from heteroring.results.aggregate import aggregate
from heteroring.results.model_rows import ModelRow, TraceRow
from heteroring.results.provenance import merge, read_record
from heteroring.results.results import Results
from heteroring.results.rows import Measurement, ProfileRow, read_rows, to_text, write_rows
from synthetic import TINY, write_platform

pytestmark = pytest.mark.slow

GRID = replace(TINY, percentages=(25, 100), lengths=(128, 256), strategies=("contiguous/even", "zigzag/balanced"))
ALLOCATOR = {"lut": "lut", "formula": "formula", "cost": "balanced"}
ROWS = {
    "bench/pct-100-025.job-1.csv": Measurement,
    "profile/pct-025.csv": ProfileRow,
    "model/pct-100-025.job-1.csv": ModelRow,
    "model/trace-100-025.job-1.csv": TraceRow,
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """A platform's folder, aggregated, with fitted models."""
    folder = tmp_path_factory.mktemp("platform")
    write_platform(folder, GRID)
    profiles = sorted((folder / "profile").glob("*.csv"))
    for kind in ALLOCATOR:
        fit(kind, "attention", profiles).save(folder / "models" / f"{kind}-attention.json")
    aggregate(folder)
    return folder


def accepted(read):
    """The result of `read`, or None where it raises ValueError in one line."""
    try:
        return read()
    except ValueError as error:
        fuzz.assert_one_line(error)
        return None


def content_of(data, path):
    """A JSON file's bytes, damaged, or its content, changed."""
    if data.draw(st.booleans()):
        return data.draw(fuzz.damaged(path.read_bytes()))
    return json.dumps(data.draw(fuzz.changed(json.loads(path.read_text())))).encode()


@pytest.mark.parametrize("kind", ALLOCATOR)
@fuzz.examples(30)
@given(data=st.data())
def test_a_model(platform, tmp_path_factory, kind, data):
    path = tmp_path_factory.mktemp("model") / "model.json"
    path.write_bytes(content_of(data, platform / "models" / f"{kind}-attention.json"))
    model = accepted(lambda: load_model(path))
    if model is None:
        return
    assert type(model).from_json(json.loads(json.dumps(model.to_json()))) == model
    seq_len = data.draw(st.integers(1, 10_000))
    if given := accepted(lambda: allocation(ALLOCATOR[kind], seq_len, percentages=(100, 40, 7), profile=path)):
        assert sum(given.block_lens) == seq_len
        assert len(given.block_lens) == 3
        assert min(given.block_lens) >= 0


@fuzz.examples(30)
@given(data=st.data())
def test_a_record(platform, tmp_path_factory, data):
    """Alone, merged with others, and beside its rows."""
    folder = tmp_path_factory.mktemp("record")
    for suffix in (".csv", ".json"):
        shutil.copy(platform / "bench" / f"pct-100-025.job-1{suffix}", folder / f"rows{suffix}")
    (folder / "rows.json").write_bytes(content_of(data, folder / "rows.json"))
    record = accepted(lambda: read_record(folder / "rows.json"))
    if record is not None:
        other = read_record(platform / "bench" / "pct-100-100.job-1.json")
        merged = accepted(lambda: merge({"one": record, "other": other}))
        assert merged is None or merged["jobs"] == {"one": record, "other": other}
    rows = accepted(lambda: read_rows(folder / "rows.csv", Measurement))
    assert rows is None or rows == read_rows(platform / "bench" / "pct-100-025.job-1.csv", Measurement)


@pytest.mark.parametrize("name", ROWS)
@fuzz.examples(30)
@given(data=st.data())
def test_rows(platform, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.csv").write_bytes(data.draw(fuzz.damaged((platform / name).read_bytes())))
    if rows := accepted(lambda: read_rows(folder / "rows.csv", ROWS[name])):
        write_rows(folder / "again.csv", rows)
        again = read_rows(folder / "again.csv", ROWS[name])
        assert [*map(to_text, again)] == [*map(to_text, rows)]  # to the 9 digits that are written


@pytest.mark.parametrize("name", ["measurements", "cells", "profile", "model", "trace"])
@fuzz.examples(20)
@given(data=st.data())
def test_a_derived_table(platform, tmp_path_factory, name, data):
    folder = shutil.copytree(platform, tmp_path_factory.mktemp("derived") / "platform")
    path = folder / "derived" / f"{name}.csv"
    path.write_bytes(data.draw(fuzz.damaged(path.read_bytes())))
    accepted(lambda: Results.load(folder))


@fuzz.examples(30)
@given(
    content=fuzz.anything | st.fixed_dictionaries(dict.fromkeys(("pid", "command", "folder", "since"), fuzz.anything))
)
def test_what_is_written_in_a_lock(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("lock") / "lock"
    path.write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(machine_lock.VARIABLE, str(path))
        with machine_lock.machine_lock() as held:
            path.write_text(json.dumps(content))
            assert held is not None
            assert len(str(machine_lock.holder()).splitlines()) == 1

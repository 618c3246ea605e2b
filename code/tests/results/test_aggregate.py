"""Aggregation reads the requested throttle settings, and ignores other files in a platform's folder."""

import json
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from typer.testing import CliRunner

from heteroring.cli import main as cli
from heteroring.results.aggregate import aggregate
from synthetic import CPU, bench_name, write_platform

STRATEGIES = ("contiguous/even", "zigzag/even")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "cpu"
    write_platform(
        folder, replace(CPU, lengths=(512,), percentages=(10, 50, 100), repetitions=2, strategies=STRATEGIES)
    )
    shutil.copytree(folder / "profile", folder / "model" / "profile")
    shutil.rmtree(folder / "derived")
    (folder / "provenance.json").unlink()
    return folder


@pytest.fixture
def folder(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "cpu")


def tables(folder):
    return {path.name: path.read_text() for path in (folder / "derived").iterdir()}


def jobs(folder):
    """(stage, throttle setting) of each job in the record."""
    found = json.loads((folder / "provenance.json").read_text())["jobs"]
    return {tuple(name.rsplit("/pct-", 1)) for name in found}


BENCH = tuple(bench_name((100, percentage)) for percentage in (100, 50))
MODEL = (bench_name((100, 50)),)


def test_other_percentages_are_as_if_they_were_not_there(folder, tmp_path):
    aggregate(folder, (100, 50), BENCH, MODEL)
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("derived", "provenance.json"))
    for path in [*bare.rglob("pct-*.*"), *bare.rglob("trace-*.*")]:
        kept = {"bench": BENCH, "model": MODEL}.get(path.parent.name, ("pct-100", "pct-050"))
        if path.stem.replace("trace-", "pct-") not in kept:
            path.unlink()
    aggregate(bare)
    assert tables(folder) == tables(bare)
    assert (folder / "provenance.json").read_text() == (bare / "provenance.json").read_text()
    assert set(pd.read_csv(folder / "derived" / "cells.csv")["percentages"]) == {"100 100", "100 50"}


def test_a_stale_file_that_cannot_be_read_is_ignored_and_kept(folder):
    stale = folder / "bench" / "pct-100-010.job-1.csv"
    stale.write_text("of,an,older,version\n")
    aggregate(folder, (100, 50), BENCH, MODEL)
    assert stale.read_text() == "of,an,older,version\n"
    with pytest.raises(ValueError, match=r"pct-100-010\.job-1\.csv"):
        aggregate(folder)


def test_without_being_told_everything_is_taken_and_what_is_added_back_is_there_again(folder):
    aggregate(folder)
    everything = {(path.parent.relative_to(folder).as_posix(), path.stem[4:]) for path in folder.rglob("pct-*.csv")}
    assert jobs(folder) == everything
    assert set(tables(folder)) == {f"{name}.csv" for name in ("measurements", "cells", "profile", "model", "trace")}
    before, record = tables(folder), (folder / "provenance.json").read_text()
    aggregate(folder, (100, 50), BENCH, ())
    assert set(tables(folder)) == {"measurements.csv", "cells.csv", "profile.csv"}
    assert not any(stage.startswith("model") for stage, _ in jobs(folder))
    aggregate(folder)
    assert tables(folder) == before
    assert (folder / "provenance.json").read_text() == record


def test_order_and_repetition_do_not_matter(folder):
    aggregate(folder, (50, 100, 50), (*reversed(BENCH), BENCH[0]), MODEL * 2)
    before = tables(folder)
    aggregate(folder, (100, 50), BENCH, MODEL)
    assert tables(folder) == before


@pytest.mark.parametrize(
    "missing", ["bench/pct-100-050.job-1.csv", "profile/pct-050.csv", "model/pct-100-050.job-1.csv"]
)
def test_a_percentage_that_was_not_measured_is_refused_by_name(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(missing)} does not exist"):
        aggregate(folder, (100, 50), BENCH, MODEL)
    assert not (folder / "derived").exists()


def test_the_record_of_a_job_that_was_measured_again_is_written(folder):
    record = folder / "provenance.json"
    assert record in aggregate(folder)
    assert record not in aggregate(folder)
    job = folder / "bench" / "pct-100-050.job-1.json"
    job.write_text(json.dumps(json.loads(job.read_text()) | {"date": "2099-01-01T00:00:00+00:00"}))
    assert record in aggregate(folder)
    assert json.loads(record.read_text())["date"] == "2099-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("name", "remedy"), [("provenance", ": delete it to have it written anew"), ("bench/pct-100-050.job-1", "")]
)
def test_a_record_that_is_none_is_refused_and_kept(folder, name, remedy):
    record = folder / f"{name}.json"
    record.write_text("{}")
    with pytest.raises(ValueError, match=rf"{name}\.json is no record .* its platform is missing .*type{remedy}$"):
        aggregate(folder)
    assert record.read_text() == "{}"
    assert not (folder / "derived").exists()


@pytest.mark.parametrize("stage", ["bench", "profile"])
def test_a_stage_of_which_nothing_was_measured_is_named(folder, stage):
    shutil.rmtree(folder / stage)
    with pytest.raises(ValueError, match=f"{stage} holds no .csv file: nothing has been measured"):
        aggregate(folder)


def invoke(folder, *options):
    return CliRunner().invoke(cli.app, ["aggregate", "--platform-dir", str(folder), *options])


def test_the_command_takes_percentages(folder):
    ring = ("--bench", ",".join(BENCH))
    assert invoke(folder, "--percentages", "100,50", "--model", "none", *ring).exit_code == 0
    assert jobs(folder) == {
        *(("bench", name.removeprefix("pct-")) for name in BENCH),
        *(("profile", p) for p in ("100", "050")),
    }
    assert invoke(folder, "--percentages", "100,50", "--model", *MODEL, *ring).exit_code == 0
    assert {name for stage, name in jobs(folder) if stage == "model"} == {"100-050.job-1"}


def test_the_command_refuses_what_is_no_list(folder):
    result = invoke(folder, "--percentages", "100;50")
    assert result.exit_code == 2
    assert "--percentages '100;50' is not a list of integers" in result.stderr

"""Rows and provenance are written together or not at all, wherever writing is interrupted."""

import json
import os
from types import SimpleNamespace

import pytest

from heteroring.bench.measure import measure
from heteroring.bench.ring.job import RingJob
from heteroring.results.git import Commit
from heteroring.results.provenance import RankReport
from rows import measurement

ASKED = {"percentages": (100, 50), "seq_lens": (100,), "strategies": ("zigzag/even",)}


class Killed(BaseException):
    """Stands for the end of the process."""


def stage(then=lambda: None, count=1):
    """A measurement of `count` rows that takes no time, and calls `then`."""
    rows, ranks = [measurement(latency_ms=9.0)] * count, [RankReport("EPYC", 0, {})] * 2

    def run(job, hang_timeout, on_progress):
        then()
        return SimpleNamespace(rows=rows, ranks=ranks, notes=())

    return SimpleNamespace(steps=lambda job: 1, run=run)


def written(output, **options):
    job = RingJob(device_kind="cpu", platform="cpu", throttle="pacing", **ASKED)
    measure(options.pop("stage", stage()), job, 60.0, output, "a test", **options)
    return json.loads(output.with_suffix(".json").read_text())


def older(tmp_path):
    output = tmp_path / "pct-050.csv"
    for name in ("pct-050.csv", "pct-050.json"):
        (tmp_path / name).write_text("of an older job")
    return output


@pytest.mark.parametrize("written_last", ["dump_json", "dump_rows"])
def test_what_cannot_be_written_leaves_an_older_result_alone(tmp_path, monkeypatch, written_last):
    def killed(*_):
        raise Killed

    output = older(tmp_path)
    monkeypatch.setattr(f"heteroring.bench.measure.{written_last}", killed)
    with pytest.raises(Killed):
        written(output)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("pct-050.csv", "pct-050.json"), "of an older job"
    )


def test_older_rows_never_lie_beside_a_newer_record(tmp_path, monkeypatch):
    """The end comes between the two files, both of which are on the disk."""
    output, replace = older(tmp_path), os.replace

    def killed_at_the_rows(source, target):
        if target == output:
            raise Killed
        replace(source, target)

    monkeypatch.setattr("heteroring.files.os.replace", killed_at_the_rows)
    with pytest.raises(Killed):
        written(output)
    assert not output.exists()
    assert json.loads(output.with_suffix(".json").read_text())["percentages"] == [100, 50]


def test_what_lies_beside_the_rows_is_there_before_them(tmp_path):
    output, seen = older(tmp_path), []
    written(output, write_beside=lambda done: seen.append((len(done.rows), output.read_text())))
    assert seen == [(1, "of an older job")]
    assert output.read_text() != "of an older job"


def test_of_two_jobs_that_write_one_result_at_a_time_one_is_left_whole(tmp_path):
    output = tmp_path / "rows.csv"
    written(output, write_beside=lambda done: written(output, stage=stage(count=2)))
    _, *rows = output.read_text().splitlines()
    assert len(rows) == json.loads(output.with_suffix(".json").read_text())["row_count"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "rows.json"}


def test_a_job_that_fails_leaves_an_older_result_alone(tmp_path):
    def killed():
        raise Killed

    output = older(tmp_path)
    with pytest.raises(Killed):
        written(output, stage=stage(killed))
    assert output.read_text() == output.with_suffix(".json").read_text() == "of an older job"


def test_the_commit_is_that_at_the_start(tmp_path, monkeypatch):
    now = [Commit("first", False)]
    monkeypatch.setattr("heteroring.bench.measure.read_commit", lambda: now[-1])
    record = written(tmp_path / "x.csv", stage=stage(lambda: now.append(Commit("second", True))))
    assert (record["commit"], record["dirty"]) == ("first", False)

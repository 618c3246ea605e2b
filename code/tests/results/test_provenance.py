"""Provenance of measurements, with git and without."""

import json
from pathlib import Path

import pytest

from heteroring.bench.ring.job import RingJob
from heteroring.results.git import Commit
from heteroring.results.provenance import RankReport, merge, provenance, read_json, read_record, settings_of, write_json
from tree import ROOT

FIELDS = {
    "platform",
    "devices",
    "multiprocessors",
    "driver",
    "python",
    "torch",
    "triton",
    "numpy",
    "cpu",
    "commit",
    "dirty",
    "date",
    "command",
    "throttle",
    "percentages",
    "row_count",
    "settings",
    "achieved",
    "seconds",
    "gpus",
    "notes",
}


def record(**changes):
    values = {
        "platform": "cpu",
        "throttle": "pacing",
        "percentages": (100, 50),
        "ranks": [RankReport("EPYC", 0, {"achieved_percentage": 99.0}), RankReport("EPYC", 0, {})],
        "settings": {"repetitions": 5},
        "commit": Commit("a1b2c3", False),
        "row_count": 40,
    }
    return provenance(**values | changes)


def test_a_record_has_every_field_and_survives_json(tmp_path):
    written = record(notes=["clamped"])
    assert set(written) == FIELDS
    assert written["devices"] == ["EPYC", "EPYC"]
    assert written["multiprocessors"] == []
    assert written["date"].endswith("+00:00")
    assert written["cpu"]["cores"] >= 1
    write_json(tmp_path / "job.json", written)
    assert read_json(tmp_path / "job.json") == written


def test_a_share_that_was_not_granted_is_noted():
    granted = {"multiprocessors": 132, "expected_multiprocessors": 132}
    ranks = [RankReport("H200", 132, granted), RankReport("H200", 132, granted | {"expected_multiprocessors": 12})]
    assert record(ranks=ranks)["notes"] == ["rank 1: 132 SMs where 12 were asked for"]


def test_multiprocessors_are_those_that_each_rank_saw():
    ranks = [RankReport("H200", 132, {}), RankReport("H200", 14, {})]
    assert record(platform="gpu", ranks=ranks)["multiprocessors"] == [132, 14]


def test_a_record_names_the_commit_that_it_is_given():
    assert (record()["commit"], record()["dirty"]) == ("a1b2c3", False)


def test_the_command_is_the_one_to_give_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/heteroring/__main__.py", "bench", "--models", "a b"])
    assert record()["command"] == "heteroring bench --models 'a b'"


@pytest.mark.parametrize(("states", "merged"), [([False, None], None), ([None, True], True), ([False, False], False)])
def test_a_tree_is_called_clean_only_if_every_job_knows(states, merged):
    assert merge({str(i): record() | {"dirty": state} for i, state in enumerate(states)})["dirty"] is merged


def test_settings_of_a_job_are_json():
    models = Path("models")
    asked = {"percentages": (100, 50), "seq_lens": (64,), "strategies": ("zigzag/even",), "fitted_models": models}
    job = RingJob(device_kind="cpu", platform="cpu", throttle="pacing", **asked)
    settings = settings_of(job)
    assert settings["shape"]["heads"] == 4
    assert settings["models"] == "models"
    assert json.loads(json.dumps(settings)) == settings
    recorded = ROOT / "data/h200x2/bench/pct-100-050.job-1.json"
    assert list(settings) == list(read_record(recorded)["settings"])


def test_merged_records_describe_the_unthrottled_platform():
    ranks = [RankReport("H200", 132, {}), RankReport("H200", 132, {})]
    slow = [RankReport("H200", 132, {}), RankReport("H200", 14, {})]
    jobs = {
        "bench/pct-010": record(platform="gpu", ranks=slow, percentages=(100, 10)) | {"date": "2026-02-02"},
        "bench/pct-100": record(platform="gpu", ranks=ranks, percentages=(100, 100)) | {"date": "2026-02-01"},
        "profile/pct-100": record(platform="gpu", ranks=ranks[:1], percentages=(100,)) | {"date": "2026-01-31"},
    }
    jobs["bench/pct-010"] |= {"commit": "b", "dirty": True}
    jobs["bench/pct-100"] |= {"commit": "a", "dirty": False}
    jobs["profile/pct-100"] |= {"commit": "a", "dirty": None}
    merged = merge(jobs)
    assert merged["multiprocessors"] == [132, 132]
    assert merged["percentages"] == [10, 100]
    assert merged["commit"] == "a b"
    assert merged["dirty"] is True
    assert merged["date"] == "2026-02-02"
    assert merged["jobs"] == jobs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"platform": "gpu"}, "platform is cpu in one and gpu in the other"),
        ({"torch": "1.0"}, "torch is 2.9 in one and 1.0 in the other"),
        ({"driver": "580.1"}, "driver is 570.2 in one and 580.1 in the other"),
        ({"throttle": "green"}, "throttle is pacing in one and green in the other"),
        ({"devices": ["Xeon", "EPYC"]}, "devices is EPYC, EPYC in one and Xeon, EPYC in the other"),
        ({"devices": ["Xeon"]}, "devices is EPYC, EPYC in one and Xeon in the other"),
    ],
)
def test_jobs_that_were_not_measured_alike_do_not_merge(changes, says):
    one = record() | {"torch": "2.9", "driver": "570.2"}
    jobs = {"bench/pct-010": one, "bench/pct-050": one, "bench/pct-100": one | changes}
    with pytest.raises(ValueError, match=f"^bench/pct-010 and bench/pct-100 cannot be merged: {says}$"):
        merge(jobs)


@pytest.mark.parametrize("changes", [{"throttle": "none"}, {"driver": "unknown"}, {"devices": ["EPYC"]}])
def test_jobs_without_a_throttle_or_with_fewer_ranks_merge_with_the_others(changes):
    one = record() | {"driver": "570.2"}
    assert len(merge({"a": one | changes, "b": one, "c": one | changes})["jobs"]) == 3


def test_no_jobs_do_not_merge():
    with pytest.raises(ValueError, match="no record"):
        merge({})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "a JSON object is needed"),
        ({}, "its platform is missing"),
        (record() | {"devices": "EPYC"}, "its devices is missing or has the wrong type"),
        (record() | {"percentages": [[100]]}, "its percentages hold a value of the wrong type"),
    ],
)
def test_what_is_no_record_is_refused_by_entry(tmp_path, content, says):
    write_json(tmp_path / "job.json", content)
    with pytest.raises(ValueError, match=f"{tmp_path}/job.json is no record of a measurement: {says}"):
        read_record(tmp_path / "job.json")


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path / 'bad.json'} is not JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"cannot read .*gone.json: No such file"):
        read_json(tmp_path / "gone.json")

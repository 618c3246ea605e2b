"""Logging to Weights & Biases: it matches the measurements, which do not depend on it. Nothing is sent."""

import json
from types import SimpleNamespace

import pytest

wandb = pytest.importorskip("wandb")

from heteroring.bench import tracking  # noqa: E402
from heteroring.bench.measure import measure  # noqa: E402
from heteroring.bench.profile.job import ProfileJob  # noqa: E402
from heteroring.bench.ring.job import RingJob  # noqa: E402
from heteroring.bench.shape import Shape  # noqa: E402
from heteroring.results.provenance import RankReport, settings_of  # noqa: E402
from model_rows import event, model_row  # noqa: E402
from rows import measurement, profile_row  # noqa: E402
from wandb_runs import runs  # noqa: E402

MINE = {"device_kind": "cpu", "platform": "mine", "throttle": "pacing"}
RING = RingJob(
    **MINE,
    percentages=(100, 50),
    seq_lens=(100,),
    strategies=("zigzag/even",),
    shape=Shape(1, 4, 2, 64, "float32"),
)
PROFILE = ProfileJob(**MINE, percentages=(50,), sizes=(128,), seq_lens=(), kinds=("matmul",))
ROWS = {
    RING: [
        *(measurement(repetition=number, latency_ms=ms) for number, ms in enumerate((9.0, 7.0, 8.0))),
        *(
            measurement(
                system="alone",
                layout="contiguous",
                allocator="alone",
                block_lens=lens,
                latency_ms=ms,
                transport="none",
                bytes_moved=0,
            )
            for lens, ms in (((100, 0), 6.0), ((0, 100), 12.0))
        ),
    ],
    PROFILE: [profile_row(latency_ms=0.5)],
}


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    """Stay offline, whatever account is configured."""
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("an account was looked for"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def measured(job, output, track="wandb", rows=None, trace=()):
    """`job`, measured by a stage that takes no time."""
    done = SimpleNamespace(rows=rows or ROWS[job], trace=trace, ranks=[RankReport("EPYC", 0, {})] * 2, notes=("odd",))
    stage = SimpleNamespace(steps=lambda job: 1, run=lambda job, hang_timeout, on_progress: done)
    measure(stage, job, 60.0, output, "a test", track=track)
    wandb.teardown()  # as at the end of a process: all is on the disk, and the environment is read anew


@pytest.mark.ranks
@pytest.mark.parametrize("job", [RING, PROFILE], ids=["bench", "profile"])
def test_a_run_holds_settings_cells_summary_and_provenance(tmp_path, capsys, job):
    measured(job, tmp_path / "pct-050.csv")
    [run] = runs(tmp_path)
    stage = "bench" if job is RING else "profile"
    assert (run.name, run.project, run.group, run.job_type) == ("pct-050", "heteroring", "mine", stage)
    record = json.loads((tmp_path / "pct-050.json").read_text())
    settings = record.pop("settings")
    assert settings == settings_of(job)
    assert {key: run.config[key] for key in settings} == settings
    assert run.config["provenance"] == record
    cells = run.table("cells")
    if job is RING:
        [ring] = [cell for cell in cells if cell["system"] == "ring"]
        assert (ring["strategy"], ring["block_lens"], ring["latency_ms"]) == ("zigzag/even", "50 50", 8.0)
        assert ring["slowdown"] is None  # nothing was measured at full speed
        assert run.summary["attention/ring/zigzag/even/100/latency_ms"] == 8.0
        assert run.summary["attention/ring/zigzag/even/100/bound_fraction"] == 0.5  # 1 / (1/6 + 1/12) over 8
        assert not [key for key in run.summary if key.endswith("alone/rank0/100/speedup")]
    else:
        assert [(cell["kind"], cell["size"], cell["latency_ms"]) for cell in cells] == [("matmul", 128, 0.5)]
        assert run.summary["matmul/128/latency_ms"] == 0.5
    assert capsys.readouterr().err.endswith(
        f"heteroring: note: tracked in {run.folder}: `wandb sync {run.folder}` sends it\n"
    )


@pytest.mark.ranks
def test_a_whole_models_run_holds_its_trace(tmp_path):
    measured(RING, None, rows=[model_row(latency_ms=3.0)], trace=[event()])
    [run] = runs(tmp_path)
    assert (run.name, run.job_type) == ("a test", "model")
    assert run.summary["prefill/ring/contiguous/even/100/latency_ms"] == 3.0
    assert len(run.table("trace")) == 1


@pytest.mark.ranks
def test_a_tracked_job_leaves_the_files_of_an_untracked_one(tmp_path):
    for track in ("none", "wandb"):
        measured(RING, tmp_path / track / "rows.csv", track)
    plain, tracked = ((tmp_path / track / "rows.csv").read_bytes() for track in ("none", "wandb"))
    assert plain == tracked
    records = [json.loads((tmp_path / track / "rows.json").read_text()) for track in ("none", "wandb")]
    assert records[0] == records[1] | {key: records[0][key] for key in ("date", "seconds")}
    assert len(runs(tmp_path)) == 1


@pytest.mark.parametrize("error", [wandb.errors.CommError("W&B is\ngone"), OSError("disk full"), TimeoutError()])
def test_what_fails_at_wandb_costs_no_rows(tmp_path, monkeypatch, capsys, error):
    def fails(**_):
        raise error

    monkeypatch.setattr(wandb, "init", fails)
    measured(RING, tmp_path / "rows.csv")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + len(ROWS[RING])
    said = " ".join(str(error).split())
    assert f"heteroring: note: the measurement is not tracked: {said or 'TimeoutError'}\n" in capsys.readouterr().err


@pytest.mark.parametrize("found", [True, False, wandb.errors.AuthenticationError("no such key")])
def test_without_an_account_that_can_be_reached_a_run_stays_here(monkeypatch, found):
    def login(*, prompt):
        assert prompt is False
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(wandb, "login", login)
    for mode in ("", "online"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert tracking._mode(wandb) == ("online" if found is True else "offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking._mode(wandb) == "offline"


def test_what_cannot_be_tracked_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    def refused(track, complaint):
        with pytest.raises(ValueError, match=complaint):
            measure(SimpleNamespace(), RING, 60.0, tmp_path / "rows.csv", "a test", track=track)

    refused("mlflow", "tracker 'mlflow' is unknown: choose one of none, wandb")
    monkeypatch.setenv("WANDB_MODE", "sideways")
    refused("wandb", "WANDB_MODE is 'sideways': it must be online or offline")
    monkeypatch.setattr("heteroring.bench.tracking.find_spec", lambda name: None)
    refused("wandb", "tracker 'wandb' needs the package wandb, which is not installed: pip install wandb")
    assert list(tmp_path.iterdir()) == []

"""The record script runs the grid of the config once, in order, and resumes where it stopped."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from heteroring.cli import main as cli
from record import _heteroring, jobs, left_to_do, main, outlook, read_config, record, share_of
from tree import ROOT

pytestmark = pytest.mark.ranks

SCRIPT = ROOT / "workflow" / "record.py"
CONFIG = SCRIPT.parent / "config" / "default.yaml"
SETTINGS = yaml.safe_load(CONFIG.read_text())


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


class Machine:
    """Runs commands by leaving their output; each takes `seconds` of its own clock."""

    def __init__(self, seconds=10.0):
        self.now, self.seconds, self.ran = 0.0, seconds, []

    def clock(self):
        return self.now

    def run(self, arguments):
        self.ran.append(arguments)
        self.now += self.seconds
        if "--output" in arguments:
            output_of(arguments).write_text("")


def output_of(arguments):
    return Path(arguments[arguments.index("--output") + 1])


def test_the_record_is_profiles_models_and_every_setting_of_the_ring(tmp_path):
    found = list(jobs(tmp_path / "h200x2", SETTINGS))
    names = [f"{job.part} {job.output.stem}" for job in found]
    levels = sorted(SETTINGS["percentages"], reverse=True)
    assert names[: len(levels)] == [f"profile pct-{level:03d}" for level in levels]
    fitted = [f"{kind}-{source}" for kind in ("lut", "formula") for source in ("matmul", "attention")]
    assert names[len(levels) :][:6] == [f"models {model}" for model in (*fitted, "cost-attention", "cost-layer")]
    orders = ["100-100", *(f"{ranks}" for p in levels[1:] for ranks in (f"100-{p:03d}", f"{p:03d}-100"))]
    ring = [name for name in names if name.startswith("ring ")]
    assert ring == [f"ring pct-{ranks}.job-{job}" for job in (1, 2, 3) for ranks in orders]
    first = names.index("ring pct-100-100.job-2")
    assert not any("job-1" in name for name in names[first:] if not name.startswith(("model ", "decode ")))
    corner = ("100-100", "100-050", "100-010")
    for condition in ("sustained", "eager", "captured"):
        calls = [name for name in names if name.startswith(f"{condition} ")]
        assert calls == [f"{condition} pct-{ranks}.{condition}.job-1" for ranks in corner]
    blocks = [f"pct-{p:03d}" for p in sorted(SETTINGS["model_percentages"], reverse=True)]
    orders = ("100-100", "100-050", "050-100", "100-030", "030-100", "100-010", "010-100")
    whole = [f"pct-{ranks}.job-{job}" for job in (1, 2) for ranks in orders]
    block = [*(f"profile {name}" for name in blocks), "models cost-block"]
    assert names[names.index("models cost-block") - len(blocks) :][: len(block)] == block
    assert [name for name in names if name.startswith("model ")] == [f"model {name}" for name in whole]
    assert [name for name in names if name.startswith("decode ")] == [
        f"decode pct-{ranks}.decode-{batch}.job-1" for batch in (1, 8) for ranks in orders if ranks[:3] == "100"
    ]
    assert all("h200x2" in job.arguments for job in found if job.arguments[0] != "fit")


def option(job, name):
    return job.arguments[job.arguments.index(name) + 1]


def test_a_job_of_the_ring_is_told_what_its_name_says():
    found = {str(job.output.relative_to("data/x").with_suffix("")): job for job in jobs(Path("data/x"), SETTINGS)}
    ring, graph = found["bench/pct-010-100.job-2"], found["bench/pct-100-010.captured.job-1"]
    asked = ("--percentages", "--job", "--condition", "--module")
    assert [option(ring, name) for name in asked] == ["10,100", "2", "rested", "attention,fms"]
    assert [option(graph, name) for name in asked] == ["100,10", "1", "captured", "attention"]
    decode, lengths = (
        found["model/pct-100-030.decode-8.job-1"],
        SETTINGS["platforms"]["gpu"]["model"]["decode"][1]["seq_lens"],
    )
    asked = ("--percentages", "--batch", "--strategies", "--seq-lens")
    assert [option(decode, name) for name in asked] == ["100,30", "8", "zigzag/balanced", ",".join(map(str, lengths))]
    assert "--decode-only" in decode.arguments
    assert option(ring, "--strategies").split(",")[-1] == "zigzag/formula@attention"
    assert option(graph, "--strategies").split(",") == SETTINGS["headline"]["strategies"]
    assert ("--peers" in ring.arguments, "--peers" in graph.arguments) == (True, False)
    whole = found["model/pct-010-100.job-2"]
    assert [option(whole, name) for name in ("--percentages", "--job")] == ["10,100", "2"]
    assert whole.arguments[whole.arguments.index("--trace") + 1] == "data/x/model/trace-010-100.job-2.csv"


def test_profiles_may_be_taken_at_other_settings_than_are_measured():
    config = read_config(CONFIG.with_name("held-out.yaml"))
    found = list(jobs(Path("data/x"), config))
    profiles = [job for job in found if job.part == "profile"]
    assert [option(job, "--percentage") for job in profiles] == [str(p) for p in range(100, 0, -10)]
    assert {option(job, "--seq-lens") for job in profiles} == {"4096,8192,16384,32768,65536"}
    fits = [job for job in found if job.part == "models"]
    assert all(job.arguments[-10:] == tuple(str(each.output) for each in profiles) for job in fits)
    rings = [job for job in found if job.part == "ring"]
    assert {option(job, "--percentages") for job in rings} == {
        *("100,100", "100,95", "100,75", "100,55", "100,35", "100,15", "55,100", "15,100")
    }
    assert {option(job, "--seq-lens") for job in rings} == {"12000,24000,48000"}


def test_without_the_layer_only_attention_is_recorded():
    found = list(jobs(Path("data/x"), SETTINGS | {"modules": ["attention"], "model_percentages": []}))
    assert not any("layer" in word or "fms" in word for job in found for word in job.arguments)
    assert {option(job, "--module") for job in found if job.arguments[0] == "bench"} == {"attention"}


@pytest.mark.parametrize("stage", ["profile", "fit", "bench", "model"])
def test_its_commands_are_those_of_the_command_line(tmp_path, stage):
    for job in [job for job in jobs(tmp_path / "x", SETTINGS) if job.arguments[0] == stage][
        :: len(SETTINGS["percentages"])
    ]:
        result = CliRunner().invoke(cli.app, job.arguments)
        assert "No such option" not in result.output
        assert "Missing" not in result.output


def test_a_part_can_be_recorded_by_itself(tmp_path):
    machine = Machine()
    assert record(tmp_path, SETTINGS, 1000, machine.run, machine.clock, only="model") == []
    outputs = [output_of(arguments).relative_to(tmp_path).parts[0] for arguments in machine.ran]
    assert set(outputs) == {"model"}
    machine.ran.clear()
    assert record(tmp_path, SETTINGS, 1000, machine.run, machine.clock, only="eager") == []
    assert {output_of(arguments).name.split(".")[1] for arguments in machine.ran} == {"eager"}


def test_commands_at_once_share_a_part(tmp_path):
    """Each job is done by one of them, whenever they begin."""
    first, second = Machine(), Machine()
    assert record(tmp_path, SETTINGS, 1000, first.run, first.clock, only="ring", share=share_of("1/2", "ring")) == []
    assert record(tmp_path, SETTINGS, 1000, second.run, second.clock, only="ring", share=share_of("2/2", "ring")) == []
    outputs = [output_of(arguments) for arguments in (*first.ran, *second.ran)]
    assert sorted(outputs) == sorted(job.output for job in jobs(tmp_path, SETTINGS) if job.part == "ring")
    assert abs(len(first.ran) - len(second.ran)) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--share", "3/2", "--only", "ring"), "--share 3/2 is not K/N, with K from 1 to N"),
        (("--share", "0/2", "--only", "ring"), "--share 0/2 is not K/N"),
        (("--share", "half", "--only", "ring"), "--share half is not K/N"),
        (("--share", "1/2"), "--share 1/2 goes with --only"),
    ],
)
def test_a_share_that_is_none_is_refused(refused, tmp_path, arguments, says):
    assert says in refused(tmp_path / "x", *arguments)


def test_what_is_left_is_listed_with_what_jobs_like_it_took(tmp_path):
    done = next(job for job in jobs(tmp_path, SETTINGS) if job.part == "ring")
    done.output.parent.mkdir()
    done.output.write_text("")
    done.output.with_suffix(".json").write_text('{"seconds": 45.0}')
    todo, guesses = left_to_do(tmp_path, SETTINGS, "ring")
    assert (len(todo), guesses["ring"], guesses["eager"]) == (3 * 19 - 1, 60.0, 60.0)
    assert outlook(todo[:2], guesses).splitlines()[1:] == [
        f"{todo[1].output}: about 1.0 min",
        "2 jobs left, about 2 min",
    ]
    listed = run(tmp_path / "x", "--dry-run", "--only", "captured")
    assert listed.returncode == 0
    assert listed.stdout.splitlines()[-1] == "3 jobs left, about 3 min"
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_in_the_time_is_left_and_then_done(tmp_path):
    machine = Machine(seconds=50)
    left = record(tmp_path, SETTINGS, 5, machine.run, machine.clock)
    assert machine.now <= 300
    assert left
    first = len(machine.ran)
    machine.now = 0
    assert record(tmp_path, SETTINGS, 1000, machine.run, machine.clock) == []
    assert len(machine.ran) == len(set(machine.ran)) == len(list(jobs(tmp_path, SETTINGS))) + 1
    assert machine.ran[first - 1][0] == "profile"
    assert machine.ran[-1][0] == "aggregate"


def test_a_launcher_starts_what_has_several_ranks(monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: started.append(command))
    for name in ("profile", "fit", "bench", "model", "aggregate"):
        _heteroring((name, "--option"), launcher=["srun", "--ntasks=2"])
    assert [command[-2] for command in started if command[0] == "srun"] == ["bench", "model"]
    assert [command[-4:-2] for command in started] == [["-m", "heteroring"]] * 5


def test_a_command_that_fails_ends_the_record(tmp_path):
    config = tmp_path / "config.yaml"
    settings = yaml.safe_load(CONFIG.read_text())
    settings["platforms"]["gpu"]["repetitions"] = "several"  # refused before torch is imported
    config.write_text(yaml.safe_dump(settings))
    done = run(tmp_path / "x", "--config", config)
    assert done.returncode == 1
    assert "heteroring profile failed with exit code 2" in done.stderr


@pytest.fixture
def refused(monkeypatch, capsys):
    """A function that returns the error message for a mistake, which is reported before anything is done."""

    def said(folder, *arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert not folder.exists()
        return capsys.readouterr().err

    return said


@pytest.mark.parametrize("name", ["h200-x2", "H200", "two gpus", "h200_x2", "h200x2\n", "1e5"])
def test_a_name_that_the_workflow_would_not_take_is_refused(refused, tmp_path, name):
    said = refused(tmp_path / name)
    assert f"no platform called {name!r}" in said
    assert "[a-z0-9]+$" in said


@pytest.mark.parametrize("name", ["auto", "cpu", "gpu"])
def test_a_name_that_means_something_else_is_refused(refused, tmp_path, name):
    assert f"{name} is no name for a record" in refused(tmp_path / name)


def test_a_part_that_does_not_exist_is_refused(refused, tmp_path):
    said = refused(tmp_path / "x", "--only", "benches")
    assert "'benches'" in said
    assert all(part in said for part in ("profile", "models", "ring", "sustained", "model"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("platforms: # \xe9", "can't decode byte 0xe9"),
        ("platforms: {gpu: 1}", "is no configuration"),
        ("a: [", "is no configuration: while parsing"),
        ("- a", "is no configuration"),
    ],
)
def test_a_config_that_is_none_is_refused(refused, tmp_path, text, says):
    config = tmp_path / "config.yaml"
    if text is not None:
        config.write_text(text, encoding="latin-1")
    said = refused(tmp_path / "x", "--config", config)
    assert str(config) in said
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize("minutes", ["nan", "-1", "inf"])
def test_minutes_that_are_none_are_refused(refused, tmp_path, minutes):
    assert f"--minutes {float(minutes)} is not a positive, finite number" in refused(
        tmp_path / "x", f"--minutes={minutes}"
    )


def test_a_model_whose_profile_would_be_another_models_is_refused(refused, tmp_path):
    settings = yaml.safe_load(CONFIG.read_text())
    settings["platforms"]["gpu"]["model"]["emb_dim"] = 2048
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert "platforms.gpu.model.heads: 0" in refused(tmp_path / "x", "--config", config)

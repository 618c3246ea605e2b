"""The record script runs the grid of the config once, in order, and goes on where it stopped."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from heteroring import cli
from record import jobs, record

pytestmark = pytest.mark.ranks

SCRIPT = Path(__file__).parents[2] / "workflow" / "scripts" / "record.py"
CONFIG = SCRIPT.parents[1] / "config" / "default.yaml"
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
            Path(arguments[-1]).write_text("")


def test_every_percentage_is_profiled_and_measured(tmp_path):
    found = list(jobs(tmp_path / "h200x2", SETTINGS))
    names = [f"{job.stage} {job.output.stem}" for job in found]
    levels = [f"pct-{p:03d}" for p in sorted(SETTINGS["percentages"], reverse=True)]
    assert names[: len(levels)] == [f"profile {level}" for level in levels]
    assert names[len(levels) + 6 : 2 * len(levels) + 6] == [f"bench {level}" for level in levels]
    models = [f"{kind}-{source}" for kind in ("lut", "formula") for source in ("matmul", "attention")]
    assert names[len(levels) : len(levels) + 6] == [f"fit {m}" for m in (*models, "cost-attention", "cost-layer")]
    whole = [f"pct-{p:03d}" for p in sorted(SETTINGS["model_percentages"], reverse=True)]
    assert names[2 * len(levels) + 6 :] == [
        *(f"profile {level}" for level in whole),
        "fit cost-block",
        *(f"model {level}" for level in whole),
    ]
    assert all("h200x2" in job.arguments for job in found if job.stage != "fit")


def test_without_the_layer_only_attention_is_recorded():
    found = list(jobs(Path("data/x"), SETTINGS | {"modules": ["attention"], "model_percentages": []}))
    assert not any("layer" in word or "fms" in word for job in found for word in job.arguments)
    bench = next(job for job in found if job.stage == "bench")
    assert bench.arguments[bench.arguments.index("--module") + 1] == "attention"


@pytest.mark.parametrize("stage", ["profile", "fit", "bench", "model"])
def test_its_commands_are_those_of_the_command_line(tmp_path, stage):
    for job in [job for job in jobs(tmp_path / "x", SETTINGS) if job.stage == stage][:: len(SETTINGS["percentages"])]:
        result = CliRunner().invoke(cli.app, job.arguments)
        assert "No such option" not in result.output
        assert "Missing" not in result.output


def test_a_part_can_be_recorded_by_itself(tmp_path):
    machine = Machine()
    assert record(tmp_path, SETTINGS, 1000, machine.run, machine.clock, only="model") == []
    outputs = [Path(arguments[-1]).relative_to(tmp_path).parts[0] for arguments in machine.ran]
    assert set(outputs) == {"model"}


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


def test_a_command_that_fails_ends_the_record(tmp_path):
    config = tmp_path / "config.yaml"
    settings = yaml.safe_load(CONFIG.read_text())
    settings["platforms"]["gpu"]["throttle"] = "sand"
    config.write_text(yaml.safe_dump(settings))
    done = run(tmp_path / "x", "--config", config)
    assert done.returncode == 1
    assert "heteroring profile failed with exit code 2" in done.stderr


def refused(folder, *arguments):
    """What is said about a mistake, before anything is done."""
    done = run(folder, *arguments)
    assert done.returncode == 2, done.stderr
    assert not folder.exists()
    return done.stderr


@pytest.mark.parametrize("name", ["h200-x2", "H200", "two gpus", "h200_x2"])
def test_a_name_that_the_workflow_would_not_take_is_refused(tmp_path, name):
    said = refused(tmp_path / name)
    assert f"no platform called {name!r}" in said
    assert "^[a-z0-9]+$" in said


@pytest.mark.parametrize("name", ["auto", "cpu", "gpu"])
def test_a_name_that_means_something_else_is_refused(tmp_path, name):
    assert f"{name} is no name for a record" in refused(tmp_path / name)


def test_a_part_that_does_not_exist_is_refused(tmp_path):
    said = refused(tmp_path / "x", "--only", "benches")
    assert "'benches'" in said
    assert all(part in said for part in ("profile", "models", "bench", "model"))


def test_a_model_whose_profile_would_be_another_models_is_refused(tmp_path):
    settings = yaml.safe_load(CONFIG.read_text())
    settings["platforms"]["gpu"]["model"]["emb_dim"] = 2048
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert "platforms.gpu.model.heads: 0" in refused(tmp_path / "x", "--config", config)

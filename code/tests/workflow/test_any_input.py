"""Fuzzed input of the workflow: configurations, lock files and LaTeX logs are refused clearly, or used."""

import copy
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("jsonschema")

from workflow.commands import Commands
from workflow.preflight.configuration import check
from workflow.preflight.stale_lock import drop_stale_lock
from workflow.scripts.check_latex_log import problems

import fuzz
from record import read_config
from tree import ROOT

WORKFLOW = ROOT / "workflow"
SCHEMA = WORKFLOW / "schemas" / "config.schema.yaml"
DEFAULT = yaml.safe_load((WORKFLOW / "config" / "default.yaml").read_text())


def assert_makes_sense(config):
    """Assert that every command of every platform can be formed, with valid lists and file names."""
    for platform in config["platforms"]:
        commands = Commands(config, platform, config["modules"])
        lines = [commands.bench(setting, "models", f"{setting.name}.csv") for setting in commands.settings()]
        lines += [commands.profile(percentage, "rows.csv") for percentage in commands.profiled_percentages]
        lines += [commands.model(setting, "models", "rows.csv", "trace.csv") for setting in commands.model_settings()]
        assert all(isinstance(word, str) and "\n" not in word for line in lines for word in line)
        json.dumps([commands.grid(), commands.model_grid()])


@pytest.mark.slow
@fuzz.examples(60)
@given(config=fuzz.changed(DEFAULT))
def test_a_configuration(config):
    before = copy.deepcopy(config)
    try:
        check(config, SCHEMA)
    except ValueError as error:
        first, *others = str(error).splitlines()
        assert first == "configuration:"
        assert others
        return
    assert config == before or {str(config[name]) for name in ("run", "platform")} == {
        str(before[name]) for name in ("run", "platform")
    }
    assert_makes_sense(config)


@fuzz.examples(20)
@given(data=st.data())
def test_a_configuration_that_is_recorded_by(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_bytes(data.draw(fuzz.damaged((WORKFLOW / "config" / "default.yaml").read_bytes())))
    try:
        config = read_config(path)
    except ValueError as error:
        said = str(error)
        assert said.startswith(str(path))
        return
    assert_makes_sense(config | {"platforms": {"gpu": config["platforms"]["gpu"]}})


@fuzz.examples(60)
@given(content=fuzz.anything | st.fixed_dictionaries(dict.fromkeys(("host", "boot", "pid", "start"), fuzz.anything)))
def test_a_signature_beside_a_lock(tmp_path_factory, content):
    state = tmp_path_factory.mktemp("state")
    (state / "locks").mkdir()
    (state / "locks" / "0.output.lock").touch()
    (state / "owner.json").write_text(json.dumps(content))
    assert not drop_stale_lock(state)  # nobody of this name was here
    assert (state / "locks" / "0.output.lock").exists()


@fuzz.examples(60)
@given(
    log=st.text()
    | st.lists(st.sampled_from(["! x", "Overfull \\hbox (9" * 9, "LaTeX Warning: Label", "x" * 79])).map("\n".join)
)
def test_a_log_of_latex(log):
    assert all("\n" not in line for line in problems(log))

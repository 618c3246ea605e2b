"""The workflow's plans and refusals before anything is measured, and its figures of a recorded platform."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from workflow.preflight.link_checkout import paper_figures

from heteroring.launch.machine_lock import machine_lock
from tree import ALL, ROOT, RUN, jobs

pytest.importorskip("snakemake")
pytestmark = pytest.mark.workflow


def test_recorded_platform_is_shown_without_measuring_it_again(tree):
    targets = ("figures/speedup_heatmap.png", "data/h200x2/derived/checks.txt")
    status, output = tree.plan(*targets, config="", CUDA_VISIBLE_DEVICES="")
    assert status == 0, output
    whole = any((tree.root / "data" / "h200x2" / "model").glob("pct-*.csv"))
    aggregate = "aggregate_recorded" if whole else "aggregate_recorded_layers"
    once = (aggregate, "figures", "main_figure", "checks")
    assert jobs(output) == dict.fromkeys(once, 1) | {"total": 4}
    assert "cp figures/h200x2/speedup_heatmap.png figures/speedup_heatmap.png" in output

    status, output = tree.plan(ALL, config="", CUDA_VISIBLE_DEVICES="")
    assert status == 0, output
    planned = jobs(output)
    assert (planned["bench"], planned[aggregate], planned["aggregate"], planned["checks"]) == (12, 1, 1, 2)
    assert planned["figures"] == 2  # of the record and of this machine
    assert planned["experiment_figure"] == 2  # the ablation, and the held-out settings
    assert planned["paper_image"] == len(paper_figures(ROOT / "latex"))


def test_a_record_of_an_experiment_is_shown_as_any_other(tree):
    status, output = tree.plan(ALL, "--config", "platform=h200x2ablation", config="", CUDA_VISIBLE_DEVICES="")
    assert status == 0, output
    assert (jobs(output)["figures"], jobs(output)["experiment_figure"]) == (2, 1)  # its ablation is among its figures


def test_two_gpus_are_measured_with_their_peers(tree, tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: a)'\necho 'GPU 1: two (UUID: b)'\n")
    driver.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    status, output = tree.plan("all_but_pdf", config="", PATH=path, CUDA_VISIBLE_DEVICES="0,1")
    assert status == 0, output
    commands = [line for line in output.splitlines() if "heteroring bench" in line]
    assert all("--platform gpu --throttle mps" in command for command in commands)
    rings = [command for command in commands if "--module attention,fms --condition rested" in command]
    assert len(rings) == 3 * 19  # jobs, and both orders of nine percentages beside 100
    assert all("--peers" in command for command in rings)
    decodes = [line for line in output.splitlines() if "--decode-only" in line]
    assert len(decodes) == 2 * 4  # batches, and percentages


def test_four_gpus_are_measured_in_rings_of_four(tree):
    rings = "workflow/config/ring4.yaml"
    status, output = tree.plan("all_but_pdf", config=rings, HETERORING_GPUS="4")
    assert status == 0, output
    commands = [line for line in output.splitlines() if "heteroring bench" in line]
    asked = [line.partition("--percentages ")[2].split()[0] for line in commands if "--condition rested" in line]
    assert len(asked) == 3 * 11
    assert {"100,100,100,10", "100,10,100,100", "10,100,100,100", "100,80,60,40"} <= set(asked)
    assert sum("--condition sustained" in line for line in commands) == 4
    profiles = re.findall(r"heteroring profile .*--percentage (\d+)", output)
    assert sorted(map(int, profiles)) == [10, 40, 50, 60, 80, 100]
    status, output = tree.plan("all_but_pdf", "--config", "platform=gpu", config=rings, HETERORING_GPUS="3")
    assert status == 1
    assert "platform=gpu needs a CUDA GPU for each of 4 ranks, and this machine shows 3" in output


# Read by every Python that starts with its folder on the path.
HIDE_FMS = """
import importlib.util

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "fms" else find_spec(name, package)
"""


def test_without_ibm_fms_attention_alone_is_measured_and_what_holds_it_up_is_named(tree, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(HIDE_FMS)
    without = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{tree.env['PYTHONPATH']}"}
    lock = {"HETERORING_LOCK": str(tmp_path / "lock")}
    monkeypatch.setenv(*next(iter(lock.items())))
    with machine_lock():
        status, output = tree.tiny(str(RUN / "latex" / "refs.bib"), **without, **lock)
    assert status == 0, output
    assert "attention alone is measured" in output
    assert f"What is measured here waits for process {os.getpid()}, since 2" in output

    status, output = tree.tiny("-n", "all_but_pdf", **without)
    assert status == 0, output
    commands = [line for line in output.splitlines() if re.search("Shell command: heteroring (?!figure)", line)]
    assert sum("heteroring bench" in command for command in commands) == 2
    for word in ("layer", "fms", "block", "heteroring model"):
        assert not [command for command in commands if word in command]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("platfrom=cpu", "unknown key platfrom: did you mean platform?"),
        ("platform=gpu", "platform=gpu needs a CUDA GPU for each of 2 ranks, and this machine shows 0"),
        ("platform=b200x2", "platform=b200x2: no measurements are recorded"),
    ],
)
def test_bad_setting_is_one_clear_error(tree, setting, says):
    status, output = tree.plan("all", "--config", setting, config="", CUDA_VISIBLE_DEVICES="")
    assert status != 0
    assert says in output
    assert "Traceback" not in output


def test_unknown_figure_is_refused_by_name(tree):
    status, output = tree.plan("figures/speedup_heatmab.png", config="")
    assert status != 0
    assert "unknown figure 'speedup_heatmab'" in output
    assert "speedup_heatmap" in output


def test_unknown_platform_of_a_figure_is_refused_by_name(tree):
    status, output = tree.plan("figures/tpu/speedup_heatmap.png", config="")
    assert status != 0
    assert "unknown platform 'tpu'" in output


def test_without_latexmk_the_pdf_is_refused_at_once_and_the_rest_is_built(tree, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{tmp_path}"
    for program in ("bash", "which", "git", "uname"):  # the programs that Snakemake and the rules call
        (tmp_path / program).symlink_to(shutil.which(program))
    status, output = tree.plan("all", config="", PATH=path)
    assert status != 0
    assert "latexmk is not installed" in output
    assert "all_but_pdf" in output
    status, output = tree.plan("all_but_pdf", config="", PATH=path)
    assert status == 0, output
    assert "paper" not in jobs(output)

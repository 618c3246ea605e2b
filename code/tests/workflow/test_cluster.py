"""The profile for Slurm: the jobs that it submits, and the resources that they request."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workflow.preflight.platforms import visible_gpus

from tree import ROOT

pytest.importorskip("snakemake_executor_plugin_slurm")

# The output of stand-ins for Slurm's programs. A refused job ends the run.
SLURM = {
    "sinfo": "echo 'PARTITION'; echo 'all*'",
    "sbatch": "exit 1",
    "sacct": "echo somebody",
    "sacctmgr": "echo somebody",
    "scontrol": "exit 1",
}


@pytest.fixture
def snakemake(tmp_path):
    """Runs Snakemake with the profile, in a copy of the tree on a login node of a cluster whose nodes have two GPUs."""
    for name in ("Snakefile", "profiles", "workflow", "code/heteroring", "data/published"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, says in SLURM.items():
        (programs / name).write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/{name}.calls\n{says}\n')
        (programs / name).chmod(0o755)
    env = os.environ | {
        "HETERORING_GPUS": "2",
        "PYTHONPATH": str(tmp_path / "code"),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess:
        profile = ["--profile", "workflow/profiles/slurm", "--configfile", "workflow/config/tiny.yaml"]
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *profile, "--config", "platform=gpu", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.workflow
def test_everything_can_be_planned_from_a_login_node(snakemake):
    done = snakemake("--dry-run", "all_but_pdf")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "heteroring bench --platform gpu" in done.stdout


@pytest.mark.workflow
def test_what_measures_asks_for_a_whole_node_and_its_gpus(snakemake, tmp_path):
    done = snakemake("--slurm-init-seconds-before-status-checks", "1", "runs/tiny/data/gpu/profile/pct-100.csv")
    assert done.returncode != 0, done.stdout
    assert (tmp_path / "sbatch.calls").exists(), done.stdout + done.stderr
    (asked,) = (tmp_path / "sbatch.calls").read_text().splitlines()
    for option in ("--gpus=2", "--exclusive", "--cpus-per-task=16", "--mem 64000", "-t 60"):
        assert option in asked, asked


def test_the_number_of_gpus_elsewhere_is_a_number(monkeypatch):
    monkeypatch.setenv("HETERORING_GPUS", "2")
    assert visible_gpus() == 2
    monkeypatch.setenv("HETERORING_GPUS", "two")
    with pytest.raises(ValueError, match="HETERORING_GPUS=two is not a number"):
        visible_gpus()

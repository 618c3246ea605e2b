"""Ranks that torchrun or srun started: they measure like launched ones, and end together, each with one line."""

import csv
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch.distributed.run
from typer.testing import CliRunner

from forked_commands import Command, command_line
from heteroring.cli.main import app
from heteroring.launch import external_ranks
from heteroring.launch.external_ranks import World, first_host, leads, named_world

GRID = ["--seq-lens", "64,96", "--strategies", "zigzag/even,contiguous/uneven", "--repetitions", "2"]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_world(monkeypatch):
    for name in (*VARIABLES, *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, None),
        (dict(zip(VARIABLES, ("3", "4", "1", "host", "29500"), strict=True)), World(3, 4, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, None),  # without the address of the others
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, World(1, 2, 0)),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),  # a batch script, and no step
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),
    ],
    ids=["none", "torchrun", "no address", "srun", "sbatch", "one task"],
)
def test_the_environment_names_a_world_or_none(monkeypatch, variables, world):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert named_world() == world
    assert leads() == (world is None)


@pytest.mark.parametrize(
    ("rank", "complaint"), [("4", "SLURM_PROCID=4 is no rank of SLURM_STEP_NUM_TASKS=2"), ("x", "SLURM_PROCID=x is")]
)
def test_what_is_no_world_is_named(monkeypatch, rank, complaint):
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=complaint):
        named_world()


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("gpu1", "gpu1"), ("a-1,b-2", "a-1"), ("node[07-09,12],gpu1", "node07"), ("r[3,5]-ib,x", "r3-ib")],
)
def test_first_host_of_a_nodelist(nodelist, host):
    assert first_host(nodelist) == host


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return str(taken.getsockname()[1])


def run_agent(*words: str) -> None:
    torch.distributed.run.main(words)


def torchrun(folder: Path, *arguments: str) -> list[Command]:
    """A command by two agents of torchrun, of one rank each."""
    agent = ["--nnodes", "2", "--master-addr", "localhost", "--master-port", free_port()]
    command = ["-m", "heteroring", *arguments]
    return [Command(*agent, "--node-rank", node, *command, function=run_agent, cwd=folder) for node in ("0", "1")]


@pytest.fixture
def srun(tmp_path):
    """Starts a command as srun starts a step of two tasks, on two nodes as far as Slurm's variables tell."""
    started = []

    def start(*arguments: str, function=command_line) -> list[Command]:
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost"}
        step["SLURM_JOB_ID"] = free_port()
        ranks = [step | {"SLURM_PROCID": rank} for rank in ("0", "1")]
        started[:] = [Command(*arguments, function=function, cwd=tmp_path, env=rank) for rank in ranks]
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def ends(processes: list[Command]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    return [(process.wait(300), *process.communicate()) for process in processes]


def computing(pid: int) -> float:
    """Seconds of processor time that the process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.ranks
def test_two_nodes_of_torchrun_measure_what_launched_ranks_do(jobs_on_pools, tmp_path):
    measure = ["bench", "--percentages", "100,50", *GRID, "--output"]
    told = ends(torchrun(tmp_path, *measure, "joined.csv"))
    assert [code for code, *_ in told] == [0, 0], told
    assert "rank 1 alone" in told[0][1]
    assert told[1][1] == ""
    launched = CliRunner().invoke(app, [*measure, str(tmp_path / "launched.csv")])
    assert launched.exit_code == 0, launched.output
    measured = ("latency_ms", "busy_ms")
    joined, launched = (
        [[(name, value) for name, value in row.items() if name not in measured] for row in rows(tmp_path / name)]
        for name in ("joined.csv", "launched.csv")
    )
    assert joined == launched
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("joined", "launched") for kind in ("csv", "json")
    }


@pytest.mark.ranks
def test_bad_input_is_one_line_on_every_rank(srun):
    for code, said, complaint in ends(srun("bench", "--percentages", "100,50,20", *GRID)):
        assert (code, said) == (2, ""), complaint
        assert complaint.startswith("heteroring: error: ")
        assert complaint.endswith(
            "percentages are 100, 50, 20: one is needed for each of the 2 ranks that were started\n"
        )
        assert complaint.count("\n") == 1


@pytest.mark.ranks
def test_what_rank_0_cannot_write_ends_all(srun, tmp_path):
    (tmp_path / "file").touch()
    words = ["bench", "--percentages", "100,50", *GRID, "--output", "file/a.csv"]
    (first, _, complaint), (second, _, echo) = ends(srun(*words))
    assert (first, second) == (2, 2)
    assert complaint == "heteroring: error: cannot write file/a.csv: file is not a folder\n"
    assert echo == complaint.replace("error:", "error: rank 0 failed:")


def leaving_soon(*words: str) -> None:
    external_ranks.LEAVE_SECONDS = 1.0  # of waiting for a rank that will never say that it leaves
    command_line(*words)


@pytest.mark.ranks
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_that_falls_silent_ends_the_others(srun, monkeypatch, tmp_path, how):
    long = ["--percentages", "100,100", "--seq-lens", "2048", "--repetitions", "1000", "--hang-timeout", "2"]
    monkeypatch.setenv("HETERORING_LOCK", str(tmp_path / "lock"))
    first, second = srun("bench", *long, "--output", "a.csv", function=leaving_soon)
    while not (tmp_path / "lock").exists():
        time.sleep(0.1)
    begun = computing(second.pid)
    while computing(second.pid) < begun + 1.0:
        assert (first.poll(), second.poll()) == (None, None)
        time.sleep(0.1)
    second.send_signal(how)
    _, complaint = first.communicate(timeout=60)
    assert first.returncode == 1
    assert complaint.startswith("heteroring: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]

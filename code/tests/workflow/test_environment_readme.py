"""The examples of README and of the page of the command line work as written."""

import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from forked_commands import Command
from tree import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = (ROOT / "docs" / "command-line.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def statements(example: str) -> list[str]:
    return [line for line in example.splitlines() if line and not line.startswith(("import", "from"))]


def run_as_rank(rank: int, port: int) -> None:
    """The script ring.py, in an environment that torchrun would give it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    runpy.run_path("ring.py", run_name="__main__")


def printed(example: str, folder: Path) -> list[tuple[int, str]]:
    """The output of each of two ranks: how many tokens it has, and which ones were generated."""
    (folder / "ring.py").write_text(example)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    ranks = [Command(rank, port, function=run_as_rank, cwd=folder) for rank in range(2)]
    told = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], told
    pattern = r"rank (\d) (?:holds|held) (\d+) tokens(?: of the prompt, and got (.*?\]))?"
    found = [re.search(pattern, said).groups() for said, _ in told]
    assert [rank for rank, _, _ in found] == ["0", "1"]
    return [(int(tokens), generated) for _, tokens, generated in found]


@pytest.mark.ranks
def test_attention_example_runs_as_written(tmp_path):
    held = [tokens for tokens, _ in printed(blocks("python")[0], tmp_path)]
    assert sum(held) == 4096
    assert max(held) > 3 * min(held)
    assert len(statements(blocks("python")[0])) <= 11


@pytest.mark.ranks
def test_model_example_runs_as_written(tmp_path):
    pytest.importorskip("fms")
    example = blocks("python")[1]
    lines = printed(example, tmp_path)
    assert sorted(tokens for tokens, _ in lines) == [60, 240]
    (generated,) = {ids for _, ids in lines}
    assert len(re.findall(r"\d+", generated)) == 16
    assert len(statements(example)) <= 10


@pytest.mark.ranks
def test_rebalancing_example_runs_behind_that_of_the_model(tmp_path):
    pytest.importorskip("fms")
    model, rebalancing = blocks("python")[1:]
    last = "dist.destroy_process_group()\n"
    check = f"assert logits.isfinite().all() and logits.shape == (1, model.config.src_vocab_size)\n{last}"
    printed(model.replace(last, rebalancing + check), tmp_path)


@pytest.mark.ranks
def test_command_line_example_runs_as_written():
    (line,) = re.findall(r"^heteroring allocate .*$", COMMANDS, re.MULTILINE)
    done = subprocess.run([sys.executable, "-m", *line.split()], capture_output=True, text=True, timeout=60, check=True)
    lens = [int(part) for part in done.stdout.split()]
    assert sum(lens) == 65536


@pytest.mark.workflow
def test_snakemake_commands_need_no_further_options(tmp_path):
    """The figures that README asks for, in one dry run: without --cores, and without a profile of the user's."""
    pytest.importorskip("snakemake")
    targets = re.findall(r"`snakemake (figures/\w+\.png)`", README)
    assert len(targets) >= 3
    for name in ("Snakefile", "workflow", "profiles", "code", "data", "latex"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"} | {
        "PYTHONPATH": str(ROOT / "code")
    }
    command = [sys.executable, "-m", "snakemake", "-n", *targets]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for target in targets:
        assert target in done.stdout

"""What the README shows exists and works as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from heteroring.cli import app
from heteroring.figures import NAMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_column(title: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", section(title), re.MULTILINE)


def test_every_figure_is_explained():
    assert first_column("What each figure shows") == list(NAMES)


def test_every_command_is_explained():
    commands = [f"heteroring {name}" for name in get_command(app).commands]
    assert sorted(first_column("The command line")) == sorted(commands)


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"\bmake ([a-z]+)\b(?=`| +#)", README))
    assert {"test", "clean", "lock", "help"} <= named <= set(targets)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:workflow|notebooks|latex)/[\w./]+\.\w+", README))))
def test_files_named_are_in_the_tree_or_produced(path):
    produced = ("latex/report.pdf", "latex/generated/numbers.tex")
    assert path in produced or (ROOT / path).is_file()


def printed(example: str, folder: Path) -> list[tuple[int, str]]:
    """What each of two ranks says: how many tokens it has, and which ones were generated."""
    (folder / "ring.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "ring.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Ranks write at the same time, so that one may end its line behind the other's.
    found = re.findall(r"rank (\d) (?:holds|held) (\d+) tokens(?: of the prompt, and got (.*?\]))?", done.stdout)
    assert [rank for rank, _, _ in sorted(found)] == ["0", "1"]
    return [(int(tokens), generated) for _, tokens, generated in found]


@pytest.mark.ranks
def test_attention_example_runs_as_written(tmp_path):
    held = [tokens for tokens, _ in printed(blocks("python")[0], tmp_path)]
    assert sum(held) == 4096
    assert max(held) > 3 * min(held)


@pytest.mark.ranks
def test_model_example_runs_as_written(tmp_path):
    pytest.importorskip("fms")
    example = blocks("python")[1]
    lines = printed(example, tmp_path)
    assert sorted(tokens for tokens, _ in lines) == [60, 240]
    (generated,) = {ids for _, ids in lines}
    assert len(re.findall(r"\d+", generated)) == 16
    assert len([line for line in example.splitlines() if line and not line.startswith(("import", "from"))]) <= 10


@pytest.mark.ranks
def test_command_line_example_runs_as_written():
    (line,) = re.findall(r"^heteroring allocate .*$", README, re.MULTILINE)
    done = subprocess.run([sys.executable, "-m", *line.split()], capture_output=True, text=True, timeout=60, check=True)
    lens = [int(part) for part in done.stdout.split()]
    assert sum(lens) == 65536

"""The workflow on machines that are unlike the usual one, in a checkout whose path has spaces and accents.

What is interrupted and killed on the way is in test_dag.py.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from heteroring.results.rows import ProfileRow, read_rows
from namespaces import NO_LOOPBACK, no_network, within
from tree import PATIENCE, RUN, Tree, copied, has_ranks, processes, wait_until

pytest.importorskip("snakemake")
pytestmark = pytest.mark.workflow

ROWS = RUN / "data" / "cpu" / "profile" / "pct-100.csv"
LOG = RUN / "logs" / "cpu" / "profile" / "pct-100.log"
SIGNED = ("-c", "user.name=a", "-c", "user.email=a@example.org")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Tree:
    return copied(tmp_path_factory.mktemp("trees") / "une forêt à part")


@pytest.fixture
def fresh(tree) -> Tree:
    """The tree without what an earlier drill has measured."""
    for name in ("runs", ".snakemake"):
        shutil.rmtree(tree.root / name, ignore_errors=True)
    return tree


def assert_measured(root: Path, status: int, output: str) -> None:
    assert status == 0, output
    assert "Traceback" not in output
    assert read_rows(root / ROWS, ProfileRow)
    assert {path.suffix for path in (root / ROWS).parent.iterdir()} == {".csv", ".json"}


def nowhere_to_write() -> list[str]:
    """Before a command that finds HOME and everything below read-only."""
    home = os.environ.get("HOME", "/root")
    return within("--mount", script=f"mount --bind '{home}' '{home}'; mount -o remount,bind,ro '{home}'")


@pytest.mark.parametrize(
    "surroundings",
    [
        pytest.param(lambda: {"HOME": None, "umask": 0o077}, id="no HOME, and umask 077"),
        pytest.param(lambda: {"HOME": "/dev/null"}, id="a HOME that is no folder"),
        pytest.param(lambda: {"within": nowhere_to_write()}, id="a read-only HOME"),
        pytest.param(
            lambda: {"within": within("--uts", script="hostname nowhere.invalid")}, id="a host name without address"
        ),
        pytest.param(lambda: {"within": no_network()}, id="no network"),
    ],
)
def test_it_measures_all_the_same(fresh, surroundings):
    status, output = fresh.tiny(str(ROWS), **surroundings())
    assert_measured(fresh.root, status, output)


def test_without_loopback_it_ends_at_once_and_says_why(fresh):
    status, output = fresh.tiny(str(ROWS), within=within(*NO_LOOPBACK))
    assert status != 0
    assert "heteroring: error: ranks cannot meet on this machine: localhost cannot be reached" in output
    assert "Traceback" not in output
    assert not (fresh.root / ROWS).parent.exists() or list((fresh.root / ROWS).parent.iterdir()) == []


def test_a_checkout_of_another_user(fresh):
    if os.geteuid():
        pytest.skip("only root can give files away")
    git = ["git", *SIGNED, "-C", str(fresh.root)]
    for words in (["init", "-q"], ["add", "code", "Snakefile"], ["commit", "-qm", "A copy"]):
        subprocess.run([*git, *words], check=True)
    try:
        subprocess.run(["chown", "-R", "65534", fresh.root], check=True)
        status, output = fresh.tiny(str(ROWS), GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull)
    finally:
        subprocess.run(["chown", "-R", str(os.geteuid()), fresh.root], check=True)
        shutil.rmtree(fresh.root / ".git")
    assert_measured(fresh.root, status, output)
    assert "heteroring: warning: " in (fresh.root / LOG).read_text()
    assert '"commit": "unknown"' in (fresh.root / ROWS).with_suffix(".json").read_text()


def test_a_read_only_checkout_has_its_results_elsewhere(fresh, tmp_path):
    before = sorted(fresh.root.rglob("*"))
    root = fresh.root
    read_only = within("--mount", script=f"mount --bind '{root}' '{root}'; mount -o remount,bind,ro '{root}'")
    elsewhere = tmp_path / "résultats d'ailleurs"
    options = {"within": read_only, "PYTHONDONTWRITEBYTECODE": "1"}
    figure = "figures/rank_order.png"
    status, output = fresh.tiny(str(ROWS), "--directory", str(elsewhere), **options)
    assert_measured(elsewhere, status, output)
    status, output = fresh.snakemake(figure, "--directory", str(elsewhere), CUDA_VISIBLE_DEVICES="", **options)
    assert status == 0, output
    assert (elsewhere / figure).read_bytes().startswith(b"\x89PNG")
    assert sorted(fresh.root.rglob("*")) == before

    status, output = fresh.tiny(str(ROWS), **options)
    assert status != 0
    assert "Read-only file system" in output


def test_results_are_not_mixed_with_another_checkouts(fresh, tmp_path):
    (tmp_path / "code").mkdir()
    status, output = fresh.tiny("-n", str(ROWS), "--directory", str(tmp_path))
    assert status != 0
    assert f"{tmp_path}/code is in the way of a link to {fresh.root}/code: name another --directory" in output


def test_the_second_of_two_runs_in_one_folder_is_refused_and_the_first_goes_on(fresh):
    first = fresh.start(str(ROWS), "--configfile", "workflow/config/tiny.yaml")
    try:
        wait_until(lambda: has_ranks(first.pid), first)
        status, output = fresh.tiny(str(ROWS))
        assert status != 0
        assert "Directory cannot be locked" in output
        assert "Traceback" not in output
        output, _ = first.communicate(timeout=PATIENCE)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert_measured(fresh.root, first.returncode, output)
    assert processes(first.pid) == {}


def test_a_truncated_measurement_is_named_and_nothing_is_lost(fresh):
    path = fresh.root / "data" / "h200x2" / "bench" / "pct-100-050.job-1.csv"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        status, output = fresh.snakemake("data/h200x2/derived/cells.csv", CUDA_VISIBLE_DEVICES="")
    finally:
        path.write_bytes(whole)
    assert status != 0
    (line,) = [line.strip() for line in output.splitlines() if "heteroring: error" in line]
    assert line.startswith(f"heteroring: error: data/h200x2/bench/{path.name}")
    assert "Traceback" not in output
    assert not list((fresh.root / "data" / "h200x2").glob("derived/*.csv"))

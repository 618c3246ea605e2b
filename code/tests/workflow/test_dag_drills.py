"""The workflow on unusual machines, in a checkout whose path has spaces and accents.

Interrupted and killed runs are in test_dag.py.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from heteroring.results.rows import ProfileRow, read_rows
from namespaces import NO_LOOPBACK, no_network, within
from tree import PATIENCE, RUN, TINY, Tree, copied, has_ranks, processes, wait_until

pytest.importorskip("snakemake")
pytestmark = pytest.mark.workflow

ROWS = RUN / "data" / "cpu" / "profile" / "pct-100.csv"
LOG = RUN / "logs" / "cpu" / "profile" / "pct-100.log"
# The kinds that are profiled there, without a layer of FMS.
ATTENTION = ("--config", "modules=[attention]")
CHECKS = "data/h200x2/derived/checks.txt"
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


def read_only(*folders: str | Path) -> list[str]:
    """Words to put before a command for which the folders and everything below are read-only."""
    mounts = [f"mount --bind '{path}' '{path}'; mount -o remount,bind,ro '{path}'" for path in folders]
    return within("--mount", script="; ".join(mounts))


def test_without_a_home_it_measures_and_a_second_run_in_its_folder_is_refused(fresh):
    """And with a umask of 077."""
    first = fresh.start(str(ROWS), *ATTENTION, "--configfile", TINY, HOME=None, umask=0o077)
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


def test_without_loopback_it_ends_at_once_and_says_why(fresh):
    status, output = fresh.tiny(str(ROWS), *ATTENTION, within=within(*NO_LOOPBACK))
    assert status != 0
    assert "heteroring: error: ranks cannot meet on this machine: localhost cannot be reached" in output
    assert "Traceback" not in output
    assert not (fresh.root / ROWS).parent.exists() or list((fresh.root / ROWS).parent.iterdir()) == []


def test_a_checkout_of_another_user(fresh):
    """And a HOME that is no folder, no network, and a host name without address."""
    unlike = {"HOME": "/dev/null", "within": no_network("--uts", script="hostname nowhere.invalid")}
    if os.geteuid():
        pytest.skip("only root can give files away")
    git = ["git", *SIGNED, "-C", str(fresh.root)]
    for words in (["init", "-q"], ["add", "code", "Snakefile"], ["commit", "-qm", "A copy"]):
        subprocess.run([*git, *words], check=True)
    try:
        subprocess.run(["chown", "-R", "65534", fresh.root], check=True)
        status, output = fresh.tiny(
            str(ROWS), *ATTENTION, GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull, **unlike
        )
    finally:
        subprocess.run(["chown", "-R", str(os.geteuid()), fresh.root], check=True)
        shutil.rmtree(fresh.root / ".git")
    assert_measured(fresh.root, status, output)
    assert "heteroring: warning: " in (fresh.root / LOG).read_text()
    assert '"commit": "unknown"' in (fresh.root / ROWS).with_suffix(".json").read_text()


def test_a_read_only_checkout_has_its_results_elsewhere(fresh, tmp_path):
    """And a HOME that is read-only."""
    before = sorted(fresh.root.rglob("*"))
    elsewhere = tmp_path / "résultats d'ailleurs"
    options = {"within": read_only(fresh.root, os.environ.get("HOME", "/root")), "PYTHONDONTWRITEBYTECODE": "1"}
    status, output = fresh.tiny(str(ROWS), CHECKS, *ATTENTION, "--directory", str(elsewhere), **options)
    assert_measured(elsewhere, status, output)
    assert "every cell there" in (elsewhere / CHECKS).read_text()
    assert sorted(fresh.root.rglob("*")) == before

    status, output = fresh.tiny(str(ROWS), **options)
    assert status != 0
    assert "Read-only file system" in output


def test_results_are_not_mixed_with_another_checkouts(fresh, tmp_path):
    (tmp_path / "code").mkdir()
    status, output = fresh.plan(str(ROWS), "--directory", str(tmp_path))
    assert status != 0
    assert f"{tmp_path}/code is in the way of a link to {fresh.root}/code: name another --directory" in output


def test_a_truncated_measurement_is_named_and_nothing_is_lost(fresh):
    path = fresh.root / "data" / "h200x2" / "bench" / "pct-100-050.job-1.csv"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        status, output = fresh.snakemake(CHECKS, CUDA_VISIBLE_DEVICES="")
    finally:
        path.write_bytes(whole)
    assert status != 0
    (line,) = [line.strip() for line in output.splitlines() if "heteroring: error" in line]
    assert line.startswith(f"heteroring: error: data/h200x2/bench/{path.name}")
    assert "Traceback" not in output
    assert not list((fresh.root / "data" / "h200x2").glob("derived/*.csv"))

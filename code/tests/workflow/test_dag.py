"""The whole workflow on a tiny grid, from an empty tree to the PDF, interrupted on the way."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from heteroring.figures import NAMES
from heteroring.launch.machine_lock import machine_lock
from wandb_runs import runs

pytest.importorskip("snakemake")
pytestmark = pytest.mark.workflow

ROOT = Path(__file__).parents[3]
HAS_FMS = find_spec("fms") is not None
HAS_TEX = shutil.which("latexmk") is not None
ALL = "all" if HAS_TEX else "all_but_pdf"
RUN = Path("runs/tiny")
BENCH = RUN / "data" / "cpu" / "bench"
CHECKS = RUN / "data" / "cpu" / "derived" / "checks.txt"
# The jobs of the ring: every setting of the two ranks, twice.
JOBS = [f"pct-{ranks}.job-{job}" for job in (1, 2) for ranks in ("100-100", "100-050", "100-020", "020-100")]
# Seconds that no machine needs, however many others test on it.
PATIENCE = 1800.0


class Tree:
    """A copy of the project, and Snakemake in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = os.environ | {
            "PYTHONPATH": str(root / "code"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        """Snakemake as the leader of a process group of its own, so that signals reach it as Ctrl-C would."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=self.root,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def snakemake(self, *arguments: str, **env: str) -> tuple[int, str]:
        process = self.start(*arguments, **env)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output

    def tiny(self, *arguments: str, **env: str) -> tuple[int, str]:
        return self.snakemake(*arguments, "--configfile", "workflow/config/tiny.yaml", **env)

    def overlaid(self, overlay: str, *arguments: str) -> tuple[int, str]:
        """On the tiny grid, changed by what `overlay` says."""
        (self.root / "overlay.yaml").write_text(overlay)
        return self.snakemake(*arguments, "--configfile", "workflow/config/tiny.yaml", "overlay.yaml")

    def stop(self, when: Callable[[], bool], how: signal.Signals, target: str) -> tuple[int, str]:
        """Build `target` on the tiny grid, and send the signal to every process of the run when, then, ranks work."""
        process = self.start(target, "--configfile", "workflow/config/tiny.yaml")
        try:
            deadline = time.monotonic() + PATIENCE
            # A shell that has opened the job's log, or a command that still imports, could swallow the signal.
            while not (when() and has_ranks(process.pid)):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline, "what was waited for never came"
                time.sleep(0.02)
            os.killpg(process.pid, how)
            output, _ = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output

    def measured(self) -> dict[str, int]:
        """Time of writing of each finished measurement."""
        data = self.root / RUN / "data" / "cpu"
        files = [*(data / "bench").glob("*.csv"), *(data / "profile").glob("*.csv")]
        return {path.relative_to(data).as_posix(): path.stat().st_mtime_ns for path in files}

    def log_of(self, job: str) -> Path:
        """Made when the ring's job begins."""
        return self.root / RUN / "logs" / "cpu" / "bench" / f"{job}.log"


def has_ranks(session: int) -> bool:
    """Whether a measurement that Snakemake, the leader of `session`, has started has started its ranks."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.getsid(int(path.parent.name)) == session and b"spawn_main" in path.read_bytes():
                return True
        except OSError:
            continue  # it has ended
    return False


def sources() -> list[str]:
    """The files of the project: what git tracks or would, everything of a tree that git does not know."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode == 0:
        return [name for name in listing.stdout.split("\0") if name]
    produced = (".venv/", ".snakemake/", "runs/", "figures/", "logs/", "data/cpu/", "data/gpu/")
    produced += ("latex/images/", "latex/generated/")
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    return [name for name in files if not name.startswith(produced) and "__pycache__" not in name]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Tree:
    root = tmp_path_factory.mktemp("tree")
    for name in sources():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    return Tree(root)


@pytest.fixture(scope="module")
def interrupted(tree) -> tuple[int, str, dict[str, int]]:
    """Ctrl-C while the second throttle setting is measured: exit status, output, finished measurements."""

    def in_second_job() -> bool:
        return sum(tree.log_of(job).exists() for job in JOBS) == 2

    status, output = tree.stop(in_second_job, signal.SIGINT, ALL)
    return status, output, tree.measured()


@pytest.fixture(scope="module")
def built(tree, interrupted) -> str:
    """The same command again, to the end: its output."""
    status, output = tree.tiny(ALL)
    assert status == 0, output
    return output


def jobs(output: str) -> dict[str, int]:
    """Rule to number of jobs, from Snakemake's table."""
    table = output.partition("Job stats:")[2].partition("\n\n")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def test_interrupted_run_leaves_finished_measurements_and_nothing_half_written(tree, interrupted):
    status, output, finished = interrupted
    assert status != 0, output
    assert sorted(name.split("/")[0] for name in finished) == ["bench", "profile", "profile", "profile"]
    left = {path.stem for path in (tree.root / BENCH).iterdir()}
    assert len(left) == 1, f"more than the finished job's files: {left}"


def test_next_run_keeps_finished_measurements_and_does_the_rest(tree, interrupted, built):
    finished = interrupted[2]
    now = tree.measured()
    assert now.items() >= finished.items()
    assert len(now) == 3 + len(JOBS)
    planned = jobs(built)
    assert planned["bench"] == len(JOBS) - 1
    assert "profile" not in planned


def test_everything_is_built(tree, built):
    run = tree.root / RUN
    for name in NAMES:
        for folder in ("figures", "figures/cpu"):
            assert (run / folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert (run / folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        for folder in ("images", "images/live"):
            assert (run / "latex" / folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert r"\newcommand" in (run / "latex" / "generated" / "numbers.tex").read_text()
    assert "every cell there" in (tree.root / CHECKS).read_text()
    assert (run / "data" / "cpu" / "provenance.json").is_file()


@pytest.mark.skipif(not HAS_TEX, reason="no latexmk")
def test_paper_is_built_whole(tree, built):
    latex = tree.root / RUN / "latex"
    assert (latex / "report.pdf").read_bytes().startswith(b"%PDF")
    log = (latex / "report.log").read_text(errors="replace")
    assert "undefined references" not in log
    assert not re.search(r"Citation `.*' .*undefined", log)


@pytest.mark.skipif(not HAS_TEX, reason="no latexmk")
def test_paper_builds_by_hand(tree, built):
    done = subprocess.run(
        ["latexmk", "-cd", str(RUN / "latex" / "report.tex")], cwd=tree.root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_named_run_leaves_the_full_results_alone(tree, built):
    for name in ("data/cpu", "figures", "latex/images", "latex/generated", "latex/report.pdf"):
        assert not (tree.root / name).exists()


def test_second_run_has_nothing_to_do(tree, built):
    status, output = tree.tiny(ALL)
    assert status == 0, output
    assert "Nothing to be done" in output


def test_only_content_counts(tree, built, tmp_path):
    """A copy whose files are all of now, in any order, has nothing to do until a file says something else."""
    copy = Tree(tmp_path / "a copy")
    shutil.copytree(tree.root, copy.root, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".git"))
    for path in (copy.root / "workflow" / "scripts").glob("*.py"):
        path.touch()
    status, output = copy.tiny("-n", ALL)
    assert status == 0, output
    assert "Nothing to be done" in output, output

    script = copy.root / "workflow" / "scripts" / "check_measurements.py"
    script.write_text(script.read_text() + "# edited\n")
    status, output = copy.tiny("-n", ALL)
    assert status == 0, output
    assert jobs(output) == {"checks": 1, ALL: 1, "total": 2}


def test_deleted_measurement_costs_its_own_job_and_what_follows(tree, built):
    path = tree.root / BENCH / "pct-100-050.job-1.csv"
    aside = path.rename(path.with_suffix(".aside"))
    status, output = tree.tiny("-n", ALL)
    aside.rename(path)
    assert status == 0, output
    planned = jobs(output)
    assert planned.pop("total") == sum(planned.values())
    expected = {"bench": 1, "aggregate": 1, "checks": 1, "numbers": 1, ALL: 1} | (
        {"model_checks": 1} if HAS_FMS else {}
    )
    expected |= dict.fromkeys(("figure", "main_figure", "live_image"), len(NAMES))
    assert planned == expected | ({"paper": 1} if HAS_TEX else {})


FITS = {"fit": 6, "model_fit": 1} if HAS_FMS else {"fit": 5}
CHECKED = {"checks": 1} | ({"model_checks": 1} if HAS_FMS else {})
DRAWN = dict.fromkeys(("figure", "main_figure", "live_image"), len(NAMES))
TYPESET = {"numbers": 1, ALL: 1} | ({"paper": 1} if HAS_TEX else {})


@pytest.mark.parametrize(
    ("source", "follows"),
    [
        ("code/heteroring/allocators/lut.py", FITS | DRAWN | TYPESET),
        ("code/heteroring/allocators/dispatch.py", TYPESET),
        ("code/heteroring/ring/workload.py", {"aggregate": 1} | FITS | CHECKED | DRAWN | TYPESET),
        ("code/heteroring/results/repetitions.py", {"aggregate": 1} | CHECKED | DRAWN | TYPESET),
        ("code/heteroring/results/results.py", DRAWN | TYPESET),
        ("code/heteroring/ring/attention.py", {}),
    ],
)
def test_what_is_computed_follows_its_code_and_measurements_do_not(tree, built, source, follows):
    path = tree.root / source
    sound, stat = path.read_bytes(), path.stat()
    try:
        path.write_bytes(sound + b"# edited\n")
        status, output = tree.tiny("-n", ALL)
    finally:
        path.write_bytes(sound)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert status == 0, output
    planned = jobs(output)
    assert planned.pop("total", 0) == sum(follows.values())
    assert planned == follows


def test_a_percentage_can_be_taken_out_and_put_back_without_measuring(tree, built):
    cells = tree.root / RUN / "data" / "cpu" / "derived" / "cells.csv"
    before, measured = cells.read_text(), tree.measured()
    targets = (str(CHECKS), str(RUN / "latex" / "generated" / "numbers.tex"))
    status, output = tree.overlaid("percentages: [100, 50]", *targets)
    assert status == 0, output
    assert {row["percentages"] for row in csv.DictReader(cells.read_text().splitlines())} == {"100 100", "100 50"}
    assert not {"profile", "bench", "model"} & set(jobs(output))

    status, output = tree.tiny(ALL)
    assert status == 0, output
    assert not {"profile", "bench", "model"} & set(jobs(output))
    assert cells.read_text() == before
    assert tree.measured() == measured


@pytest.mark.parametrize(
    ("overlay", "again"),
    [
        ("percentages: [100, 50, 20, 10]", {"profile": 1, "bench": 2}),
        ("percentages: [100, 50]\nplatforms: {cpu: {more_strategies: [zigzag/lut@attention]}}", {"bench": 4}),
        ("platforms: {cpu: {warmup: 2}}", {"profile": 3, "bench": 8}),
    ],
)
def test_what_is_measured_again_is_what_is_missing_or_asked_for_otherwise(tree, built, overlay, again):
    status, output = tree.overlaid(overlay, "-n", ALL)
    assert status == 0, output
    planned = jobs(output)
    assert {rule: planned[rule] for rule in ("profile", "bench", "model") if rule in planned} == again
    assert planned["fit"] == FITS["fit"]


def test_tracking_logs_jobs_and_results_and_measures_nothing_again(tree, built):
    pytest.importorskip("wandb")
    figures = {f"{name}/path" for name in NAMES}
    status, output = tree.tiny(ALL, "--config", "track=wandb", WANDB_MODE="offline")
    assert status == 0, output
    assert jobs(output) == {"track": 1, ALL: 1, "total": 2}
    [run] = runs(tree.root / RUN)
    assert (run.job_type, run.group) == ("results", "cpu")
    assert figures <= set(run.summary)
    cells = list(csv.DictReader((tree.root / RUN / "data" / "cpu" / "derived" / "cells.csv").read_text().splitlines()))
    assert [cell["strategy"] for cell in run.table("cells")] == [cell["strategy"] for cell in cells]
    assert (
        (tree.root / RUN / "logs" / "cpu" / "tracked.txt").read_text().startswith(f"tracked in {run.folder.resolve()}:")
    )

    job = "runs/tracked/data/cpu/profile/pct-100.csv"
    status, output = tree.tiny(job, "--config", "run=tracked", "track=wandb", WANDB_MODE="offline")
    assert status == 0, output
    assert [(run.job_type, run.name) for run in runs(tree.root / "runs" / "tracked")] == [("profile", "pct-100")]


def test_failed_check_stops_the_run_and_lists_what_is_wrong(tree, built):
    cells = tree.root / RUN / "data" / "cpu" / "derived" / "cells.csv"
    sound = cells.read_bytes()
    try:
        lines = sound.decode().splitlines()
        column = lines[0].split(",").index("bound_fraction")
        row = next(i for i, line in enumerate(lines) if ",zigzag/balanced,rested,256,50," in line)
        broken = lines[row].split(",")
        broken[column] = "9.5"
        cells.write_text("\n".join([*lines[:row], ",".join(broken), *lines[row + 1 :]]) + "\n")
        status, output = tree.tiny(str(CHECKS))
    finally:
        cells.write_bytes(sound)
    assert status != 0
    assert "bound fraction 9.500 exceeds 1" in output
    assert "zigzag/balanced at 256 tokens and 100 50 %" in output


def test_recorded_platform_is_shown_without_measuring_it_again(tree, built):
    record = tree.root / "data" / "h200x2" / "provenance.json"
    before = record.stat().st_mtime_ns
    targets = ("figures/speedup_heatmap.png", "data/h200x2/derived/checks.txt")
    status, output = tree.snakemake(*targets, CUDA_VISIBLE_DEVICES="")
    assert status == 0, output
    whole = any((tree.root / "data" / "h200x2" / "model").glob("pct-*.csv"))
    aggregate = "aggregate_recorded" if whole else "aggregate_recorded_layers"
    once = (aggregate, "figure", "main_figure", "checks")
    assert jobs(output) == dict.fromkeys(once, 1) | {"total": 4}
    assert record.stat().st_mtime_ns == before
    shown = (tree.root / "figures" / "speedup_heatmap.png").read_bytes()
    assert shown == (tree.root / "figures" / "h200x2" / "speedup_heatmap.png").read_bytes()

    status, output = tree.snakemake("-n", ALL, CUDA_VISIBLE_DEVICES="")
    assert status == 0, output
    planned = jobs(output)
    assert (planned["bench"], planned["aggregate"], planned["checks"]) == (12, 1, 1)
    assert planned["figure"] == 2 * len(NAMES) - 1


def test_killed_run_blocks_nothing(tree, built):
    rows = BENCH / "pct-100-050.job-1.csv"
    (tree.root / rows).unlink()
    others = tree.measured()
    tree.log_of("pct-100-050.job-1").unlink()
    tree.stop(tree.log_of("pct-100-050.job-1").exists, signal.SIGKILL, str(rows))
    assert any((tree.root / ".snakemake" / "locks").iterdir())
    assert tree.measured() == others

    status, output = tree.tiny(str(rows))
    assert status == 0, output
    assert jobs(output) == {"bench": 1, "total": 1}
    assert tree.measured().keys() == others.keys() | {"bench/pct-100-050.job-1.csv"}
    assert tree.measured().items() >= others.items()


def test_a_measurement_that_runs_elsewhere_is_named_at_the_start(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HETERORING_LOCK", str(tmp_path / "lock"))
    with machine_lock():
        status, output = tree.snakemake("data/h200x2/derived/checks.txt", "-F", HETERORING_LOCK=str(tmp_path / "lock"))
    assert status == 0, output
    assert f"What is measured here waits for process {os.getpid()}, since 2" in output


def test_two_gpus_are_measured_with_their_peers(tree, tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: a)'\necho 'GPU 1: two (UUID: b)'\n")
    driver.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    status, output = tree.snakemake("-n", "all_but_pdf", PATH=path, CUDA_VISIBLE_DEVICES="0,1")
    assert status == 0, output
    commands = [line for line in output.splitlines() if "heteroring bench" in line]
    assert all("--platform gpu --throttle mps" in command for command in commands)
    calls = [command for command in commands if "--module attention --condition rested" in command]
    assert len(calls) == 3 * 19  # jobs, and both orders of nine percentages beside 100
    assert all("--peers" in command for command in calls)


# Read by every Python that starts with its folder on the path.
HIDE_FMS = """
import importlib.util

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "fms" else find_spec(name, package)
"""


def test_without_ibm_fms_attention_alone_is_measured(tree, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE_FMS)
    without = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{tree.env['PYTHONPATH']}"}
    status, output = tree.tiny("runs/bare/data/cpu/profile/pct-100.csv", "--config", "run=bare", **without)
    assert status == 0, output
    assert "attention alone is measured" in output
    status, output = tree.tiny("-n", "all_but_pdf", "--config", "run=bare", **without)
    assert status == 0, output
    commands = [line for line in output.splitlines() if "Shell command: heteroring" in line]
    assert sum("heteroring bench" in command for command in commands) == len(JOBS)
    for word in ("layer", "fms", "block", "heteroring model"):
        assert not [command for command in commands if word in command]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("platfrom=cpu", "unknown key platfrom: did you mean platform?"),
        ("platform=gpu", "platform=gpu needs two or more CUDA GPUs, and this machine shows 0"),
        ("platform=b200x2", "platform=b200x2: no measurements are recorded"),
    ],
)
def test_bad_setting_is_one_clear_error_before_anything_starts(tree, setting, says):
    before = tree.measured()
    status, output = tree.snakemake("all", "--config", setting, CUDA_VISIBLE_DEVICES="")
    assert status != 0
    assert says in output
    assert "Traceback" not in output
    assert tree.measured() == before
    assert not (tree.root / "data" / "cpu").exists()


def test_python_whose_path_a_shell_would_take_apart_runs_the_jobs(tree, built, tmp_path):
    (tmp_path / "an environment's").mkdir()
    python = tmp_path / "an environment's" / "python"
    python.symlink_to(sys.executable)
    sees = {"PYTHONPATH": os.pathsep.join([tree.env["PYTHONPATH"], *filter(None, sys.path)])}
    command = [python, "-m", "snakemake", CHECKS, "--forcerun", "checks", "--configfile", "workflow/config/tiny.yaml"]
    done = subprocess.run(command, cwd=tree.root, env=tree.env | sees, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unknown_figure_is_refused_by_name(tree):
    status, output = tree.snakemake("-n", "figures/speedup_heatmab.png")
    assert status != 0
    assert "unknown figure 'speedup_heatmab'" in output
    assert "speedup_heatmap" in output


def test_unknown_platform_of_a_figure_is_refused_by_name(tree):
    status, output = tree.snakemake("-n", "figures/tpu/speedup_heatmap.png")
    assert status != 0
    assert "unknown platform 'tpu'" in output


def test_without_latexmk_the_pdf_is_refused_at_once_and_the_rest_is_built(tree):
    path = str(Path(sys.executable).parent)
    status, output = tree.snakemake("-n", "all", PATH=path)
    assert status != 0
    assert "latexmk is not installed" in output
    assert "all_but_pdf" in output
    status, output = tree.snakemake("-n", "all_but_pdf", PATH=path)
    assert status == 0, output
    assert "paper" not in jobs(output)

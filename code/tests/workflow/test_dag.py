"""The whole workflow on a tiny grid, from an empty tree to the PDF, interrupted on the way."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from workflow.preflight.link_checkout import paper_figures

from heteroring.figures import NAMES
from tree import ALL, HAS_TEX, ROOT, RUN, Tree, jobs
from wandb_runs import runs

pytest.importorskip("snakemake")
pytestmark = pytest.mark.workflow

HAS_FMS = find_spec("fms") is not None
# What the paper shows, and of that what is the record's: "record/NAME" and "live/NAME".
SHOWN = paper_figures(ROOT / "latex")
OF_RECORD = [name for name in SHOWN if name.startswith("record/")]
BENCH = RUN / "data" / "cpu" / "bench"
CHECKS = RUN / "data" / "cpu" / "derived" / "checks.txt"
# The jobs of the ring, one for every setting of the two ranks.
JOBS = [f"pct-{ranks}.job-1" for ranks in ("100-100", "100-050", "100-020", "020-100")]


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
    for name in ("overview", *SHOWN):
        assert (run / "latex" / "images" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for name in ("numbers", "claims"):
        assert r"\newcommand" in (run / "latex" / "generated" / f"{name}.tex").read_text()
    assert "<table>" in (run / "figures" / "claims.html").read_text()
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
    expected |= dict.fromkeys(("figure", "main_figure"), len(NAMES)) | {"paper_image": len(SHOWN) - len(OF_RECORD)}
    assert planned == expected | ({"paper": 1} if HAS_TEX else {})


FITS = {"fit": 6, "model_fit": 1} if HAS_FMS else {"fit": 5}
CHECKED = {"checks": 1} | ({"model_checks": 1} if HAS_FMS else {})
# Also figures of the record that the paper shows.
DRAWN = {"figure": len(NAMES) + len(OF_RECORD), "main_figure": len(NAMES), "paper_image": len(SHOWN)}
TYPESET = {"claims": 1, "overview": 1, "numbers": 1, ALL: 1} | ({"paper": 1} if HAS_TEX else {})
TABLES = {"aggregate": 1, "aggregate_recorded": 1}


@pytest.mark.parametrize(
    ("source", "follows"),
    [
        ("code/heteroring/allocators/lut.py", FITS | DRAWN | TYPESET),
        ("code/heteroring/allocators/dispatch.py", TYPESET),
        ("code/heteroring/ring/workload.py", TABLES | FITS | CHECKED | DRAWN | TYPESET),
        ("code/heteroring/results/repetitions.py", TABLES | CHECKED | DRAWN | TYPESET),
        ("code/heteroring/results/results.py", CHECKED | DRAWN | TYPESET),
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

    status, output = tree.tiny(*targets)
    assert status == 0, output
    assert not {"profile", "bench", "model"} & set(jobs(output))
    assert cells.read_text() == before
    assert tree.measured() == measured


@pytest.mark.parametrize(
    ("overlay", "again"),
    [
        ("percentages: [100, 50, 20, 10]", {"profile": 1, "bench": 1, "fit": FITS["fit"]}),
        ("platforms: {cpu: {jobs: 2}}", {"bench": 4}),
        ("platforms: {cpu: {more_strategies: [zigzag/lut@attention]}}", {"bench": 4}),
        ("platforms: {cpu: {warmup: 2}}", {"profile": 3, "bench": 4, "fit": FITS["fit"]}),
    ],
)
def test_what_is_measured_again_is_what_is_missing_or_asked_for_otherwise(tree, built, overlay, again):
    status, output = tree.overlaid(overlay, "-n", ALL)
    assert status == 0, output
    planned = jobs(output)
    assert {rule: planned[rule] for rule in ("profile", "bench", "model", "fit") if rule in planned} == again


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


def test_python_whose_path_a_shell_would_take_apart_runs_the_jobs(tree, built, tmp_path):
    (tmp_path / "an environment's").mkdir()
    python = tmp_path / "an environment's" / "python"
    python.symlink_to(sys.executable)
    sees = {"PYTHONPATH": os.pathsep.join([tree.env["PYTHONPATH"], *filter(None, sys.path)])}
    command = [python, "-m", "snakemake", CHECKS, "--forcerun", "checks", "--configfile", "workflow/config/tiny.yaml"]
    done = subprocess.run(command, cwd=tree.root, env=tree.env | sees, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

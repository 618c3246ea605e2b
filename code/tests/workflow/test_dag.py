"""The whole workflow on a tiny grid, from an empty tree to the PDF, interrupted and killed on the way."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from workflow.preflight.link_checkout import paper_figures

from heteroring.figures import NAMES
from tree import ALL, HAS_TEX, ROOT, RUN, Tree, jobs
from wandb_runs import runs

pytest.importorskip("snakemake")
pytestmark = pytest.mark.workflow

HAS_FMS = find_spec("fms") is not None
# The figures that the paper shows: of the record, "record/NAME", and of this machine, "live/NAME".
SHOWN = paper_figures(ROOT / "latex")
OF_LIVE = [name for name in SHOWN if name.startswith("live/")]
OF_EXPERIMENTS = sum(not name.startswith(("live/", "record/")) for name in SHOWN)
BENCH = RUN / "data" / "cpu" / "bench"
CHECKS = RUN / "data" / "cpu" / "derived" / "checks.txt"
# The jobs of the ring, one for every setting of the two ranks.
JOBS = [f"pct-{ranks}.job-1" for ranks in ("100-100", "100-050")]


@pytest.fixture(scope="module")
def interrupted(tree) -> tuple[int, str, dict[str, int]]:
    """Ctrl-C while the second throttle setting is measured: exit status, output, finished measurements."""

    def in_second_job() -> bool:
        return sum(tree.log_of(job).exists() for job in JOBS) == 2

    status, output = tree.stop(in_second_job, signal.SIGINT, ALL)
    return status, output, tree.measured()


@pytest.fixture(scope="module")
def killed(tree, interrupted) -> str:
    """One of the remaining settings, measured by itself and killed on the way: the job's name."""
    job = next(job for job in JOBS if not (tree.root / BENCH / f"{job}.csv").exists())
    tree.log_of(job).unlink(missing_ok=True)
    tree.stop(tree.log_of(job).exists, signal.SIGKILL, str(BENCH / f"{job}.csv"))
    return job


@pytest.fixture(scope="module")
def built(tree, killed) -> str:
    """The first command again, to the end, tracked where that is possible: its output."""
    tracked = ("--config", "track=wandb") if find_spec("wandb") else ()
    status, output = tree.tiny(ALL, *tracked, WANDB_MODE="offline")
    assert status == 0, output
    return output


@pytest.fixture
def copy(tree, built, tmp_path) -> Tree:
    """What was built, in another place; the times of all files are those of copying them."""
    copy = Tree(tmp_path / "a copy")
    shutil.copytree(tree.root, copy.root, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".git"))
    return copy


def test_interrupted_run_leaves_finished_measurements_and_nothing_half_written(interrupted):
    status, output, finished = interrupted
    assert status != 0, output
    assert sorted(name.split("/")[0] for name in finished) == ["bench", "profile", "profile"]


def test_killed_run_leaves_a_lock_and_nothing_half_written(tree, interrupted, killed):
    assert any((tree.root / ".snakemake" / "locks").iterdir())
    assert tree.measured() == interrupted[2]
    left = {path.stem for path in (tree.root / BENCH).iterdir()}
    assert left == {Path(name).stem for name in interrupted[2] if name.startswith("bench/")}


def test_next_run_keeps_finished_measurements_and_does_the_rest(tree, interrupted, built):
    finished = interrupted[2]
    now = tree.measured()
    assert now.items() >= finished.items()
    assert len(now) == 2 + len(JOBS)
    planned = jobs(built)
    assert planned["bench"] == len(JOBS) - 1
    assert not {"profile", "fit"} & set(planned)


def test_everything_is_built(tree, built):
    run = tree.root / RUN
    for name in NAMES:
        for folder in ("figures", "figures/cpu"):
            assert (run / folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert (run / folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (run / "figures" / f"{name}.png").read_bytes() == (run / "figures" / "cpu" / f"{name}.png").read_bytes()
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


def test_only_content_counts(copy):
    """New modification times, in any order, cause no job, tracked or not, until the content of a file changes."""
    for path in (copy.root / "workflow" / "scripts").glob("*.py"):
        path.touch()
    status, output = copy.plan(ALL)
    assert status == 0, output
    assert "Nothing to be done" in output, output

    script = copy.root / "workflow" / "scripts" / "check_measurements.py"
    script.write_text(script.read_text() + "# edited\n")
    status, output = copy.plan(ALL)
    assert status == 0, output
    assert jobs(output) == {"checks": 1, ALL: 1, "total": 2}


def test_deleted_measurement_costs_its_own_job_and_what_follows(tree, built):
    path = tree.root / BENCH / "pct-100-050.job-1.csv"
    aside = path.rename(path.with_suffix(".aside"))
    status, output = tree.plan(ALL)
    aside.rename(path)
    assert status == 0, output
    planned = jobs(output)
    assert planned.pop("total") == sum(planned.values())
    expected = {"bench": 1, "aggregate": 1, "checks": 1, "numbers": 1, ALL: 1} | (
        {"model_checks": 1} if HAS_FMS else {}
    )
    expected |= {"figures": 1, "main_figure": len(NAMES), "paper_image": len(OF_LIVE)}
    assert planned == expected | ({"paper": 1} if HAS_TEX else {})


FITS = {"fit": 6, "model_fit": 1} if HAS_FMS else {"fit": 5}
CHECKED = {"checks": 1} | ({"model_checks": 1} if HAS_FMS else {})
DRAWN = {"figures": 1, "main_figure": len(NAMES), "experiment_figure": 2, "paper_image": len(OF_LIVE) + OF_EXPERIMENTS}
# Figures of the record that the paper shows are drawn with its overview.
TYPESET = {"claims": 1, "overview": 1, "numbers": 1, ALL: 1} | ({"paper": 1} if HAS_TEX else {})
TABLES = {"aggregate": 1, "aggregate_recorded": 1, "aggregate_recorded_layers": 3}


@pytest.mark.parametrize(
    ("sources", "follows"),
    [
        # Measurements are not repeated when the code that makes them changes, as the latter two files here.
        (("allocators/lut.py", "ring/attention.py", "launch/launch.py"), FITS | DRAWN | TYPESET),
        (("allocators/dispatch.py",), TYPESET),
        (("results/repetitions.py",), TABLES | CHECKED | DRAWN | TYPESET),
        (("results/results.py",), CHECKED | DRAWN | TYPESET),
    ],
)
def test_what_is_computed_follows_its_code_and_measurements_do_not(tree, built, sources, follows):
    paths = [tree.root / "code" / "heteroring" / source for source in sources]
    sound = [(path.read_bytes(), path.stat()) for path in paths]
    try:
        for path, (content, _) in zip(paths, sound, strict=True):
            path.write_bytes(content + b"# edited\n")
        status, output = tree.plan(ALL)
    finally:
        for path, (content, stat) in zip(paths, sound, strict=True):
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert status == 0, output
    planned = jobs(output)
    planned.pop("total", None)  # not shown of one job
    assert planned == follows


def test_a_percentage_can_be_taken_out_and_put_back_without_measuring(copy):
    """Its measurements stay, are ignored meanwhile, and are used again afterwards."""
    data = copy.root / RUN / "data" / "cpu"
    for path in [*data.glob("profile/pct-050.*"), *data.glob("bench/pct-100-050.*")]:
        shutil.copyfile(path, path.with_name(path.name.replace("050", "020")))
    status, output = copy.plan(ALL)
    assert status == 0, output
    assert "Nothing to be done" in output, output

    (copy.root / "more.yaml").write_text("percentages: [100, 50, 20]")
    status, output = copy.plan(ALL, overlay="more.yaml")
    assert status == 0, output
    planned = jobs(output)
    assert planned["fit"] == FITS["fit"]
    assert planned.keys() >= {"aggregate", "checks"}
    assert not {"profile", "bench", "model_profile", "model"} & set(planned)
    assert "--percentages 100,50,20 --bench pct-100-100.job-1,pct-100-050.job-1,pct-100-020.job-1 " in output


@pytest.mark.parametrize(
    ("overlay", "again"),
    [
        ("percentages: [100, 50, 20]", {"profile": 1, "bench": 1, "fit": FITS["fit"]}),
        ("platforms: {cpu: {slow_first: [50]}}", {"bench": 1}),
        ("platforms: {cpu: {jobs: 2, more_strategies: [zigzag/lut@attention]}}", {"bench": 2 * len(JOBS)}),
        ("platforms: {cpu: {warmup: 2}}", {"profile": 2, "bench": len(JOBS), "fit": FITS["fit"]}),
    ],
)
def test_what_is_measured_again_is_what_is_missing_or_asked_for_otherwise(tree, built, overlay, again):
    (tree.root / "overlay.yaml").write_text(overlay)
    status, output = tree.plan(ALL, overlay="overlay.yaml")
    assert status == 0, output
    planned = jobs(output)
    assert {rule: planned[rule] for rule in ("profile", "bench", "model", "fit") if rule in planned} == again


def test_jobs_and_results_are_tracked(tree, killed, built):
    pytest.importorskip("wandb")
    planned = jobs(built)
    assert planned["track"] == 1
    *measured, results = runs(tree.root / RUN)
    assert killed in {run.name for run in measured}
    assert [run.job_type for run in measured].count("bench") == planned["bench"]
    assert [run.job_type for run in measured].count("model") == planned.get("model", 0)
    assert (results.job_type, results.group) == ("results", "cpu")
    assert {f"{name}/path" for name in NAMES} <= set(results.summary)
    cells = list(csv.DictReader((tree.root / RUN / "data" / "cpu" / "derived" / "cells.csv").read_text().splitlines()))
    assert [cell["strategy"] for cell in results.table("cells")] == [cell["strategy"] for cell in cells]
    said = (tree.root / RUN / "logs" / "cpu" / "tracked.txt").read_text()
    assert said.startswith(f"tracked in {results.folder.resolve()}:")


def test_failed_check_stops_the_run_and_lists_what_is_wrong(copy, tmp_path):
    """Also where a shell would split the path of Python."""
    python = tmp_path / "an environment's" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    cells = copy.root / RUN / "data" / "cpu" / "derived" / "cells.csv"
    lines = cells.read_text().splitlines()
    column = lines[0].split(",").index("bound_fraction")
    row = next(i for i, line in enumerate(lines) if ",zigzag/balanced,rested,256,50," in line)
    broken = lines[row].split(",")
    broken[column] = "9.5"
    cells.write_text("\n".join([*lines[:row], ",".join(broken), *lines[row + 1 :]]) + "\n")
    sees = {"PYTHONPATH": os.pathsep.join([copy.env["PYTHONPATH"], *filter(None, sys.path)])}
    command = [python, "-m", "snakemake", CHECKS, "--configfile", "workflow/config/tiny.yaml"]
    done = subprocess.run(command, cwd=copy.root, env=copy.env | sees, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "bound fraction 9.500 exceeds 1" in said
    assert "zigzag/balanced at 256 tokens and 100 50 %" in said

"""The command line: it starts without heavy imports, and reports mistakes in one line before any process starts."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

import synthetic
from forked_commands import Command
from heteroring.cli import main as cli
from heteroring.cli.main import app
from heteroring.results.rows import Measurement, read_rows, write_rows
from heteroring.results.summary import summary
from tree import ROOT

COMMANDS = ("profile", "fit", "allocate", "bench", "model", "aggregate", "demo", "doctor", "figure")
BENCH = {"--percentages": "100,50", "--seq-lens": "64,128", "--strategies": "zigzag/even,zigzag/uneven"}
SHARES = ["allocate", "even", "--seq-len=8", "--percentages=1,1"]
PROFILE = {"--percentage": "50", "--sizes": "32", "--seq-lens": "64"}

needs_fms = pytest.mark.skipif(find_spec("fms") is None, reason="needs ibm-fms")


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def no_process(monkeypatch):
    import heteroring.launch.launch

    monkeypatch.setattr(
        heteroring.launch.launch, "elastic_launch", lambda *_: pytest.fail("a process was started", pytrace=False)
    )


def assert_refused(result, complaint):
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert result.stderr.startswith("heteroring: error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def options(base, changes):
    return [word for pair in (base | changes).items() for word in pair]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"--platform": "tpu"}, "device kind 'tpu' cannot be measured here: choose one of cpu, gpu"),
        ({"--throttle": "brick"}, "throttle 'brick' is unknown: choose one of"),
        ({"--throttle": "none"}, "percentage 50 needs a throttle"),
        ({"--percentages": "100,0"}, "percentage 0 is not an integer from 1 to 100"),
        ({"--percentages": "100,101"}, "percentage 101 is not"),
        ({"--percentages": "100,fast"}, "--percentages '100,fast' is not a list of integers"),
        ({"--seq-lens": "64,0"}, "seq_lens holds 0: a length is 1 or more"),
        ({"--seq-lens": ""}, "--seq-lens '' is not a list of entries"),
        ({"--strategies": "zigzag/odd"}, "strategy 'zigzag/odd' is unknown"),
        ({"--strategies": "spiral/even"}, "strategy 'spiral/even' is unknown"),
        ({"--strategies": "zigzag/balanced"}, "allocator 'balanced' needs a model"),
        ({"--strategies": "contiguous/lut", "--models": "/nowhere"}, "needs the model /nowhere/lut-matmul.json"),
        ({"--heads": "4", "--kv-heads": "3"}, "heads 4 is not a multiple of kv_heads 3"),
        ({"--heads": "0"}, "heads is 0: it must be 1 or more"),
        ({"--dtype": "int4"}, "dtype 'int4' is unknown"),
        ({"--block": "abacus"}, "backend 'abacus' is unknown"),
        ({"--block": "cudnn"}, "backend 'cudnn' computes on cuda, not on cpu"),
        ({"--block": "cpu", "--platform": "gpu"}, "backend 'cpu' computes on cpu, not on cuda"),
        ({"--transport": "pigeon"}, "transport 'pigeon' is unknown"),
        ({"--module": "mamba"}, "module 'mamba' is unknown: choose one of attention, fms"),
        ({"--module": ""}, "--module '' is not a list of entries separated by commas or spaces"),
        ({"--strategies": "zigzag/evn"}, "; did you mean zigzag/even?"),
        ({"--strategies": "zigzag/lut@atention"}, "; did you mean zigzag/lut@attention?"),
        ({"--platform": "gpuu"}, "choose one of cpu, gpu; did you mean gpu?"),
        ({"--fms-seq-lens": "64"}, "fms_seq_lens is given, but module 'fms' is not measured"),
        ({"--fms-seq-lens": "few"}, "--fms-seq-lens 'few' is not a list of integers"),
        ({"--repetitions": "0"}, "repetitions is 0"),
        ({"--seed": "-1"}, "seed is -1: it must lie in 0..9223372036854775807"),
        ({"--seed": str(2**63)}, "--seed 9223372036854775808 does not fit in 64 bits"),
        ({"--hang-timeout": "0"}, "--hang-timeout 0.0 is not a positive, finite number"),
        ({"--hang-timeout": "inf"}, "--hang-timeout inf is not a positive, finite number"),
        ({"--hang-timeout": "nan"}, "--hang-timeout nan is not a positive, finite number"),
        ({"--output": "/proc/nowhere/rows.csv"}, "cannot write /proc/nowhere/rows.csv"),
        ({"--output": "rows.txt"}, "output rows.txt does not end in .csv"),
        ({"--label": " "}, "--label ' ' is not a name"),
        ({"--label": "a\nb"}, "--label 'a\\nb' is not a name"),
        ({"--batch": str(2**63)}, f"--batch {2**63} does not fit in 64 bits"),
        ({"--head-dim": str(10**30)}, f"--head-dim {10**30} does not fit in 64 bits"),
        ({"--repetitions": str(10**30)}, f"--repetitions {10**30} does not fit in 64 bits"),
        ({"--seq-lens": f"64,{10**30}"}, f"is not a list of integers: {10**30} does not fit in 64 bits"),
    ],
)
def test_bench_refuses(tmp_path, no_process, changes, complaint):
    base = BENCH | {"--output": str(tmp_path / "rows.csv")}
    assert_refused(invoke("bench", *options(base, changes)), complaint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"--block": "flash"}, "backend 'flash' computes on cuda, not on cpu"),
        ({"--percentage": "0"}, "percentage 0 is not"),
        ({"--sizes": "-4"}, "sizes holds -4"),
        ({"--seq-lens": "0"}, "seq_lens holds 0"),
        ({"--seq-lens": ""}, "seq_lens is empty"),
        ({"--sizes": ""}, "sizes is empty"),
        ({"--kinds": "attention,fold", "--seq-lens": ""}, "seq_lens is empty"),
        ({"--kinds": "sort"}, "profile kind 'sort' is unknown: choose one of matmul, attention, fold, layer, block"),
        ({"--kinds": "fold,fold"}, "kinds holds fold twice"),
        ({"--fms-seq-lens": "64"}, "fms_seq_lens is given, but kind 'layer' is not measured"),
        ({"--fms-seq-lens": "64,64", "--kinds": "layer"}, "fms_seq_lens holds 64 twice"),
        ({"--kinds": "matmul,,fold"}, "--kinds 'matmul,,fold' is not a list of entries separated by commas"),
        ({"--platform": "abacus"}, "device kind 'abacus'"),
        ({"--block": "abacus"}, "backend 'abacus' is unknown"),
        pytest.param({"--kinds": "layer", "--head-dim": "7"}, "head_dim is 7: profile kind 'layer'", marks=needs_fms),
        ({"--seed": str(2**64)}, "--seed 18446744073709551616 does not fit in 64 bits"),
        ({"--kv-heads": "3"}, "heads 2 is not a multiple of kv_heads 3"),
    ],
)
def test_profile_refuses(tmp_path, no_process, changes, complaint):
    base = PROFILE | {"--output": str(tmp_path / "rows.csv")}
    assert_refused(invoke("profile", *options(base, changes)), complaint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "base", "ranks"), [("bench", BENCH, 2), ("profile", PROFILE, 1)], ids=["bench", "profile"]
)
def test_platform_gpu_needs_a_gpu_for_each_rank(tmp_path, no_process, monkeypatch, name, base, ranks):
    monkeypatch.setattr("torch.cuda.device_count", lambda: ranks - 1)
    changes = {"--platform": "gpu", "--output": str(tmp_path / "rows.csv")}
    complaint = f"device kind 'gpu' needs a CUDA GPU for each rank, {ranks}, and this machine has {ranks - 1}"
    assert_refused(invoke(name, *options(base, changes)), complaint)


def measured_job(monkeypatch, *words):
    """The Job that `heteroring bench` with `words` would measure, and where to."""
    asked = []

    def measure(stage, job, hang_timeout, output, description, **options):
        asked.append((job, output))
        raise typer.Exit

    monkeypatch.setattr("heteroring.bench.measure.measure", measure)
    assert invoke("bench", *words).exit_code == 0
    return asked[0]


def test_bench_without_options_measures_the_grid(monkeypatch):
    """To repeat the numbers, one types the platform, not its shapes."""
    config = yaml.safe_load((ROOT / "workflow" / "config" / "default.yaml").read_text())
    for platform, words in {"cpu": [], "gpu": ["--peers"]}.items():
        job, output = measured_job(monkeypatch, "--platform", platform, *words)
        settings = config["platforms"][platform]
        assert output is None
        assert list(job.seq_lens) == settings["seq_lens"]
        for name in ("heads", "kv_heads", "head_dim", "dtype"):
            assert getattr(job.shape, name) == settings[name]
        assert (job.throttle, job.percentages, job.baselines) == (settings["throttle"], (100, 100), platform == "gpu")
        assert set(job.strategies) < set(config["strategies"])
        assert not any(strategy.endswith(("lut", "formula", "balanced")) for strategy in job.strategies)


def test_bench_with_models_measures_every_strategy_of_the_grid(monkeypatch):
    config = yaml.safe_load((ROOT / "workflow" / "config" / "default.yaml").read_text())
    job, _ = measured_job(monkeypatch, "--models", "somewhere", "--heads", "8")
    assert sorted(job.strategies) == sorted(config["strategies"])
    assert (job.shape.heads, job.shape.kv_heads) == (8, 2)


def test_what_was_measured_is_printed_beside_its_bound():
    grid = replace(synthetic.GPU, lengths=(4096,), percentages=(50,), slow_first=(), noise=0.0, modules=("attention",))
    rows = [Measurement(**row) for row in synthetic.measurement_rows(grid, np.random.default_rng(0))]
    table = summary(rows)
    columns = [list(column.cells) for column in table.columns]
    lines = {what: (split, ms, bound) for _, what, split, ms, bound in zip(*columns, strict=True)}
    alone = [row.latency_ms for row in rows if row.system == "alone" and row.repetition == 0]
    bound = 1 / sum(1 / time for time in alone)
    assert lines["rank 1 alone"] == ("0 4096", f"{alone[1]:.4g}", f"{bound / alone[1]:.3f}")
    even = next(row for row in rows if (row.system, row.layout, row.allocator) == ("ring", "zigzag", "even"))
    assert lines["zigzag/even"] == ("2048 2048", f"{even.latency_ms:.4g}", f"{bound / even.latency_ms:.3f}")
    assert "torch context_parallel" in lines
    assert table.title == "Ranks at 100 %, 50 %; median of 5"
    layer = replace(grid, modules=("attention", "fms"))
    both = summary([Measurement(**row) for row in synthetic.measurement_rows(layer, np.random.default_rng(0))])
    assert [column.header for column in both.columns[:2]] == ["module", "tokens"]
    assert set(both.columns[0].cells) == {"attention", "fms"}


def test_a_record_that_cannot_be_written_is_refused_before_the_older_rows_are_touched(tmp_path, no_process):
    (tmp_path / "rows.json").mkdir()
    (tmp_path / "rows.csv").write_text("older")
    result = invoke("bench", *options(BENCH, {"--output": str(tmp_path / "rows.csv")}))
    assert_refused(result, f"cannot write {tmp_path}/rows.json: it is a folder")
    assert (tmp_path / "rows.csv").read_text() == "older"


@pytest.mark.parametrize(("writer", "named"), [("dump_rows", "rows.csv"), ("dump_json", "rows.json")])
def test_a_disk_that_is_full_leaves_the_older_result_alone(jobs_on_pools, tmp_path, monkeypatch, writer, named):
    def full(path, content):
        path.write_text("half a r")
        raise OSError(errno.ENOSPC, "No space left on device")

    older = {"rows.csv": "older rows", "rows.json": "older record"}
    for each, text in older.items():
        (tmp_path / each).write_text(text)
    monkeypatch.setattr(f"heteroring.bench.measure.{writer}", full)
    words = options(BENCH, {"--output": str(tmp_path / "rows.csv"), "--seq-lens": "8", "--repetitions": "1"})
    result = invoke("bench", *words)
    assert result.exit_code == 1
    lost = f"the 4 rows that were measured for {tmp_path}/rows.csv are lost"
    assert result.stderr.endswith(
        f"heteroring: error: cannot write {tmp_path}/{named}: No space left on device: {lost}\n"
    )
    assert "of bound" in result.stdout  # the summary was printed before
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == older


def test_a_table_that_cannot_be_printed_costs_no_rows(jobs_on_pools, tmp_path, monkeypatch):
    def gone(rows):
        raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("heteroring.results.summary.summary", gone)
    words = options(BENCH, {"--output": str(tmp_path / "rows.csv"), "--seq-lens": "8", "--repetitions": "1"})
    assert invoke("bench", *words).exit_code == 1
    assert len(read_rows(tmp_path / "rows.csv", Measurement)) == 4


@needs_fms
def test_a_trace_of_nothing_is_refused(tmp_path, no_process):
    (tmp_path / "mine.csv").write_text("mine")
    changes = {"--output": str(tmp_path / "rows.csv"), "--trace": str(tmp_path / "mine.csv"), "--model": "llama/micro"}
    result = invoke("model", *options(BENCH, changes))
    assert_refused(result, "none of contiguous/even, zigzag/balanced, which are traced, is a strategy")
    assert (tmp_path / "mine.csv").read_text() == "mine"


def test_an_output_below_a_file_is_refused(tmp_path, no_process):
    (tmp_path / "file").touch()
    result = invoke("bench", *options(BENCH, {"--output": str(tmp_path / "file" / "rows.csv")}))
    assert_refused(result, f"cannot write {tmp_path}/file/rows.csv: {tmp_path}/file is not a folder")


def test_a_refused_job_leaves_no_folder(tmp_path, no_process):
    changes = {"--output": str(tmp_path / "new" / "folder" / "rows.csv"), "--seq-lens": "0"}
    assert_refused(invoke("bench", *options(BENCH, changes)), "seq_lens holds 0")
    assert list(tmp_path.iterdir()) == []


def test_fit_refuses(tmp_path):
    model, missing = tmp_path / "model.json", tmp_path / "missing.csv"
    assert_refused(invoke("fit", "--output", model, missing), str(missing))
    empty = tmp_path / "empty.csv"
    empty.touch()
    assert_refused(invoke("fit", "--output", model, empty), str(empty))
    assert_refused(invoke("fit", "--kind", "oracle", "--output", model, empty), "'oracle'")
    complaint = "source 'matmul' is unknown: choose one of attention, layer, block"
    assert_refused(invoke("fit", "--kind", "cost", "--source", "matmul", "--output", model, empty), complaint)
    assert_refused(invoke("fit", "--output", tmp_path / "model.csv", empty), "does not end in .json")
    assert not model.exists()


def test_allocate_prints_the_block_lengths():
    result = invoke("allocate", "uneven", "--seq-len", "65536", "--percentages", "100,10")
    assert result.exit_code == 0
    assert result.stdout == "59578 5958\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("odd", "--seq-len", "8", "--percentages", "100,10"), "'odd'"),
        (("even", "--seq-len", "0", "--percentages", "100,10"), "seq_len is 0"),
        (("uneven", "--seq-len", "8", "--percentages", "100,0"), "is 0"),
        (("lut", "--seq-len", "8", "--percentages", "100,10"), "'lut' needs"),
        (("uneven", "--seq-len", "8", "--percentages", "a"), "--percentages 'a'"),
        (("balanced", "--seq-len", "8", "--percentages", "100", "--layout", "spiral"), "'spiral'"),
        (
            ("even", "--seq-len", "8", "--percentages", "100,10", "--prefix-lens", "9"),
            "prefix_lens is (9,): it must be 2",
        ),
    ],
)
def test_allocate_refuses(words, complaint):
    assert_refused(invoke("allocate", *words), complaint)


def test_aggregate_refuses(tmp_path):
    from rows import measurement

    assert_refused(invoke("aggregate", "--platform-dir", tmp_path / "gone"), "is not a folder")
    assert_refused(invoke("aggregate", "--platform-dir", tmp_path), "holds no .csv file")
    write_rows(tmp_path / "bench/pct-050.csv", [measurement()])
    text = (tmp_path / "bench/pct-050.csv").read_text()
    (tmp_path / "bench/pct-050.csv").write_text(text.replace(",1.25,", ",nan,"))
    result = invoke("aggregate", "--platform-dir", tmp_path)
    assert_refused(result, "bench/pct-050.csv, line 2, column latency_ms: 'nan'")
    assert not (tmp_path / "derived").exists()


def test_a_failed_run_exits_with_1_and_writes_nothing(tmp_path, monkeypatch):
    from heteroring.launch.errors import RankError

    def fail(*_, **__):
        raise RankError(1, "rank 1 raised:\nTraceback: ...")

    monkeypatch.setattr("heteroring.bench.base_job.launch", fail)
    result = invoke("bench", *options(BENCH, {"--output": str(tmp_path / "rows.csv")}))
    assert result.exit_code == 1
    assert "heteroring: error: rank 1 raised:" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["profile"], "Missing option '--output'."),
        (["fly"], "No such command 'fly'."),
        (["figur", "x"], "No such command 'figur'. Did you mean 'figure'?"),
        (["bench", "--repetitions", "many"], "error: --repetitions 'many' is not an integer\n"),
        (["bench", "--hang-timeout", "long"], "error: --hang-timeout 'long' is not a number\n"),
        (["bench", "--seq-len", "64"], "No such option: --seq-len (Possible options: "),
        (["allocate", "even", "--seq-len"], "Option '--seq-len' requires an argument."),
        (["demo", "now"], "Got unexpected extra argument"),
    ],
)
def test_a_usage_error_is_one_line(words, complaint):
    assert_refused(invoke(*words), complaint)


def test_without_a_command_there_is_help_alone():
    result = invoke()
    assert result.exit_code == 2
    assert "Usage" in result.output
    assert "heteroring: error" not in result.output


def test_help_shows_commands_in_groups_and_exit_codes():
    text = " ".join(invoke("--help").output.replace("│", " ").split())
    places = [
        text.index(word) for word in ("Measure ─", " bench ", "Fit and share out ─", " allocate ", "Show ─", " demo ")
    ]
    assert places == sorted(places)
    assert "Exit codes: 0 done; 1 a run failed; 2 wrong usage or input; 128 + n ended by signal n." in text


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=needs_fms) if name in ("model", "demo") else name for name in COMMANDS]
)
def test_examples_in_help_are_right_usage(tmp_path, monkeypatch, no_process, command):
    """They get as far as opening missing files, or as the start of a measurement, which is not made."""

    def measure(*_, **__):
        raise typer.Exit

    monkeypatch.chdir(tmp_path)
    for name in ("heteroring.bench.measure.measure", "heteroring.bench.demo.run"):
        monkeypatch.setattr(name, measure)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2 if command == "bench" else 0)
    commands = typer.main.get_command(app).commands
    heading, *examples = commands[command].epilog.split("\n\n")
    assert heading in ("Example:", "Examples:")
    for example in examples:
        program, *words = example.split()
        assert (program, words[0]) == ("heteroring", command)
        result = invoke(*words)
        assert result.exit_code in (0, 2), result.output
        if result.exit_code:
            assert re.search(r"error: .*(data|profile)/\S+(: No such file| is not a folder)", result.stderr)


def test_lists_take_commas_and_spaces():
    answers = [
        invoke("allocate", "uneven", "--seq-len", "640", "--percentages", text).stdout
        for text in ("100,50,10", "100 50 10", " 100, 50 ,10 ")
    ]
    assert answers == ["400 200 40\n"] * 3


def test_scripts_read_json(jobs_on_pools, tmp_path):
    """Each command prints JSON with --json, and nothing else."""
    words = ("allocate", "uneven", "--seq-len", "64", "--percentages", "100 60", "--json")
    shares = json.loads(invoke(*words).stdout)
    assert (shares["block_lens"], shares["percentages"], shares["notes"]) == ([40, 24], [100, 60], [])

    cell = options(BENCH, {"--seq-lens": "8", "--repetitions": "2"})
    found = json.loads(invoke("bench", *cell, "--json").stdout)
    assert [each["strategy"] for each in found] == ["zigzag/even", "zigzag/uneven", "alone/rank0", "alone/rank1"]
    assert [each["block_lens"] for each in found] == [[4, 4], [5, 3], [8, 0], [0, 8]]
    assert all(each["repetitions"] == 2 and each["latency_ms"] > 0 < each["bound_fraction"] for each in found)

    grid = replace(synthetic.TINY, model=False)
    synthetic.write_platform(tmp_path, grid)
    tables = json.loads(invoke("aggregate", "--platform-dir", tmp_path, "--json").stdout)
    assert str(tmp_path / "derived" / "cells.csv") in tables
    profiles = sorted((tmp_path / "profile").glob("*.csv"))
    model = invoke("fit", "--output", tmp_path / "lut.json", *profiles, "--json").stdout
    assert json.loads(model) == json.loads((tmp_path / "lut.json").read_text())


@pytest.mark.slow
def test_a_figure_is_drawn_from_rows_that_nobody_aggregated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "platform"
    synthetic.write_platform(folder, replace(synthetic.TINY, model=False))
    result = invoke("figure", "bound_fraction", "--platform-dir", folder)
    assert (result.exit_code, result.stdout) == (0, "bound_fraction.png\n"), result.output
    assert Path("bound_fraction.png").read_bytes().startswith(b"\x89PNG")
    both = ("--output", "a.pdf", "--output", "b.png")
    assert invoke("figure", "bound_fraction", "--platform-dir", folder, *both).exit_code == 0
    assert {path.name for path in tmp_path.glob("*.*")} == {"bound_fraction.png", "a.pdf", "b.png"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("bound_fractoin",), "unknown figure 'bound_fractoin': one of strategy_eval, "),
        (("bound_fractoin",), "; did you mean bound_fraction?"),
        (("bound_fraction", "--platform-dir", "nowhere"), "--platform-dir nowhere is not a folder"),
        (
            ("bound_fraction", "--platform-dir", ".", "--output", "a.svg"),
            "write a.svg: the suffix must be .pdf or",
        ),
        (("bound_fraction", "--output-dir", "."), "--output-dir is for all figures; name the files of bound_fraction"),
        (("all", "--output", "a.pdf"), "all figures take --output-dir, and not --output"),
        (("bound_fraction", "--platform-dir", "."), "bench holds no .csv file: nothing has been measured"),
    ],
)
def test_figure_refuses(tmp_path, monkeypatch, words, complaint):
    monkeypatch.chdir(tmp_path)
    assert_refused(invoke("figure", *words), complaint)
    assert list(tmp_path.iterdir()) == []


def findings(*words):
    result = invoke("doctor", "--json", *words)
    return result.exit_code, {each["name"]: each for each in json.loads(result.stdout)}


def test_doctor_tells_what_is_used_and_why(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: None)
    code, found = findings()
    assert code == 0
    assert (found["CPU attention"]["state"], found["loopback"]["state"]) == ("ok", "ok")
    assert (found["TeX"]["state"], found["GPUs"]["state"]) == ("missing", "missing")
    assert [found[name]["found"] for name in ("device kind", "throttle", "backend")] == ["cpu", "pacing", "cpu"]
    assert "two or more are needed" in found["device kind"]["follows"]
    assert invoke("doctor").stdout.count("\n") >= len(found)


def test_doctor_fails_where_results_would_be_wrong(monkeypatch):
    from heteroring.kernels import sdpa

    right = sdpa.cpu

    def wrong(*operands, **settings):
        out, lse = right(*operands, **settings)
        return out, lse + 1e-3

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(sdpa, "cpu", wrong)
    code, found = findings()
    assert (code, found["CPU attention"]["state"]) == (1, "wrong")


@pytest.fixture
def two_gpus(monkeypatch):
    """PyTorch as doctor sees it on a machine with two GPUs, the second of which cannot reach the first."""
    h200 = SimpleNamespace(name="NVIDIA H200", multi_processor_count=132, total_memory=140 << 30, major=9, minor=0)
    for name, answer in {
        "device_count": lambda: 2,
        "get_device_properties": lambda index: h200,
        "can_device_access_peer": lambda one, other: one < other,
        "get_device_capability": lambda device: (9, 0),
        "nccl.version": lambda: (2, 30, 1),
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", answer)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("heteroring.throttle.green.Green.start", lambda self: None)
    monkeypatch.setattr("heteroring.throttle.green.Green.report", lambda self: {"multiprocessors": 72})
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(
        "heteroring.throttle.mps_daemon.mps_daemon", lambda: nullcontext({"CUDA_MPS_PIPE_DIRECTORY": "x"})
    )


@pytest.mark.parametrize(
    ("printed", "code", "says"),
    [
        ('{"torch": 3, "ranks": 0, "ours": true}', 0, "cuBLAS gets 3 of 3 wrong, ranks get 0 of 3 wrong"),
        ('{"torch": 3, "ranks": 3, "ours": false}', 1, "cuBLAS gets 3 of 3 wrong, ranks get 3 of 3 wrong"),
    ],
)
def test_doctor_of_gpus(monkeypatch, two_gpus, printed, code, says):
    asked = []

    def run(command, env, **_):
        asked.append((command[2], env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], env["CUDA_MPS_PIPE_DIRECTORY"]))
        return SimpleNamespace(returncode=0, stdout=printed)

    monkeypatch.setattr("subprocess.run", run)
    status, found = findings()
    assert asked == [("from heteroring.cli.doctor import print_products; print_products()", "80", "x")]
    assert (status, found["products at 80 %"]["found"]) == (code, says)
    assert found["GPU 1"]["found"] == "NVIDIA H200, 132 SMs, 140 GiB, capability 9.0"
    assert (found["P2P"]["found"], found["P2P"]["state"]) == ("not from 1 to 0", "missing")
    assert found["NCCL"]["found"] == "2.30.1"
    assert [found[name]["found"] for name in ("device kind", "throttle", "backend")] == ["gpu", "mps", "triton"]


@pytest.mark.gpu
def test_doctor_finds_products_right_under_mps():
    from heteroring.throttle.mps_daemon import CONTROL

    if shutil.which(CONTROL) is None:
        pytest.skip(f"no {CONTROL}")
    code, found = findings()
    assert code == 0
    assert found["GPU 0"]["state"] == "ok"
    assert found["products at 80 %"]["found"].endswith("ranks get 0 of 3 wrong")


# Python that ends when torch is first looked for.
TORCHLESS = """
import os, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            os._exit(77)
sys.meta_path.insert(0, Finder)
sys.argv[1:] = {words!r}
from heteroring.__main__ import main
main()
"""


@pytest.mark.ranks
@pytest.mark.parametrize("command", ["bench", "profile", "model", "demo", "doctor"])
def test_a_terminal_shows_something_before_what_takes_seconds(tmp_path, command):
    output = {"--output": str(tmp_path / "rows.csv")}
    given = {"bench": BENCH, "profile": PROFILE | output, "model": BENCH | output}.get(command, {})
    ours, theirs = os.openpty()
    script = TORCHLESS.format(words=[command, *options(given, {})])
    done = subprocess.run([sys.executable, "-c", script], env=environment(), stderr=theirs, stdout=theirs)
    os.close(theirs)
    assert done.returncode == 77
    assert re.fullmatch(r"heteroring: [^\n]+ \.\.\.\r\n", os.read(ours, 1000).decode())
    os.close(ours)


@pytest.mark.ranks
def test_a_shell_completes_commands_and_figures():
    """Completion as bash requests it; the shell's own script is typer's."""
    script = "import sys; sys.argv[0] = 'heteroring'; from heteroring.__main__ import main; main()"
    for typed, offered in (("al", "allocate"), ("figure rank_t", "rank_timeline")):
        asks = {"_HETERORING_COMPLETE": "complete_bash", "COMP_WORDS": f"heteroring {typed}"}
        asks["COMP_CWORD"] = str(len(typed.split()))
        done = subprocess.run([sys.executable, "-c", script], env=environment() | asks, capture_output=True, text=True)
        assert done.stdout.split() == [offered], done.stderr
    assert "_HETERORING_COMPLETE" in run_python("-c", script, "--show-completion", "bash").stdout


def run_python(*words, **options):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment(), **options)


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT / "code")}


@pytest.mark.ranks
def test_help_imports_nothing_heavy():
    heavy = ("torch", "pandas", "numpy", "matplotlib", "sklearn")
    script = (
        "import sys\nfrom heteroring.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        f"assert not [name for name in {heavy} if name in sys.modules]"
    )
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr


def without_fms(*lines):
    """Run each line of words where FMS cannot be imported, and print exit codes and output."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "fms" or name.startswith("heteroring.fms")]:
        del sys.modules[name]
    sys.modules["fms"] = None
    print(json.dumps([(each.exit_code, each.stderr) for each in (invoke(*words) for words in lines)]), flush=True)


@pytest.mark.ranks
def test_without_ibm_fms_commands_that_need_it_say_how_to_get_it(tmp_path):
    lines = [
        ["demo"],
        ["model", "--percentages", "100,50", "--seq-lens", "64", "--strategies", "zigzag/even", "--output", "x/m.csv"],
        ["bench", *options(BENCH, {"--module": "fms", "--output": "x/b.csv"})],
        ["profile", *options(PROFILE, {"--kinds": "layer", "--output": "x/l.csv"})],
        ["profile", *options(PROFILE, {"--kinds": "block", "--model": "llama/micro", "--output": "x/p.csv"})],
    ]
    ran = Command(*lines, function=without_fms, cwd=tmp_path)
    out, err = ran.communicate()
    assert ran.returncode == 0, err
    said = json.loads(out)
    assert len(said) == len(lines)
    for code, complaint in said:
        assert code == 2
        assert re.fullmatch(r"heteroring: error: [^\n]*needs ibm-fms[^\n]*pip install ibm-fms[^\n]*\n", complaint)
    assert not list(tmp_path.iterdir())


@pytest.mark.ranks
def test_runs_as_a_module_and_tells_its_version():
    done = run_python("-m", "heteroring", "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "heteroring")


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [(["--help"], "1"), (["--version"], ""), *((SHARES, unbuffered) for unbuffered in ("", "1"))],
    ids=["help", "version", "buffered", "unbuffered"],
)
def test_what_cannot_be_printed_is_one_line_and_a_reader_that_left_is_none(words, unbuffered):
    command = [sys.executable, "-m", "heteroring", *words]
    options = {"env": environment() | {"PYTHONUNBUFFERED": unbuffered}, "stderr": subprocess.PIPE, "text": True}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, **options)
    complaint = "heteroring: error: cannot write to stdout: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, complaint)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, **options)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_error_of_the_command_is_not_taken_for_one_of_stdout(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "rows.csv")

    monkeypatch.setattr(import_module("heteroring.allocators"), "allocation", full)
    result = invoke("allocate", "even", "--seq-len", 10, "--percentages", "100,50")
    complaint = f"heteroring: error: [Errno {errno.ENOSPC}] No space left on device: 'rows.csv'\n"
    assert (result.exit_code, result.stderr) == (1, complaint)


# Python that presses Ctrl-C when a module is first looked for, inside of a call that drops all exceptions.
PRESS = """
import os, signal, sys, time
from contextlib import suppress
class Finder:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            with suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
sys.meta_path.insert(0, Finder)
sys.argv[1:] = {words!r}
from heteroring.__main__ import main
main()
"""


@pytest.mark.ranks
@pytest.mark.parametrize("module", ["heteroring.cli", "typer", "torch", "numpy", "heteroring.results.git"])
def test_ctrl_c_is_one_line_whatever_is_being_imported(tmp_path, module):
    words = ["bench", *options(BENCH, {"--output": str(tmp_path / "out" / "rows.csv")})]
    done = run_python("-c", PRESS.format(module=module, words=words))
    assert (done.returncode, done.stderr) == (130, "heteroring: error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stays_ignored_where_it_is(jobs_on_pools, monkeypatch):
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cli.quit_on_ctrl_c()
        monkeypatch.setattr("heteroring.results.git.read_commit", lambda: os.kill(os.getpid(), signal.SIGINT))
        result = invoke("bench", *options(BENCH, {"--seq-lens": "8", "--repetitions": "1"}))
        assert result.exit_code == 0, result.output
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "pattern",
    ["heteroring-*", "heteroring-*/*/*/*", "heteroring-*/rank1.stack"],
    ids=["launching", "importing", "running"],
)
def test_ctrl_c_ends_a_run_without_a_file(tmp_path, pattern):
    output = tmp_path / "out" / "rows.csv"
    words = options(BENCH | {"--seq-lens": "1024", "--percentages": "100,1"}, {"--output": str(output)})
    process = Command("bench", *words, "--repetitions", "100", env={"TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    bar, last = stderr.rpartition("heteroring: error: interrupted")[::2]
    assert last in ("\n", " by SIGINT: all ranks have ended\n")
    assert "Traceback" not in stderr
    assert bar.count("\n") <= 1
    assert not output.parent.exists()
    assert list(tmp_path.glob("heteroring-*")) == []

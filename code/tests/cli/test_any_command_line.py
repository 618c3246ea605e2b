"""Fuzzed command lines are refused in one line or used as typed; no process is started, and none hangs."""

import json
import os
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

import fuzz
from heteroring.allocators import fit
from heteroring.cli.main import app
from synthetic import TINY, write_platform

pytestmark = pytest.mark.slow

GRID = replace(TINY, percentages=(25, 100), lengths=(128,), strategies=("contiguous/even",), modules=("attention",))
# The required options of each command; a drawn value replaces one of them.
NEEDED = {
    "profile": {"--output": "rows.csv", "--sizes": "32", "--seq-lens": "64"},
    "bench": {"--seq-lens": "64"},
    "model": {"--output": "m.csv", "--seq-lens": "64", "--percentages": "100,50", "--strategies": "zigzag/even"},
    "fit": {"--output": "model.json"},
    "allocate": {"--seq-len": "100", "--percentages": "100,50"},
    "aggregate": {"--platform-dir": "platform"},
    "figure": {"--platform-dir": "platform"},
    "demo": {},
}
PROFILES = ["platform/profile/pct-025.csv", "platform/profile/pct-100.csv", "lut.json", "gone.csv"]
ARGUMENTS = {
    "fit": st.lists(st.sampled_from(PROFILES), max_size=3),
    "allocate": st.sampled_from(["even", "uneven", "lut", "formula", "balanced"]) | fuzz.text,
    "figure": st.sampled_from(["bound_fraction", "rank_order", "all"]) | fuzz.text,
}
_WORDS = """
cpu gpu none pacing mps green float32 bfloat16 auto p2p cudnn attention fms matmul fold layer block rested captured
zigzag contiguous zigzag/even contiguous/lut zigzag/balanced zigzag/lut@attention llama/micro lut formula cost pct-025
pct-100-025.job-1
"""
WORDS = st.sampled_from(_WORDS.split())
_PATHS = """
platform models lut.json cost.json platform/profile/pct-100.csv gone rows.csv a.json a.pdf b.png /dev/null /dev/full
. x/y.csv
"""
PATHS = st.sampled_from(_PATHS.split()) | fuzz.text.map(lambda text: text.replace("/", "")[:300])
INTEGERS = ("seq_lens", "percentages", "sizes", "fms_seq_lens")
LISTS = {name: name for name in (*INTEGERS, "strategies", "kinds")} | {"module": "modules"}
NUMBERS = ("repetitions", "warmup", "seed", "multiple", "new_tokens")
COMMANDS = get_command(app)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The folder in which commands run: a platform's folder, models, and other files."""
    folder = tmp_path_factory.mktemp("folder")
    write_platform(folder / "platform", GRID)
    profiles = sorted((folder / "platform" / "profile").glob("*.csv"))
    for name, kind, source in (("lut.json", "lut", "attention"), ("cost.json", "cost", "attention")):
        fit(kind, source, profiles).save(folder / name)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@contextmanager
def nothing_is_measured():
    """The jobs that would be measured."""
    jobs = []

    def measure(stage, job, *_, **__):
        jobs.append(job)

    def demo(job, progress):
        jobs.append(job)
        raise typer.Exit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lambda app: COMMANDS)  # making them takes longer than what they do
        patch.setattr("heteroring.bench.measure.measure", measure)
        patch.setattr("heteroring.bench.demo.run", demo)
        patch.setattr("heteroring.figures.save", lambda name, results, *paths: jobs.append(paths))
        patch.setattr("heteroring.figures.save_all", lambda results, folder: jobs.append(folder) or [])
        yield jobs


def value_of(parameter):
    if parameter.name in ("output", "models", "model", "trace", "platform_dir"):
        return PATHS | WORDS
    return st.one_of(fuzz.numbers, fuzz.listed(fuzz.numbers), WORDS, fuzz.listed(WORDS), fuzz.text)


@st.composite
def lines(draw, command):
    """Options, by name, and arguments."""
    parameters = COMMANDS.commands[command].params
    known = {p.name: p for p in parameters if p.param_type_name == "option" and p.name != "help"}
    options = dict(NEEDED[command])
    for parameter in draw(st.lists(st.sampled_from(list(known.values())), max_size=3, unique_by=lambda p: p.name)):
        options[parameter.opts[0]] = None if parameter.is_flag else draw(value_of(parameter))
    arguments = draw(ARGUMENTS.get(command, st.just([])))
    return options, [arguments] if isinstance(arguments, str) else arguments


@pytest.mark.parametrize("command", NEEDED)
@fuzz.examples(30)
@given(data=st.data())
def test_it_is_refused_in_one_line_or_means_what_it_says(command, data):
    options, arguments = data.draw(lines(command))
    words = [name if value is None else f"{name}={value}" for name, value in options.items()]
    with nothing_is_measured() as jobs:
        result = CliRunner().invoke(app, [command, *words, "--", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in (0, 2), result.output
    if result.exit_code == 2:
        assert re.fullmatch(r"heteroring: error: [^\n]+\n", result.stderr), result.stderr
        assert jobs == []
    elif command in ("profile", "bench", "model"):
        assert_means(jobs[0], options)
    elif command == "allocate":
        lens = json.loads(result.stdout)["block_lens"] if "--json" in options else list(map(int, result.stdout.split()))
        assert sum(lens) == int(options["--seq-len"])
        assert len(lens) == len(entries(options["--percentages"]))
        assert min(lens) >= 0


def entries(text):
    return re.findall(r"[^\s,]+", text)


def assert_means(job, options):
    """Assert that the options of the job are those that were typed."""
    for name, text in options.items():
        name = name[2:].replace("-", "_")
        if name in LISTS and hasattr(job, LISTS[name]) and text:
            typed = [int(word) if name in INTEGERS else word for word in entries(text)]
            assert list(getattr(job, LISTS[name])) == typed
        elif name in NUMBERS and hasattr(job, name):
            assert getattr(job, name) == int(text)

"""The demo runs anywhere, prints a table, and fails if the ring generates other tokens than one process."""

import pytest
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("fms")

from heteroring.bench import demo
from heteroring.cli.main import app


def found(**changes) -> demo.Demo:
    lines = (
        demo.Line("contiguous/even", (768, 768), 800.0, 1.0, 0.4),
        demo.Line("zigzag/balanced", (1221, 315), 340.0, 2.353, 0.941),
    )
    values = {
        "percentages": (100, 25),
        "lines": lines,
        "bound_ms": 320.0,
        "generated": [5, 7],
        "expected": [5, 7],
    }
    return demo.Demo(**values | changes)


def test_it_prefills_and_generates_what_one_process_does(jobs_on_pools):
    result = CliRunner().invoke(app, ["demo", "--seq-len", "96", "--new-tokens", "6", "--percentage", "50"])
    assert result.exit_code == 0, result.output
    for word in ("at 100 %", "at 50 %", "contiguous/even", "zigzag/balanced", "fast rank alone"):
        assert word in result.stdout
    words = (line.split() for line in result.stdout.splitlines())
    lines = {line[0]: line for line in words if line and line[0] in demo.STRATEGIES}
    assert set(lines) == set(demo.STRATEGIES)
    even_ms = float(lines[demo.EVEN][3])
    for *_, ms, speedup, _ in lines.values():  # as they are shown, rounded
        assert float(speedup.removesuffix("x")) == pytest.approx(even_ms / float(ms), rel=0.3)
    assert lines[demo.EVEN][4] == "1.00x"
    assert "the 6 tokens generated are those of one process" in result.stdout


def test_its_table_can_be_read_on_a_narrow_terminal():
    console = Console(width=72, record=True)
    console.print(demo.table(found()))
    text = console.export_text()
    assert "…" not in text
    [line] = [line.split() for line in text.splitlines() if "zigzag/balanced" in line]
    assert line == ["zigzag/balanced", "1221", "315", "340", "2.35x", "0.94"]


@pytest.mark.parametrize(("generated", "code"), [([5, 7, 2], 0), ([5, 8, 2], 1), ([5], 1)])
def test_it_fails_if_a_token_is_wrong(monkeypatch, generated, code):
    monkeypatch.setattr(demo, "run", lambda job, progress: found(generated=generated, expected=[5, 7, 2]))
    result = CliRunner().invoke(app, ["demo", "--new-tokens", "3"])
    assert result.exit_code == code, result.output
    assert ("they differ" in result.stdout) == bool(code)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--percentage", "0", "percentage 0 is not an integer from 1 to 100"),
        ("--seq-len", "1", "a prompt of 1 tokens is shorter than 2 ranks"),
        ("--seq-len", "0", "seq_lens holds 0"),
        ("--new-tokens", "0", "new_tokens is 0"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(option, value, says):
    result = CliRunner().invoke(app, ["demo", option, value])
    assert result.exit_code == 2
    assert says in result.stderr

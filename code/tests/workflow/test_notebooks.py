"""The notebooks run from top to bottom, in any folder, and are stored without outputs."""

import os
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import synthetic
from heteroring.results.metrics import cells
from heteroring.results.results import Results, headline
from heteroring.results.rows import Measurement, read_rows
from tree import ROOT

CODE = ROOT / "code"
NOTEBOOKS = CODE.parent / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def executed(
    name: str, monkeypatch, *more: str, hidden: Path | None = None, changed: dict[str, str] | None = None
) -> list[nbformat.NotebookNode]:
    """The outputs of a notebook, with cells of `more` code at its end; modules in the folder `hidden` come first.

    In its first cell of code, parameters are `changed`.
    """
    paths = [*([hidden] if hidden else []), CODE, os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for old, new in (changed or {}).items():
        assert old in notebook.cells[1].source
        notebook.cells[1].source = notebook.cells[1].source.replace(old, new)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in more]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def explored(data: Path, monkeypatch, *more: str, **options) -> list[nbformat.NotebookNode]:
    monkeypatch.setenv("HETERORING_DATA", str(data))
    return executed("explore_results", monkeypatch, *more, **options)


def of_type(outputs: list[nbformat.NotebookNode], mime: str) -> list[str]:
    return [output["data"][mime] for output in outputs if mime in output.get("data", {})]


def printed(outputs: list[nbformat.NotebookNode]) -> str:
    return "".join(output["text"] for output in outputs if output.output_type == "stream")


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_stripped_and_the_beginning_says_what_a_reader_will_know(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "**After ten minutes you will know" in notebook.cells[0].source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert cell.metadata == {}


@pytest.mark.ranks
def test_results_are_explored_on_a_platform_that_is_found(tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    synthetic.write_platform(tmp_path / "tiny", synthetic.TINY)
    (tmp_path / "unfinished" / "bench").mkdir(parents=True)
    outputs = explored(tmp_path, monkeypatch, "menus['seq_len'].value = 128", "menus['figure'].value = 'rank_order'")
    assert of_type(outputs, "text/plain")[0] == "['tiny']"
    assert len(of_type(outputs, "image/png")) == 3
    assert printed(outputs).startswith("cpu: 2 paced CPU ranks (AMD EPYC 9B45), 2026-01-01")
    assert len(of_type(outputs, WIDGET)) == 2
    tables = of_type(outputs, "text/html")
    assert len(tables) == 5
    assert "(64, 64)" in tables[0]  # of the length that was chosen last
    assert "(128, 128)" not in tables[0]
    for strategy in synthetic.TINY.strategies:
        assert strategy in tables[1]
    assert [float(text) for text in re.findall(r"<td>([\d.]+)</td>", tables[1])] == pytest.approx(
        percent_behind_the_best(tmp_path / "tiny")
    )


def percent_behind_the_best(platform: Path) -> list[float]:
    """Of every strategy in every cell of the attention call, row by row."""
    shown = headline(Results.load(platform).cells)
    call = shown[(shown.system == "ring") & (shown.module == "attention")].sort_values(["seq_len", "percentage"])
    rows = [group.sort_values("strategy") for _, group in call.groupby(["seq_len", "percentage"])]
    return [round(100 * (ms / row.latency_ms.min() - 1), 1) for row in rows for ms in row.latency_ms]


@pytest.mark.ranks
def test_without_ipywidgets_and_models_there_is_what_the_menus_show_first(tmp_path, monkeypatch):
    """And where no platform has tables, it names the command that makes them."""
    synthetic.write_platform(tmp_path / "tiny", replace(synthetic.TINY, model=False))
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDE_WIDGETS)
    elsewhere = f"os.environ['HETERORING_DATA'] = {str(tmp_path / 'hidden')!r}"
    again = f"{elsewhere}\nget_ipython().run_cell(In[1]).error_in_exec"
    outputs = explored(tmp_path, monkeypatch, again, hidden=tmp_path / "hidden")
    assert of_type(outputs, WIDGET) == []
    assert "(128, 128)" in of_type(outputs, "text/html")[0]
    assert len(of_type(outputs, "image/png")) == 3
    assert re.search(r"FileNotFoundError.*no tables under .*heteroring aggregate", of_type(outputs, "text/plain")[-1])


# Read by every Python that starts with its folder on the path.
HIDE_WIDGETS = """
import importlib.util

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "ipywidgets" else find_spec(name, package)
"""


@pytest.mark.ranks
def test_the_ring_from_scratch_is_that_of_the_package(monkeypatch):
    outputs = executed("ring_attention_from_scratch", monkeypatch)
    assert len(of_type(outputs, "image/png")) == 5
    said = printed(outputs)
    assert "positions, pairs and attention are the package's\n" in said
    assert "rank 1 held positions ((8, 12), (12, 16)) and returned (1, 2, 8, 16)\n" in said


@pytest.mark.ranks
def test_the_machine_at_hand_is_profiled_planned_for_and_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    smaller = {"(512, 1024, 2048)": "(256, 512)", "repetitions = 3": "repetitions = 1"}
    outputs = executed("bring_your_own_gpu", monkeypatch, changed=smaller)
    assert len(of_type(outputs, "image/png")) == 1
    [rows] = tmp_path.glob("heteroring-*/ring.csv")
    measured = cells(read_rows([rows], Measurement))
    best = measured[(measured["system"] == "ring") & (measured["seq_len"] == 512)].sort_values("latency_ms").iloc[0]
    said = printed(outputs)
    assert f"{best['strategy']} {best['latency_ms']:.3g} ms\n" in said
    assert f"bound fraction {best['bound_fraction']:.2f}\n" in said
    _, plans, found = of_type(outputs, "text/html")
    assert re.findall(r"<td>(\d+)</td>", plans)[:4] == ["256", "256", "410", "102"]
    assert "zigzag/balanced" in found

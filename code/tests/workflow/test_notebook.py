"""The notebook runs from top to bottom on any platform's folder, and is kept without outputs."""

import os
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import synthetic
from heteroring.results.results import Results, headline

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "explore_results.ipynb"
CODE = Path(__file__).parents[2]


def executed(data: Path, monkeypatch) -> nbformat.NotebookNode:
    monkeypatch.setenv("HETERORING_DATA", str(data))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CODE), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    return client.execute()


def test_outputs_are_stripped():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert cell.metadata == {}


@pytest.mark.ranks
def test_notebook_runs_on_a_platform_that_it_finds(tmp_path, monkeypatch):
    synthetic.write_platform(tmp_path / "tiny", synthetic.TINY)
    (tmp_path / "unfinished" / "bench").mkdir(parents=True)
    notebook = executed(tmp_path, monkeypatch)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs[0]["data"]["text/plain"] == "['tiny']"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert printed.startswith("cpu: 2 paced CPU ranks (AMD EPYC 9B45), 2026-01-01")
    tables = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(tables) == 5
    for strategy in synthetic.TINY.strategies:
        assert strategy in tables[1]
    assert [float(text) for text in re.findall(r"<td>([\d.]+)</td>", tables[1])] == pytest.approx(
        percent_behind_the_best(tmp_path / "tiny")
    )


def percent_behind_the_best(platform: Path) -> list[float]:
    """Of every strategy in every cell of the attention call, row by row."""
    cells = headline(Results.load(platform).cells)
    call = cells[(cells.system == "ring") & (cells.module == "attention")].sort_values(["seq_len", "percentage"])
    rows = [group.sort_values("strategy") for _, group in call.groupby(["seq_len", "percentage"])]
    return [round(100 * (ms / row.latency_ms.min() - 1), 1) for row in rows for ms in row.latency_ms]


@pytest.mark.ranks
def test_notebook_runs_on_a_platform_without_models(tmp_path, monkeypatch):
    synthetic.write_platform(tmp_path / "tiny", replace(synthetic.TINY, model=False))
    executed(tmp_path, monkeypatch)


@pytest.mark.ranks
def test_without_tables_the_notebook_says_what_makes_them(tmp_path, monkeypatch):
    with pytest.raises(CellExecutionError, match=r"no tables under .*heteroring aggregate"):
        executed(tmp_path, monkeypatch)

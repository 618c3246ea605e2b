"""A cell consists of repetitions of the same call only, also for whole models."""

import pytest

from heteroring.results.metrics import cells
from heteroring.results.model_metrics import model_cells
from model_rows import model_row
from rows import measurement


@pytest.mark.parametrize(("table", "row"), [(cells, measurement), (model_cells, model_row)], ids=["call", "model"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block": "flash"}, r"repetitions differ in block \(cpu, flash\): .*seq_len 100"),
        ({"transport": "copy-engine"}, r"repetitions differ in transport \(p2p, copy-engine\): .*seq_len 100"),
    ],
)
def test_repetitions_of_a_cell_are_computed_and_carried_alike(table, row, changes, says):
    with pytest.raises(ValueError, match=says):
        table([row(), row(repetition=1, **changes)])

"""Tables without a row type: numbers are numbers, and names are text, whatever they look like."""

from dataclasses import replace

import numpy as np
import pytest

from heteroring.results.results import Results
from heteroring.results.tables import read_table
from synthetic import TINY, write_platform


def test_a_column_is_what_all_of_its_cells_are(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("platform,kind,n,ms,clamped,percentages,mixed\nnan,null,1,1.5,True,100,1\nNA,,-2,,False,050,x\n")
    table = read_table(path)
    assert table["platform"].tolist() == ["nan", "NA"]
    assert table["kind"].tolist() == ["null", ""]
    assert table["n"].tolist() == [1, -2]
    assert table["ms"].tolist() == pytest.approx([1.5, np.nan], nan_ok=True)
    assert table["clamped"].tolist() == [True, False]
    assert table["percentages"].tolist() == ["100", "050"]
    assert table["mixed"].tolist() == ["1", "x"]


@pytest.mark.parametrize("name", ["null", "nan", "NA", "4090", "1e5", "True"])
def test_a_platform_may_be_called_anything(tmp_path, name):
    write_platform(tmp_path, replace(TINY, platform=name, strategies=("contiguous/even",), modules=("attention",)))
    results = Results.load(tmp_path)
    for table in (results.cells, results.profile, results.measurements, results.model, results.trace):
        assert set(table["platform"]) == {name}
    assert results.platform == name
    assert results.cells.groupby("platform").size()[name] == len(results.cells)


def test_a_list_that_is_none_is_named(tmp_path):
    write_platform(tmp_path, replace(TINY, model=False, strategies=("contiguous/even",), modules=("attention",)))
    path = tmp_path / "derived" / "cells.csv"
    path.write_text(path.read_text().replace("100 50", "100 slow"))
    with pytest.raises(ValueError, match=f"{path}, column percentages: .*'slow'"):
        Results.load(tmp_path)

"""The check of a platform's whole model finds missing cells, impossible values, and an incomplete layer."""

import pandas as pd
import pytest

from check_model import main, violations
from heteroring.results.aggregate import write_table
from heteroring.results.model_rows import TRACED

GRID = {
    "percentages": [[100, 100], [100, 50]],
    "jobs": 2,
    "seq_lens": [64, 128],
    "strategies": ["contiguous/even", "zigzag/balanced"],
    "new_tokens": 4,
    "decode": [{"batch": 8, "seq_lens": [32, 128]}],
}


def cell(phase, strategy, seq_len, percentages, **changes):
    alone = strategy.startswith("alone")
    lens = {"alone/rank0": (seq_len, 0), "alone/rank1": (0, seq_len)}.get(strategy, (seq_len // 2, seq_len // 2))
    return {
        "phase": phase,
        "system": "alone" if alone else "ring",
        "strategy": strategy,
        "batch": 1,
        "seq_len": seq_len,
        "percentages": percentages,
        "block_lens": lens,
        "latency_ms": 2.0,
        "jobs": 2,
        "bound_fraction": 0.9,
    } | changes


def table():
    strategies = [*GRID["strategies"], "alone/rank0", "alone/rank1"]
    rows = [
        cell("prefill", strategy, seq_len, tuple(percentages))
        for strategy in strategies
        for seq_len in GRID["seq_lens"]
        for percentages in GRID["percentages"]
    ]
    rows += [
        cell("decode", strategy, seq_len, tuple(percentages), batch=batch, jobs=2 if batch == 1 else 1)
        for batch, seq_len in ((8, 32), (8, 128), (1, 128))
        for strategy in strategies[1:]
        for percentages in GRID["percentages"]
    ]
    return pd.DataFrame(rows)


def trace():
    kinds = [("layer", 1.0, 9.0), ("ready", 2.0, 2.0), ("block", 2.0, 5.0)]
    return pd.DataFrame(
        [
            {"strategy": strategy, "seq_len": 128, "percentages": tuple(percentages), "rank": rank, "kind": kind}
            | {"start_ms": start, "stop_ms": stop}
            for strategy in TRACED
            for percentages in GRID["percentages"]
            for rank in (0, 1)
            for kind, start, stop in kinds
        ]
    )


def changed(frame, row, **values):
    frame = frame.copy()
    for name, value in values.items():
        frame.loc[row, name] = value
    return frame


@pytest.mark.parametrize("grid", [GRID, None])
def test_a_whole_grid_is_sound(grid):
    assert violations(table(), trace(), grid, 0.1) == []


@pytest.mark.parametrize(
    ("cells", "events", "says"),
    [
        (table().drop(index=0), trace(), "missing: prefill of contiguous/even at 64 tokens and 100 100 %"),
        (table().drop(index=table().index[-1]), trace(), "missing: decode of alone/rank1 at 128 tokens and 100 50 %"),
        (
            table()[lambda cells: cells["seq_len"] != 32],
            trace(),
            "missing: decode of zigzag/balanced (8 sequences) at 32 tokens and 100 50 %",
        ),
        (
            changed(table(), 0, strategy="zigzag/uneven"),
            trace(),
            "not in the configured grid: prefill of zigzag/uneven",
        ),
        (changed(table(), 0, jobs=1), trace(), "1 of 2 jobs: prefill of contiguous/even at 64 tokens and 100 100 %"),
        (table().assign(bound_fraction=float("nan")), trace(), "no cell has a bound fraction"),
        (table(), trace().drop(index=0), "['block', 'ready'] are not one layer with its KV arrivals and backend calls"),
        (
            table(),
            trace()[trace()["percentages"] != (100, 50)],
            "missing: trace of zigzag/balanced at 128 tokens and 100 50 %, rank 1",
        ),
        (
            table(),
            trace()[trace()["strategy"] != "contiguous/even"],
            "missing: trace of contiguous/even at 128 tokens and 100 100 %, rank 0",
        ),
        (table(), trace()[:0], "missing: trace of contiguous/even at 128 tokens and 100 50 %, rank 0"),
        (table(), changed(trace(), 2, stop_ms=9.5), "something happens outside the layer: trace of contiguous/even"),
    ],
)
def test_what_is_wrong_is_said(cells, events, says):
    assert any(says in line for line in violations(cells, events, GRID, 0.1))


CELL = "prefill of contiguous/even at 64 tokens and 100 100 %"
TRACE = "trace of contiguous/even at 128 tokens and 100 100 %, rank 0"


def test_a_violation_says_which_cell_or_layer_it_is():
    found = violations(changed(table(), 0, bound_fraction=1.2), trace(), GRID, 0.1)
    assert found == [f"bound fraction 1.200 exceeds 1 by more than 0.1: {CELL}"]
    doubled = pd.concat([trace(), trace()[:1]], ignore_index=True)
    found = violations(table(), doubled, GRID, 0.1)
    assert found == [
        f"['block', 'layer', 'layer', 'ready'] are not one layer with its KV arrivals and backend calls: {TRACE}"
    ]


def test_a_rank_without_tokens_has_no_layer_to_trace():
    cells, events = table(), trace()
    alone = (cells["strategy"] == "zigzag/balanced") & (cells["percentages"] == (100, 50)) & (cells["seq_len"] == 128)
    cells.loc[alone, "block_lens"] = pd.Series([(128, 0)] * alone.sum(), index=cells.index[alone])
    gone = (events["strategy"] == "zigzag/balanced") & (events["percentages"] == (100, 50)) & (events["rank"] == 1)
    assert violations(cells, events[~gone], GRID, 0.1) == []


def test_decode_is_expected_at_percentages_that_no_prefill_has():
    decodes = table()[lambda cells: (cells["batch"] == 8) & (cells["percentages"] == (100, 50))]
    decodes["percentages"] = [(100, 30)] * len(decodes)
    assert violations(pd.concat([table(), decodes]), trace(), None, 0.1) == []
    found = violations(pd.concat([table(), decodes[:-1]]), trace(), None, 0.1)
    assert found == ["missing: decode of alone/rank1 (8 sequences) at 128 tokens and 100 30 %"]


def test_the_report_is_written_only_if_all_is_well(tmp_path):
    paths = [tmp_path / name for name in ("model.csv", "trace.csv", "checks.txt")]
    write_table(paths[0], table())
    write_table(paths[1], trace())
    main(*paths, GRID, 0.1)
    assert "34 cells: every one there" in paths[2].read_text()
    paths[2].unlink()
    with pytest.raises(SystemExit, match="4 violations in"):
        main(*paths, GRID | {"strategies": GRID["strategies"][1:]}, 0.1)
    assert not paths[2].exists()

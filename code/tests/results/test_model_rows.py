"""Rows of a measured whole model: errors that name the rule, and cells and shares worked out by hand."""

import pandas as pd
import pytest

from heteroring.results.model_metrics import layer_shares, model_cells, trace_table
from heteroring.results.model_rows import ModelRow, TraceRow
from heteroring.results.rows import read_rows, write_rows
from model_rows import alone, event, model_row
from rows import profile_row


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phase": "training"}, "column phase: 'training'"),
        ({"block_lens": (50, 51)}, "does not sum to seq_len 100"),
        ({"block_lens": (100,)}, "column block_lens"),
        ({"peak_memory_bytes": (1,)}, "column peak_memory_bytes"),
        ({"new_tokens": 3}, "column new_tokens: 3 in phase prefill"),
        ({"phase": "decode"}, "column new_tokens: 0 in phase decode"),
        ({"model_source": "fold"}, "column model_source"),
        ({"latency_ms": float("nan")}, "column latency_ms"),
        ({"captured": True}, "columns captured and limit_ms: True and 0.0 in a prefill"),
    ],
)
def test_a_broken_model_row_is_refused(changes, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        model_row(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "nap"}, "column kind"),
        ({"start_ms": -0.1}, "column start_ms"),
        ({"stop_ms": 0.5}, "column stop_ms: 0.5 comes before start_ms 1.0"),
    ],
)
def test_a_broken_event_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        event(**changes)


def test_rows_come_back_from_their_files(tmp_path):
    rows = [model_row(), model_row(phase="decode", new_tokens=8)]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv", ModelRow) == rows
    write_rows(tmp_path / "trace.csv", [event()])
    assert read_rows(tmp_path / "trace.csv", TraceRow) == [event()]


def test_rows_from_before_steps_were_captured_are_read(tmp_path):
    rows = [model_row(), model_row(phase="decode", new_tokens=8)]
    write_rows(tmp_path / "rows.csv", rows)
    table = pd.read_csv(tmp_path / "rows.csv").drop(columns=["captured", "compiled", "limit_ms"])
    table.to_csv(tmp_path / "older.csv", index=False)
    assert read_rows(tmp_path / "older.csv", ModelRow) == rows
    table.drop(columns="batch").to_csv(tmp_path / "older.csv", index=False)
    with pytest.raises(ValueError, match="column batch is missing"):
        read_rows(tmp_path / "older.csv", ModelRow)


class TestCells:
    def rows(self):
        return [
            model_row(),
            model_row(repetition=1, latency_ms=80.0, peak_memory_bytes=(1, 4_000_000_000)),
            model_row(
                layout="zigzag", allocator="balanced", model_source="block", block_lens=(66, 34), latency_ms=35.0
            ),
            alone(0, 40.0),
            alone(1, 120.0),
            model_row(layout="zigzag", allocator="balanced", phase="decode", new_tokens=8, latency_ms=5.0),
            alone(0, 4.0, phase="decode", new_tokens=8),
            alone(1, 8.0, phase="decode", new_tokens=8),
        ]

    def test_by_hand(self):
        cells = model_cells(self.rows()).set_index(["phase", "strategy"])
        even, balanced = cells.loc[("prefill", "contiguous/even")], cells.loc[("prefill", "zigzag/balanced")]
        assert even.latency_ms == 70
        assert even.repetitions == 2
        assert even.peak_memory_gb == (3.0, 4.0)
        assert even.tokens_per_second == pytest.approx(100 / 0.07)
        assert even.speedup == 1
        assert pd.isna(balanced.speedup)  # against even zigzag shards, which were not measured
        assert balanced.bound_ms == pytest.approx(1 / (1 / 40 + 1 / 120))
        assert balanced.bound_fraction == pytest.approx(30 / 35)
        assert balanced.fast_alone_ms == 40
        assert balanced.percentage == 50

    def test_attention_and_the_rest_are_two_kinds_of_work_where_attention_was_profiled(self):
        """Of 40 and 120 ms attention is 20 and 100: rank 0 does all of that, and rank 1 the rest."""
        layers = model_row().layers
        profile = [
            profile_row("attention", 100, percentage=percentage, latency_ms=ms / layers)
            for percentage, ms in ((100, 20.0), (50, 100.0))
        ]
        cells = model_cells(self.rows(), profile).set_index(["phase", "strategy"])
        balanced = cells.loc[("prefill", "zigzag/balanced")]
        assert balanced.bound_ms == pytest.approx(20.0)
        assert balanced.bound_fraction == pytest.approx(20 / 35)
        assert pd.isna(cells.loc[("decode", "zigzag/balanced")].bound_ms)
        other = [profile_row("attention", 200, percentage=each) for each in (100, 50)]
        at_another_length = model_cells(self.rows(), other).set_index(["phase", "strategy"])
        assert at_another_length.loc[("prefill", "zigzag/balanced")].bound_ms == pytest.approx(30.0)

    def test_speedup_is_over_even_shards_of_the_same_layout(self):
        others = [
            model_row(layout="zigzag", latency_ms=42.0),
            model_row(allocator="uneven", block_lens=(60, 40), latency_ms=28.0),
        ]
        cells = model_cells([*self.rows(), *others]).set_index(["phase", "strategy"])["speedup"]
        assert cells["prefill", "zigzag/balanced"] == pytest.approx(42 / 35)
        assert cells["prefill", "contiguous/uneven"] == pytest.approx(70 / 28)

    def test_strategies_that_make_the_same_calls_share_their_repetitions(self):
        same = model_row(allocator="balanced", model_source="block", latency_ms=90.0)
        other = model_row(layout="zigzag", latency_ms=42.0)
        cells = model_cells([*self.rows(), same, other]).set_index(["phase", "strategy"])
        shared = cells.loc["prefill"].loc[["contiguous/even", "contiguous/balanced"]]
        assert set(shared.latency_ms) == {80}  # of 60, 80 and 90
        assert set(shared.repetitions) == {3}
        assert cells.loc["prefill"].loc["zigzag/even"].latency_ms == 42

    def test_jobs_are_compared_with_their_own_ranks_alone(self):
        slower = [model_row(job=2, latency_ms=90.0), alone(0, 60.0, job=2), alone(1, 180.0, job=2)]
        cell = model_cells([*self.rows(), *slower]).set_index(["phase", "strategy"]).loc["prefill", "contiguous/even"]
        assert (cell.jobs, cell.repetitions, cell.latency_ms) == (2, 3, 80)
        assert (cell.latency_low_ms, cell.latency_high_ms) == (70, 90)
        assert cell.bound_ms == pytest.approx((30 + 45) / 2)
        assert cell.bound_fraction == pytest.approx((30 / 70 + 45 / 90) / 2)

    def test_rank_orders_are_told_apart(self):
        cells = model_cells([*self.rows(), model_row(percentages=(50, 100), latency_ms=30.0)])
        even = cells[cells["strategy"] == "contiguous/even"].set_index("order")["latency_ms"]
        assert even.to_dict() == {"slow last": 70, "slow first": 30}

    def test_a_decode_has_no_capacity_bound(self):
        cells = model_cells(self.rows()).set_index(["phase", "strategy"])
        decode = cells.loc[("decode", "zigzag/balanced")]
        assert decode.tokens_per_second == 200
        assert decode.fast_alone_ms == 4
        assert pd.isna(decode.bound_ms)
        assert pd.isna(decode.speedup)

    def test_decodes_of_several_batches_and_ways_are_cells_of_their_own(self):
        step = {"layout": "zigzag", "phase": "decode", "new_tokens": 8, "captured": True}
        more = [
            model_row(**step, batch=8, limit_ms=2.0),
            model_row(**step, batch=8, limit_ms=4.0, repetition=1),
            model_row(**step, batch=8, compiled=True, latency_ms=5.0),
            alone(0, 9.0, phase="decode", new_tokens=8, captured=True, batch=8),
            alone(1, 7.0, phase="decode", new_tokens=8, captured=True, batch=8),
        ]
        cells = model_cells([*self.rows(), *more]).set_index(["phase", "strategy", "batch", "compiled"])
        eight = cells.loc["decode", "zigzag/even", 8, False]
        assert (eight.limit_ms, eight.fast_alone_ms, eight.tokens_per_second) == (3, 7, 8 * 1e3 / 60)
        assert pd.isna(cells.loc["decode", "zigzag/even", 8, True].fast_alone_ms)
        assert pd.isna(cells.loc["decode", "zigzag/balanced", 1, False].limit_ms)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_one_rank_alone_is_neither_a_bound_nor_the_fastest(self, rank):
        cells = model_cells([model_row(), alone(rank, 40.0)])
        assert cells[["bound_ms", "bound_fraction", "fast_alone_ms"]].isna().all(axis=None)


def test_a_trace_is_that_of_the_first_job():
    table = trace_table([event(job=2), event(job=3, stop_ms=3.0), event(job=3, percentages=(50, 100))])
    assert list(zip(table["order"], table["job"], strict=True)) == [("slow last", 2), ("slow first", 3)]


def test_a_wait_divides_into_waiting_and_exposed_transfer():
    trace = trace_table(
        [
            event(rank=0, start_ms=10, stop_ms=30),
            event(rank=0, kind="ready", start_ms=12, stop_ms=12),
            event(rank=0, kind="block", start_ms=12, stop_ms=15),
            event(rank=0, kind="wait", step=1, start_ms=15, stop_ms=21),
            event(rank=0, kind="block", step=1, start_ms=21, stop_ms=25),
            event(rank=1, start_ms=10, stop_ms=28),
            event(rank=1, kind="ready", start_ms=19, stop_ms=19),
            event(rank=1, kind="wait", step=1, start_ms=22, stop_ms=23),
            event(rank=1, kind="sent", step=1, start_ms=25, stop_ms=25.5),
        ]
    )
    shares = layer_shares(trace).set_index("rank")
    fast, slow = shares.loc[0], shares.loc[1]
    assert (fast.waiting_ms, fast.exposed_ms, fast.busy_ms, fast.layer_ms) == (4, 2, 14, 20)
    assert (slow.waiting_ms, slow.exposed_ms, slow.busy_ms) == (0, 1.5, 16.5)
    assert fast.percentage == 50


def test_who_is_waited_for_follows_from_the_order_of_the_ring():
    rows = [
        event(rank=rank, kind=kind, start_ms=start, stop_ms=stop, step=step, percentages=(100, 50, 10))
        for rank, kind, step, start, stop in [
            *((rank, "layer", 0, 0, 100) for rank in range(3)),
            *((rank, "ready", 0, at, at) for rank, at in enumerate((10, 20, 40))),
            (0, "wait", 1, 15, 50),  # for rank 2
            (0, "wait", 2, 60, 61),  # for rank 1
            (1, "sent", 1, 30, 45),  # to rank 2
        ]
    ]
    shares = layer_shares(trace_table(rows)).set_index("rank")
    assert (shares.loc[0].waiting_ms, shares.loc[0].exposed_ms) == (25, 11)
    assert (shares.loc[1].waiting_ms, shares.loc[1].exposed_ms) == (10, 5)
    assert (shares.loc[2].waiting_ms, shares.loc[2].busy_ms) == (0, 100)

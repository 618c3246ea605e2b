"""Metrics against numbers worked out by hand."""

import math

import pytest

from heteroring.results.metrics import cells, choices_of_ranks, profile_cells
from heteroring.results.rank_percentages import in_short, order_of, ranks_of
from heteroring.results.results import headline
from rows import measurement, profile_row


def repeated(latencies, **changes):
    return [measurement(repetition=i, latency_ms=ms, **changes) for i, ms in enumerate(latencies)]


def alone(rank, latencies, **changes):
    lens = tuple(100 * (r == rank) for r in range(2))
    return repeated(latencies, system="alone", layout="contiguous", allocator="alone", block_lens=lens, **changes)


def job(percentage, even, uneven, alone_fast, alone_slow):
    setting = {"percentages": (100, percentage)}
    return [
        *repeated(even, **setting),
        *repeated(uneven, allocator="uneven", block_lens=(80, 20), busy_ms=(3.0, 1.0), **setting),
        *alone(0, alone_fast, **setting),
        *alone(1, alone_slow, **setting),
    ]


@pytest.fixture
def table():
    rows = [
        *job(100, [6.0, 5.0, 100.0], [7.0, 7.0, 7.0], [10.0, 10.0, 10.0], [10.0, 10.0, 10.0]),
        *job(25, [20.0, 30.0, 24.0], [16.0, 10.0, 12.0], [10.0, 10.0, 12.0], [40.0, 40.0, 41.0]),
    ]
    return cells(rows).set_index(["strategy", "percentage"])


def test_latency_is_the_median_between_its_percentiles(table):
    cell = table.loc["zigzag/even", 25]
    assert cell.repetitions == 3
    assert cell.latency_ms == 24.0
    assert cell.latency_p20_ms == pytest.approx(20 + 0.4 * 4)
    assert cell.latency_p80_ms == pytest.approx(24 + 0.6 * 6)


def test_slowdown_and_efficiency_are_against_the_even_ring_at_full_speed(table):
    cell = table.loc["zigzag/uneven", 25]
    assert cell.slowdown == pytest.approx(12 / 6)
    assert cell.efficiency == pytest.approx(6 / 12)
    assert table.loc["zigzag/even", 100].slowdown == 1.0


def test_speedup_is_over_the_even_ring_at_the_same_setting(table):
    assert table.loc["zigzag/uneven", 25].speedup == pytest.approx(24 / 12)
    assert table.loc["zigzag/uneven", 100].speedup == pytest.approx(6 / 7)
    assert table.loc["zigzag/even", 25].speedup == 1.0


def test_the_bound_comes_from_each_rank_alone_in_the_same_job(table):
    cell = table.loc["zigzag/uneven", 25]
    assert cell.bound_ms == pytest.approx(1 / (1 / 10 + 1 / 40))
    assert cell.bound_fraction == pytest.approx(8 / 12)
    assert cell.fast_alone_ms == 10.0
    assert table.loc["zigzag/even", 100].bound_ms == pytest.approx(5.0)


def test_context_parallel_is_judged_by_its_own_kernel():
    def at(system, rank, ms):
        lens = tuple(100 * (r == rank) for r in range(2))
        return measurement(system=system, layout="contiguous", allocator="alone", block_lens=lens, latency_ms=ms)

    alone = [at("alone", 0, 10.0), at("alone", 1, 40.0), at("sdpa", 0, 20.0), at("sdpa", 1, 60.0)]
    torch = measurement(system="context_parallel", latency_ms=30.0)
    table = cells([measurement(latency_ms=16.0), torch, *alone]).set_index(["system", "strategy"])
    assert table.loc["ring", "zigzag/even"].bound_fraction == pytest.approx(8 / 16)
    assert table.loc["context_parallel", "zigzag/even"].bound_fraction == pytest.approx(15 / 30)
    assert table.loc["sdpa", "alone/rank1"].bound_fraction == pytest.approx(15 / 60)
    only_ours = cells([torch, *alone[:3]]).set_index("system")
    assert math.isnan(only_ours.loc["context_parallel"].bound_fraction)


def test_a_layer_is_judged_by_the_bound_of_its_two_kinds_of_work():
    """Attention takes the ranks 10 and 40 ms, products 10 and 10: rank 0 attends, rank 1 multiplies."""
    rows = [
        *repeated([20.0], module="fms"),
        *alone(0, [20.0], module="fms"),
        *alone(1, [50.0], module="fms"),
        *alone(0, [10.0]),
        *alone(1, [40.0]),
    ]
    layer = cells(rows).set_index(["module", "strategy"]).loc["fms", "zigzag/even"]
    assert layer.bound_ms == pytest.approx(10.0)  # of one kind of work each
    assert layer.bound_ms < 1 / (1 / 20 + 1 / 50)
    assert (layer.bound_fraction, layer.bound_fraction_low, layer.bound_fraction_high) == (0.5, 0.5, 0.5)
    [alone_known] = cells(rows[:3]).query("system == 'ring'").itertuples()
    assert alone_known.bound_ms == pytest.approx(1 / (1 / 20 + 1 / 50))


def test_regret_is_against_the_best_split_of_the_layout_however_it_was_found():
    def ring(allocator, ms, **changes):
        return measurement(allocator=allocator, latency_ms=ms, **changes)

    rows = [
        ring("even", 12.0),
        ring("balanced", 11.0, model_source="attention", block_lens=(60, 40)),
        ring("balanced:-5", 9.0, model_source="attention", block_lens=(61, 39)),
        ring("lut", 11.0, model_source="matmul", block_lens=(61, 39)),  # the same call: 10.0 in the median of both
        ring("balanced:p2p", 5.0, model_source="attention", block_lens=(60, 40)),
        ring("even", 2.0, layout="contiguous"),
        ring("even", 1.0, percentages=(50, 100)),
        *alone(0, [3.0]),
    ]
    table = cells(rows).set_index(["strategy", "order"]).regret
    assert table["zigzag/even", "slow last"] == pytest.approx(0.2)
    assert table["zigzag/balanced", "slow last"] == pytest.approx(0.1)
    assert table["zigzag/balanced:-5", "slow last"] == table["zigzag/lut", "slow last"] == 0
    assert table["contiguous/even", "slow last"] == table["zigzag/even", "slow first"] == 0
    assert table[["zigzag/balanced:p2p", "alone/rank0"]].isna().all()


def test_jobs_are_pooled_and_each_has_its_own_bound():
    """Medians over all repetitions of all jobs; bounds are compared within each job, and the median job counts."""
    rows = []
    for number, (ring, fast, slow) in enumerate([(10.0, 10.0, 40.0), (20.0, 30.0, 60.0), (12.0, 10.0, 40.0)], 1):
        rows += repeated([ring, ring + 1, ring + 2], job=number)
        rows += [*alone(0, [fast], job=number), *alone(1, [slow], job=number)]
    cell = cells(rows).set_index("strategy").loc["zigzag/even"]
    assert (cell.jobs, cell.repetitions) == (3, 9)
    assert (cell.latency_ms, cell.latency_low_ms, cell.latency_high_ms) == (13.0, 11.0, 21.0)
    assert cell.bound_ms == pytest.approx(8.0)
    assert cell.bound_fraction == pytest.approx(8 / 11)  # of 8 / 11, 20 / 21 and 8 / 13, the one in the middle
    assert cell.fast_alone_ms == 10.0


def test_orders_and_conditions_are_cells_of_their_own_and_compared_with_their_like():
    first, sustained = {"percentages": (50, 100)}, {"condition": "sustained"}
    rows = [
        *repeated([4.0], percentages=(100, 100)),
        *repeated([5.0], percentages=(100, 100), **sustained),
        *repeated([8.0]),
        *repeated([2.0], allocator="uneven"),
        *repeated([6.0], **first),
        *repeated([3.0], allocator="uneven", **first),
        *repeated([10.0], **sustained),
        *repeated([4.0], allocator="lut", model_source="matmul"),
        *repeated([1.0], allocator="lut", model_source="attention"),
    ]
    table = cells(rows).set_index(["strategy", "order", "condition"])
    assert list(table.index[:2]) == [("zigzag/even", "equal", "rested"), ("zigzag/even", "equal", "sustained")]
    assert table.loc["zigzag/uneven", "slow last", "rested"].speedup == 4.0
    assert table.loc["zigzag/uneven", "slow first", "rested"].speedup == 2.0
    assert table.loc["zigzag/even", "slow first", "rested"].slowdown == 1.5
    assert table.loc["zigzag/even", "slow last", "sustained"].slowdown == 2.0
    assert table.loc["zigzag/lut", "slow last", "rested"].latency_ms == 4.0
    assert table.loc["zigzag/lut@attention", "slow last", "rested"].latency_ms == 1.0
    shown = headline(table.reset_index())
    assert set(shown.strategy) == {"zigzag/even", "zigzag/uneven", "zigzag/lut"}
    assert set(shown.order) == {"equal", "slow last"}
    assert set(shown.condition) == {"rested"}


@pytest.mark.parametrize(
    ("percentages", "order", "short"),
    [
        ((100, 100), "equal", "2 x 100"),
        ((100, 10), "slow last", "100, 10"),
        ((10, 100), "slow first", "10, 100"),
        ((100, 30, 50), "100 30 50", "100, 30, 50"),
        ((100,) * 4, "equal", "4 x 100"),
        ((100, 100, 100, 10), "slow last", "3 x 100, 10"),
        ((10, 100, 100, 100), "slow first", "10, 3 x 100"),
        ((100, 10, 100, 100), "100 10 100 100", "100, 10, 2 x 100"),
        ((100, 100, 10, 10), "100 100 10 10", "2 x 100, 2 x 10"),
        ((100, 10, 10), "100 10 10", "100, 2 x 10"),
    ],
)
def test_rank_orders_are_named(percentages, order, short):
    assert (order_of(percentages), in_short(percentages)) == (order, short)
    assert ranks_of(list(percentages)) == percentages


def test_imbalance_is_the_busiest_over_the_mean(table):
    assert table.loc["zigzag/uneven", 25].imbalance == pytest.approx(3.0 / 2.0)
    assert table.loc["zigzag/uneven", 25].busy_ms == (3.0, 1.0)


def test_exposed_is_what_the_busiest_rank_does_not_compute():
    [cell] = cells(repeated([4.0, 8.0], busy_ms=(1.0, 3.0))).itertuples()
    assert cell.exposed == pytest.approx((1 / 4 + 5 / 8) / 2)


def test_of_a_layer_neither_is_known_for_its_kernels_may_have_waited_while_busy():
    [cell] = cells(repeated([1.0, 2.0], module="fms", busy_ms=(3.0, 1.0))).itertuples()
    assert cell.busy_ms == (3.0, 1.0)
    assert math.isnan(cell.imbalance)
    assert math.isnan(cell.exposed)


def test_a_rank_alone_is_named_by_its_rank(table):
    assert table.loc["alone/rank1", 25].block_lens == (0, 100)
    assert table.loc["alone/rank1", 25].bound_fraction == pytest.approx(8 / 40)


def test_layouts_are_compared_with_their_own_even_ring():
    rows = [
        *repeated([4.0], percentages=(100, 100)),
        *repeated([8.0], percentages=(100, 100), layout="contiguous"),
        *repeated([16.0], percentages=(100, 50)),
        *repeated([16.0], percentages=(100, 50), layout="contiguous"),
    ]
    table = cells(rows).set_index(["layout", "percentage"])
    assert table.loc["zigzag", 50].slowdown == 4.0
    assert table.loc["contiguous", 50].slowdown == 2.0


def test_a_metric_without_its_reference_is_nan():
    [cell] = cells(repeated([4.0], allocator="uneven")).to_dict("records")
    for name in ("slowdown", "efficiency", "speedup", "bound_ms", "bound_fraction", "fast_alone_ms"):
        assert math.isnan(cell[name]), name


def test_one_rank_alone_is_not_enough_for_a_bound():
    table = cells([*repeated([4.0]), *alone(0, [10.0])])
    assert table["bound_ms"].isna().all()


def test_three_ranks():
    lens = [tuple(90 * (r == rank) for r in range(3)) for rank in range(3)]
    shape = {"percentages": (100, 50, 25), "seq_len": 90}
    rows = [
        measurement(block_lens=(30, 30, 30), busy_ms=(1.0, 2.0, 6.0), latency_ms=9.0, **shape),
        *(
            measurement(
                system="alone", allocator="alone", block_lens=lens[r], busy_ms=(0.0, 0.0, 1.0), latency_ms=ms, **shape
            )
            for r, ms in enumerate((12.0, 24.0, 48.0))
        ),
    ]
    cell = cells(rows).set_index("strategy").loc["zigzag/even"]
    assert cell.bound_ms == pytest.approx(48 / 7)
    assert cell.imbalance == pytest.approx(2.0)
    assert cell.percentage == 25


def test_the_choice_of_ranks_is_held_against_the_sets_that_were_measured():
    def row(lens, ms, system="ring", allocator="balanced", **more):
        values = {"percentages": (100, 100, 10), "busy_ms": (1.0, 0.0, 0.0), "allocator": allocator, "system": system}
        return measurement(block_lens=lens, latency_ms=ms, **values | more)

    def rows(seq_len, *chosen_ms):
        more = {"seq_len": seq_len}
        few = [("subset", "fastest2", (seq_len // 2, seq_len // 2, 0), 4.0)]
        few += [("alone", "alone", tuple(seq_len * (r == rank) for r in range(3)), 9.0) for rank in range(3)]
        for job, ms in enumerate(chosen_ms, start=1):
            yield row((seq_len // 2, seq_len // 2 - 2, 2), ms, job=job, **more)
            for system, allocator, lens, least in few:
                yield row(lens, least + 0.1 * job, system, allocator, job=job, **more)

    table = cells([*rows(40, 3.0, 3.2), *rows(60, 4.0, 5.0), *rows(80, 5.0, 6.0)])
    found = choices_of_ranks(table).set_index("seq_len")
    assert found.chosen.tolist() == [3, 3, 3]
    assert found.best.tolist() == [3, 2, 2]
    assert found.over_best.tolist() == pytest.approx([1, 4.5 / 4.15, 5.5 / 4.15])
    assert found.right.tolist() == [True, True, False]
    assert choices_of_ranks(table[table.system != "subset"]).empty


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"block_lens": (60, 40)}, r"differ in block_lens .*zigzag"),
        ({"clamped": True}, "differ in clamped"),
        ({"percentages": (90, 50)}, r"differ in percentages \(\(100, 50\), \(90, 50\)\): .*order slow last"),
    ],
)
def test_repetitions_of_different_splits_are_no_cell(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        cells([measurement(), measurement(job=2, **changes)])


def test_profile_cells():
    flops = 2 * 128**3

    def rows(percentage, latencies):
        return [
            profile_row(percentage=percentage, repetition=i, latency_ms=ms, tflops=flops / ms / 1e9)
            for i, ms in enumerate(latencies)
        ]

    table = profile_cells([*rows(100, [1.0, 2.0, 4.0]), *rows(50, [5.0, 3.0, 9.0])]).set_index("percentage")
    assert table.loc[100, "latency_ms"] == 2.0
    assert table.loc[100, "relative_speed"] == 1.0
    assert table.loc[50, "tflops"] == pytest.approx(flops / 5e9)
    assert table.loc[50, "relative_speed"] == pytest.approx(2.0 / 5.0)
    assert table.loc[50, "repetitions"] == 3


def test_profile_without_full_speed_has_no_relative_speed():
    assert profile_cells([profile_row()])["relative_speed"].isna().all()

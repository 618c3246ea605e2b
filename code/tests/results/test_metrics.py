"""Metrics against numbers worked out by hand."""

import math

import pytest

from heteroring.results.metrics import cells, choices_of_ranks, profile_cells
from heteroring.results.rank_speeds import in_short, order_of, ranks_of
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


def test_jobs_are_pooled_and_each_has_its_own_bound():
    """Medians over all repetitions of all jobs; what is compared within a job is, and the middle job counts."""
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
    assert found.regret.tolist() == pytest.approx([1, 4.5 / 4.15, 5.5 / 4.15])
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

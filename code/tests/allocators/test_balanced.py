"""The allocator `balanced` against all splits by brute force, and against closed forms of the two layouts."""

import time
from bisect import bisect_right
from itertools import accumulate, combinations_with_replacement, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heteroring.allocators.balanced import balanced
from heteroring.allocators.even import even
from heteroring.allocators.unit_costs import Cost, cost_of_speed, predicted_ms
from heteroring.ring.partition import LAYOUTS, Partition
from heteroring.ring.workload import score_pairs, shard_extra_rows, shard_pairs, total_pairs

speed = st.one_of(st.integers(1, 10).map(float), st.floats(1e-3, 1e3))
pair_us = st.one_of(st.integers(1, 10).map(float), st.floats(1e-2, 1e2))
beside_us = st.one_of(st.just(0.0), st.integers(1, 30).map(float), st.floats(0, 30))
cost = st.builds(Cost, pair_us, beside_us, beside_us, beside_us)

# Relative accuracy to which the best split is found.
NEARLY = 1 + 1e-11

each_layout = pytest.mark.parametrize("layout", LAYOUTS)
causal_or_dense = pytest.mark.parametrize("causal", [True, False], ids=["causal", "dense"])


def of_speeds(*speeds):
    return [cost_of_speed(speed) for speed in speeds]


def splits(seq_len, world_size):
    """Every tuple of `world_size` lengths that sum to `seq_len`."""
    for borders in combinations_with_replacement(range(seq_len + 1), world_size - 1):
        yield tuple(stop - start for start, stop in pairwise((0, *borders, seq_len)))


def makespan(layout, lens, costs, causal, prefix_lens=()):
    return max(predicted_ms(Partition(layout, lens), costs, causal, prefix_lens))


def prefixes(ranks):
    """No earlier tokens, or some on any ranks."""
    return st.just(()) | st.tuples(*[st.sampled_from([0, 0, 1, 7])] * ranks)


def check_split(lens, seq_len, world_size):
    assert len(lens) == world_size
    assert sum(lens) == seq_len
    assert min(lens) >= 0


@pytest.mark.slow
@causal_or_dense
@each_layout
@pytest.mark.parametrize(("world_size", "longest"), [(1, 9), (2, 24), (3, 11), (4, 7)])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_no_split_is_faster_where_further_steps_cost_nothing(layout, causal, world_size, longest, data):
    seq_len = data.draw(st.integers(1, longest))
    free = st.builds(Cost, pair_us, beside_us, st.just(0.0), st.just(0.0))
    costs = data.draw(st.lists(free, min_size=world_size, max_size=world_size))
    lens = balanced(seq_len, costs, layout, causal)
    check_split(lens, seq_len, world_size)
    best = min(makespan(layout, other, costs, causal) for other in splits(seq_len, world_size))
    assert makespan(layout, lens, costs, causal) <= best * NEARLY


@causal_or_dense
@each_layout
@settings(max_examples=25, deadline=None)
@given(seq_len=st.integers(1, 24), costs=st.tuples(cost, cost), prefix_lens=prefixes(2))
def test_no_split_over_two_ranks_is_faster(layout, causal, seq_len, costs, prefix_lens):
    lens = balanced(seq_len, costs, layout, causal, prefix_lens=prefix_lens)
    check_split(lens, seq_len, 2)
    best = min(makespan(layout, other, costs, causal, prefix_lens) for other in splits(seq_len, 2))
    assert makespan(layout, lens, costs, causal, prefix_lens) <= best * NEARLY


@pytest.mark.slow
@causal_or_dense
@each_layout
@pytest.mark.parametrize(("world_size", "longest"), [(3, 12), (4, 9), (5, 8), (6, 9)])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_split_over_any_set_of_ranks_is_faster(layout, causal, world_size, longest, data):
    seq_len = data.draw(st.integers(1, longest))
    costs = data.draw(st.lists(cost, min_size=world_size, max_size=world_size))
    prefix_lens = data.draw(prefixes(world_size))
    lens = balanced(seq_len, costs, layout, causal, prefix_lens=prefix_lens)
    check_split(lens, seq_len, world_size)
    best = min(makespan(layout, other, costs, causal, prefix_lens) for other in splits(seq_len, world_size))
    assert makespan(layout, lens, costs, causal, prefix_lens) <= best * NEARLY


def test_a_fast_rank_whose_further_steps_are_dear_is_left_out_for_a_slower_one():
    # Alone, rank 1 is faster than rank 2; in a ring it takes ten times as long for each row of a further step.
    seq_len = 6000
    pair = 2 / (seq_len + 1)
    first, dear, cheap = Cost(pair), Cost(1.1 * pair, 0, 5.0, 5.0), Cost(1.2 * pair, 0, 0.5, 0.5)
    lens = balanced(seq_len, [first, dear, cheap])
    assert lens[1] == 0
    assert min(lens[0], lens[2]) > 0
    without = balanced(seq_len, [first, cheap])
    # Ring step 1 of rank 2 is empty here, since the rank before it holds nothing; there it meets rank 0, just as dear.
    assert (lens[0], lens[2]) == without


def some_set_is_faster(seq_len, costs, layout, causal, multiple, limit_us):
    """Whether the fastest ranks, however many, can be done within the limit: by one greedy fill after the other."""
    world_size = len(costs)
    alone = [each.pair_us * total_pairs(seq_len, causal) + each.token_us * seq_len for each in costs]
    order = sorted(range(world_size), key=alone.__getitem__)
    for size in range(1, world_size + 1):
        members = sorted(order[:size])
        offset = 0
        for place, rank in enumerate(members):
            meets = size > 1 and (rank - 1) % world_size in members
            seats = (place, size - 1 - place), (int(meets and rank > 0), int(meets and rank == 0))

            def time_us(units, offset=offset, rank=rank, seats=seats):
                length = units * multiple
                pairs = shard_pairs(layout, seq_len, offset, length, causal)
                rows, first_rows = (shard_extra_rows(layout, offset, length, *seat, causal) for seat in seats)
                return costs[rank].time_us(pairs, length, rows, first_rows)

            units = range((seq_len - offset) // multiple + 1)
            offset += multiple * (bisect_right(units, limit_us, key=time_us) - 1)
        if offset == seq_len:
            return True
    return False


@pytest.mark.slow
@causal_or_dense
@each_layout
@settings(max_examples=12, deadline=None)
@given(units=st.integers(1, 2000), multiple=st.sampled_from([1, 2, 3, 256]), data=st.data())
def test_no_number_of_many_ranks_is_faster(layout, causal, units, multiple, data):
    seq_len, world_size = units * multiple, data.draw(st.integers(15, 40))
    # Costs of further ring steps and of tokens that are not negligible beside those of pairs.
    weight = data.draw(st.sampled_from([0.0, seq_len / 10 / world_size, seq_len]))
    kinds = data.draw(st.lists(cost, min_size=1, max_size=4))
    kinds = [Cost(each.pair_us, *(weight * value / 30 for value in each[1:])) for each in kinds]
    costs = data.draw(st.lists(st.sampled_from(kinds), min_size=world_size, max_size=world_size))
    lens = balanced(seq_len, costs, layout, causal, multiple=multiple)
    check_split(lens, seq_len, world_size)
    assert all(n % multiple == 0 for n in lens)
    limit_us = 1e3 * makespan(layout, lens, costs, causal)
    assert not some_set_is_faster(seq_len, costs, layout, causal, multiple, limit_us / NEARLY)


@pytest.mark.slow
@pytest.mark.parametrize(("percentages", "seq_len"), [((100,), 2**24), ((100, 80, 50, 30, 10), 65537)], ids=str)
@each_layout
def test_a_thousand_ranks_take_no_longer_than_a_command_does(layout, percentages, seq_len):
    # As on H200s: a token takes 0.75 us of pairs at 65,536 tokens, a row of a further ring step 0.02 us.
    costs = [Cost(*(us * 100 / p for us in (2.3e-5, 0.3, 0.02, 0.007))) for p in (percentages * 1024)[:1024]]
    began = time.process_time()
    lens = balanced(seq_len, costs, layout)
    assert time.process_time() - began < 4  # half a second on a machine at rest
    check_split(lens, seq_len, 1024)
    assert makespan(layout, lens, costs, True) <= makespan(layout, even(seq_len, 1024), costs, True)


@causal_or_dense
@each_layout
@settings(max_examples=30, deadline=None)
@given(units=st.integers(1, 12), multiple=st.integers(1, 300), costs=st.tuples(cost, cost))
def test_whole_multiples_are_the_best_of_whole_multiples(layout, causal, units, multiple, costs):
    seq_len = units * multiple
    lens = balanced(seq_len, costs, layout, causal, multiple=multiple)
    assert all(n % multiple == 0 for n in lens)
    every = (tuple(n * multiple for n in other) for other in splits(units, 2))
    best = min(makespan(layout, other, costs, causal) for other in every)
    assert makespan(layout, lens, costs, causal) <= best * NEARLY


@causal_or_dense
@each_layout
@given(seq_len=st.integers(1, 10**6), speeds=st.lists(speed, min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_long_sequences_beat_the_rounded_ideal_and_respect_the_bound(layout, causal, seq_len, speeds):
    # Ideal borders in real numbers: work is linear in tokens, but quadratic for a causal contiguous layout.
    costs = [Cost(pair_us=1e3 / speed) for speed in speeds]
    lens = balanced(seq_len, costs, layout, causal)
    check_split(lens, seq_len, len(speeds))
    power = 0.5 if causal and layout == "contiguous" else 1
    shares = [total / sum(speeds) for total in accumulate(speeds)]
    borders = [0, *(round(seq_len * min(share, 1.0) ** power) for share in shares[:-1]), seq_len]
    ideal = tuple(stop - start for start, stop in pairwise(borders))
    work = sum(score_pairs(Partition(layout, lens), causal))
    time = makespan(layout, lens, costs, causal)
    assert work / sum(speeds) * (1 - 1e-12) <= time <= makespan(layout, ideal, costs, causal) * (1 + 1e-12)


@pytest.mark.parametrize("percentages", [(100, 10), (100, 50, 20), (10, 100, 100, 70)])
def test_zigzag_is_proportional_to_speed_and_contiguous_is_not(percentages):
    # Uneven zigzag makes causal work linear in tokens; up to share f, a contiguous layout has done f^2 of it.
    seq_len = 65536
    whole = sum(percentages)
    zigzag = balanced(seq_len, of_speeds(*percentages), "zigzag")
    assert all(abs(n - seq_len * p / whole) <= 1.5 for n, p in zip(zigzag, percentages, strict=True))
    contiguous = balanced(seq_len, of_speeds(*percentages), "contiguous")
    for rank in range(len(percentages)):
        share = sum(percentages[: rank + 1]) / whole
        assert sum(contiguous[: rank + 1]) == pytest.approx(seq_len * share**0.5, abs=1.5)


@each_layout
def test_equal_ranks_share_the_slack_evenly(layout):
    # A makespan of two tokens per rank would also allow (2, 2, 0): the even split wins.
    assert sorted(balanced(4, of_speeds(1, 1, 1), layout, causal=False)) == [1, 1, 2]
    assert balanced(4096, of_speeds(3.7, 3.7), "zigzag") == (2048, 2048)
    lens = balanced(1003, of_speeds(*[1.0] * 8), layout, causal=False)
    assert max(lens) - min(lens) == 1


def test_the_slack_of_whole_tokens_goes_by_speed():
    """Of several equally fast splits, the one with borders nearest to those of proportional shares is taken."""
    assert balanced(8, of_speeds(1, 2, 3)) == (1, 3, 4)
    assert balanced(8, of_speeds(2, 3, 4)) == (1, 3, 4)
    assert balanced(1024, of_speeds(1, 2, 3), multiple=256) == (256, 256, 512)


@each_layout
@causal_or_dense
def test_a_rank_not_worth_one_token_gets_none(layout, causal):
    assert balanced(16, of_speeds(1.0, 1e-6), layout, causal) == (16, 0)
    assert balanced(16, of_speeds(1e-6, 1.0, 1e-6), layout, causal) == (0, 16, 0)


def test_the_rank_behind_gets_fewer_tokens_for_its_further_steps():
    # Equal ranks, 1 us of pairs per token. Half of rank 0's rows have a further step, all of rank 1's: 3/4 : 1.
    seq_len = 7000
    pair = 2 / (seq_len + 1)
    first, second = balanced(seq_len, [Cost(pair, join_us=1.0)] * 2)
    assert first / second == pytest.approx((1 + 1.0) / (1 + 0.5), rel=1e-3)
    first, second = balanced(seq_len, [Cost(pair, token_us=3.0, join_us=1.0)] * 2)
    assert first / second == pytest.approx((1 + 3 + 1.0) / (1 + 3 + 0.5), rel=1e-3)


def test_only_steps_beyond_the_first_one_cost_revisit_us():
    # With two ranks there are none; with three, rank 0 meets the last one first, and then its tail the middle one.
    seq_len = 9000
    pair = 2 / (seq_len + 1)
    joining = Cost(pair, revisit_us=1.0)
    assert balanced(seq_len, [joining] * 2) == (4500, 4500)
    lens = balanced(seq_len, [joining] * 3)
    per_token = (1 + 0.5, 1 + 0.5, 1 + 1.0)
    speeds = [1 / each for each in per_token]
    assert lens == pytest.approx([seq_len * speed / sum(speeds) for speed in speeds], rel=1e-3)


def test_a_rank_whose_predecessor_holds_nothing_joins_nothing():
    # Rank 1 costs more steps than it is worth: rank 2's step 1 would then be with it, and that with rank 0 not fused.
    seq_len = 9000
    pair = 2 / (seq_len + 1)
    fast = Cost(pair, revisit_us=1.0)
    lens = balanced(seq_len, [fast, Cost(100 * pair, revisit_us=100.0), fast])
    assert lens[1] == 0
    # In ring step 1, the tail of rank 0's queries meets the keys of rank 2, the rank before it in the ring.
    assert lens[0] / lens[2] == pytest.approx((1 + 1.0) / 1, rel=1e-3)


def test_a_rank_that_costs_the_others_more_than_it_brings_is_left_out():
    # Per token: 1 us of pairs and 0.4 per further step. Rank 2 would bring 2 %, and cost the others half a step.
    seq_len = 4000
    pair = 2 / (seq_len + 1)
    fast = Cost(pair, revisit_us=0.4, join_us=0.4)
    slow = Cost(*(value / 0.04 for value in fast))
    for place in range(3):
        costs = [fast, fast]
        costs.insert(place, slow)
        lens = balanced(seq_len, costs)
        assert lens[place] == 0
        assert tuple(n for rank, n in enumerate(lens) if rank != place) == balanced(seq_len, [fast, fast])
    free = [Cost(each.pair_us) for each in (fast, fast, slow)]
    assert balanced(seq_len, free)[2] == pytest.approx(seq_len * 0.04 / 2.04, abs=2)
    assert balanced(seq_len, [fast, slow]) == (seq_len, 0)
    assert balanced(seq_len, [slow, fast]) == (0, seq_len)


def test_a_ring_must_gain_the_margin_on_the_fastest_rank_alone():
    # The second rank brings 10 %, and steps cost nothing: one rank alone takes 1.1 times as long as the ring.
    costs = of_speeds(10, 1)
    assert balanced(11000, costs, margin=0.0) == balanced(11000, costs, margin=0.0999) == (10000, 1000)
    assert balanced(11000, costs, margin=0.1001) == (11000, 0)
    assert balanced(11000, costs[::-1], margin=0.1001) == (0, 11000)
    gain_us = costs[0].pair_us * total_pairs(11000) / 11
    assert balanced(11000, costs, wait_us=0.999 * gain_us) == (10000, 1000)
    assert balanced(11000, costs, wait_us=1.001 * gain_us) == (11000, 0)
    # Against fewer ranks that are still a ring there is no margin: every ring waits alike.
    assert 0 not in balanced(32000, of_speeds(*[1] * 32), margin=0.05)


# Milliseconds on two H200s, with a kernel without a fused first step: the ring at its split, and rank 0 alone.
H200 = [
    (4096, (100, 10), (3840, 256), 0.3025, 0.2566),
    (4096, (100, 50), (2560, 1536), 0.2496, 0.2566),
    (8192, (100, 10), (7424, 768), 0.951, 0.853),
    (16384, (100, 100), (8192, 8192), 1.763, 3.15),
]


@pytest.mark.parametrize(("seq_len", "percentages", "lens", "ring_ms", "alone_ms"), H200)
def test_predictions_are_near_what_two_h200s_took(seq_len, percentages, lens, ring_ms, alone_ms):
    # Speeds of attention by percentage as profiled; 0.0208 us per row of a further step at 100 %, over the share below.
    speeds = {10: 0.11, 50: 0.57, 100: 1.0}
    pair = 1e3 * alone_ms / total_pairs(seq_len)
    step = {p: 0.0208 * 100 / p for p in percentages}
    costs = [Cost(pair / speeds[p], revisit_us=step[p], join_us=step[p]) for p in percentages]
    predicted = makespan("zigzag", lens, costs, True)
    assert predicted == pytest.approx(ring_ms, rel=0.1)
    split = balanced(seq_len, costs, multiple=256, margin=0.05)
    assert (split == (seq_len, 0)) == (ring_ms > alone_ms)
    assert makespan("zigzag", split, costs, True) <= min(predicted, alone_ms) * (1 + 1e-9)


@causal_or_dense
@each_layout
@settings(max_examples=25, deadline=None)
@given(
    seq_len=st.integers(2, 3000),
    first=cost,
    others=st.lists(cost, min_size=1, max_size=3),
    place=st.integers(0, 3),
    factor=st.floats(1, 20),
)
def test_a_rank_that_turns_slower_never_gets_more(layout, causal, seq_len, first, others, place, factor):
    place = min(place, len(others))
    slower = Cost(*(factor * value for value in first))
    before = balanced(seq_len, [*others[:place], first, *others[place:]], layout, causal)
    after = balanced(seq_len, [*others[:place], slower, *others[place:]], layout, causal)
    # Borders are rounded to whole tokens on either side.
    assert after[place] <= before[place] + 2


def test_predicted_ms_by_hand():
    # 8 tokens, zigzag 4 + 4: 18 causal pairs each. In step 1 rank 0 computes its tail of 2 rows, rank 1 all 4.
    partition = Partition.zigzag((4, 4))
    costs = (Cost(10.0), Cost(20.0, token_us=1000.0, revisit_us=99.0, join_us=7.0))
    assert predicted_ms(partition, costs) == pytest.approx((0.18, 0.36 + 4.0 + 0.028), rel=1e-15)
    assert predicted_ms(partition, costs[::-1]) == pytest.approx((0.36 + 4.0 + 0.014, 0.18), rel=1e-15)
    # There is no step with a rank that holds nothing.
    assert predicted_ms(Partition.contiguous((0, 2)), costs) == pytest.approx((0.0, 0.06 + 2.0))
    assert predicted_ms(Partition.contiguous((0, 2)), costs, causal=False) == pytest.approx((0.0, 0.08 + 2.0))
    # Contiguous and causal: only the rank behind has a further step; not causal: both have.
    assert predicted_ms(Partition.contiguous((2, 2)), costs[::-1]) == pytest.approx((0.06 + 2.0, 0.07))
    assert predicted_ms(Partition.contiguous((2, 2)), costs[::-1], causal=False)[0] == pytest.approx(0.16 + 2.0 + 0.014)


def test_predicted_ms_of_three_ranks_by_hand():
    # Zigzag 4 + 2 + 2. Rank 2 has step 1 with rank 1, and step 2 with rank 0; rank 0's tail has step 1 with rank 2.
    costs = [Cost(1e-6, revisit_us=10.0**rank, join_us=3 * 10.0**rank) for rank in range(3)]
    tails = Partition.zigzag((4, 2, 2))
    assert predicted_ms(tails, costs) == pytest.approx((0.006 + 0.002, 0.06 + 0.01, 0.6 + 0.2), rel=1e-4)


def test_speed_becomes_a_cost():
    # 2 TFLOP/s: a pair of one head of width 1 takes 4 operations.
    assert cost_of_speed(2.0) == Cost(pair_us=2e-6)


@pytest.mark.parametrize("value", [-2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", Cost._fields)
def test_a_cost_that_breaks_its_rule_is_named(name, value):
    costs = (Cost(1.0), Cost(1.0)._replace(**{name: value}))
    with pytest.raises(ValueError, match=f"{name} of rank 1 is {value}: it must be "):
        balanced(8, costs)
    with pytest.raises(ValueError, match=f"{name} of rank 1 is {value}"):
        predicted_ms(Partition.zigzag((4, 4)), costs)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match=r"pair_us of rank 0 is 0\.0: it must be positive"):
        balanced(8, (Cost(0.0),))
    with pytest.raises(ValueError, match="costs is empty"):
        balanced(8, ())
    with pytest.raises(ValueError, match=r"seq_len is 9007199254740993: balanced shares out 9007199254740992 tokens"):
        balanced(2**53 + 1, of_speeds(1.0))
    with pytest.raises(ValueError, match="seq_len 100 takes rank 0, the fastest, more microseconds than a float"):
        balanced(100, (Cost(1.5e308), Cost(1e308)))
    with pytest.raises(ValueError, match="3 costs for 2 ranks"):
        predicted_ms(Partition.zigzag((4, 4)), of_speeds(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="layout 'striped' is unknown"):
        balanced(8, of_speeds(1.0, 1.0), "striped")


@pytest.mark.parametrize("multiple", [3, 0, -4])
def test_a_multiple_that_breaks_its_rule_is_named(multiple):
    with pytest.raises(ValueError, match=f"multiple is {multiple}: it must be 1 or more and divide seq_len 8"):
        balanced(8, of_speeds(1.0, 1.0), multiple=multiple)


@causal_or_dense
@each_layout
@pytest.mark.parametrize("ranks", [2, 3])
@settings(max_examples=20, deadline=None)
@given(seq_len=st.integers(1, 10), data=st.data())
def test_no_split_within_what_ranks_may_hold_is_faster(layout, causal, ranks, seq_len, data):
    costs, prefix_lens = data.draw(st.tuples(*[cost] * ranks)), data.draw(prefixes(ranks))
    most = data.draw(
        st.lists(st.integers(0, seq_len), min_size=ranks, max_size=ranks).filter(lambda room: sum(room) >= seq_len)
    )
    lens = balanced(seq_len, costs, layout, causal, most=most, prefix_lens=prefix_lens)
    check_split(lens, seq_len, ranks)
    fitting = [other for other in splits(seq_len, ranks) if all(n <= room for n, room in zip(other, most, strict=True))]
    assert lens in fitting
    best = min(makespan(layout, other, costs, causal, prefix_lens) for other in fitting)
    assert makespan(layout, lens, costs, causal, prefix_lens) <= best * NEARLY


def test_the_slower_of_two_ranks_alone_is_faster_than_both_where_the_faster_may_hold_little():
    costs = [Cost(1.0, 0, 30.0, 30.0), Cost(1.1, 0, 30.0, 30.0)]
    assert balanced(8, costs, most=(1, 8)) == (0, 8)


def test_work_over_a_prefix_is_proportional_to_speed_wherever_the_prefix_lies():
    # n (M + (C + 1) / 2) pairs; contiguous shards come near that, too, where most keys are those of the prefix.
    speeds = (100, 50, 10)
    for prefix_lens in ((10**6, 0, 0), (0, 0, 10**6), (5, 10**6 - 10, 5)):
        lens = balanced(16000, of_speeds(*speeds), prefix_lens=prefix_lens)
        assert lens == pytest.approx((10000, 5000, 1000), abs=1)
        contiguous = balanced(16000, of_speeds(*speeds), "contiguous", prefix_lens=prefix_lens)
        assert contiguous == pytest.approx((10000, 5000, 1000), rel=0.01)


def test_a_rank_with_earlier_tokens_is_met_whether_it_gets_new_ones_or_not():
    # Per token: 1 us of pairs and 0.4 per further step. Without earlier tokens the slow rank would bring less than it
    # costs, as above; where it holds some, those behind need a step with it anyway, so its work is a gain.
    seq_len, slow = 4000, 0.04
    pair = 2 / (seq_len + 1)
    fast = Cost(pair, revisit_us=0.4, join_us=0.4)
    costs = [Cost(*(value / slow for value in fast)), fast, fast]
    assert balanced(seq_len, costs)[0] == 0
    assert balanced(seq_len, costs, prefix_lens=(1, 0, 0))[0] > 0
    # No rank is alone where another holds earlier tokens: there is no margin for it.
    assert balanced(11000, of_speeds(10, 1), margin=0.11, prefix_lens=(5, 0)) == (11000, 0)
    assert balanced(11000, of_speeds(10, 1), margin=0.11, prefix_lens=(0, 5)) == (10000, 1000)


@pytest.mark.slow
@each_layout
def test_a_thousand_ranks_with_earlier_tokens_take_no_longer(layout):
    costs = [Cost(*(us * 100 / p for us in (2.3e-5, 0.3, 0.02, 0.007))) for p in (100, 80, 50, 10) * 256]
    prefix_lens = (4096, 0, 512, 64) * 256
    began = time.process_time()
    lens = balanced(2**17, costs, layout, prefix_lens=prefix_lens)
    assert time.process_time() - began < 4
    check_split(lens, 2**17, 1024)
    best = makespan(layout, even(2**17, 1024), costs, True, prefix_lens)
    assert makespan(layout, lens, costs, True, prefix_lens) <= best


def test_every_set_is_considered_in_the_time_of_a_command():
    cost_us = Cost(2.3e-5, 0.3, 0.02, 0.007)
    for ranks, prefix_lens in ((32, ()), (32, (9,) * 32), (18, (9, 0) * 9)):
        costs = [Cost(*(us * (1 + rank % 5) for us in cost_us)) for rank in range(ranks)]
        began = time.process_time()
        check_split(balanced(65536, costs, prefix_lens=prefix_lens), 65536, ranks)
        assert time.process_time() - began < 4


@pytest.mark.parametrize(
    ("prefix_lens", "words"),
    [
        ((3, -1), r"prefix_lens\[1\] is -1: a rank holds 0 earlier tokens or more"),
        ((3, 1.5), r"prefix_lens\[1\] is 1.5: a rank holds 0"),
        ((3, 2, 1), r"prefix_lens is \(3, 2, 1\): it must be 2 lengths, one per rank"),
        (7, "prefix_lens is 7: it must be 2 lengths"),
    ],
)
def test_bad_prefix_lengths_are_named(prefix_lens, words):
    with pytest.raises(ValueError, match=words):
        balanced(8, of_speeds(1.0, 1.0), prefix_lens=prefix_lens)
    with pytest.raises(ValueError, match=words):
        predicted_ms(Partition.zigzag((4, 4)), of_speeds(1.0, 1.0), prefix_lens=prefix_lens)


def test_ranks_that_may_not_hold_the_sequence_are_refused():
    with pytest.raises(ValueError, match="ranks may hold 7 tokens together, in multiples of 1: seq_len is 8"):
        balanced(8, of_speeds(1.0, 1.0), most=(4, 3))
    with pytest.raises(ValueError, match="ranks may hold 4 tokens together, in multiples of 4: seq_len is 8"):
        balanced(8, of_speeds(1.0, 1.0), multiple=4, most=(7, 3))

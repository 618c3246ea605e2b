"""The simulation against hand-made cases, the schedule, the cost model, and the record of two H200s."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from heteroring.allocators.even import even
from heteroring.allocators.unit_costs import Cost, predicted_ms
from heteroring.cli.main import app
from heteroring.planning.network import Link, Network
from heteroring.planning.simulate import simulate
from heteroring.planning.steps import Costs, step_us, steps
from heteroring.ring.partition import LAYOUTS, Partition
from heteroring.ring.schedule import ring_steps
from heteroring.ring.workload import step_pairs
from tree import ROOT

FAST = Link(1e9, 0.0)
some_lens = st.lists(st.integers(0, 20), min_size=1, max_size=7).filter(any)


def with_prefix(lens):
    """Block lengths, and no earlier tokens or some on each rank."""
    return st.tuples(st.just(tuple(lens)), st.just(()) | st.tuples(*[st.sampled_from([0, 3, 50])] * len(lens)))


@given(layout=st.sampled_from(LAYOUTS), both=some_lens.flatmap(with_prefix))
@settings(max_examples=100, deadline=None)
def test_steps_are_those_of_the_schedule(layout, both):
    lens, prefix_lens = both
    partition = Partition(layout, lens)
    found = list(steps(partition, prefix_lens=prefix_lens))
    for rank in range(len(lens)):
        expected = {each.index: each for each in ring_steps(partition, rank, True, prefix_lens)}
        for number, step in enumerate(found):
            met = expected.get(number)
            if met is None:
                assert step.pairs[rank] == step.keys[rank] == step.later_rows[rank] == 0
                continue
            (first_query, _, _), *later = met.rectangles
            assert step.owner[rank] == met.kv_rank
            assert step.rows[rank] == lens[rank] - first_query
            assert step.keys[rank] == (met.keys if number else 0)
            assert step.pairs[rank] == step_pairs(partition, rank, met.kv_rank) + lens[rank] * met.prefix
            assert step.later_rows[rank] == sum(lens[rank] - query for query, *_ in later)
            assert step.later_pairs[rank] == sum((lens[rank] - query) * (end - key) for query, key, end in later)


@given(layout=st.sampled_from(LAYOUTS), both=st.lists(st.integers(2, 40), min_size=1, max_size=7).flatmap(with_prefix))
@settings(max_examples=60, deadline=None)
def test_busy_times_are_those_of_the_cost_model(layout, both):
    lens, prefix_lens = both
    partition = Partition(layout, lens)
    costs = [Cost(1.0 + rank, 0.5 * rank, 0.2, 0.1 * rank) for rank in range(len(lens))]
    expected = pytest.approx([1e3 * ms for ms in predicted_ms(partition, costs, True, prefix_lens)])
    each = Costs.of(costs)
    found_steps = enumerate(steps(partition, prefix_lens=prefix_lens))
    attention_us = sum(step_us(step, number, each)[0] for number, step in found_steps)
    assert list(attention_us + each.token_us * lens) == expected
    found = simulate(partition, costs, Network.single_node(len(lens), FAST), 1, prefix_lens=prefix_lens)
    assert list(found.busy_us) == expected
    assert found.latency_us >= found.busy_us.max() * (1 - 1e-12)


def test_whole_tiles_take_as_long_as_full_ones():
    one, two = list(steps(Partition.zigzag((6, 2)), tile=4))
    assert list(one.pairs) == [36, 10]  # 8 and 4 tokens, causal
    assert list(two.pairs) == [4 * 4, 4 * 4]  # 3 queries by 2 keys, and 2 by 3
    assert list(two.keys) == [2, 3]  # what is sent is not padded


def test_two_ranks_by_hand():
    # 8 tokens, 4 + 4, 1 us per pair: 10 pairs own, 8 in step 1. Messages of 2 or 4 keys of 10 bytes; 1 byte/us, 5 us.
    partition, costs = Partition.zigzag((4, 4)), [Cost(1.0), Cost(1.0)]
    network = Network.single_node(2, Link(1e-3, 5.0))
    found = simulate(partition, costs, network, 10, fused=False)
    # Credit after 5 us; rank 0's keys 0 and 1 are with rank 1 after 5 + 5 + 20, rank 1's four with rank 0 after 50.
    assert found.arrivals_us[1].tolist() == [50.0, 30.0]
    assert found.starts_us.tolist() == [[0, 0], [50.0, 30.0]]
    assert found.end_us.tolist() == [58.0, 50.0]  # rank 1's copy to rank 0 takes longer than its compute
    assert found.waiting_us.tolist() == [40.0, 40.0]
    # Fused, one part: all 18 pairs after it.
    fused = simulate(partition, costs, network, 10)
    assert fused.stops_us[0].tolist() == [68.0, 48.0]
    # p2p: both are ready at once, and there is no credit.
    assert simulate(partition, costs, network, 10, transport="p2p").arrivals_us[1].tolist() == [45.0, 25.0]
    # Tokens come first; the host issues one step per 100 us.
    later = simulate(partition, [Cost(1.0, 1.0)] * 2, network, 10, fused=False, host_us=100.0)
    assert later.starts_us.tolist() == [[100.0, 100.0], [200.0, 200.0]]


def test_two_ranks_over_a_prefix_by_hand():
    # As above, over 6 earlier tokens on rank 1: 10 pairs and 10 + 24 own; 24 + 8 and 8 in step 1, of 6 + 4 and 2 keys.
    partition, costs, prefix_lens = Partition.zigzag((4, 4)), [Cost(1.0)] * 2, (0, 6)
    network = Network.single_node(2, Link(1e-3, 5.0))
    found = simulate(partition, costs, network, 10, fused=False, prefix_lens=prefix_lens)
    assert found.arrivals_us[1].tolist() == [110.0, 30.0]
    assert found.busy_us.tolist() == [42.0, 42.0]
    assert found.starts_us.tolist() == [[0, 0], [110.0, 34.0]]
    assert found.end_us.tolist() == [142.0, 110.0]
    # Fused, the tail's 2 rows meet the 4 new keys after the pass over the earlier ones.
    fused = simulate(partition, costs, network, 10, prefix_lens=prefix_lens)
    assert fused.stops_us[0].tolist() == [110.0 + 34 + 8, 30.0 + 42]
    # A rank without new tokens computes nothing, and is done when the other has its earlier ones.
    sends = simulate(Partition.zigzag((4, 0)), costs, network, 10, fused=False, prefix_lens=prefix_lens)
    assert sends.busy_us.tolist() == [10 + 24, 0]
    assert sends.end_us.tolist() == [70.0 + 24, 70.0]
    with pytest.raises(ValueError, match=r"prefix_lens is \(1,\): it must be 2 lengths, one per rank"):
        simulate(partition, costs, network, 1, prefix_lens=(1,))


def test_messages_between_two_nodes_queue():
    # Ranks 0, 1 | 2, 3: in step 2 all four messages cross, two from each node, 8 us each and all ready at once.
    network = Network(("a", "a", "b", "b"), {("a", "a"): FAST, ("b", "b"): FAST, ("a", "b"): Link(1e-3, 0.0)})
    partition = Partition.contiguous((1, 1, 1, 1))
    found = simulate(partition, [Cost(1e-9)] * 4, network, 8, transport="p2p")
    alone = simulate(partition, [Cost(1e-9)] * 4, Network.single_node(4, Link(1e-3, 0.0)), 8, transport="p2p")
    crossing = found.arrivals_us[2][2:]  # to ranks 2 and 3, from 0 and 1
    assert sorted(crossing - crossing.min()) == pytest.approx([0, 8.0], abs=1e-6)
    assert np.ptp(alone.arrivals_us[2][2:]) == pytest.approx(0, abs=1e-6)


def test_a_rank_is_two_steps_ahead_at_most():
    # Rank 3 takes a second for each step: rank 0, which is done in no time, may not send it more than it has slots for.
    partition = Partition.zigzag((8, 8, 8, 8, 8, 8))
    costs = [Cost(1e-6)] * 5 + [Cost(1e6 / 64)]
    found = simulate(partition, costs, Network.single_node(6, FAST), 1, fused=False)
    assert found.starts_us[4, 0] >= found.stops_us[1, 5] * (1 - 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["copy-engine", "p2p"])
def test_a_thousand_ranks_in_many_nodes_take_seconds(transport):
    nodes = tuple(f"n{rank // 8}" for rank in range(1024))
    names = sorted(set(nodes))
    links = {(a, b): Link(386 if a == b else 50, 6) for i, a in enumerate(names) for b in names[i:]}
    costs = [Cost(*(us * 100 / p for us in (2.3e-5, 0.3, 0.02, 0.007))) for p in ((100, 80, 50, 10) * 256)]
    began = time.process_time()
    found = simulate(Partition.zigzag(even(2**20, 1024)), costs, Network(nodes, links), 4096, transport=transport)
    assert time.process_time() - began < 5
    assert found.latency_us > found.busy_us.max()


def test_bad_input_is_named():
    partition, network = Partition.zigzag((4, 4)), Network.single_node(2, FAST)
    with pytest.raises(ValueError, match="transport 'pigeon' is unknown: choose one of p2p, copy-engine"):
        simulate(partition, [Cost(1.0)] * 2, network, 1, transport="pigeon")
    with pytest.raises(ValueError, match="1 costs for 2 ranks: one per rank is needed"):
        simulate(partition, [Cost(1.0)], network, 1)
    with pytest.raises(ValueError, match="2 nodes for 1 ranks"):
        simulate(Partition.zigzag((4,)), [Cost(1.0)], network, 1)


def test_the_command_compares_splits():
    example = str(ROOT / "docs" / "fleets" / "mixed.yaml")
    arguments = ["simulate", example, "--seq-len", "65536"]
    found = CliRunner().invoke(app, [*arguments, "--json", "--block-lens", ",".join(["8192"] * 8)])
    splits = {each["strategy"]: each for each in json.loads(found.stdout)["splits"]}
    assert splits["zigzag/even"]["latency_ms"] == splits["zigzag, as given"]["latency_ms"]
    assert splits["zigzag/balanced"]["latency_ms"] < splits["zigzag/even"]["latency_ms"]
    narrow = CliRunner().invoke(app, arguments, env={"COLUMNS": "40"})  # of a terminal, which a file is not
    assert "zigzag/proportional" in narrow.output
    # In chunks, even and contiguous is no longer far from even and zigzag: most keys are those of the prefix.
    in_chunks = [*arguments, "--chunk", "16384", "--strategies", "contiguous/even,zigzag/even", "--json"]
    contiguous, zigzag = json.loads(CliRunner().invoke(app, in_chunks).stdout)["splits"]
    assert contiguous["block_lens"] == zigzag["block_lens"]
    assert max(contiguous["busy_ms"]) < 1.3 * max(zigzag["busy_ms"])
    for more, message in (
        (["--strategies", "zigzag/odd"], "split 'odd' is unknown: choose one of even, proportional, balanced"),
        (["--block-lens", "1,2"], "sum to 3: --seq-len is 65536"),
        (["--host-us", "-1"], "host_us is -1.0: it must be 0 or more"),
        (["--chunk", "0"], "chunk is 0: a chunk has 1 token or more"),
        (["--prefix-lens", "1,2"], "prefix_lens is (1, 2): it must be 8 lengths, one per rank"),
    ):
        refused = CliRunner().invoke(app, [*arguments, *more])
        assert refused.exit_code == 2
        assert message in refused.output

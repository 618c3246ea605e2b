"""Fleets and plans against brute force, recorded memory and SciPy's solver; and errors for bad fleets."""

import csv
import json
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from itertools import combinations_with_replacement, pairwise, permutations
from math import inf
from operator import add
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from heteroring.allocators.apportion import chunks_of
from heteroring.allocators.fitting import load_model
from heteroring.allocators.unit_costs import Cost, predicted_ms
from heteroring.cli.main import app
from heteroring.planning import candidates
from heteroring.planning.fleet import DataSheet, Fleet, RankSpec, read_fleet
from heteroring.planning.network import Link, Network
from heteroring.planning.plan import plan
from heteroring.planning.splits import bound
from heteroring.planning.work import Work
from heteroring.ring.partition import LAYOUTS, Partition
from recorded import RECORD
from tree import ROOT

LLAMA = Work.language_model(
    "llama/3-8b",
    layers=32,
    emb_dim=4096,
    hidden_dim=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    parameters=8_030_261_248,
    layer_parameters=218_112_000,
    dtype="bfloat16",
)
BLOCK = {"profile": str(RECORD / "model/models/cost-block.json")}
ATTENTION = {"profile": str(RECORD / "models/cost-attention.json")}
LINK = {"gb_per_s": 386, "latency_us": 6}


def fleet(tmp_path, *ranks, network=None):
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump({"ranks": list(ranks), "network": network or {"within": LINK}}))
    return path


def rank(name="H200", memory_gb=140, **more):
    return {"name": name, "memory_gb": memory_gb, **more}


def recorded_prefills():
    """Peak memory in bytes of the recorded LLaMA by block lengths: that of each rank."""
    peaks = defaultdict(set)
    for path in sorted(RECORD.glob("model/pct-*.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row["phase"] == "prefill":
                    lens = tuple(map(int, row["block_lens"].split()))
                    peaks[lens].add(tuple(map(int, row["peak_memory_bytes"].split())))
    return peaks


def test_memory_is_what_the_recorded_model_took():
    """A job's first call over the ring makes room for 32,768 keys, a longer one twice that, and the first is kept."""
    for lens, peaks in recorded_prefills().items():
        room = 32768 + 65536 if min(lens) else 0
        for measured in peaks:
            for n, peak in zip(lens, measured, strict=True):
                if n:
                    assert LLAMA.memory_bytes(n, room) == pytest.approx(peak, rel=0.01)


def test_a_model_of_fms_is_the_work_that_it_is():
    pytest.importorskip("fms")
    from heteroring.fms.sizes import prefill_work

    found = prefill_work("llama/3-8b")
    assert (found.token_bytes, found.weight_bytes, found.layers) == (270336, LLAMA.weight_bytes, 32)
    assert found.product_flops == pytest.approx(LLAMA.product_flops, rel=1e-3)
    with pytest.raises(ValueError, match="does not know the memory of mixtral: choose one of llama, granite, mistral"):
        prefill_work("mixtral/8x7b")


def test_the_bound_of_two_kinds_of_work_is_that_of_the_linear_programme():
    linprog = pytest.importorskip("scipy.optimize").linprog
    random = np.random.default_rng(0)
    for ranks in (1, 2, 3, 7, 40):
        costs = [Cost(*random.uniform(0.1, 10, 2)) for _ in range(ranks)]
        seq_len = 9
        attention = np.array([cost.pair_us for cost in costs]) * seq_len * (seq_len + 1) / 2
        products = np.array([cost.token_us for cost in costs]) * seq_len
        within = np.hstack([np.diag(attention), np.diag(products), -np.ones((ranks, 1))])
        shares = np.hstack([np.kron(np.eye(2), np.ones(ranks)), np.zeros((2, 1))])
        goal = [0] * 2 * ranks + [1]
        found = linprog(goal, A_ub=within, b_ub=np.zeros(ranks), A_eq=shares, b_eq=[1, 1], method="highs")
        assert bound(costs, seq_len) == pytest.approx(found.fun, rel=1e-9)
    alike = [Cost(1.0, 2.0), Cost(2.0, 4.0)]  # of one ratio: no more than the capacity bound
    assert bound(alike, 9) == pytest.approx((45 + 18) * 2 / 3)
    assert bound([Cost(1.0), Cost(1.0, 1.0)], 9) == pytest.approx(45 / 2)


def test_a_plan_is_the_fastest_split_that_fits(tmp_path):
    # The second rank is as fast as the first, and has the memory for a quarter of the tokens.
    work = Work("toy", 32, 32, 128, "bfloat16", token_bytes=10**6, kept_bytes=10**5)
    unit, units = 1024, 16
    quarter = 1e-9 * (4 * unit * work.token_bytes + 2 * units * unit * work.key_bytes)
    path = fleet(tmp_path, rank(**ATTENTION), rank(memory_gb=quarter, **ATTENTION), rank(percentage=50, **ATTENTION))
    found = plan(read_fleet(path), unit * units, work, multiple=unit)
    assert "memory: 1 of 3 ranks" in found.limit
    assert all(used <= found.fleet.ranks[r].memory_gb for used, r in zip(found.memory_gb, found.order, strict=True))
    costs, _ = found.fleet.costs(work, unit * units)
    ordered = [costs[r] for r in found.order]
    full = found.order.index(1)
    best = min(
        max(predicted_ms(Partition.zigzag(lens), ordered))
        for borders in combinations_with_replacement(range(units + 1), 2)
        if (lens := tuple(unit * (b - a) for a, b in pairwise((0, *borders, units))))[full] <= 4 * unit
    )
    assert max(predicted_ms(Partition.zigzag(found.block_lens), ordered)) == pytest.approx(best, rel=1e-9)
    assert not found.beside["zigzag/even"].fits


def test_several_ranks_that_are_full_leave_the_rest_to_slower_ones(tmp_path):
    # Message buffers grow with the longest shard: slow ranks with more than the full ones would take the latter's room.
    seq_len, unit = 262144, 256
    path = fleet(tmp_path, rank(count=4, memory_gb=30, **BLOCK), rank(count=2, memory_gb=80, percentage=50, **BLOCK))
    found = plan(read_fleet(path), seq_len, LLAMA, multiple=unit)
    assert "memory: 4 of 6 ranks" in found.limit
    costs, _ = found.fleet.costs(LLAMA, seq_len)
    ordered = [costs[r] for r in found.order]
    best = inf
    for fast in range(0, seq_len // 4 + 1, 2 * unit):
        lens = tuple((seq_len - 4 * fast) // 2 if r > 3 else fast for r in found.order)
        if LLAMA.memory_bytes(fast, max(lens)) <= 30e9:
            best = min(best, max(predicted_ms(Partition.zigzag(lens), ordered)))
    assert max(predicted_ms(Partition.zigzag(found.block_lens), ordered)) <= best * 1.001


def test_a_plan_in_chunks_is_what_a_prefill_in_chunks_does(tmp_path):
    path = fleet(tmp_path, rank(count=2, **BLOCK), rank("half", count=2, percentage=50, **BLOCK))
    whole, found = (plan(read_fleet(path), 65536, LLAMA, chunk=chunk) for chunk in (None, 16384))
    assert len(found.simulations) == 4
    held, busy_ms = (0,) * 4, np.zeros(4)
    for number, part in enumerate(chunks_of(Partition.zigzag(found.block_lens), 16384)):
        assert all(length % 256 == 0 for length in part.block_lens)
        costs, _ = found.fleet.costs(LLAMA, 16384, sum(held))
        # The chunk in the middle is as fast as every split near its own, and the others nearly so.
        ordered, lens = [costs[r] for r in found.order], part.block_lens
        times = predicted_ms(part, ordered, True, held)
        for take, give in permutations(range(4), 2):
            moved = tuple(n + 256 * ((r == take) - (r == give)) for r, n in enumerate(lens))
            assert max(times) <= (1 if number == 2 else 1.01) * max(
                predicted_ms(Partition.zigzag(moved), ordered, True, held)
            )
        busy_ms, held = busy_ms + LLAMA.layers * np.array(times), tuple(map(add, held, lens))
    assert held == found.block_lens
    assert found.busy_ms == pytest.approx(busy_ms.tolist(), rel=0.02)  # which has whole tiles
    assert found.latency_ms < found.beside["zigzag/even"].latency_ms
    # As many pairs and products as at once; each rank holds the activations of a quarter of its tokens.
    assert found.bound_ms == pytest.approx(whole.bound_ms, rel=0.05)
    in_a_chunk = (LLAMA.token_bytes + 3 * LLAMA.kept_bytes) / 4
    saved = LLAMA.token_bytes * max(whole.block_lens) - in_a_chunk * max(found.block_lens)
    assert max(whole.memory_gb) - max(found.memory_gb) == pytest.approx(saved / 1e9, rel=0.05)
    with pytest.raises(ValueError, match="chunk is 0: a chunk has 1 token or more"):
        plan(read_fleet(path), 65536, LLAMA, chunk=0)


def test_memory_in_chunks_is_filled_to_the_last_multiple(tmp_path):
    # Both ranks may hold 8 chunks of 1,024 tokens of 10^6 bytes, and the activations of a part of one.
    work = Work("toy", 32, 32, 128, "bfloat16", token_bytes=3 * 10**6, kept_bytes=10**6)
    each = 1e-9 * (8192 * work.kept_bytes + 512 * 2e6 + 2 * 8192 * work.key_bytes)
    path = fleet(tmp_path, rank(count=2, memory_gb=1.01 * each, **ATTENTION))
    found = plan(read_fleet(path), 16384, work, chunk=1024)
    assert found.block_lens == (8192, 8192)
    assert 0.98 < max(found.memory_gb) / (1.01 * each) <= 1
    with pytest.raises(ValueError, match=r"of 16384 tokens does not fit: these ranks have the memory for \d{4} tokens"):
        plan(read_fleet(path), 16384, work)


def test_a_plan_over_earlier_tokens_keeps_them_where_they_are(tmp_path):
    ranks = rank(**BLOCK), rank("half", percentage=50, **BLOCK)
    found = plan(read_fleet(fleet(tmp_path, *ranks)), 8192, LLAMA, prefix_lens=(0, 40960))
    assert found.prefix_lens == tuple((0, 40960)[r] for r in found.order)
    share = dict(zip(found.order, found.block_lens, strict=True))
    costs, _ = found.fleet.costs(LLAMA, 8192, 40960)
    assert share[0] / share[1] == pytest.approx(costs[1].pair_us / costs[0].pair_us, rel=0.1)
    alone = plan(read_fleet(fleet(tmp_path, *ranks)), 8192, LLAMA)
    kept = dict(zip(found.order, found.memory_gb, strict=True))[1]
    assert kept > 1e-9 * 40960 * LLAMA.kept_bytes + min(alone.memory_gb)
    with pytest.raises(ValueError, match=r"prefix_lens is \(1,\): it must be 2 lengths, one per rank"):
        plan(read_fleet(fleet(tmp_path, *ranks)), 8192, LLAMA, prefix_lens=(1,))


def test_fast_and_slow_ranks_take_turns_in_a_long_ring(tmp_path):
    # A rank is two steps ahead at most: adjacent fast ranks meet small chunks in a row, and would have to be further.
    network = {"within": LINK, "between": {"gb_per_s": 50, "latency_us": 20}}
    ranks = rank(count=4, node="a", **BLOCK), rank("half", count=4, node="b", percentage=50, **BLOCK)
    found = plan(read_fleet(fleet(tmp_path, *ranks, network=network)), 2**20, LLAMA)
    assert found.order == (0, 4, 1, 5, 2, 6, 3, 7)
    assert found.bound_fraction > 0.97 > 0.75 > found.bound_ms / found.beside["zigzag/even"].latency_ms
    assert found.limit.startswith("compute")
    assert len(found.to_json()["step_ms"]) == 8
    json.dumps(found.to_json(), allow_nan=False)


def test_a_rank_that_does_not_pay_is_left_out(tmp_path):
    path = fleet(tmp_path, rank(**ATTENTION), rank("slow", percentage=10, **ATTENTION))
    found = plan(read_fleet(path), 1024)
    assert (found.order, found.block_lens, found.left_out) == ((0,), (1024,), (1,))
    assert found.limit.endswith("; 1 of 2 ranks left out: they would cost the others more than they bring")


def test_ranks_that_would_wait_for_keys_are_left_out():
    mixed = read_fleet(ROOT / "docs" / "fleets" / "mixed.yaml")
    for work, lengths in ((LLAMA, (4096, 8192, 16384)), (None, (8192, 16384))):
        for seq_len in lengths:
            found = plan(mixed, seq_len, work)
            assert found.left_out == (4, 5, 6, 7)
            assert found.latency_ms < 0.98 * min(each.latency_ms for each in found.beside.values())
            assert found.limit.endswith("waiting for keys over the link a-b")
    assert plan(mixed, 65536, LLAMA).left_out == ()


KINDS = [
    RankSpec("H200", "", 140.0, load_model(Path(BLOCK["profile"])), percentage, "cost-block.json", None)
    for percentage in (100, 50, 10)
] + [RankSpec("L40S", "", 30.0, None, 100, "", DataSheet(362, 0.5, 0.7))]
a_node = st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)


@pytest.mark.slow
@given(
    nodes=st.lists(a_node, min_size=1, max_size=3),
    gb_per_s=st.sampled_from([0.1, 5, 50, 1000]),
    units=st.sampled_from([1, 3, 16, 64, 512]),
    layout=st.sampled_from(LAYOUTS),
    chunk=st.sampled_from([None, None, 2048]),
)
@settings(max_examples=60, deadline=None)
def test_no_split_or_part_of_a_fleet_is_faster_than_its_plan(nodes, gb_per_s, units, layout, chunk):
    ranks = tuple(replace(spec, node=f"n{node}") for node, members in enumerate(nodes) for spec in members)
    names = sorted({spec.node for spec in ranks})
    links = {(a, b): Link(386, 6) if a == b else Link(gb_per_s, 20) for i, a in enumerate(names) for b in names[i:]}

    def planned(which):
        return plan(
            Fleet(which, Network(tuple(spec.node for spec in which), links)),
            256 * units,
            LLAMA,
            layout=layout,
            chunk=chunk,
        )

    try:
        found = planned(ranks)
    except ValueError:  # too many tokens for the memory
        reject()
    assert sorted(found.order + found.left_out) == list(range(len(ranks)))
    assert sum(found.block_lens) == 256 * units
    assert all(used <= ranks[rank].memory_gb for used, rank in zip(found.memory_gb, found.order, strict=True))
    assert found.latency_ms >= found.bound_ms * (1 - 1e-9)
    others = [each.latency_ms for each in found.beside.values() if each.fits]
    if chunk is None:  # in chunks, fewer ranks are chosen by the one in the middle
        for part in (*[(spec,) for spec in ranks], *[tuple(s for s in ranks if s.node == name) for name in names]):
            with suppress(ValueError):
                others.append(planned(part).beside[f"{layout}/balanced"].latency_ms)
    assert found.latency_ms <= min(others) * (1 + 1e-9)


@pytest.mark.slow
def test_a_thousand_ranks_are_planned_in_a_second(tmp_path):
    network = {"within": LINK, "between": {"gb_per_s": 50, "latency_us": 20}}
    for nodes, seq_len in ((1, 2**24), (64, 2**20)):
        kinds = [
            rank(name, node=name, nodes=nodes, count=512 // nodes, percentage=percentage, **BLOCK)
            for name, percentage in (("whole", 100), ("half", 50))
        ]
        if nodes == 1:
            kinds = [kind | {"node": "node"} for kind in kinds]
        known = read_fleet(fleet(tmp_path, *kinds, network=network))
        began = time.process_time()
        found = plan(known, seq_len, LLAMA)
        assert time.process_time() - began < 5  # 0.5 s on a machine at rest; over 128 nodes 1.2 s
        assert sum(found.block_lens) == seq_len
        assert len(found.order) == (1024 if nodes == 1 else 128)  # one of each node: the others would share its links
        assert found.latency_ms < min(found.beside[f"zigzag/{name}"].latency_ms for name in ("even", "proportional"))


def test_data_sheet_figures_are_marked(tmp_path):
    sheet = {"tflops": 362, "attention": 0.5, "products": 0.7}
    path = fleet(tmp_path, rank(**BLOCK), rank("L40S", 48, datasheet=sheet))
    found = plan(read_fleet(path), 65536, LLAMA)
    assert any("L40S: from a data sheet, not measured: of 362 TFLOP/s, 50% assumed" in note for note in found.notes)
    assert [each["measured"] for each in found.to_json()["ranks"]].count(False) == 1
    costs, _ = found.fleet.costs(LLAMA, 65536)
    assert costs[1] == Cost(4 * 32 * 128 / (362e6 * 0.5), LLAMA.product_flops / (362e6 * 0.7))


def test_memory_that_is_not_there_is_counted_in_tokens(tmp_path):
    path = fleet(tmp_path, rank(memory_gb=20, count=2, **BLOCK))
    room = int((20e9 - LLAMA.weight_bytes) // (LLAMA.token_bytes + 2 * LLAMA.key_bytes)) // 256 * 256
    with pytest.raises(ValueError, match=rf"memory for {2 * room} tokens, {65536 - 2 * room} too few$"):
        plan(read_fleet(path), 65536, LLAMA)
    assert sum(plan(read_fleet(path), 2 * room, LLAMA).block_lens) == 2 * room


SHEET = {"tflops": 100, "attention": 0.5, "products": 0.5}
BAD = {
    "unknown key": ({"colour": 1}, {}, r"ranks\[0\] has an unknown key 'colour': known are count, datasheet, kind"),
    "no profile": ({"datasheet": None}, {}, r"ranks\[0\] \(x\) needs a `profile` that was measured, or a `datasheet`"),
    "zero speed": (
        {"datasheet": SHEET | {"tflops": 0}},
        {},
        r"ranks\[0\].datasheet.tflops is 0: it must be a number above 0",
    ),
    "more than the peak": ({"datasheet": SHEET | {"attention": 2}}, {}, "parts of the peak, from 0 to 1"),
    "no memory": ({"memory_gb": 0}, {}, r"ranks\[0\].memory_gb is 0: it must be a number above 0"),
    "half a rank": ({"count": 0.5}, {}, r"ranks\[0\].count is 0.5: it must be an integer from 1"),
    "no such file": ({"datasheet": None, "profile": "no.json"}, {}, "cannot read .*no.json: No such file"),
    "another model": ({"datasheet": None, "profile": str(RECORD / "models/lut-matmul.json")}, {}, "is a lut model"),
    "no bandwidth": ({}, {"within": {"latency_us": 1}}, "network.within lacks gb_per_s"),
    "dead link": ({}, {"within": LINK | {"gb_per_s": 0}}, "network.within.gb_per_s is 0: it must be a number above 0"),
    "within": ({}, {"between": LINK}, "network links no two ranks of node node: give `within`"),
    "between": ({"nodes": 2}, {"within": LINK}, "network does not link nodes node-0 and node-1: give `between`"),
    "not a name": (
        {},
        {"within": LINK, "links": [{"nodes": [["a"], "node"], **LINK}]},
        r"nodes is \[\['a'\], 'node'\]",
    ),
    "no node": ({}, {"within": LINK, "links": [{"nodes": ["a", "b"], **LINK}]}, r"links\[0\].nodes is \['a', 'b'\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_fleet_is_one_line_that_says_where(tmp_path, name):
    changes, network, message = BAD[name]
    entry = rank("x", count=2, datasheet=SHEET) | changes
    path = fleet(tmp_path, {key: value for key, value in entry.items() if value is not None}, network=network)
    with pytest.raises(ValueError, match=message) as error:
        read_fleet(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "ranks: [", "ranks: []\nnetwork: {}", "- 1", "? [a]\n: 1", "<<: 1"])
def test_what_is_no_fleet_is_refused(tmp_path, text):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"fleet\.yaml"):
        read_fleet(path)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text("ranks:\n  - name: x\n    count: 4\n    count: 2\n")
    with pytest.raises(ValueError, match=r"fleet\.yaml is not YAML: key 'count' is given again in line 4"):
        read_fleet(path)


def test_profiles_must_be_of_the_work(tmp_path):
    attention, block = read_fleet(fleet(tmp_path, rank(**ATTENTION))), read_fleet(fleet(tmp_path, rank(**BLOCK)))
    with pytest.raises(ValueError, match="is of 32:32 heads of 128 in bfloat16, llama/3-8b has 32:8 heads"):
        plan(attention, 65536, LLAMA)
    with pytest.raises(ValueError, match=r"no rank has a measured profile, .* name a --model"):
        plan(read_fleet(fleet(tmp_path, rank(datasheet=SHEET))), 4096)
    with pytest.raises(ValueError, match="seq_len is 0: it must be 1 or more"):
        plan(block, 0, LLAMA)


def test_the_command_prints_a_table_json_and_a_picture(tmp_path):
    example = str(ROOT / "docs" / "fleets" / "mixed.yaml")
    runner, picture = CliRunner(), tmp_path / "plan.svg"
    shown = runner.invoke(app, ["plan", example, "--seq-len", "65536", "--picture", str(picture)])
    assert shown.exit_code == 0, shown.output
    assert "limit: " in shown.output
    assert "plan: balanced over 8 of 8 ranks" in shown.output
    assert "zigzag/proportional" in shown.output
    assert picture.read_text().count("<svg") == 1
    as_json = runner.invoke(app, ["plan", example, "--seq-len", "65536", "--json"])
    found = json.loads(as_json.stdout)
    assert sum(found["block_lens"]) == 65536
    assert found["block_lens"] == [each["tokens"] for each in found["ranks"]]
    in_chunks = ["plan", example, "--seq-len", "65536", "--chunk", "16384", "--prefix-lens", ",".join(["512"] * 8)]
    shown = runner.invoke(app, in_chunks)
    assert "65536 tokens in chunks of 16384 behind 4096, zigzag" in shown.output
    assert "chunks: 4, all in these shares: ring_prefill(chunk=16384)" in shown.output
    assert json.loads(runner.invoke(app, [*in_chunks, "--json"]).stdout)["chunk"] == 16384
    refused = runner.invoke(app, ["plan", example, "--seq-len", "65536", "--picture", "plan.bmp"])
    assert refused.exit_code == 2
    assert candidates.ORDERED >= 8


def test_the_command_shows_a_plan_of_many_ranks_in_short(tmp_path):
    pytest.importorskip("fms")
    many = str(fleet(tmp_path, rank("x", count=40, datasheet=SHEET)))
    shown = CliRunner().invoke(app, ["plan", many, "--seq-len", "16384", "--model", "llama/3-8b"])
    assert "order and block_lens of more than 32 ranks: --json" in shown.output
    assert "note: balanced gives out 256 tokens at a time: 64 times for 40 ranks" in shown.output

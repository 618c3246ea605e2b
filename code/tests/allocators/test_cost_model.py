"""The cost model: fits to synthetic profiles, interpolation between them, and splits of `balanced` by it."""

import json
import math

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from heteroring.allocators import Cost, allocation, fit, load_model, predicted_ms
from heteroring.allocators.balanced import RING_MARGIN, RING_WAIT_US, balanced
from heteroring.allocators.cost_model import CostModel
from heteroring.allocators.lut import LookupTable
from heteroring.results.rows import to_text
from heteroring.ring.partition import Partition
from heteroring.ring.workload import total_pairs
from rows import profile_row

HEADER = (
    "platform,kind,size,batch,heads,kv_heads,head_dim,dtype,causal,throttle,percentage,repetition,latency_ms,tflops"
)
LENGTHS, PERCENTAGES = (1024, 4096), (10, 50, 100)

# Invented true costs: ns per pair, us per token beside attention, and us per row of a further ring step, by (length,
# percentage).
PAIR_NS = {(n, p): (3.0 if n == 1024 else 2.0) * 100 / p for n in LENGTHS for p in PERCENTAGES}
JOIN_US = {(n, p): 0.01 * 120 / p for n in LENGTHS for p in PERCENTAGES}
TOKEN_US = {(n, p): (4.0 if n == 1024 else 5.0) * 100 / p for n in LENGTHS for p in PERCENTAGES}
REVISIT_US = {(n, p): (0.5 if n == 1024 else 0.25) * 110 / p for n in LENGTHS for p in PERCENTAGES}


def latency_ms(kind, n, p):
    pairs_us = PAIR_NS[n, p] * 1e-3
    whole = {
        "matmul": 1e3,
        "attention": total_pairs(n) * pairs_us,
        "fold": n * (128 * pairs_us + REVISIT_US[n, p]),
        "join": total_pairs(n) * pairs_us + n * (128 * pairs_us + JOIN_US[n, p]),
        "layer": total_pairs(n) * pairs_us + n * TOKEN_US[n, p],
    }
    return whole[kind] / 1e3


def line(kind, n, p, repetition=0, latency=None, **changes):
    values = {"platform": "box", "percentage": p, "repetition": repetition}
    values |= {"latency_ms": latency or latency_ms(kind, n, p)}
    return ",".join(to_text(profile_row(kind, n, **values | changes)))


def lines(*kinds, **changes):
    return [line(kind, n, p, **changes) for kind in kinds for n in LENGTHS for p in PERCENTAGES]


def write(path, rows):
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


@pytest.fixture
def profile(tmp_path):
    return write(tmp_path / "profile.csv", lines("matmul", "attention", "fold", "join", "layer"))


def test_a_layer_may_be_profiled_at_fewer_lengths_than_its_attention(tmp_path):
    one = len(PERCENTAGES)
    few = write(tmp_path / "few.csv", lines("attention", "fold", "join") + lines("layer")[:one])
    alone = [each for kind in ("attention", "fold", "join", "layer") for each in lines(kind)[:one]]
    model, same = fit("cost", "layer", few), fit("cost", "layer", write(tmp_path / "alone.csv", alone))
    assert model.lengths == LENGTHS[:1]
    for name in ("attention_ms", "token_us", "revisit_us", "join_us"):
        assert getattr(model, name) == getattr(same, name)


@pytest.mark.parametrize("source", ["attention", "layer"])
def test_what_was_profiled_comes_back(profile, source):
    model = fit("cost", source, profile)
    assert (model.kind, model.source, model.platform) == ("cost", source, "box")
    assert (model.lengths, model.percentages) == (LENGTHS, PERCENTAGES)
    assert model.rows == 6 * (3 if source == "attention" else 4)
    assert model.setup["heads"] == "4"
    for n in LENGTHS:
        for p in PERCENTAGES:
            cost, clamped, notes = model.predict(n, p)
            token = TOKEN_US[n, p] if source == "layer" else 0.0
            assert cost == pytest.approx((PAIR_NS[n, p] * 1e-3, token, REVISIT_US[n, p], JOIN_US[n, p]), rel=1e-9)
            assert (clamped, notes) == (False, ())


def test_repetitions_count_by_their_median(tmp_path):
    rows = [line("attention", 1024, 100, i, latency) for i, latency in enumerate((3.0, 100.0, 2.0))]
    model = fit("cost", None, write(tmp_path / "p.csv", rows))
    assert model.attention_ms == ((3.0,),)
    assert model.source == "attention"


def test_without_profiled_ring_steps_further_steps_cost_nothing(tmp_path):
    model = fit("cost", "layer", write(tmp_path / "p.csv", lines("attention", "layer")))
    assert {value for row in model.revisit_us for value in row} == {0.0}
    prediction = model.predict(1024, 50)
    assert prediction.cost.revisit_us == 0
    assert not prediction.clamped


def test_without_joins_the_first_visit_is_like_any_other(tmp_path):
    model = fit("cost", "attention", write(tmp_path / "p.csv", lines("attention", "fold")))
    assert model.join_us == model.revisit_us
    assert model.predict(2000, 33).cost.join_us == model.predict(2000, 33).cost.revisit_us > 0


@pytest.mark.parametrize("kind", ["fold", "join"])
def test_a_visit_that_costs_no_more_than_its_pairs_is_no_flaw(tmp_path, kind):
    rows = lines(*{"attention", "fold", "join"} - {kind})
    rows += [line(kind, n, p, latency=1e-3) for n in LENGTHS for p in PERCENTAGES]
    cost, clamped, _ = fit("cost", "attention", write(tmp_path / "p.csv", rows)).predict(1024, 50)
    free, other = (cost.revisit_us, cost.join_us)[:: 1 if kind == "fold" else -1]
    assert (free, clamped) == (0.0, False)
    assert (other > 0) == (kind == "join")  # a fused row never costs more


def test_new_tokens_pair_with_the_whole_sequence_and_have_products_of_their_own(profile):
    model = fit("cost", "layer", profile)
    new, whole = LENGTHS[0], LENGTHS[-1]
    over_prefix, alone, all_new = model.predict(new, 50, whole - new), model.predict(new, 50), model.predict(whole, 50)
    assert over_prefix.cost == all_new.cost._replace(token_us=alone.cost.token_us)
    assert alone.cost.token_us != all_new.cost.token_us
    assert "length 9e+06 lies outside" in model.predict(new, 50, 9 * 10**6 - new).notes[0]


def test_between_the_levels_speed_and_multiples_of_a_pair_are_linear(profile):
    model = fit("cost", "layer", profile)
    axes = np.log(LENGTHS), PERCENTAGES

    def linear(value):
        table = [[value((n, p)) for p in PERCENTAGES] for n in LENGTHS]
        return RegularGridInterpolator(axes, np.array(table))((math.log(2000), 33)).item()

    cost, clamped, _ = model.predict(2000, 33)
    assert not clamped
    pair_us = 1 / linear(lambda cell: 1 / (PAIR_NS[cell] * 1e-3))
    assert cost.pair_us == pytest.approx(pair_us, rel=1e-12)
    for found, truth in ((cost.token_us, TOKEN_US), (cost.revisit_us, REVISIT_US), (cost.join_us, JOIN_US)):
        multiple = linear(lambda cell, truth=truth: truth[cell] / (PAIR_NS[cell] * 1e-3))
        assert found == pytest.approx(pair_us * multiple, rel=1e-9)
    # Times that are inverse to the percentage stay so between the levels.
    assert model.predict(1024, 75).cost == pytest.approx((3e-3 / 0.75, 4.0 / 0.75, 0.55 / 0.75, 0.012 / 0.75), rel=1e-9)


def test_outside_the_levels_the_edge_holds_and_it_is_said(profile):
    model = fit("cost", "layer", profile)
    cost, clamped, notes = model.predict(9999, 5)
    assert cost == model.predict(4096, 10).cost
    assert clamped
    assert notes == (
        "cost: length 9999 lies outside the profile (1024 to 4096), read at its edge",
        "cost: percentage 5 lies outside the profile (10 to 100), read at its edge",
    )


def test_a_difference_below_0_is_held_there_and_flagged_where_it_matters(tmp_path):
    rows = lines("attention", "fold", "layer")
    short = line("layer", 1024, 50)
    rows[rows.index(short)] = line("layer", 1024, 50, latency=0.9 * latency_ms("attention", 1024, 50))
    path = write(tmp_path / "p.csv", rows)
    model = fit("cost", "layer", path)
    held = "cost: the layer took no longer than its attention at 1024 tokens and 50 %, token_us held at 0"
    assert model.predict(1024, 50) == (model.predict(1024, 50).cost._replace(token_us=0.0), True, (held,))
    for place in ((1500, 50), (1024, 30), (3000, 70)):
        assert held in model.predict(*place).notes
    assert model.predict(4096, 50).notes == ()
    # A cost model of attention alone has no tokens to hold.
    assert fit("cost", "attention", path).predict(1024, 50).notes == ()


def test_round_trip_and_file(profile, tmp_path):
    model = fit("cost", "layer", profile)
    model.save(tmp_path / "cost-layer.json")
    assert load_model(tmp_path / "cost-layer.json") == model
    content = json.loads((tmp_path / "cost-layer.json").read_text())
    assert (content["kind"], content["source"]) == ("cost", "layer")
    assert content["units"]["revisit_us"].startswith("us per query row")
    for name in ("attention_ms", "token_us", "revisit_us", "join_us"):
        assert np.shape(content[name]) == (2, 3)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("source", "matmul", "source 'matmul' is unknown: choose one of attention, layer, block"),
        ("attention_ms", [[1.0, 1.0, 0.0]] * 2, "attention_ms at 1024 and 100 % is 0.0: it must be positive"),
        ("token_us", [[1.0, -1.0, 0.0]] * 2, "token_us at 1024 and 50 % is -1.0: it must be not negative"),
        ("revisit_us", [[float("nan")] * 3] * 2, "revisit_us at 1024 and 10 % is nan"),
        ("revisit_us", [[1.0] * 3], "revisit_us must have 2 rows .* of 3 values"),
        ("revisit_us", 4.0, "wrong type"),
    ],
)
def test_a_damaged_file_is_refused(profile, tmp_path, entry, value, message):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(fit("cost", "layer", profile).to_json() | {entry: value}))
    with pytest.raises(ValueError, match=f"{path}: not a valid model file: .*{message}"):
        load_model(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lines("matmul", "layer", "fold"), "needs a profile of kind 'attention'; there is matmul, fold, layer only"),
        (lines("attention", "fold"), "source 'layer' needs a profile of kind 'layer'"),
        (lines("attention", "layer")[:-1], "no layer row of size 4096 at 100 %"),
        (lines("attention")[:3] + lines("layer"), "lengths of the layer profile are .*: they must be the same"),
        (
            lines("attention", "layer") + [line("fold", n, 100) for n in LENGTHS],
            "no fold row of size 1024 at 10 %: every size is needed at every percentage",
        ),
        (
            lines("attention", "fold") + lines("layer", heads=8),
            "heads is 8 in the layer profile and 4 in",
        ),
        (lines("attention", "layer") + lines("fold", dtype="float16"), "dtype is float16 in the fold profile"),
    ],
)
def test_profiles_that_do_not_belong_together_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        fit("cost", "layer", write(tmp_path / "p.csv", rows))


def test_sources_of_other_kinds_are_refused(profile):
    with pytest.raises(ValueError, match="source 'matmul' is unknown: choose one of attention, layer, block"):
        fit("cost", "matmul", profile)
    with pytest.raises(ValueError, match="source 'layer' is unknown: choose one of matmul, attention"):
        fit("lut", "layer", profile)


class TestBalanced:
    def test_no_split_of_new_tokens_over_earlier_ones_is_faster(self, profile):
        model, percentages, prefix_lens = fit("cost", "layer", profile), (50, 100, 50), (1000, 3000, 0)
        found = allocation("balanced", 60, percentages=percentages, profile=model, prefix_lens=prefix_lens)
        assert found.costs == tuple(model.predict(60, p, 4000).cost for p in percentages)
        every = [(a, b, 60 - a - b) for a in range(61) for b in range(61 - a)]
        slowest = {lens: max(predicted_ms(Partition.zigzag(lens), found.costs, True, prefix_lens)) for lens in every}
        assert slowest[found.block_lens] == pytest.approx(min(slowest.values()))
        with pytest.raises(ValueError, match=r"prefix_lens is \(1,\): it must be 3 lengths, one per rank"):
            allocation("even", 60, percentages=percentages, prefix_lens=(1,))

    def test_it_minimises_the_models_own_prediction(self, profile, tmp_path):
        model = fit("cost", "layer", profile)
        model.save(tmp_path / "m.json")
        found = allocation("balanced", 4096, percentages=(100, 50), profile=tmp_path / "m.json", multiple=256)
        assert found.costs == tuple(model.predict(4096, p).cost for p in (100, 50))
        assert (found.model_source, found.speeds, found.clamped) == ("layer", (), False)
        every = [(n, 4096 - n) for n in range(0, 4097, 256)]
        slowest = {lens: max(predicted_ms(Partition.zigzag(lens), found.costs)) for lens in every}
        assert found.block_lens == min(slowest, key=slowest.get)

    def test_a_profile_csv_with_folds_is_a_cost_model_of_attention_and_one_without_a_table(self, profile, tmp_path):
        found = allocation("balanced", 1024, percentages=(100, 50), profile=profile)
        assert found == allocation("balanced", 1024, percentages=(100, 50), profile=fit("cost", "attention", profile))
        assert found.costs[1] == Cost(*(2 * value for value in found.costs[0]))
        bare = write(tmp_path / "bare.csv", lines("matmul", "attention"))
        table = allocation("balanced", 1024, percentages=(100, 50), profile=bare)
        assert table == allocation("balanced", 1024, percentages=(100, 50), profile=fit("lut", "attention", bare))

    def test_without_further_steps_it_is_the_table_of_speeds(self, tmp_path):
        rows = []
        for n in LENGTHS:
            for p in PERCENTAGES:
                rows.append(line("attention", n, p))
        path = write(tmp_path / "p.csv", rows)
        for layout in ("contiguous", "zigzag"):
            lens = [
                allocation("balanced", 3001, percentages=(100, 10, 50), profile=model, layout=layout).block_lens
                for model in (fit("cost", "attention", path), fit("lut", "attention", path))
            ]
            assert lens[0] == lens[1]

    def test_a_small_gain_on_the_fastest_rank_alone_is_not_taken(self):
        def shares(percentage, revisit):
            model = CostModel(
                source="attention",
                platform="box",
                setup={},
                rows=1,
                lengths=(1000,),
                percentages=(percentage, 100),
                attention_ms=((100.0 * 100 / percentage, 100.0),),
                token_us=((0.0, 0.0),),
                revisit_us=((revisit, revisit),),
                join_us=((revisit, revisit),),
            )
            return allocation("balanced", 1000, percentages=(100, percentage), profile=model)

        # A rank at 2 % brings 2 %, which is the margin; a table of speeds knows no costs of rings, and has no margin.
        assert RING_MARGIN == 0.02
        assert shares(2, 0.0).block_lens == (1000, 0)
        assert shares(2, 0.0).notes == ("balanced: rank 1 gets no tokens: the ring would gain little or nothing by it",)
        assert shares(6, 0.0).block_lens[1] == pytest.approx(57, abs=2)
        assert shares(6, 15.0).block_lens == (1000, 0)
        told = shares(6, 1.0)
        assert told.block_lens == balanced(1000, told.costs, margin=RING_MARGIN, wait_us=RING_WAIT_US)
        table = LookupTable("attention", "box", {}, 1, (1000,), (4, 100), ((4.0, 100.0),))
        lens = allocation("balanced", 1000, percentages=(100, 4), profile=table).block_lens
        assert lens[1] == pytest.approx(38, abs=2)

    def test_models_of_other_kinds_are_refused(self, profile):
        with pytest.raises(ValueError, match="needs a cost model or lut model fitted to the attention profile"):
            allocation("balanced", 64, percentages=(100,), profile=fit("lut", "matmul", profile))
        with pytest.raises(ValueError, match="'lut' needs a lut model; got a cost model fitted to the layer profile"):
            allocation("lut", 64, percentages=(100,), profile=fit("cost", "layer", profile))

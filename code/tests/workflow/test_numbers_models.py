"""What the paper says of layers, models, a traced layer and the price of a visit, on frames worked out by hand."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from paper import layer_and_costs as paper_models
from paper import published_study
from paper import whole_model as paper_whole

ROOT = Path(__file__).parents[3]
STUDY = published_study.read(ROOT / "data" / "published")
H200 = {"devices": ["NVIDIA H200"] * 2}
STRATEGIES = ("contiguous/even", "zigzag/even", "zigzag/uneven", "zigzag/balanced")


def lines(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[:-2].split("&")] for line in table.splitlines() if "&" in line]


def test_a_platform_without_measurements_has_flags_alone():
    bare = SimpleNamespace(
        platform="cpu",
        cells=pd.DataFrame(columns=["system", "module", "seq_len", "percentage", "strategy", "condition", "order"]),
        model=pd.DataFrame(),
        trace=pd.DataFrame(),
        models={"lut-attention": {}},
    )
    flags = {"HasCost": "0", "HasLayer": "0", "HasWhole": "0", "HasTrace": "0"}
    instead = {
        "LayerCodeSentence": "We have no measurements of the released code on these devices.",
        "BeyondTheCall": "says what was not measured here",
        "ContiguousSentence": "",
    }
    assert paper_models.beyond_the_call(bare, STUDY) == flags | instead


@pytest.mark.parametrize(
    ("layer", "whole", "words"),
    [
        (True, True, "goes on to a whole attention layer, as in the study, and to a whole model"),
        (True, False, "whole models were not measured here"),
        (False, True, "the attention layer by itself, as in the study, was not measured here"),
        (False, False, "says what was not measured here"),
    ],
)
def test_what_is_beyond_the_call_is_said_as_it_was_measured(layer, whole, words):
    assert words in paper_models.what_was_measured(layer, whole)


def test_the_constants_of_the_method_are_those_of_the_code():
    """As printed in the method, which types no number of its own."""
    assert paper_models.constants() == {
        "ModelLongestRest": r"50\,ms",
        "ModelRingMargin": r"2\,\%",
        "ModelRingWait": r"22\,\textmu s",
        "ModelFoldKeys": "128",
    }


@pytest.mark.parametrize(
    ("join_us", "said"),
    [
        ([[20.0, 2.0], [20.0, 2.0]], "makes each visit a pass of its own"),
        # 1 of 9 ms and 1 of 129 ms
        (
            [[5.0, 1.0], [5.0, 0.5]],
            r"costs 1{,}000\,ns at 2{,}000 and 500\,ns at 4{,}000 tokens, and the shares fall to 11\,\% and 0.78\,\%.",
        ),
        (
            [[5.0, 1.0], [5.0, 0.0]],
            r"costs 1{,}000\,ns at 2{,}000 and nothing that we could measure at 4{,}000 tokens, and the shares fall to "
            r"11\,\% and less than 0.01\,\%.",
        ),
        ([[5.0, 0.0], [5.0, 0.0]], r"the same row costs nothing that we could measure at 2{,}000 and 4{,}000 tokens."),
    ],
    ids=["folded", "joined", "free at one length", "free"],
)
def test_the_price_of_a_visit_is_that_of_the_cost_model(join_us, said):
    """1,000 rows of 2 us are visited again beside 8 ms of pairs: 2 of 10 ms; at 4,000 tokens 4 of 132 ms."""
    model = {
        "join_us": join_us,
        "lengths": [2000, 4000],
        "percentages": [10.0, 100.0],
        "attention_ms": [[160.0, 16.0], [2560.0, 256.0]],
        "revisit_us": [[20.0, 2.0], [20.0, 2.0]],
    }
    numbers = paper_models.visits(SimpleNamespace(models={"cost-attention": model}))
    assert said in numbers.pop("CostJoinSentence")
    assert numbers == {
        "HasCost": "1",
        "CostRow": r"2{,}000\,ns",
        "CostRowSlow": r"20{,}000\,ns",
        "CostSlowPercentage": "10",
        "CostShortLength": "2{,}000",
        "CostShortShare": r"20\,\%",
        "CostLongLength": "4{,}000",
        "CostLongShare": r"3.0\,\%",
    }


def layer_cells(latency: dict[str, tuple[float, float]], seq_len: int = 65536, percentage: int = 10) -> pd.DataFrame:
    """Cells of both modules; the call takes half the layer's time. `latency`: ms at 100 % and at `percentage`."""
    cells = []
    for module, factor in (("fms", 1.0), ("attention", 0.5)):
        for index, at in enumerate((100, percentage)):
            common = {
                "condition": "rested",
                "order": "slow last",
                "module": module,
                "seq_len": seq_len,
                "percentage": at,
            }
            alone = [100.0 * factor, 100.0 * factor * 100 / at]
            bound = 1 / sum(1 / time for time in alone)
            for rank, time in enumerate(alone):
                cells.append(common | {"system": "alone", "strategy": f"alone/rank{rank}", "latency_ms": time})
            for name, times in latency.items():
                time = factor * times[index]
                cells.append(
                    common
                    | {"system": "ring", "strategy": name, "latency_ms": time, "bound_ms": bound}
                    | {"bound_fraction": bound / time, "fast_alone_ms": alone[0]}
                    | {"speedup": latency["contiguous/even"][index] / times[index]}
                )
    return pd.DataFrame(cells)


LAYER = {"contiguous/even": (80.0, 640.0), "contiguous/uneven": (80.0, 160.0), "zigzag/balanced": (50.0, 100.0)}


def test_what_is_beyond_the_call_follows_the_flags():
    """A platform with a layer and without a model claims the first and denies the second."""
    results = SimpleNamespace(
        platform="x", cells=layer_cells(LAYER), provenance=H200, model=pd.DataFrame(), trace=pd.DataFrame(), models={}
    )
    words = paper_models.beyond_the_call(results, STUDY)["BeyondTheCall"]
    assert words == "goes on to a whole attention layer, as in the study; whole models were not measured here"


def test_the_layer_is_set_beside_call_and_record():
    results = SimpleNamespace(
        platform="x", cells=layer_cells(LAYER), provenance={"devices": ["NVIDIA H200"] * 2}, models={}
    )
    numbers = paper_models.layer(results, STUDY)
    expected = {
        "HasLayer": "1",
        "LayerLongLength": "65{,}536",
        "LayerEvenMs": "640",
        "LayerBalancedMs": "100",
        "LayerBoundMs": "90.9",  # 1 / (1/100 + 1/1000)
        "LayerAloneMs": "100",
        "LayerUnevenSpeedup": "4.00",
        "LayerUnevenFraction": "0.568",
        "LayerBalancedFraction": "0.909",
        "LayerCallBalancedFraction": "0.909",
        "LayerCallShare": "0.500",
        "LayerBalancedVersusEven": "6.40 times faster than",
        "LayerBalancedWorstPlace": r"65{,}536 tokens and 10\,\%",
    }
    assert {name: numbers[name] for name in expected} == expected
    # published at 65,536 tokens and 10 %: even 8.09, proportional 1.82 times the homogeneous run
    assert lines(numbers["LayerTable"])[-1] == [r"10\,\%", "8.09", "1.82", "8.00", "2.00", "1.25"]
    sentence = numbers["LayerCodeSentence"]
    assert r"6{,}419\,ms with \strategy{even}" in sentence
    assert "14.6 times faster than the best of these" in sentence  # 1456.06 / 100
    assert "a factor of 9.10, at the same strategy, and layout and allocator for 1.60." in sentence  # 1456.06 / 160
    assert numbers["LayerContiguousSentence"] == ""


def test_the_layer_is_quoted_at_its_longest_prompt_and_its_slowest_rank():
    """At 50 % and at 4,096 tokens the balanced split comes less near to the bound."""
    cells = [layer_cells(LAYER), layer_cells(LAYER | {"zigzag/balanced": (50.0, 80.0)}, percentage=50)]
    doubled = {name: (ms[0], 2 * ms[1]) for name, ms in LAYER.items()}
    cells += [layer_cells(doubled, seq_len=4096, percentage=percentage) for percentage in (10, 50)]
    table = pd.concat(cells, ignore_index=True).drop_duplicates(["module", "strategy", "seq_len", "percentage"])
    call = table.module == "attention"
    table.loc[call & (table.strategy == "contiguous/uneven"), "bound_fraction"] = 0.123
    table.loc[call & (table.strategy == "alone/rank0") & (table.percentage == 100), "latency_ms"] = 40.0
    results = SimpleNamespace(platform="x", cells=table, provenance=H200, models={})
    numbers = paper_models.layer(results, STUDY)
    expected = {
        "LayerLongLength": "65{,}536",
        "LayerLowPercentage": "10",
        "LayerCellCount": "4",
        "LayerBoundMs": "90.9",
        "LayerUnevenMs": "160",
        "LayerEvenFraction": "0.142",
        "LayerCallUnevenFraction": "0.123",
        "LayerCallShare": "0.400",
        "LayerBalancedVersusUneven": "1.60 times faster than",
        "LayerBalancedWorstFraction": "0.333",
        "LayerBalancedMedianFraction": "0.644",
        "LayerBalancedWorstPlace": r"4{,}096 tokens and 50\,\%",
    }
    assert {name: numbers[name] for name in expected} == expected
    assert [row[0] for row in lines(numbers["LayerTable"])[3:]] == [r"50\,\%", r"10\,\%"]


def test_the_best_contiguous_split_is_what_the_prices_say():
    """10 s of pairs at full speed, 100 s at a tenth: 9.09 s in either layout, up to the last row of pairs."""
    price = {"kind": "cost", "source": "attention", "platform": "x", "setup": {}, "rows": 1}
    price |= {"lengths": [65536], "percentages": [10.0, 100.0], "attention_ms": [[100_000.0, 10_000.0]]}
    price |= {name: [[0.0, 0.0]] for name in ("token_us", "revisit_us", "join_us")}
    cells = layer_cells(LAYER)
    cells["block_lens"] = [(32768, 32768)] * len(cells)
    results = SimpleNamespace(platform="x", cells=cells, models={"cost-attention": price})
    sentence = paper_models.unmeasured(results, paper_models.Cells(results), "attention")
    assert r"best contiguous split at 9{,}091\,ms there, and the best zigzag split at 9{,}091\,ms." in sentence


def test_the_released_code_stands_beside_call_and_block_where_no_layer_was_measured():
    """The call's balanced split takes 50 ms, the slower rank of a traced block 104."""
    cells = layer_cells(LAYER)
    trace = pd.DataFrame(
        [
            ("zigzag/balanced", rank, kind, 0, 0, stop)
            for rank in (0, 1)
            for kind, stop in (("layer", 96 + 8 * rank), ("ready", 0))
        ],
        columns=["strategy", "rank", "kind", "step", "start_ms", "stop_ms"],
    ).assign(platform="x", seq_len=65536, percentage=10, layer=1)
    trace["percentages"] = [(100, 10)] * len(trace)
    results = SimpleNamespace(
        platform="x",
        cells=cells[cells.module == "attention"],
        provenance={"devices": ["NVIDIA H200"] * 2},
        model=model_table(),
        trace=trace,
    )
    numbers = paper_models.layer(results, STUDY)
    assert numbers.pop("HasLayer") == "0"
    sentence = numbers.pop("LayerCodeSentence")
    assert numbers == {}
    assert r"takes 6{,}419\,ms with \strategy{even} shards, 1{,}456\,ms with \strategy{uneven}" in sentence
    assert r"the balanced zigzag split's attention call takes 50.0\,ms" in sentence
    assert r"but fewer heads of KV, 104\,ms in the traced prefill" in sentence
    results.trace = pd.DataFrame()
    assert "block" not in paper_models.layer(results, STUDY)["LayerCodeSentence"]


@pytest.mark.parametrize(
    ("devices", "seq_len", "percentage"),
    [(["NVIDIA L40"] * 2, 65536, 10), (["NVIDIA H200"] * 2, 65536, 20), (["NVIDIA H200"] * 2, 4096, 10)],
)
def test_the_released_code_is_compared_on_the_same_devices_and_cell_only(devices, seq_len, percentage):
    cells = layer_cells(LAYER, seq_len, percentage)
    results = SimpleNamespace(platform="x", cells=cells, provenance={"devices": devices}, models={})
    assert "no measurements" in paper_models.layer(results, STUDY)["LayerCodeSentence"]


def model_table(peak: float = 20.0) -> pd.DataFrame:
    times = dict(zip(STRATEGIES, (9000.0, 4000.0, 2500.0, 2000.0), strict=True))
    common = {"seq_len": 4096, "percentage": 10, "architecture": "llama", "variant": "3_1", "layers": 2}
    common |= {"emb_dim": 1024, "heads": 8, "kv_heads": 2, "head_dim": 128, "dtype": "bfloat16", "repetitions": 3}
    common |= {"peak_memory_gb": (peak, peak / 2), "bound_ms": 1900.0, "fast_alone_ms": 2200.0, "throttle": "mps"}
    common |= {"percentages": (100, 10)}
    rows = [
        common
        | {"phase": "prefill", "system": "ring", "strategy": name, "latency_ms": time, "bound_fraction": 1900 / time}
        | {"block_lens": (3996, 100), "new_tokens": 0}
        for name, time in times.items()
    ]
    for rank, latency in enumerate((2200.0, 22000.0)):
        name = f"alone/rank{rank}"
        rows.append(common | {"phase": "prefill", "system": "alone", "strategy": name, "latency_ms": latency})
    for name, rate in (("alone/rank0", 50.0), ("alone/rank1", 45.0), ("zigzag/balanced", 60.0)):
        system = "alone" if name.startswith("alone") else "ring"
        rows.append(
            common
            | {"phase": "decode", "system": system, "strategy": name, "tokens_per_second": rate, "new_tokens": 32}
        )
    return pd.DataFrame(rows)


def test_a_whole_model_is_quoted_with_units_that_suit():
    results = SimpleNamespace(platform="x", model=model_table(), models={}, provenance=H200)
    numbers = paper_whole.whole(results)
    expected = {
        "HasWhole": "1",
        "WholeName": r"\code{llama/3\_1}",
        "WholeShape": "2 layers, 1{,}024 wide, 8 heads (2 of KV) of 128, bfloat16",
        "WholeRepetitions": "3",
        "WholeEvenTtft": r"9.00\,s",
        "WholeBalancedTtft": r"2.00\,s",
        "WholeAloneTtft": r"2.20\,s",
        "WholeBalancedVersusEven": "4.50 times faster than",
        "WholeBalancedVersusAlone": "1.10 times faster than",
        "WholeBalancedFraction": "0.950",
        "WholeWorstPlace": r"4{,}096 tokens and 10\,\%",
        "DecodeNewTokens": "32",
        "DecodeSlowRate": "60.0",
        "DecodeLimitSentence": "",
        "WholeFasterStill": "",
        "WholePredictionSentence": "",
        "WholeAboveSentence": "",
        "WholeFastestSentence": "The balanced split is the fastest of the four in all 1 cells.",
    }
    assert {name: numbers[name] for name in expected} == expected
    assert r"20.0\,GB on rank~0 and 10.0\,GB on rank~1" in numbers["WholeMemorySentence"]
    row = [r"4{,}096", r"10\,\%", "1.90", "2.20", "9.00", "4.00", "2.50", r"\textbf{2.00}", "0.950", "100"]
    assert lines(numbers["WholeTable"])[-1] == [*row, "20.0", "10.0"]
    assert lines(numbers["DecodeTable"])[-1] == [r"10\,\%", "50.0", "45.0", "60.0"]


def test_a_model_is_quoted_at_its_longest_prompt_and_its_slowest_rank():
    """At 1,024 tokens a tenth of the time and half the fraction; with both ranks at full speed half the time."""
    low = model_table()
    full = low.assign(percentage=100, latency_ms=low.latency_ms / 2, tokens_per_second=3 * low.tokens_per_second)
    short = pd.concat([full, low])[lambda rows: rows.phase == "prefill"].assign(seq_len=1024)
    short["latency_ms"], short["bound_fraction"] = short.latency_ms / 10, short.bound_fraction / 2
    short["bound_ms"], short["fast_alone_ms"] = 95.0, 220.0
    short.loc[short.percentage == 10, "bound_fraction"] *= 0.9
    table = pd.concat([short, full, low], ignore_index=True)
    numbers = paper_whole.whole(SimpleNamespace(platform="x", model=table, models={}, provenance=H200))
    expected = {
        "WholeLongLength": "4{,}096",
        "WholeLowPercentage": "10",
        "WholeCellCount": "4",
        "WholeBoundTtft": r"1.90\,s",
        "WholeAloneTtft": r"2.20\,s",
        "WholeEvenTtft": r"9.00\,s",
        "WholeZigzagEvenTtft": r"4.00\,s",
        "WholeUnevenTtft": r"2.50\,s",
        "WholeUnevenFraction": "0.760",
        "WholeBalancedVersusUneven": "1.25 times faster than",
        "WholeWorstFraction": "0.427",
        "WholeWorstPlace": r"1{,}024 tokens and 10\,\%",
        "DecodeLength": "4{,}096",
        "DecodeLowPercentage": "10",
        "DecodeSlowRate": "60.0",
        "DecodeFullRate": "180",
    }
    assert {name: numbers[name] for name in expected} == expected
    short_row = [r"1{,}024", r"10\,\%", "0.0950", "0.220", "0.900", "0.400", "0.250", r"\textbf{0.200}", "0.427", "100"]
    assert [*short_row, "20.0", "10.0"] in lines(numbers["WholeTable"])
    table["latency_ms"] /= 100  # at most 90 ms: the unit is ms
    quick = paper_whole.whole(SimpleNamespace(platform="x", model=table, models={}, provenance=H200))
    assert "time to first token (ms)" in quick["WholeTable"]
    assert "90.0" in lines(quick["WholeTable"])[-1]


def decoding(**rates: tuple[float, float]) -> SimpleNamespace:
    """Results with tokens a second of rank 0 alone, rank 1 alone and the ring, each at 100 and at 10 %."""
    table = model_table()
    slow = table[table.phase == "decode"]
    table = pd.concat([table, slow.assign(percentage=100)], ignore_index=True)
    names = {"fast": "alone/rank0", "slow": "alone/rank1", "ring": "zigzag/balanced"}
    for key, (full, low) in rates.items():
        for percentage, rate in ((100, full), (10, low)):
            at = (table.phase == "decode") & (table.strategy == names[key]) & (table.percentage == percentage)
            table.loc[at, "tokens_per_second"] = rate
    return SimpleNamespace(platform="x", model=table, models={}, provenance=H200)


def test_decoding_is_judged_at_every_percentage():
    """A gain on rank 0 at 10 % is none on rank 1, nor at 100 %."""
    found = paper_whole.decode(decoding(fast=(30.0, 25.0), slow=(32.0, 31.0), ring=(20.0, 28.0)))
    assert found["DecodeVersusSentence"] == (
        r"Beside rank~0 alone, the ring is 1.50 times slower than it at 100\,\% and 1.12 times faster than it at "
        r"10\,\%; beside rank~1 alone, 1.60 times slower than it at 100\,\% and 1.11 times slower than it at 10\,\%. "
        "The medians are of 3 repetitions, and rank~0 alone, which is never throttled, generates 25.0 to 30.0 tokens "
        "per second."
    )
    assert found["DecodeVerdict"] == "faster than each rank alone in none of 2 settings"
    assert "rank~1 alone generates 31.0 tokens per second" in found["DecodeLimitSentence"], "it loses at 100 %"
    gains = paper_whole.decode(decoding(fast=(30.0, 25.0), slow=(32.0, 31.0), ring=(33.0, 33.0)))
    assert gains["DecodeVerdict"] == "faster than each rank alone in all 2 settings"
    assert gains["DecodeLimitSentence"] == ""


def test_a_balanced_split_that_loses_is_said_to():
    """The proportional split takes 1,800 ms instead of 2,500; 2,000 is 1.11 times that, and 1,900 / 1,800 is 1.056."""
    table = model_table()
    faster = table.strategy == "zigzag/uneven"
    table.loc[faster, ["latency_ms", "bound_fraction"]] = (1800.0, 1900 / 1800)
    price = {
        "kind": "cost",
        "source": "block",
        "platform": "x",
        "setup": {},
        "rows": 1,
        "lengths": [4096],
        "percentages": [10.0, 100.0],
        "attention_ms": [[1e-3, 1e-4]],
        "token_us": [[2600.0, 280.0]],
        "revisit_us": [[0.0, 0.0]],
        "join_us": [[0.0, 0.0]],
    }
    results = SimpleNamespace(platform="x", model=table, models={"cost-block": price}, provenance=H200)
    numbers = paper_whole.whole(results)
    assert numbers["WholeFasterStill"] == r"; \strategy{zigzag/uneven} is 1.11 times faster still"
    assert numbers["WholeFastestSentence"] == (
        r"The balanced split is the fastest of the four in none of 1 cells, \strategy{zigzag/uneven} in 1; the "
        "balanced split takes at most 1.11 times as long as the fastest."
    )
    assert (
        r"In 1 of 4 measurements, of all strategies in all cells, the fraction exceeds one, by 5.6\,\% at most."
        in (numbers["WholeAboveSentence"])
    )
    # 2 x 280 us x 3,996 tokens = 2,238 ms; alone 2 x 280 us x 4,096 = 2,294 of 2,200 ms, and 21,299 of 22,000.
    assert r"at 2.24\,s, because of rank~0, and not at the 1.80\,s" in numbers["WholePredictionSentence"]
    assert "at 1.04 times on rank~0 and 0.968 times on rank~1" in numbers["WholePredictionSentence"]
    price["token_us"] = [[2600.0, 180.0]]
    assert paper_whole.whole(results)["WholePredictionSentence"] == "", "1.44 s is no reason not to choose it"


READING = r"20.0\,GB that rank~0 held takes 4.2\,ms at the 4.8\,TB/s of its memory~\cite{nvidia2024h200}"


@pytest.mark.parametrize(
    ("ring", "slow", "device", "throttle", "words"),
    [
        (40.0, 45.0, "NVIDIA H200", "mps", rf"{READING}, where a token takes 20.0\,ms."),
        (40.0, 45.0, "Another GPU", "mps", r"at 10\,\% of its multiprocessors, 45.0 at 100\,\%. What is left is"),
        (40.0, 20.0, "NVIDIA H200", "mps", ""),
        (60.0, 45.0, "NVIDIA H200", "mps", ""),
        (40.0, 45.0, "NVIDIA H200", "pacing", ""),
    ],
    ids=["no-gain", "unknown-memory", "limited-by-computing", "gain", "paced"],
)
def test_a_ring_that_decodes_no_faster_is_explained_by_what_does_not_limit_it(ring, slow, device, throttle, words):
    """20 GB at 4.8 TB/s beside 50 tokens a second. A paced rank has all its multiprocessors: nothing is explained."""
    table = model_table().assign(throttle=throttle)
    whole = table[table.phase == "decode"].assign(percentage=100)
    table.loc[(table.phase == "decode") & (table.strategy == "zigzag/balanced"), "tokens_per_second"] = ring
    table.loc[(table.phase == "decode") & (table.strategy == "alone/rank1"), "tokens_per_second"] = slow
    results = SimpleNamespace(platform="x", model=pd.concat([table, whole]), provenance={"devices": [device] * 2})
    sentence = paper_whole.decode(results)["DecodeLimitSentence"]
    assert (words in sentence) if words else sentence == ""


def test_memory_that_is_not_recorded_has_no_columns():
    numbers = paper_whole.whole(SimpleNamespace(platform="x", model=model_table(peak=0.0), models={}, provenance=H200))
    assert numbers["WholeMemorySentence"] == "Memory is not recorded on this platform."
    assert "memory" not in numbers["WholeTable"]
    assert len(lines(numbers["WholeTable"])[-1]) == 10


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_of_the_model_that_was_not_measured_is_named(name):
    table = model_table()
    results = SimpleNamespace(platform="x", model=table[table.strategy != name], models={}, provenance=H200)
    with pytest.raises(ValueError, match=f"platform x, prefill of a model: no .* of strategy {name} at 4096"):
        paper_whole.whole(results)


def test_a_trace_says_the_most_that_the_balanced_split_loses():
    """Rank 1 of 100 ms waits 4 ms until rank 0 is ready and 6 more for the transfer."""
    events = [
        *(("zigzag/balanced", 0, "layer", 0, 0, 90), ("zigzag/balanced", 0, "ready", 0, 14, 14)),
        *(("zigzag/balanced", 1, "layer", 0, 0, 100), ("zigzag/balanced", 1, "ready", 0, 8, 8)),
        ("zigzag/balanced", 1, "wait", 1, 10, 20),
        *(("contiguous/even", 0, "layer", 0, 0, 30), ("contiguous/even", 0, "ready", 0, 5, 5)),
        *(("contiguous/even", 1, "layer", 0, 0, 300), ("contiguous/even", 1, "ready", 0, 50, 50)),
    ]
    trace = pd.DataFrame(events, columns=["strategy", "rank", "kind", "step", "start_ms", "stop_ms"])
    trace = trace.assign(platform="x", seq_len=4096, percentage=10, layer=16)
    trace["percentages"] = [(100, 10)] * len(trace)
    numbers = paper_whole.trace(SimpleNamespace(trace=trace))
    assert (numbers["TraceWaiting"], numbers["TraceExposed"], numbers["TraceLayer"]) == (r"4.0\,\%", r"6.0\,\%", "16")
    even, _, balanced, slow = lines(numbers["TraceTable"])[1:]
    assert even == [r"10\,\%", r"\strategy{contiguous/even}", "0", "30.0", "30.0", "0.00", "0.00"]
    assert balanced[:3] == ["", r"\strategy{zigzag/balanced}", "0"]
    assert slow == ["", "", "1", "100", "90.0", "4.00", "6.00"]
    assert numbers["TraceBusy"] == r"90.0\,ms and 90.0\,ms"
    ahead = r"the layer takes it 30.0\,ms where it takes rank~1 300\,ms"
    assert numbers["TraceAheadSentence"] == f"{ahead}, and it is idle for the difference by the end of the prefill."
    # It is held for 24 ms by a reader that comes to the layer at 50.
    held = trace[trace.strategy.eq("contiguous/even") & trace.kind.eq("ready") & trace["rank"].eq(0)]
    held = held.assign(kind="sent", step=1, start_ms=6, stop_ms=30)
    numbers = paper_whole.trace(SimpleNamespace(trace=pd.concat([trace, held])))
    assert r"though it is busy for 6.00\,ms only: it does not go on before" in numbers["TraceAheadSentence"]


def test_a_trace_is_quoted_at_the_slowest_rank():
    """At 100 % everything takes half as long as at 10 %."""
    columns = ["strategy", "rank", "kind", "step", "start_ms", "stop_ms"]

    def one(percentage, factor):
        events = [
            (name, rank, kind, 0, 0, stop)
            for name, ms in (("contiguous/even", 300), ("zigzag/balanced", 100))
            for rank in (0, 1)
            for kind, stop in (("layer", factor * ms), ("ready", 0))
        ]
        table = pd.DataFrame(events, columns=columns).assign(
            platform="x", seq_len=4096, percentage=percentage, layer=16
        )
        table["percentages"] = [(100, percentage)] * len(table)
        return table

    numbers = paper_whole.trace(SimpleNamespace(trace=pd.concat([one(10, 1), one(100, 0.5)])))
    assert (numbers["TraceLength"], numbers["TraceLowPercentage"]) == ("4{,}096", "10")
    assert numbers["TraceBusy"] == r"100\,ms and 100\,ms"
    assert r"300\,ms where it takes rank~1 300\,ms" in numbers["TraceAheadSentence"]
    assert [row[0] for row in lines(numbers["TraceTable"])[1:]] == [r"100\,\%", "", "", "", r"10\,\%", "", "", ""]

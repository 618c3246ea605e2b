"""The paper's numbers: how they are written, what they are on a frame worked out by hand, and what is refused."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import paper_numbers
from heteroring.results.results import Results
from paper import attention_sentences as paper_verdicts
from paper import published_study
from paper import tex as paper_tex
from synthetic import GPU, TINY, write_platform

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "data" / "published"


def numbers(main, live) -> dict[str, str]:
    return paper_numbers.numbers(main, live, published_study.read(PUBLISHED))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("data") / TINY.platform
    write_platform(folder, TINY)
    return Results.load(folder)


# 100 tokens, ranks at 100 and 50 %: the whole attention takes 10 ms on a full rank and 20 ms on the slow one, so
# the bound is 1 / (1/10 + 1/20) = 20/3 ms, and 5 ms for two full ranks.
LATENCY = {  # strategy: (ms at 100 %, ms at 50 %)
    "contiguous/even": (8.0, 16.0),
    "contiguous/uneven": (8.0, 12.0),
    "contiguous/lut": (8.0, 12.5),
    "contiguous/formula": (8.0, 11.0),
    "zigzag/even": (5.0, 10.0),
    "zigzag/uneven": (5.0, 7.0),
    "zigzag/lut": (5.0, 7.5),
    "zigzag/formula": (5.0, 7.25),
    "zigzag/balanced": (5.0, 6.75),
}


SHOWN = {"condition": "rested", "order": "slow last"}


def by_hand() -> SimpleNamespace:
    cells, measurements = [], []
    for index, percentage in enumerate((100, 50)):
        alone = (10.0, 10.0 * 100 / percentage)
        bound = 1 / sum(1 / time for time in alone)
        common = {"seq_len": 100, "percentage": percentage, "module": "attention", "clamped": False, **SHOWN}
        for rank, time in enumerate(alone):
            name = f"alone/rank{rank}"
            cells.append(common | {"system": "alone", "strategy": name, "latency_ms": time})
        for name, times in LATENCY.items():
            layout, allocator = name.split("/")
            time = times[index]
            even = (50, 50) if allocator == "even" or percentage == 100 else (67, 33)
            cells.append(
                common
                | {
                    "system": "ring",
                    "strategy": name,
                    "block_lens": even,
                    "repetitions": 5,
                    "latency_ms": time,
                    "latency_p20_ms": 0.9 * time,
                    "latency_p80_ms": 1.1 * time,
                    "slowdown": time / LATENCY[f"{layout}/even"][0],
                    "efficiency": LATENCY[f"{layout}/even"][0] / time,
                    "speedup": LATENCY[f"{layout}/even"][index] / time,
                    "bound_ms": bound,
                    "bound_fraction": bound / time,
                    "imbalance": 1.25,
                    "fast_alone_ms": alone[0],
                    "bytes_moved": 2_500_000,
                }
            )
            measurements.append(
                {
                    "system": "ring",
                    "module": "attention",
                    "strategy": name,
                    **SHOWN,
                    "allocator": allocator,
                    "model_source": "matmul",
                }
                | {"throttle": "pacing", "block": "cpu", "transport": "p2p", "dtype": "float32", "batch": 1}
                | {"heads": 4, "kv_heads": 2, "head_dim": 64}
            )
    profile = [
        {"kind": kind, "size": size, "percentage": percentage, "relative_speed": speed}
        for kind, size, speeds in (
            ("matmul", 64, (1.0, 0.9)),
            ("matmul", 128, (1.0, 0.7)),
            ("attention", 100, (1.0, 0.5)),
        )
        for percentage, speed in zip((100, 50), speeds, strict=True)
    ]
    return SimpleNamespace(
        platform="cpu",
        device_label="2 paced CPU ranks (R&D_1)",
        cells=pd.DataFrame(cells),
        measurements=pd.DataFrame(measurements),
        profile=pd.DataFrame(profile),
        model=pd.DataFrame(),
        trace=pd.DataFrame(),
        notes="Recorded at 100 % of R&D's speed.",
        models={
            f"formula-{kind}": {"r2": 0.9, "r2_leave_one_percentage_out": -1.5, "r2_leave_one_length_out": 0.25}
            for kind in ("matmul", "attention")
        },
        provenance={
            "devices": ["R&D_1", "R&D_1"],
            "cpu": {"model": "R&D_1", "cores": 2},
            "driver": "",
            "python": "3.11.2",
            "torch": "2.13.0",
            "triton": "unknown",
            "numpy": "2.4.6",
            "commit": "0123456789abcdef 1123456789abcdef",
            "dirty": True,
            "date": "2026-01-02T03:04:05+00:00",
        },
    )


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.0, 3, "1.00"),
        (0.95449, 3, "0.954"),
        (0.0954, 3, "0.0954"),
        (43.21, 3, "43.2"),
        (99.96, 3, "100"),
        (9.996, 3, "10.0"),
        (0.9996, 3, "1.00"),
        (123.4, 3, "123"),
        (6196.21, 3, "6{,}196"),
        (1234567.8, 3, "1{,}234{,}568"),
        (-1.5, 3, "-1.50"),
        (0.0, 3, "0.00"),
        (1.666, 2, "1.7"),
        (16.66, 2, "17"),
    ],
)
def test_rounding_keeps_significant_digits_and_the_integer_part(value, digits, text):
    assert paper_tex.rounded(value, digits) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_printed(value):
    with pytest.raises(ValueError, match="finite"):
        paper_tex.rounded(value)


@pytest.mark.parametrize(
    ("value", "places", "text"), [(0.00683, 2, "0.01"), (0.0, 2, "0.00"), (0.695, 2, "0.69"), (57.52, 2, "57.5")]
)
def test_rounding_can_be_held_to_some_decimals(value, places, text):
    assert paper_tex.rounded(value, places=places) == text


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (0.213, r"21\,\%"),
        (0.00019, r"0.019\,\%"),
        (0.0001, r"0.010\,\%"),
        (0.00009, r"less than 0.01\,\%"),
        (0.0, r"less than 0.01\,\%"),
    ],
)
def test_a_share_that_is_next_to_nothing_is_not_called_nothing(part, text):
    assert paper_tex.share(part) == text


@pytest.mark.parametrize(("number", "text"), [(45, "all 45"), (0, "none of 45"), (36, "36 of 45")])
def test_counts_out_of_all_are_words_where_words_say_more(number, text):
    assert paper_tex.out_of(number, 45) == text


@pytest.mark.parametrize(
    ("time", "other", "words"),
    [
        (10.0, 15.0, "1.50 times faster than"),
        (15.0, 10.0, "1.50 times slower than"),
        (10.0, 10.05, "as fast as"),
        (10.0, 9.95, "as fast as"),
        (10.0, 10.2, "1.02 times faster than"),
    ],
)
def test_comparisons_are_words_that_the_data_choose(time, other, words):
    assert paper_tex.versus(time, other) == words


def test_lists_and_names_read_well():
    assert paper_tex.listed(["a"]) == "a"
    assert paper_tex.listed(iter(["a", "b"])) == "a and b"
    assert paper_tex.listed(["a", "b", "c"]) == "a, b and c"
    assert paper_tex.escaped(r"50% of A_1 & B #2 {x} \y ~z ^") == (
        r"50\% of A\_1 \& B \#2 \{x\} \textbackslash{}y \textasciitilde{}z \textasciicircum{}"
    )
    assert paper_tex.count(65536) == "65{,}536"
    assert paper_tex.percent(10) == r"10\,\%"


def test_values_are_those_worked_out_by_hand():
    results = by_hand()
    macros = numbers(results, results)
    expected = {
        "LiveIsMain": "1",
        "MainDevice": r"2 paced CPU ranks (R\&D\_1)",
        "MainDate": "2026-01-02",
        "MainRepetitions": "5",
        "MainProfiled": "square matrix products, as in the study",
        "MainCellCount": "1",
        "MainLongLength": "100",
        "MainLowPercentage": "50",
        "MainEvenMs": "16.0",
        "MainUnevenMs": "12.0",
        "MainBalancedMs": "6.75",
        "MainAloneMs": "10.0",
        "MainBoundMs": "6.67",
        "MainBalancedFraction": "0.988",  # (20/3) / 6.75
        "MainUnevenFraction": "0.556",  # (20/3) / 12
        "MainEvenSlowdown": "2.00",
        "MainUnevenSlowdown": "1.50",
        "MainUnevenSpeedup": "1.33",
        "MainUnevenEfficiency": "0.667",
        "MainPerfectEfficiency": "0.750",  # 5 / (20/3)
        "MainBalancedVersusEven": "2.37 times faster than",
        "MainBalancedVersusUneven": "1.78 times faster than",
        "MainEqualVersus": "1.60 times faster than",
        "MainEqualContiguousFraction": "0.625",  # 5 / 8
        "MainEqualZigzagMegabytes": "2.50",
        "MainWinner": r"\strategy{zigzag/balanced}",
        "MainWinnerCount": "1",
        "MainZigzagWins": "all 1",
        "MainUnevenLosses": "0",
        "MainLutWins": "0",
        "MainFormulaWins": "1",
        "MainZigzagFormulaWins": "0",
        "MainBalancedWins": "1",
        "MainContiguousBest": r"\strategy{contiguous/formula}",
        "MainContiguousBestMs": "11.0",
        "MainBalancedVersusContiguous": "1.63 times faster than",
        "MainBalancedByLength": "0.988 at 100",
        "MainBestSpeedupSentence": "Ours is the largest of the grid with contiguous shards",
        "MainRecordNote": r"Recorded at 100 \% of R\&D's speed.",
        "MainAboveOneSentence": "",
        "MainEfficiencySentence": "",
        "MainSpread": r"20\,\%",
        "MainClampedCount": "none of 4",
        "MainSpreadLong": r"20\,\%",
        "MainSpreadLongMost": r"20\,\%",
        "MainClearWins": "all 1",  # all zigzag strategies make one split, and the best contiguous one takes 11 ms
        "MainHeldLengthClause": "; predicting each size from the others, 0.250 and 0.250",
        "MainLeftOutSentence": "",
        "MainMatmulMiddle": "0.700",  # of the larger product
        "MainAttentionMiddle": "0.500",
        "MainMatmulRsquared": "0.900",
        "MainMatmulHeldOut": "-1.50",
    }
    assert {name: macros[name] for name in expected} == expected
    assert "not measured" in macros["MainPeerSentence"]
    assert "0123456789 and 1123456789 (modified)" in macros["MainEnvironmentTable"]
    assert r"2 $\times$ R\&D\_1" in macros["MainEnvironmentTable"]


def on_a_grid() -> SimpleNamespace:
    """`by_hand` at 100 tokens, with a second throttle setting, 25 %, and a second length, 60.

    At 25 % everything takes twice as long as at 50 %. At 60 tokens a ring takes half as long and a rank alone a
    quarter, the ring comes half as near to the bound and gains three times as much. Strategy i of LATENCY moves
    1 + i MB and is 1 + i / 10 times out of balance.
    """
    results = by_hand()
    cells, ring = results.cells, results.cells.system == "ring"
    order = cells[ring].strategy.map(list(LATENCY).index)
    cells.loc[ring, "bytes_moved"], cells.loc[ring, "imbalance"] = 1e6 * (1 + order), 1 + order / 10
    low = cells[cells.percentage == 50].assign(percentage=25, bound_ms=8.0)
    low.loc[low.strategy != "alone/rank0", "latency_ms"] *= 2
    low["bound_fraction"] = low.bound_ms / low.latency_ms
    short = pd.concat([cells, low]).assign(seq_len=60)
    short["latency_ms"] /= short.system.map({"ring": 2, "alone": 4})
    short["bound_fraction"] /= 2
    short["speedup"] *= 3
    short["block_lens"] = short.block_lens.map({(50, 50): (30, 30), (67, 33): (40, 20)})
    results.cells = pd.concat([cells, low, short], ignore_index=True)
    slow = results.profile[results.profile.percentage == 50].assign(percentage=25)
    slow["relative_speed"] = slow.kind.map({"matmul": 0.4, "attention": 0.1})
    results.profile = pd.concat([results.profile, slow], ignore_index=True)
    return results


def test_values_are_those_of_the_cell_that_the_text_names():
    """Of two lengths the longer, of two settings the lower, and each strategy's own."""
    macros = numbers(on_a_grid(), on_a_grid())
    expected = {
        "LongLength": "100",
        "ShortLength": "60",
        "LowPercentage": "25",
        "CellCount": "4",
        "WinnerCount": "4",
        "EvenMs": "32.0",
        "UnevenMs": "24.0",
        "ZigzagEvenMs": "20.0",
        "ZigzagUnevenMs": "14.0",
        "BalancedMs": "13.5",
        "AloneMs": "10.0",
        "BoundMs": "8.00",
        "BalancedVersusAlone": "1.35 times slower than",
        "EvenFraction": "0.250",
        "UnevenFraction": "0.333",
        "ZigzagUnevenFraction": "0.571",
        "BalancedFraction": "0.593",
        "EvenImbalance": "1.00",
        "UnevenImbalance": "1.10",
        "ZigzagUnevenImbalance": "1.50",
        "BalancedImbalance": "1.80",
        "EvenMedianFraction": "0.229",  # of 0.417, 0.250 and half of each
        "BalancedMedianFraction": "0.543",
        "BalancedByLength": "0.395 at 60 and 0.790 at 100",
        "BalancedWorstFraction": "0.296",
        "BalancedWorstPlace": r"60 tokens and 25\,\%",
        "PerfectEfficiency": "0.625",  # 5 / 8
        "EqualContiguousMs": "8.00",
        "EqualZigzagMs": "5.00",
        "EqualZigzagFraction": "1.00",
        "EqualContiguousMegabytes": "1.00",
        "EqualZigzagMegabytes": "5.00",
        "PredictedSpeedup": "1.36",  # 3775 / 2772 pairs on rank 1
        "PredictedFraction": "0.364",  # 8 / (40 * 2772 / 5050)
        "BestSpeedupSentence": r"The largest of the grid with contiguous shards, 4.00, is at 60 tokens and 25\,\%",
        "MiddlePercentage": "50",
        "MatmulMiddle": "0.700",
        "AttentionMiddle": "0.500",
        "GapPercentage": "25",
        "MatmulGap": "0.400",
        "AttentionGap": "0.100",
    }
    assert {name: macros[f"Main{name}"] for name in expected} == expected
    ratios = {n: float(macros[f"MainModelRatio{n}"]) for n in ("", "Long")}
    assert ratios["Long"] == pytest.approx(1.07, abs=0.01)  # the text's own cell only
    assert ratios[""] > 1.3 * ratios["Long"]  # rings of 60 tokens take twice as long as their pairs
    head = macros["MainLatencyTable"].splitlines()[2:4]
    assert head[0] == r" &  &  & \multicolumn{4}{c}{contiguous} & \multicolumn{5}{c}{zigzag} \\"
    assert head[1].startswith(r"tokens & bound & fast alone & \strategy{even} & \strategy{uneven} & \strategy{lut}")
    rows = macros["MainStrategyTable"].splitlines()
    assert r"\strategy{zigzag/uneven} & 0 & 2.47 & 0.524 & 0.286 & 1.50 \\" in rows
    assert sum(row.startswith(r"\strategy") for row in rows) == len(LATENCY)
    assert r"25\,\% & 50 & 33 & 33 & 33 & 33 \\" in macros["LiveTokensTable"].splitlines()
    assert r"50\,\% & 0.494 & 0.988 \\" in macros["LiveGridTable"].splitlines()
    table = macros["MainEnvironmentTable"].splitlines()
    assert r"Driver & none \\" in table
    assert r"Software & python 3.11.2, torch 2.13.0, triton unknown, numpy 2.4.6 \\" in table
    assert r"Kernel & cpu; transport p2p \\" in table
    assert r"Tokens & 60 and 100 \\" in table


def test_others_are_quoted_at_equal_and_at_the_slowest_ranks():
    """PyTorch's ring takes 1.1 times as long as the even zigzag split, which the table sets beside ours."""
    results = by_hand()
    even = results.cells[results.cells.strategy == "zigzag/even"]
    peer = even.assign(system="context_parallel", latency_ms=1.1 * even.latency_ms)
    single = even.assign(system="sdpa", strategy="contiguous/alone", latency_ms=[9.0, 9.5])
    results.cells = pd.concat([results.cells, peer, single], ignore_index=True)
    macros = numbers(results, results)
    assert macros["MainPeerSentence"] == (
        r"PyTorch's \code{context\_parallel}, which shards evenly, takes 5.50\,ms at 100\,\%, where "
        r"\strategy{zigzag/even} takes 5.00\,ms, and 11.0\,ms at 50\,\%, where \strategy{zigzag/balanced} takes "
        r"7.12\,ms. On one unthrottled GPU, PyTorch's attention takes 9.50\,ms and our kernel 10.0\,ms."
    )
    row = next(line for line in macros["MainLatencyTable"].splitlines() if line.startswith("100 &"))
    assert row.endswith(r" & \textbf{6.75} & 11.0 \\")
    assert macros["MainAloneSentence"].startswith("Balanced zigzag shards beat")


def test_the_work_model_counts_pairs_at_the_speed_of_each_rank_alone():
    """Even contiguous halves of 100 tokens: 50*51/2 = 1275 of 5050 pairs, and 3775 on the slow rank (20 ms)."""
    cells = paper_numbers.ring_cells(by_hand())
    assert cells.predicted("contiguous/even", (100, 50)) == pytest.approx(20 * 3775 / 5050)
    # 67 tokens in front: 67*68/2 = 2278 pairs at full speed, 2772 at half of it.
    assert cells.predicted("contiguous/uneven", (100, 50)) == pytest.approx(20 * 2772 / 5050)
    assert cells.predicted("zigzag/even", (100, 50)) == pytest.approx(10.0)


def test_the_best_of_a_row_is_bold():
    macros = numbers(by_hand(), by_hand())
    row = next(line for line in macros["MainLatencyTable"].splitlines() if line.startswith("100 &"))
    assert row == r"100 & 6.67 & 10.0 & 16.0 & 12.0 & 12.5 & 11.0 & 10.0 & 7.00 & 7.50 & 7.25 & \textbf{6.75} \\"
    fractions = macros["MainFractionTable"].splitlines()
    assert r"50\,\% & 0.417 & 0.556 & 0.533 & 0.606 & 0.667 & 0.952 & 0.889 & 0.920 & \textbf{0.988} \\" in fractions


def test_whatever_reads_like_the_best_is_bold_too():
    assert paper_tex.emphasized(["1.76", "1.75", "1.75"], "1.75") == ["1.76", r"\textbf{1.75}", r"\textbf{1.75}"]


def change(results, strategy: str, percentage: int = 50, **values) -> None:
    """Put other values into a ring's cell."""
    at = (results.cells.strategy == strategy) & (results.cells.percentage == percentage)
    for column, value in values.items():
        results.cells.loc[at, column] = pd.Series([value] * at.sum(), index=results.cells.index[at])


def test_the_split_is_set_beside_the_rank_alone():
    """6.75 of 10 ms; then with all tokens on rank 0, where the call takes 11 ms."""
    results = by_hand()
    say = paper_verdicts.beside_the_rank_alone
    assert say(paper_numbers.ring_cells(results)) == (
        "Balanced zigzag shards beat the unthrottled rank alone in all 1 cells in which they use both ranks; they take "
        r"at most 0.675 times as long as that, at 100 tokens and 50\,\%."
    )
    change(results, "zigzag/balanced", latency_ms=11.0, block_lens=(100, 0))
    assert say(paper_numbers.ring_cells(results)) == (
        "In 1 cells the allocator itself leaves the slow rank out, and the call is that of the rank alone, measured "
        "again: it takes 1.10 times as long."
    )
    assert paper_verdicts.left_out(paper_numbers.ring_cells(results)) == (
        r"; in 1 it gives the whole prompt to rank~0, at no more than 100 tokens and 50\,\%"
    )
    macros = numbers(results, results)
    assert macros["MainZigzagWins"] == "all 1", "by the proportional split"
    assert r"11.0\rlap{$^{\ast}$} \\" in macros["MainLatencyTable"]


def test_a_rank_alone_is_no_split_that_wins():
    results = by_hand()
    change(results, "zigzag/balanced", block_lens=(100, 0))
    macros = numbers(results, results)
    assert macros["MainZigzagWins"] == "none of 1"
    assert r"\textbf{6.75}\rlap{$^{\ast}$} \\" in macros["MainLatencyTable"]


def test_strategies_that_make_one_split_are_pooled_and_none_of_them_wins():
    """All five zigzag strategies make the even split of equal ranks; one of them was lucky."""
    results = by_hand()
    change(results, "zigzag/even", 100, latency_ms=4.0, bound_fraction=1.25)
    cells = paper_numbers.ring_cells(results)
    assert cells.pooled("zigzag/even", (100, 100)) == 5.0
    macros = numbers(results, results)
    assert (macros["MainEqualZigzagMs"], macros["MainEqualVersus"]) == ("5.00", "1.60 times faster than")
    assert macros["MainEqualNoiseSentence"].startswith(
        "All 4 strategies with contiguous shards make the same call there, and 5 with zigzag ones; we give the median "
        r"of theirs. They lie less than 0.01\,\% and 20\,\% apart"
    )
    full = next(line for line in macros["MainFractionTable"].splitlines() if line.startswith("100"))
    assert "textbf" not in full
    change(results, "zigzag/even", 100, block_lens=(49, 51))
    full = next(line for line in numbers(results, results)["MainFractionTable"].splitlines() if "1.25" in line)
    assert r"\textbf{1.25}" in full, "nobody else makes that split"


def test_wins_are_those_of_the_two_that_are_named():
    """LUT beats the proportional split in both layouts, the formula the contiguous one; the balanced loses."""
    results = by_hand()
    change(results, "contiguous/lut", latency_ms=11.9, clamped=True)
    change(results, "zigzag/lut", latency_ms=6.9, clamped=True)
    change(results, "zigzag/balanced", latency_ms=7.2)
    change(results, "zigzag/formula", efficiency=1.3)  # of no concern to the sentence on contiguous shards
    macros = numbers(results, results)
    expected = {
        "UnevenLosses": "0",
        "LutWins": "1",
        "FormulaWins": "1",
        "ZigzagLutWins": "1",
        "ZigzagFormulaWins": "0",
        "BalancedWins": "0",
        "ClampedCount": "2 of 4",
        "EfficiencySentence": "",
    }
    assert {name: macros[f"Main{name}"] for name in expected} == expected


def test_a_win_is_clear_when_repetitions_hardly_overlap():
    results = by_hand()
    change(results, "zigzag/uneven", block_lens=(70, 30))
    assert not paper_numbers.ring_cells(results).clearly_won((100, 50)), "7.43 ms is above 6.3 ms"
    change(results, "zigzag/balanced", latency_p80_ms=6.2)
    assert paper_numbers.ring_cells(results).clearly_won((100, 50)), "below 0.9 x 7 ms"


def test_whole_tiles_are_set_beside_the_split_of_the_label():
    results = by_hand()
    assert paper_verdicts.aligned(paper_numbers.ring_cells(results)) == "", "the same tokens in the only cell"
    other = results.cells[results.cells.percentage == 50].assign(percentage=40)
    results.cells = pd.concat([results.cells, other], ignore_index=True)
    for percentage in (50, 40):
        change(results, "zigzag/balanced", percentage, block_lens=(64, 32))
    change(results, "zigzag/uneven", 50, block_lens=(32, 64))
    change(results, "zigzag/uneven", 40, block_lens=(65, 31), latency_ms=13.5)
    sentence = paper_verdicts.aligned(paper_numbers.ring_cells(results))
    assert "in multiples of 32 tokens, proportional ones only in 1 of the cells" in sentence
    assert "they take 1.04 times as long as the balanced ones in the median, and 2.00 times" in sentence


def test_what_exceeds_the_bound_or_the_reference_is_said():
    results = by_hand()
    change(results, "zigzag/balanced", bound_fraction=1.036)
    change(results, "zigzag/uneven", 100, bound_fraction=1.01)
    change(results, "contiguous/formula", efficiency=1.12)
    found = paper_verdicts.verdicts(results, paper_numbers.ring_cells(results))
    above = r"In 2 of 18 measurements, of all strategies in all cells, the fraction exceeds one, by 3.6\,\% at most."
    assert found["AboveOneSentence"] == above
    assert "in 1 throttled cells and by up to 1.12:" in found["EfficiencySentence"]


@pytest.mark.parametrize(
    ("tokens", "zigzag_ms", "words"),
    [
        ((70, 30), 7.25, "In all 1 cells the formula gives the slow rank fewer tokens"),
        ((70, 30), 6.9, "the faster one in 1 with contiguous shards and in 1 with zigzag ones."),
        ((67, 33), 7.25, "In none of 1 cells"),
    ],
)
def test_what_an_understated_share_does_to_each_layout(tokens, zigzag_ms, words):
    """The formula is faster than the label with contiguous shards (11 of 12 ms), and slower with zigzag ones."""
    results = by_hand()
    change(results, "contiguous/formula", block_lens=tokens)
    change(results, "zigzag/formula", latency_ms=zigzag_ms)
    sentence = paper_verdicts.understated(paper_numbers.ring_cells(results))
    assert words in sentence
    assert ("reward whatever understates" in sentence) == (tokens == (70, 30) and zigzag_ms > 7)


def test_real_records_of_both_platforms_give_all_macros_once(tiny, tmp_path):
    grid = replace(GPU, lengths=(4096, 8192), percentages=(10, 100), repetitions=2)
    write_platform(tmp_path / grid.platform, grid)
    recorded = Results.load(tmp_path / grid.platform)
    alike, apart = numbers(tiny, tiny), numbers(recorded, tiny)
    assert list(alike) == list(apart)
    assert (alike["LiveIsMain"], apart["LiveIsMain"]) == ("1", "0")
    assert apart["MainDevice"] == r"2~$\times$~NVIDIA H200, MPS"
    assert apart["LiveDevice"] == alike["MainDevice"] == alike["LiveDevice"]
    assert "takes" in apart["MainPeerSentence"]
    assert "torch CP" in apart["MainLatencyTable"]
    for name, text in apart.items():
        assert name.isalpha(), name
        assert "nan" not in text.lower().replace("contiguous", ""), name


def test_notes_and_the_prices_of_blocks_come_with_a_platform(tmp_path):
    folder = tmp_path / TINY.platform
    write_platform(folder, TINY)
    assert Results.load(folder).notes == ""
    (folder / "notes.txt").write_text("Taken two\nat a time.\n")
    (folder / "model" / "models").mkdir()
    (folder / "model" / "models" / "cost-block.json").write_text('{"kind": "cost"}')
    results = Results.load(folder)
    assert results.notes == "Taken two at a time."
    assert results.models["cost-block"] == {"kind": "cost"}
    assert {"formula-matmul", "cost-attention"} < set(results.models)


def test_the_file_is_written_whole_and_defines_every_macro(tiny, tmp_path):
    folder = tmp_path / TINY.platform
    write_platform(folder, TINY)
    output = tmp_path / "latex" / "generated" / "numbers.tex"
    paper_numbers.write(folder, folder, PUBLISHED, output)
    text = output.read_text()
    of_study = published_study.numbers(published_study.read(PUBLISHED))
    assert of_study
    for name in [*numbers(tiny, tiny), *of_study]:
        assert text.count(rf"\newcommand{{\{name}}}{{") == 1
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("name", list(LATENCY))
def test_a_strategy_that_was_not_measured_is_named(name):
    results = by_hand()
    results.cells = results.cells[results.cells.strategy != name]
    with pytest.raises(paper_numbers.MissingData, match=rf"platform cpu.* {name} at 100 tokens"):
        numbers(by_hand(), results)


@pytest.mark.parametrize("column", ["bound_fraction", "speedup", "fast_alone_ms", "slowdown"])
def test_a_metric_without_its_reference_is_named(column):
    results = by_hand()
    results.cells[column] = math.nan
    with pytest.raises(paper_numbers.MissingData, match=f"no {column} of strategy"):
        numbers(results, results)


def without_alone(results):
    results.cells = results.cells[results.cells.system != "alone"]


def without_throttling(results):
    results.cells = results.cells[results.cells.percentage == 100]


def without_cells(results):
    results.cells = results.cells[results.cells.seq_len < 0]


def without_attention_profile(results):
    results.profile = results.profile[results.profile.kind != "attention"]


def without_formula(results):
    results.models = {}


def test_a_formula_of_one_size_predicts_no_other():
    assert paper_numbers.held_length([0.25, None]) == ""


def without_date(results):
    results.provenance = {key: value for key, value in results.provenance.items() if key != "date"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_alone, "module attention, system alone: no latency_ms of strategy alone/rank0 at 100 tokens and 50 %"),
        (without_throttling, "measured at 100, not below 100 %"),
        (without_cells, "measured at no percentage at all"),
        (without_attention_profile, "the attention profile has no speed at 50 %"),
        (without_formula, "model formula-matmul has no r2"),
        (without_date, "provenance has no 'date'"),
    ],
)
def test_what_is_missing_is_named(spoil, message):
    results = copy.copy(by_hand())
    spoil(results)
    with pytest.raises(paper_numbers.MissingData, match=message):
        numbers(results, results)

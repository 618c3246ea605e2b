"""Write the numbers and tables that the paper quotes as TeX macros.

    python workflow/scripts/paper_numbers.py RECORD PUBLISHED SHORT PREDICTED LIVE OUTPUT.tex

RECORD, PUBLISHED, SHORT and PREDICTED are the folders that `check_claims.py` takes, LIVE that of the platform measured
on this machine. Words are typed in latex/sections, and what they compare is a claim there.
(This file is not called numbers.py because the standard library has a module of that name.)
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from claims.evidence import LONG, MEDIUM, MIDDLE, Evidence
from claims.of_experiments import (
    QUARTER,
    copy_engine_gains,
    green_fractions,
    green_orders,
    held_out_regrets,
    ladder_gains,
    ladder_rest,
    masked_costs,
    profile_costs,
)
from claims.of_models import (
    bandwidth_left,
    decode_break_even,
    decode_gain,
    decoded,
    decoded_gains,
    layer_contiguous_ratios,
    layer_fractions,
    layer_gains,
    layer_wait_apart,
    prefill_contiguous_ratios,
    prefill_fractions,
    prefill_jobs_apart,
    prefill_order_of_pairs,
    prefill_order_ratios,
)
from claims.of_paper import (
    ODD,
    TILES,
    closed_form_errors,
    contiguous_ratios,
    host_ratios,
    jobs_apart,
    long_fractions,
    odd_costs,
    of_oracle,
    one_pair_apart,
    over_one_gpu,
    profile_ratios,
    short_first_ratios,
    torch_ratios,
    zigzag_apart,
)
from claims.of_simulations import PREDICTED_LENGTH, PREDICTED_SLOW, predicted_fractions, prediction_errors
from heteroring.allocators.balanced import RING_MARGIN, RING_WAIT_US
from heteroring.allocators.formula import TERMS
from heteroring.allocators.ring_search import EVERY_SET
from heteroring.bench.timing import FEWEST_SUSTAINED_CALLS, SUSTAINED_CALLS, SUSTAINED_MS
from heteroring.figures.plots import simulated_scaling, simulated_slow_rank
from heteroring.files import atomic_path
from heteroring.launch.device import LONGEST_REST_MS
from heteroring.results.operator_kinds import FOLD_KEYS
from heteroring.results.results import Results
from heteroring.results.strategy import fitted_name
from paper import tables
from paper.cells import (
    BALANCED,
    BALANCED_CONTIGUOUS,
    EVEN,
    FORMULA,
    LUT,
    UNEVEN,
    ZIGZAG_EVEN,
    ZIGZAG_FORMULA,
    ZIGZAG_LUT,
    ZIGZAG_UNEVEN,
    CellTable,
    ring_cells,
)
from paper.study import CHECKED_LENGTH, HALF, KEY_TILE, Study, best_masked_share, clamped, error, raw_speed, refitted
from paper.tex import count, escaped, percent, render, rounded, share

THIRD = 30
SLOW_SPEED = 0.1
# About what repetitions differ by, as a fraction.
CLOSE = 0.005
# Tokens of the front rank in the released code's proportional splits in whole tiles.
ALIGNED_FIRST, ALIGNED_LAST = 21824, 43712
# Most that the repetitions of a quiet machine differ, over their median.
NOISE_LIMIT = 0.2


def ends(name: str, values: Iterable[float], factor: float = 1, digits: int = 3) -> dict[str, str]:
    """Macros of the range of some values: the least as NAMELeast, the greatest as NAMEMost.

    Args:
        name: NAME, with which both macros begin.
        values: The values.
        factor: What they are multiplied by.
        digits: Significant digits.

    Returns:
        Texts by macro.
    """
    values = [factor * value for value in values]
    return {f"{name}Least": rounded(min(values), digits), f"{name}Most": rounded(max(values), digits)}


def range_of(values: Iterable[int]) -> str:
    """`5` or `5 to 7`."""
    values = sorted(values)
    return " to ".join(dict.fromkeys((count(int(values[0])), count(int(values[-1])))))


def model() -> dict[str, str]:
    """Values of the analysis's formulas, and constants of allocator and benchmark."""
    s, golden = SLOW_SPEED, best_masked_share(1.0)
    return {
        "SlowSpeed": str(s),
        "SpeedupLast": rounded(3 * (1 + s) ** 2 / (4 * s * (2 + s)), 2),
        "FractionLast": rounded((1 + s) / (2 + s), 2),
        "GoldenShare": rounded(golden),
        "GoldenGain": rounded(0.5 / golden**2),
        "LongestRest": rf"{rounded(LONGEST_REST_MS, 2)}\,ms",
        "RingMargin": rf"{rounded(100 * RING_MARGIN, 1)}\,\%",
        "EverySet": str(EVERY_SET),
        "RingWait": rf"{rounded(RING_WAIT_US, 2)}\,\textmu s",
        "StepKeys": count(FOLD_KEYS),
        "SustainedCalls": str(SUSTAINED_CALLS),
        "SustainedTime": rf"{rounded(SUSTAINED_MS / 1e3, 1)}\,s",
        "SustainedFewest": str(FEWEST_SUSTAINED_CALLS),
    }


def study(record: Study) -> dict[str, str]:
    """What the paper says of the public study's record, and of its code on H200s."""
    longest, cell = record.lengths[-1], (record.lengths[-1], MIDDLE)
    fitted = refitted(record)
    # The study states speeds in percent of the largest, to six digits.
    scale = 100 / max(map(max, record.profile.values))
    agree = sum(float(f"{fitted.coefficients[term] * scale:.6g}") == record.coefficients[term] for term in TERMS)
    every, aligned = record.excesses(), [*record.excesses(tile=KEY_TILE), *record.released_excesses()]
    unaligned, whole = (record.released["100 10", tokens] for tokens in (59578, 59584))
    times = record.released
    return {
        "Shortest": count(record.lengths[0]),
        "Longest": count(longest),
        "Lowest": str(record.percentages[0]),
        "Highest": str(record.percentages[-1]),
        "Middle": percent(MIDDLE),
        "Cells": count(len(record.cells)),
        "CheckedLength": count(CHECKED_LENGTH),
        "CheckedCells": count(len(every)),
        "CheckTable": tables.account(record),
        "KeyTile": count(KEY_TILE),
        "AlignedError": share(error(aligned)),
        "UnalignedCost": rf"{rounded(100 * (median(set(every) - set(aligned)) - 1), 2)}\,\%",
        "UnalignedTokens": count(59578),
        "AlignedTokens": count(59584),
        "UnalignedMs": rounded(unaligned),
        "AlignedMs": rounded(whole),
        "SixTokens": rounded(100 * (1 - whole / unaligned), 2),
        "EqualMs": rounded(times["100 100", HALF]),
        "EvenFirstMs": rounded(times["50 100", HALF]),
        "EvenLastMs": rounded(times["100 50", HALF]),
        "PropFirstMs": rounded(times["50 100", 21845]),
        "PropLastMs": rounded(times["100 50", 43691]),
        "PropFirstAlignedMs": rounded(times["50 100", ALIGNED_FIRST]),
        "PropLastAlignedMs": rounded(times["100 50", ALIGNED_LAST]),
        "ProductSpeed": rounded(record.product_speed(MIDDLE)),
        "AttentionSpeed": rounded(record.speed(cell)),
        "TableRatio": rounded(record.tokens["lut"][cell][1] / record.tokens["lut"][cell][0]),
        "LabelLoss": rounded(record.loss(MIDDLE / 100, cell)),
        "SpeedLoss": rounded(record.loss(record.speed(cell), cell)),
        "FormulaTerms": count(len(TERMS)),
        "FormulaAgree": count(agree),
        "FormulaRsquared": rounded(fitted.r2),
        "FormulaHeldLength": rounded(fitted.r2_leave_one_length_out),
        "NegativeSpeed": f"${rounded(raw_speed(fitted, longest, record.percentages[0]))}$",
        "Starved": count(len(clamped(record, fitted))),
    }


def call(evidence: Evidence) -> dict[str, str]:
    """The attention call, the slow rank last; bound fractions in both orders."""
    cells, results = evidence.call, evidence.results
    extreme, middle = cells.extreme, (cells.lengths[-1], MIDDLE)
    fractions = evidence.both_orders[evidence.both_orders.strategy == BALANCED]
    worst = fractions.loc[fractions.bound_fraction.idxmin()]
    contiguous, zigzag = (cells.pooled(name, cells.equal) for name in (EVEN, ZIGZAG_EVEN))
    speeds = evidence.middle_speeds
    torch = ring_cells(results, "context_parallel")
    fits = {kind: results.fitted_models[fitted_name("formula", kind)] for kind in ("matmul", "attention")}
    return {
        "Repetitions": range_of(
            each for order in (cells, evidence.call_first) for each in order.over(BALANCED, "repetitions", order.grid)
        ),
        **spreads(cells, evidence.call_first),
        "EnvironmentTable": tables.environment(results, cells),
        "LatencyTable": tables.latency(results, cells),
        "StrategyTable": tables.strategies(cells, evidence.call_first),
        "LongLength": count(extreme[0]),
        "MediumLength": count(cells.lengths[2]),
        "ShortLength": count(cells.lengths[0]),
        "LowPercentage": str(extreme[1]),
        "MiddlePercentage": str(MIDDLE),
        "CellCount": count(len(cells.throttled)),
        "EvenRatio": rounded(cells(EVEN, extreme) / cells(BALANCED, extreme), 2),
        "MiddleEvenMs": rounded(cells(EVEN, middle)),
        "MiddleUnevenMs": rounded(cells(UNEVEN, middle)),
        "MiddleBalancedMs": rounded(cells(BALANCED, middle)),
        "MiddleAloneMs": rounded(cells(BALANCED, middle, "fast_alone_ms")),
        "MiddleBoundMs": rounded(cells(BALANCED, middle, "bound_ms")),
        "MiddleFraction": rounded(cells(BALANCED, middle, "bound_fraction")),
        "EqualContiguousMs": rounded(contiguous),
        "EqualZigzagMs": rounded(zigzag),
        "EqualRatio": rounded(contiguous / zigzag),
        "WorstFraction": rounded(worst.bound_fraction),
        "WorstPlace": f"{count(int(worst.seq_len))} tokens and {percent(int(worst.percentage))}",
        **above_one(evidence),
        **largest_fraction("", evidence, "attention"),
        "EvenImbalance": rounded(cells(EVEN, extreme, "imbalance")),
        "BalancedImbalance": rounded(cells(BALANCED, extreme, "imbalance")),
        "LutWins": count(cells.wins(LUT, UNEVEN)),
        "FormulaWins": count(cells.wins(FORMULA, UNEVEN)),
        "ZigzagLutWins": count(cells.wins(ZIGZAG_LUT, ZIGZAG_UNEVEN)),
        "ZigzagFormulaWins": count(cells.wins(ZIGZAG_FORMULA, ZIGZAG_UNEVEN)),
        "MatmulMiddle": rounded(speeds["matmul"]),
        "AttentionMiddle": rounded(speeds["attention"]),
        "MatmulRsquared": rounded(fits["matmul"]["r2"]),
        "MatmulHeldOut": rounded(fits["matmul"]["r2_leave_one_percentage_out"]),
        "AttentionHeldOut": rounded(fits["attention"]["r2_leave_one_percentage_out"]),
        **ends("Torch", torch_ratios(evidence)),
        "TorchFraction": rounded(torch(ZIGZAG_EVEN, cells.equal, "bound_fraction")),
        **close_wins(cells, evidence.call_first),
        **ends("Long", long_fractions(evidence, BALANCED)),
        **ends("Label", long_fractions(evidence, ZIGZAG_UNEVEN)),
        **row_prices(results),
    }


def spreads(last: CellTable, first: CellTable) -> dict[str, str]:
    """How far repetitions of the throttled cells are apart, in both orders: all, the shortest and the longest."""

    def typical(length: int | None) -> str:
        return share(
            median(each for cells in (last, first) for each in tables.distances(cells, cells.at(length=length)))
        )

    return {"Spread": typical(None), "SpreadShort": typical(last.lengths[0]), "SpreadLong": typical(last.lengths[-1])}


def close_wins(last: CellTable, first: CellTable) -> dict[str, str]:
    """In how many throttled cells the two fastest strategies are less than CLOSE apart, by order."""

    def close(cells: CellTable) -> int:
        best = (sorted(cells(name, cell) for name in cells.strategies)[:2] for cell in cells.throttled)
        return sum(second < (1 + CLOSE) * least for least, second in best)

    return {"CloseMargin": rounded(100 * CLOSE, 1), "CloseLast": count(close(last)), "CloseFirst": count(close(first))}


def largest_fraction(name: str, evidence: Evidence, module: str) -> dict[str, str]:
    """How many bound fractions of rested calls were recorded, in both orders, and the largest."""
    every = evidence.recorded(module=module, condition="rested").bound_fraction
    return {f"{name}FractionCount": count(len(every)), f"{name}MostFraction": rounded(max(every), 4)}


def above_one(evidence: Evidence) -> dict[str, str]:
    """How many bound fractions of rested calls exceed one, of how many splits, and the largest of any single job."""
    rows = evidence.recorded(condition="rested")
    above = rows[rows.bound_fraction > 1]
    return {
        "AboveCount": count(len(above)),
        "AboveDistinct": count(len(above.drop_duplicates(["seq_len", "percentages", "layout", "block_lens"]))),
        "AboveJobsMost": rounded(max(rows.bound_fraction_high), 4),
    }


def row_prices(results: Results) -> dict[str, str]:
    """What a query row costs in a further ring step, out of the cost model of attention."""
    costs = results.fitted_models[fitted_name("cost", "attention")]
    fast = costs["percentages"].index(max(costs["percentages"]))

    def part(price: str, index: int) -> str:
        """Of rank 1's time in an even zigzag split on two full ranks: it meets all of its rows once more."""
        rows = costs[price][index][fast] * costs["lengths"][index] / 2
        return share(rows / (1e3 * costs["attention_ms"][index][fast] / 2 + rows))

    return {
        "RowPrice": rf"{rounded(1e3 * costs['revisit_us'][-1][fast])}\,ns",
        "RowShareShort": part("revisit_us", 0),
        "RowShareLong": part("revisit_us", -1),
        "FusedShare": part("join_us", max(range(len(costs["lengths"])), key=lambda at: costs["join_us"][at][fast])),
    }


def orders_and_conditions(evidence: Evidence) -> dict[str, str]:
    """Both rank orders, calls that are not rested, and lengths that do not fill whole tiles."""
    even, apart, short = evidence.orders(EVEN, "latency_ms"), jobs_apart(evidence), jobs_apart(evidence, short=True)
    contiguous_share, zigzag_share = (
        evidence.orders(name, "block_lens").map(min) / LONG for name in (BALANCED_CONTIGUOUS, BALANCED)
    )
    low = even.index.min()
    return {
        "ThirdPercentage": str(THIRD),
        "JobsApart": share(apart.median()),
        "JobsApartMany": share(apart.quantile(0.95)),
        "JobsApartMost": share(apart.max()),
        "JobsApartShortMany": share(short.quantile(0.95)),
        "JobsApartShortMost": share(short.max()),
        "EvenFirstFraction": rounded(evidence.orders(EVEN, "bound_fraction")["slow first"][THIRD]),
        "ZigzagApart": rounded(100 * max(zigzag_apart(evidence)), 2),
        "ProfileGain": share(median(profile_ratios(evidence)) - 1),
        **ends("ShortFirst", short_first_ratios(evidence)),
        **ends("ShortContiguous", contiguous_ratios(evidence, evidence.call.lengths[0])),
        **ends("CapturedContiguous", contiguous_ratios(evidence, condition="captured")),
        "OnePairApart": share(max(one_pair_apart(evidence))),
        "ContiguousShareLast": rounded(100 * contiguous_share["slow last"][low], 2),
        "ContiguousShareFirst": rounded(100 * contiguous_share["slow first"][low], 2),
        "ZigzagShare": rounded(100 * zigzag_share["slow last"][low], 2),
        "OddLength": count(ODD),
        "TileLength": count(TILES),
        **ends("Odd", odd_costs(evidence), 100, 2),
        **ends("Order", even["slow last"] / even["slow first"], digits=2),
        **ends("Contiguous", contiguous_ratios(evidence)),
        **ends("Closed", closed_form_errors(evidence), 100, 2),
        **ends("Condition", evidence.condition_fractions),
        "ConditionTable": tables.conditions(evidence.recorded(strategy=BALANCED, percentages=(100, MIDDLE))),
        **slow_first_wins(evidence),
        **loses(evidence),
    }


def loses(evidence: Evidence) -> dict[str, str]:
    """What calls take over what they take on the fast rank alone, where that is more than one."""
    ratios = over_one_gpu(evidence)
    return {
        "LosesRestedMost": rounded(max(ratios["rested"])),
        "LosesSustainedMost": rounded(max(ratios["sustained"])),
        **ends("Host", host_ratios(evidence)),
        **ends("LosesEagerShort", ratios["eager", evidence.call.lengths[1]]),
    }


def rebalanced(evidence: Evidence) -> dict[str, str]:
    """A prefill in chunks during which a rank slows down: splits over the one that knows the speeds."""
    rows = evidence.results.chunks
    (adaptive, fixed), (beside, fixed_beside) = map(of_oracle, (rows, evidence.results.beside_neighbour))
    return {
        "Length": count(int(rows.prompt_len.iloc[0])),
        "Chunk": count(int(rows.seq_len.iloc[0])),
        "Slow": str(min(map(min, rows.percentages))),
        "Oracle": rounded(adaptive, 2),
        "Fixed": rounded(max(fixed), 2),
        "Neighbour": rounded(beside, 2),
        "NeighbourFixed": rounded(max(fixed_beside), 2),
    }


def slow_first_wins(evidence: Evidence) -> dict[str, str]:
    """How often, the slow rank first, the look-up table beats the label, and even contiguous shards balanced zigzag."""
    cells = evidence.call_first
    return {
        "FirstLutWins": count(cells.wins(LUT, UNEVEN)),
        "FirstLutGain": share(median(cells.ratios(UNEVEN, LUT)) - 1),
        "FirstCells": count(len(cells.throttled)),
        "FirstEvenWins": count(cells.wins(EVEN, BALANCED)),
    }


def parts(evidence: Evidence) -> dict[str, str]:
    """What each part of the ring is worth: factors in both orders unless the name tells one; Rest is of slow first."""
    layout = ladder_gains(evidence, 2)
    return {
        **ends("Rest", ladder_rest(evidence)),
        **ends("LayoutFirst", 1 / layout["slow first"]),
        **ends("LayoutLast", layout["slow last", MEDIUM]),
        **ends("TilesStep", ladder_gains(evidence, 3)),
        **ends("Fused", ladder_gains(evidence, 4)),
        **ends("CopyEngine", copy_engine_gains(evidence)),
        **ends("MaskedContiguous", masked_costs(evidence, "contiguous")[:, LONG]),
        **ends("MaskedZigzag", masked_costs(evidence, "zigzag")[:, LONG]),
        **ends("ByProducts", profile_costs(evidence, ZIGZAG_LUT)),
        **ends("ByQuarter", profile_costs(evidence, QUARTER)),
    }


def held_out(evidence: Evidence) -> dict[str, str]:
    """Regret where no model was fitted, of zigzag splits unless the name tells the layout."""
    regrets = held_out_regrets(evidence)
    medians = {
        "Label": ZIGZAG_UNEVEN,
        "Lut": ZIGZAG_LUT,
        "Formula": ZIGZAG_FORMULA,
        "AttentionLut": f"{ZIGZAG_LUT}@attention",
        "AttentionFormula": f"{ZIGZAG_FORMULA}@attention",
    }
    return {
        "HeldCells": count(len(regrets)),
        "HeldBest": count(sum(regrets[BALANCED] == 0)),
        "HeldMost": share(max(regrets[BALANCED])),
        "HeldContiguousMost": share(max(regrets[BALANCED_CONTIGUOUS])),
        **{f"Held{name}": share(median(regrets[strategy])) for name, strategy in medians.items()},
    }


def green(evidence: Evidence) -> dict[str, str]:
    """Green contexts in place of MPS, at the longest length."""
    orders = green_orders(evidence, EVEN)
    found = ends("Green", green_fractions(evidence)) | ends("GreenOrder", orders)
    return found | {"GreenPercentages": range_of(orders.index)}


def simulation(evidence: Evidence) -> dict[str, str]:
    """How far the simulation is from measured cells, short ones and those from MEDIUM on, and what its figures show."""
    errors = evidence.simulation_errors
    (_, kind), slow = simulated_scaling.kinds(evidence.platform), evidence.platform.cost_model.percentages[0]
    return {
        "SimulatedShort": share(errors.iloc[0]),
        "SimulatedLong": share(errors[errors.index >= MEDIUM].max()),
        "SimulatedKind": percent(int(kind)),
        "SimulatedSlow": percent(int(slow)),
        "SimulatedTokens": count(simulated_slow_rank.SEQ_LEN),
    }


def predicted(evidence: Evidence) -> dict[str, str]:
    """What was predicted before it was measured: how near it came, and bound fractions over four and eight GPUs."""
    errors = prediction_errors(evidence)
    found = {"Length": count(PREDICTED_LENGTH), "Slow": PREDICTED_SLOW, "From": count(MEDIUM)}
    found |= {"Cells": count(len(errors)), "Error": share(errors.median()), "Most": share(errors.quantile(0.95))}
    for name, ranks in (("Four", 4), ("Eight", 8)):
        fractions, together, apart = predicted_fractions(evidence, ranks)
        found |= ends(name, fractions)
        found |= {f"{name}Together": rounded(together), f"{name}Apart": rounded(apart)}
    return found


def layers_and_models(evidence: Evidence) -> dict[str, str]:
    """FMS's attention layer, and a whole model's prefill."""
    cells, first = evidence.prefill, evidence.prefill_first
    prefill = evidence.results.model[evidence.results.model.phase == "prefill"]
    row, of_rings = prefill.iloc[0], prefill[prefill.system == "ring"]
    shared = "" if row.heads == row.kv_heads else f" ({row.kv_heads} of KV)"
    return {
        **ends("Layer", layer_fractions(evidence)),
        **ends("LayerGain", layer_gains(evidence)),
        **ends("LayerContiguous", layer_contiguous_ratios(evidence)),
        **ends("LayerBalancedContiguous", contiguous_ratios(evidence, module="fms")),
        "LayerWaitApart": share(max(abs(layer_wait_apart(evidence)))),
        **largest_fraction("Layer", evidence, "fms"),
        "WholeName": rf"\code{{{escaped(row.architecture)}/{escaped(row.variant)}}}",
        "WholeShape": f"{row.layers} layers, {count(row.emb_dim)} wide, {row.heads} heads{shared} of {row.head_dim}, "
        f"{escaped(row['dtype'])}",
        "WholeJobs": range_of(sorted(set(prefill.jobs))),
        "WholeRepetitions": range_of(sorted(set(of_rings.repetitions))),
        "WholeAloneLeast": count(prefill.repetitions.min()),
        "WholeCellCount": count(len(cells.grid) + len(first.grid)),
        "WholeTable": tables.whole_model(cells, first),
        **ends("Whole", prefill_fractions(evidence)),
        **ends("WholeOrder", prefill_order_ratios(evidence)),
        **ends("WholeOrderOnePair", prefill_order_of_pairs(evidence)),
        **ends("WholeContiguous", prefill_contiguous_ratios(evidence)),
        "WholeJobsApart": share(prefill_jobs_apart(evidence)),
    }


def decoding(evidence: Evidence) -> dict[str, str]:
    """What a token takes over the ring and on the better rank alone, and what of either's limit that is."""
    rows = evidence.decode[evidence.decode.percentage == 100]
    most = rows.loc[rows.tokens.idxmax()]
    lost, _ = decode_break_even(evidence, THIRD)
    short, long = (decoded_gains(evidence, length)[1] for length in (4096, LONG))
    alone, ring, limit = decoded(evidence, LONG, "captured, compiled", batch=8)
    return {
        "Batch": count(int(most.batch)),
        "Length": count(int(most.seq_len)),
        "BreakEvenLength": count(int(lost)),
        "BareShort": rounded(short),
        "BareLong": rounded(long),
        "CompiledMs": rounded(ring),
        "CompiledGain": rounded(alone / ring),
        "CompiledOf": rounded(limit / ring),
        **ends("Equal", decode_gain(evidence, 100)),
        **ends("Middle", decode_gain(evidence, MIDDLE)),
        **ends("Low", [1 / gain for gain in decode_gain(evidence, 10)]),
        "Bandwidth": rounded(bandwidth_left(evidence), 2),
        **ends("Of", rows.limit_ms / rows.latency_ms),
        **ends("AloneOf", rows.alone_limit_ms / rows.alone_ms),
    }


def live(results: Results) -> dict[str, str]:
    """The platform measured on this machine, with the noise gate of its main effect."""
    cells = ring_cells(results)
    at = cells.extreme
    return {
        "Device": tables.device(results),
        "LongLength": count(at[0]),
        "LowPercentage": str(at[1]),
        "Quiet": str(int(shows_main_effect(cells))),
        "NoiseLimit": share(NOISE_LIMIT),
        "Spread": share(tables.spread(cells, cells.throttled)),
        "EnvironmentTable": tables.environment(results, cells),
        "LatencyTable": tables.latency(results, cells),
        "AloneWins": count(sum(alone_wins(cells))),
        "LengthCount": count(len(cells.lengths)),
    }


def alone_wins(cells: CellTable) -> list[bool]:
    """By length, whether the fast rank alone is faster than every strategy at the lowest percentage."""
    low = cells.percentages[0]
    return [
        cells(BALANCED, (length, low), "fast_alone_ms") < min(cells(name, (length, low)) for name in cells.strategies)
        for length in cells.lengths
    ]


def shows_main_effect(cells: CellTable) -> bool:
    """Whether balanced zigzag shards are faster than even contiguous ones, and repetitions can tell.

    At the longest length and the lowest percentage the 80th percentile of the former must be below the 20th of the
    latter, the typical distance between these in all cells at most NOISE_LIMIT of the median, and no bound fraction of
    balanced zigzag shards further above 1 than that.
    """
    at = cells.extreme
    apart = cells(BALANCED, at, "latency_p80_ms") < cells(EVEN, at, "latency_p20_ms")
    possible = max(cells.over(BALANCED, "bound_fraction")) <= 1 + NOISE_LIMIT
    return apart and possible and tables.spread(cells, cells.throttled) <= NOISE_LIMIT


def numbers(evidence: Evidence, measured: Results) -> dict[str, str]:
    """All macros by name, in order. Raises ValueError, naming it, if something quoted was not measured."""
    record = call(evidence) | orders_and_conditions(evidence) | layers_and_models(evidence) | simulation(evidence)
    record |= {f"Decode{name}": text for name, text in decoding(evidence).items()}
    record |= parts(evidence) | held_out(evidence) | green(evidence)
    groups = {"Model": model(), "Study": study(evidence.study), "Record": record, "Live": live(measured)}
    groups["Rebalanced"] = rebalanced(evidence)
    groups["Predicted"] = predicted(evidence)
    return {f"{prefix}{name}": text for prefix, group in groups.items() for name, text in group.items()}


def main(record: str, published: str, short: str, predicted: str, measured: str, output: str) -> None:
    """Write the macros of the paper's numbers to `output`."""
    evidence = Evidence.load(*map(Path, (record, published, short, predicted)))
    text = render(numbers(evidence, Results.load(measured)))
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    main(*sys.argv[1:])

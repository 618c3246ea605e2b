"""The paper's own claims about the study's record and its own, but for those of experiments (of_experiments.py)."""

from math import log
from statistics import median, stdev

from pandas import DataFrame, Series

from claims.evidence import LONG, MEDIUM, MIDDLE, Evidence, Finding, holds, number, percent, span
from claims.of_study import products_ahead, study_products_ahead
from heteroring.results.model_metrics import chunk_totals, decode_cells
from heteroring.results.results import slow_last
from paper.cells import (
    BALANCED,
    BALANCED_CONTIGUOUS,
    CONTIGUOUS,
    EVEN,
    FORMULA,
    UNEVEN,
    ZIGZAG_EVEN,
    ZIGZAG_FORMULA,
    ZIGZAG_LUT,
    ZIGZAG_UNEVEN,
    ring_cells,
)
from paper.study import KEY_TILE, MODELS
from paper.tables import CONDITION_WORDS

DECODED_AT = "46e7282"  # the commit of the short runs of decode that were made on one pair

# The study explained.


def account(evidence: Evidence) -> Finding:
    """Of the model and of two null models: errors where shards are whole tiles, in both records, and scatter of all."""
    study = evidence.study
    aligned = {
        name: max(abs(each - 1) for each in [*study.excesses(model, KEY_TILE), *study.released_excesses(model)])
        for name, model in MODELS.items()
    }
    scatter = {name: stdev(map(log, study.excesses(model))) for name, model in MODELS.items()}
    ours = ", ".join(
        f"{name} {percent(aligned[name])} at most in whole tiles, scatter {percent(scatter[name])}" for name in MODELS
    )
    best = all(min(each, key=each.get) == "masked tiles" for each in (aligned, scatter))
    return holds(best and aligned["masked tiles"] < 0.05, ours)


def label_beats_truth(evidence: Evidence) -> Finding:
    study = evidence.study
    wins = sum(study.loss(cell[1] / 100, cell) < study.loss(study.speed(cell), cell) for cell in study.cells)
    return holds(wins == len(study.cells), f"{wins} of {len(study.cells)} cells, in the model")


def label_nearer(evidence: Evidence) -> Finding:
    study = evidence.study
    attention, products = study.speed((study.lengths[-1], MIDDLE)), study.product_speed(MIDDLE)
    ours = f"at 50 % of an L40 attention keeps {number(attention)}, products {number(products)} of their speed"
    return holds(abs(attention - 0.5) < abs(attention - products), ours)


def operator_shows_less(evidence: Evidence) -> Finding:
    ours, theirs = products_ahead(evidence), study_products_ahead(evidence)
    return holds(abs(ours) < theirs / 4, f"{percent(ours)} of full speed at 50 %, {percent(theirs)} on the L40")


# Rank order.


def released_even_first(evidence: Evidence) -> Finding:
    times = evidence.study.released
    first, equal = times["50 100", 32768], times["100 100", 32768]
    proportional = [ms for (p, n), ms in times.items() if p in ("50 100", "100 50") and n in (21845, 43691)]
    ours = f"{number(first)} ms against {number(equal)} with equal ranks, and {span(proportional)} in proportion"
    return holds(first < 1.05 * equal and first < min(proportional), ours)


def order_decides(evidence: Evidence) -> Finding:
    """At every percentage but 10, where sharing gains more."""
    even, uneven = (evidence.orders(name, "latency_ms") for name in (EVEN, UNEVEN))
    order, sharing = even["slow last"] / even["slow first"], even["slow last"] / uneven["slow last"]
    rest = order.index.drop(10)
    ours = f"exchanging {span(order[rest])} times faster, sharing {span(sharing[rest])}"
    return holds(
        bool((order[rest] > sharing[rest]).all()), f"{ours}; at 10 % {number(order[10])} and {number(sharing[10])}"
    )


def order_closed_forms(evidence: Evidence) -> Finding:
    errors = closed_form_errors(evidence)
    return holds(max(map(abs, errors)) < 0.05, f"{percent(min(errors))} to {percent(max(errors))} from them")


def closed_form_errors(evidence: Evidence) -> list[float]:
    """Bound fractions of contiguous shards over what their pairs say at the speeds profiled, less one."""
    speeds = attention_speeds(evidence)
    return [
        row.bound_fraction / contiguous_fraction(row.block_lens[0] / row.seq_len, speeds[row.percentage], row.order) - 1
        for row in evidence.both_orders.itertuples()
        if row.strategy in (EVEN, UNEVEN) and row.seq_len == LONG and row.percentage in speeds
    ]


def attention_speeds(evidence: Evidence) -> dict[int, float]:
    """Speed of attention relative to a full rank at the longest length, by percentage."""
    rows = evidence.results.profile
    rows = rows[(rows.kind == "attention") & (rows["size"] == LONG)]
    return dict(zip(rows.percentage, rows.relative_speed, strict=True))


def contiguous_fraction(share: float, speed: float, order: str) -> float:
    """T*/T of two contiguous causal shards, `share` being that of the rank in front."""
    front, back = share**2, 1 - share**2
    slow_front = order == "slow first"
    time = max(front / (speed if slow_front else 1), back / (1 if slow_front else speed))
    return 1 / (1 + speed) / time


def even_first_near_bound(evidence: Evidence) -> Finding:
    fraction = evidence.orders(EVEN, "bound_fraction")["slow first"]
    return holds(fraction[30] > 0.9 and fraction[30] == max(fraction), f"{number(fraction[30])} at 30 %")


def zigzag_any_order(evidence: Evidence) -> Finding:
    apart = zigzag_apart(evidence)
    return holds(max(apart) < 0.05, f"{span([100 * each for each in apart])} % apart")


def zigzag_apart(evidence: Evidence) -> list[float]:
    """What balanced zigzag shards take more or less with the slow rank first than last, in parts, from MEDIUM on."""
    lengths = [length for length in sorted(set(evidence.both_orders.seq_len)) if length >= MEDIUM]
    times = [evidence.orders(BALANCED, "latency_ms", length) for length in lengths]
    return [abs(ratio - 1) for each in times for ratio in each["slow first"] / each["slow last"]]


def jobs_agree(evidence: Evidence) -> Finding:
    apart = jobs_apart(evidence)
    ours = f"{percent(median(apart))} apart in the median of {len(apart)} cells, {percent(max(apart))} at most"
    return holds(max(apart) < 0.03, ours)


def recorded_twice(evidence: Evidence) -> DataFrame:
    """Rested cells of the ring, calls and layers from MEDIUM on, that several jobs measured."""
    rows = evidence.results.cells
    return rows[(rows.system == "ring") & (rows.condition == "rested") & (rows.jobs > 1) & (rows.seq_len >= MEDIUM)]


def jobs_apart(evidence: Evidence) -> list[float]:
    """By what part the highest of such a cell's medians over jobs is above the lowest."""
    rows = recorded_twice(evidence)
    return list(rows.latency_high_ms / rows.latency_low_ms - 1)


def short_zigzag_slow_first(evidence: Evidence) -> Finding:
    ratios = short_first_ratios(evidence)
    return holds(min(ratios) > 1 and max(ratios) > 1.1, f"{span(ratios)} times as long first as last")


def short_first_ratios(evidence: Evidence) -> list[float]:
    """The time of the same zigzag shards with the slow rank first over that with it last, at the shortest length."""
    times = evidence.orders(ZIGZAG_UNEVEN, "latency_ms", evidence.call.lengths[0])
    return list(times["slow first"] / times["slow last"])


def balanced_contiguous_level(evidence: Evidence) -> Finding:
    ratios = contiguous_ratios(evidence, LONG)
    return holds(max(abs(ratios - 1)) < 0.03, f"{span(ratios)} times zigzag/balanced, in either order")


def contiguous_ratios(evidence: Evidence, length: int) -> Series:
    """The call's time with balanced contiguous shards over that with balanced zigzag ones, in both orders."""
    contiguous, zigzag = (evidence.orders(name, "latency_ms", length) for name in (BALANCED_CONTIGUOUS, BALANCED))
    return (contiguous / zigzag).stack()


def balanced_contiguous_shares_move(evidence: Evidence) -> Finding:
    shares = evidence.orders(BALANCED_CONTIGUOUS, "block_lens").map(min) / LONG
    zigzag = evidence.orders(BALANCED, "block_lens").map(min) / LONG
    ours = (
        f"the slow rank's share at 10 %: contiguous {percent(shares['slow last'][10])} last, "
        f"{percent(shares['slow first'][10])} first; zigzag {percent(zigzag['slow last'][10])} in both orders"
    )
    return holds(
        bool(
            (abs(zigzag["slow last"] - zigzag["slow first"]) < 0.01).all()
            and shares["slow first"][10] > 2 * shares["slow last"][10]
        ),
        ours,
    )


# The call.


def fraction_at_long(evidence: Evidence) -> Finding:
    fractions = long_fractions(evidence, BALANCED)
    return holds(min(fractions) > 0.98, f"{span(fractions)} at 65,536 tokens")


def long_fractions(evidence: Evidence, strategy: str) -> Series:
    """Bound fractions of the longest call, unequal ranks in both orders."""
    return evidence.orders(strategy, "bound_fraction").stack()


def short_prompts_fall_short(evidence: Evidence) -> Finding:
    """In both orders; the worst cell has the slow rank first."""
    rows = evidence.both_orders[evidence.both_orders.strategy == BALANCED]
    below, worst = set(rows.seq_len[rows.bound_fraction < 0.9]), rows.loc[rows.bound_fraction.idxmin()]
    ours = f"{number(worst.bound_fraction)} at worst, {worst.order}; above 0.9 from 16,384 tokens on"
    return holds(below == {4096, 8192} and worst.order == "slow first", ours)


def fastest_measured(evidence: Evidence) -> Finding:
    """Faster than every contiguous split that is not balanced; the slow rank is last."""
    cells = evidence.call
    others = [name for name in CONTIGUOUS if name in cells.strategies and name != BALANCED_CONTIGUOUS]
    ratios = [cells(BALANCED, at) / min(cells(name, at) for name in others) for at in cells.throttled]
    return holds(max(ratios) < 1, f"{span([1 / each for each in ratios])} times faster than the best of them")


def zigzag_helps_equal_ranks(evidence: Evidence) -> Finding:
    cells = evidence.call
    ratio = cells.pooled(EVEN, cells.equal) / cells.pooled(ZIGZAG_EVEN, cells.equal)
    return holds(1.4 < ratio <= 1.55, f"{number(ratio)} times faster at 65,536 tokens; the count of pairs says 1.5")


def beats_fast_rank_alone(evidence: Evidence) -> Finding:
    cells = evidence.call
    ratios = [cells(BALANCED, at, "fast_alone_ms") / cells(BALANCED, at) for at in cells.at(length=LONG)]
    return holds(min(ratios) > 1.05, f"{span(ratios)} times faster at 65,536 tokens")


def beats_torch(evidence: Evidence) -> Finding:
    ratios = torch_ratios(evidence)
    return holds(min(ratios) > 1.15, f"{span(ratios)} times faster at 65,536 tokens")


def torch_ratios(evidence: Evidence) -> list[float]:
    """The time of PyTorch's context_parallel over that of balanced zigzag shards, at the longest length."""
    cells, torch = evidence.call, ring_cells(evidence.results, "context_parallel")
    return [torch(ZIGZAG_EVEN, at) / cells(BALANCED, at) for at in [*cells.at(length=LONG), cells.equal]]


def shares_by_label_cost(evidence: Evidence) -> Finding:
    fractions = long_fractions(evidence, ZIGZAG_UNEVEN)
    return holds(min(fractions) > 0.93, f"{span(fractions)} of the bound at 65,536 tokens")


def pictured_order(evidence: Evidence) -> Finding:
    """The extreme cell ranks even, proportional, even zigzag, zigzag as the closed forms do."""
    cells, at = evidence.call, evidence.call.extreme
    times = [cells(name, at) for name in (EVEN, ZIGZAG_EVEN, UNEVEN, BALANCED)]
    return holds(times == sorted(times, reverse=True), ", ".join(map(number, times)) + " ms")


def formula_understates(evidence: Evidence) -> Finding:
    """Where it does, contiguous shards gain by it in most cells, and zigzag ones in few."""
    cells = evidence.call
    less = [at for at in cells.throttled if cells(FORMULA, at, "block_lens")[-1] < cells(UNEVEN, at, "block_lens")[-1]]
    contiguous, zigzag = (
        sum(ratio < 1 for ratio in cells.ratios(*names, less))
        for names in ((FORMULA, UNEVEN), (ZIGZAG_FORMULA, ZIGZAG_UNEVEN))
    )
    ours = f"in {len(less)} of {len(cells.throttled)} cells; faster there in {contiguous} contiguous, {zigzag} zigzag"
    return holds(2 * contiguous > len(less) > 2 * zigzag, ours)


def fast_rank_waits(evidence: Evidence) -> Finding:
    cells, at = evidence.call, evidence.call.extreme
    waits = 1 - cells(EVEN, at, "busy_ms")[0] / cells(EVEN, at)
    return holds(waits > 0.9, f"{percent(waits)} of the call at 65,536 tokens and 10 %")


def whole_tiles(evidence: Evidence) -> Finding:
    ours = tile_costs(evidence)
    theirs = 1 - evidence.study.released["100 10", 59584] / evidence.study.released["100 10", 59578]
    text = f"{percent(min(ours))} to {percent(max(ours))} more per pair; released code {percent(theirs)} for 6 tokens"
    return holds(min(ours) > 0.04 and theirs > 0.15, text)


def tile_costs(evidence: Evidence) -> list[float]:
    """What a pair costs at 12,345 tokens over what it costs at 12,288, less one, back to back."""
    rows = evidence.sustained[evidence.sustained.system == "ring"].set_index(["percentages", "seq_len"]).latency_ms
    return [rows[p, 12345] / rows[p, 12288] * (12288 / 12345) ** 2 - 1 for p in ("100 100", "100 50", "100 15")]


def conditions(evidence: Evidence) -> Finding:
    worst = evidence.condition_fractions.groupby("condition").min()
    ours = ", ".join(f"{CONDITION_WORDS[name]} {number(value)}" for name, value in worst.items())
    return holds(min(worst) > 0.9, f"least: {ours}")


def profile_of_attention(evidence: Evidence) -> Finding:
    """Shares by attention's own speed against shares by products', zigzag, in both orders."""
    ratios = profile_ratios(evidence)
    return holds(median(ratios) > 1, f"{span(ratios)} times as long by products; median {number(median(ratios))}")


def profile_ratios(evidence: Evidence) -> list[float]:
    """Zigzag's time with shares by a table of products over that with shares by a table of attention, unequal ranks."""
    times = evidence.both_orders.pivot(index=["seq_len", "percentages"], columns="strategy", values="latency_ms")
    return list(times[ZIGZAG_LUT] / times[f"{ZIGZAG_LUT}@attention"])


# Layers and models.


def layer_too(evidence: Evidence) -> Finding:
    fractions = layer_fractions(evidence)
    return holds(min(fractions) > 0.96, f"{span(fractions)} at 65,536 tokens")


def layer_fractions(evidence: Evidence) -> Series:
    """Bound fractions of the longest layer with balanced zigzag shards, in both orders and with equal ranks."""
    return evidence.recorded(module="fms", condition="rested", seq_len=LONG, strategy=BALANCED).bound_fraction


def layer_moves_contiguous(evidence: Evidence) -> Finding:
    """A contiguous split gains where layers are added that cost the same for every token: its best share moves."""
    gains = layer_gains(evidence)
    return holds(min(gains) > 0.05, f"{span(gains)} of the bound more in the layer than in the call")


def layer_gains(evidence: Evidence) -> list[float]:
    """Bound fraction of proportional contiguous shards in the layer, less that in the call, at the longest length."""
    layer, call = evidence.layer, evidence.call
    return [layer(UNEVEN, at, "bound_fraction") - call(UNEVEN, at, "bound_fraction") for at in call.at(length=LONG)]


def layer_favours_zigzag(evidence: Evidence) -> Finding:
    ratios = layer_contiguous_ratios(evidence)
    return holds(min(ratios) > 1.03, f"{span(ratios)} times as long as balanced zigzag at 65,536 tokens")


def layer_contiguous_ratios(evidence: Evidence) -> list[float]:
    """The longest layer's time with the best contiguous split over that with balanced zigzag shards, in both orders."""
    rows = evidence.recorded(module="fms", condition="rested", seq_len=LONG)
    times = rows.pivot(index="percentages", columns="strategy", values="latency_ms")
    return list(times.filter(like="contiguous/").min(axis="columns") / times[BALANCED])


def model_near_fastest(evidence: Evidence) -> Finding:
    tables = evidence.prefill, evidence.prefill_first
    ratios = [cells(BALANCED, at) / cells(cells.fastest(at), at) for cells in tables for at in cells.grid]
    return holds(max(ratios) < 1.02, f"{span(ratios)} times the fastest of six, in {len(ratios)} cells")


def model_fraction(evidence: Evidence) -> Finding:
    fractions = prefill_fractions(evidence)
    return holds(min(fractions) > 0.91, span(fractions))


def prefill_fractions(evidence: Evidence) -> list[float]:
    """Bound fractions of a whole model's prefill with balanced zigzag shards, in both orders and with equal ranks."""
    tables = evidence.prefill, evidence.prefill_first
    return [each for cells in tables for each in cells.over(BALANCED, "bound_fraction", cells.grid)]


def models_in_both_orders(evidence: Evidence) -> Finding:
    first, last = evidence.prefill_first, evidence.prefill
    ratios = prefill_order_ratios(evidence)
    changes = all(first(EVEN, at) < 0.8 * last(EVEN, at) for at in first.grid)
    level = all(abs(each - 1) < 0.03 for each in ratios)
    return holds(changes and level, f"{span(ratios)} times as long first as last")


def prefill_order_ratios(evidence: Evidence) -> list[float]:
    """The time to first token of balanced zigzag shards with the slow rank first over that with it last."""
    first, last = evidence.prefill_first, evidence.prefill
    return [first(BALANCED, at) / last(BALANCED, at) for at in first.grid]


def equal_ranks_differ(evidence: Evidence) -> Finding:
    together, alone = equal_rank_ratios(evidence)
    return holds(together > 1.05 > 1.03 > alone, f"{together:.3g} times as long in the ring, {alone:.3g} alone")


def equal_rank_ratios(evidence: Evidence) -> tuple[float, float]:
    """Rank 0's time over rank 1's, both at full speed, of the longest prompt.

    Of the backend calls in the traced layer of balanced zigzag shards, and of the whole prompt on each alone.
    """
    trace = evidence.results.trace
    calls = trace[(trace.strategy == BALANCED) & (trace.order == "equal") & (trace.kind == "block")]
    taken = (calls.stop_ms - calls.start_ms).groupby(calls["rank"]).sum()
    at = evidence.prefill.equal
    return taken[0] / taken[1], evidence.prefill("alone/rank0", at) / evidence.prefill("alone/rank1", at)


def decode_breaks_even(evidence: Evidence) -> Finding:
    gains = {percentage: decode_gain(evidence, percentage) for percentage in (100, 50, 30, 10)}
    lost, won = decode_break_even(evidence, 30)
    everywhere = min(*gains[100], *gains[50]) > 1 > max(gains[10])
    ours = "; ".join(f"{span(each)} times as fast at {percentage} %" for percentage, each in gains.items())
    return holds(
        everywhere and lost == won == 131072,
        f"{ours}; at 30 % it loses with up to {lost:,} tokens cached and wins with {won:,} and more",
    )


def decode_gain(evidence: Evidence, percentage: int) -> list[float]:
    """The time of the better rank alone over the ring's, at each recorded length and batch of decode."""
    return list(evidence.decode.gain[evidence.decode.percentage == percentage])


def decode_break_even(evidence: Evidence, percentage: int) -> tuple[int, int]:
    """The most tokens cached, of all sequences, with which the ring loses to one rank, and the fewest with which it
    wins; 0 if there are none."""
    rows = evidence.decode[evidence.decode.percentage == percentage]
    return max(rows.tokens[rows.gain < 1], default=0), min(rows.tokens[rows.gain > 1], default=0)


def decode_without_mps(evidence: Evidence) -> Finding:
    short, long = (decoded_gains(evidence, length) for length in (4096, LONG))
    ours = f"{number(short[1])} and {number(long[1])} times as fast, under MPS {number(short[0])} and {number(long[0])}"
    return holds(short[1] < 1 < long[1] < long[0] and short[1] < short[0], ours)


def decoded_gains(evidence: Evidence, length: int) -> list[float]:
    """The better full rank's time alone over that of both, captured and not compiled, under MPS and without."""
    found = [decoded(evidence, length, how) for how in ("captured", "captured, without MPS")]
    return [alone / ring for alone, ring, _ in found]


def decode_compiled(evidence: Evidence) -> Finding:
    alone, ring, limit = decoded(evidence, LONG, "captured, compiled", batch=8)
    ours = f"{number(alone / ring)} times as fast as alone, {number(limit / ring)} of the limit"
    return holds(alone / ring > 1.5 and limit / ring > 0.8, ours)


def decoded(evidence: Evidence, length: int, how: str, batch: int = 1) -> tuple[float, float, float]:
    """Milliseconds per token in short runs on one pair: the better full rank alone, both, and the limit of both."""
    rows = evidence.decoded
    rows = rows[(rows.commit == DECODED_AT) & (rows.percentages == "100 100") & (rows.how == how)]
    rows = rows[(rows.seq_len == length) & (rows.batch == batch)]
    alone = rows.block_lens.str.contains(r"\b0\b")
    ring = rows[~alone].iloc[0]
    return rows.latency_ms[alone].min(), ring.latency_ms, ring.limit_ms


def throttle_takes_bandwidth(evidence: Evidence) -> Finding:
    slowed, bandwidth = decode_slowed(evidence), bandwidth_left(evidence)
    ours = f"{number(bandwidth)} of the bandwidth, {span(slowed)} times as long a token"
    return holds(0.15 < bandwidth < 0.25 and min(slowed) > 2 and max(slowed) < 5, ours)


def bandwidth_left(evidence: Evidence) -> float:
    """What of its memory bandwidth at 100 % rank 1 reaches at the lowest percentage."""
    return 1 / median(decode_slowed(evidence, "limit_ms"))


def decode_slowed(evidence: Evidence, column: str = "latency_ms") -> list[float]:
    """`column` of rank 1 decoding alone, at the lowest percentage over that at 100 %, by length and batch."""
    rows = decode_cells(slow_last(evidence.results.model))
    rows = rows[rows.strategy == "alone/rank1"].pivot(index=["batch", "seq_len"], columns="percentage", values=column)
    return list(rows[min(rows)] / rows[100])


# Speeds that change.


def rebalanced_near_oracle(evidence: Evidence) -> Finding:
    adaptive, fixed = of_oracle(evidence.results.chunks)
    return holds(adaptive > 0.9, f"{number(adaptive)} of it, fixed splits {span(fixed)}")


def rebalanced_beside_neighbour(evidence: Evidence) -> Finding:
    adaptive, fixed = of_oracle(evidence.results.beside_neighbour)
    return holds(adaptive > 1.1 * max(fixed), f"{number(adaptive)} of an oracle, fixed splits {span(fixed)}")


def of_oracle(chunks: DataFrame) -> tuple[float, Series]:
    """The oracle's time for a prefill in chunks over that of the adaptive split, and over that of each fixed one."""
    totals = chunk_totals(chunks).of_oracle.drop("oracle")
    return totals["rebalanced"], totals.drop("rebalanced")

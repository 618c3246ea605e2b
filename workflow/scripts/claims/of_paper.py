"""The paper's own claims about the study's record, rank order, the call, and speeds that change."""

from statistics import median

from pandas import DataFrame, Series, concat

from claims.evidence import LONG, MEDIUM, MIDDLE, ORDERS, Evidence, Finding, holds, number, percent, points, span
from claims.of_study import products_ahead, study_products_ahead
from heteroring.results.model_metrics import chunk_totals
from heteroring.results.rank_percentages import order_of
from heteroring.results.throttle_words import throttle_words
from paper.cells import (
    BALANCED,
    BALANCED_CONTIGUOUS,
    CONTIGUOUS,
    EVEN,
    FORMULA,
    LUT,
    UNEVEN,
    ZIGZAG_EVEN,
    ZIGZAG_FORMULA,
    ZIGZAG_LUT,
    ZIGZAG_UNEVEN,
    ring_cells,
)
from paper.study import KEY_TILE, MODELS, error, scatter
from paper.tables import CONDITION_WORDS

# A length that is no multiple of a tile, and the whole tiles below it.
ODD, TILES = 12345, 12288

# The study explained.


def account(evidence: Evidence) -> Finding:
    """Whether counting masked tiles explains the study's times best, among it and two null models.

    Compared are the largest error where shards are whole tiles, in both records, and the scatter over all splits.
    """
    study = evidence.study
    aligned = {
        name: error([*study.excesses(model, KEY_TILE), *study.released_excesses(model)])
        for name, model in MODELS.items()
    }
    scattered = {name: scatter(study.excesses(model)) for name, model in MODELS.items()}
    ours = ", ".join(
        f"{name} {percent(aligned[name])} at most in whole tiles, scatter {percent(scattered[name])}" for name in MODELS
    )
    best = all(min(each, key=each.get) == "masked tiles" for each in (aligned, scattered))
    others = [aligned[name] for name in MODELS if name != "masked tiles"]
    return holds(best and aligned["masked tiles"] < 0.05 and min(others) > 0.5, ours)


def label_beats_truth(evidence: Evidence) -> Finding:
    """Whether in the model of the study's ring shares by the label beat shares by true speed in every cell."""
    study = evidence.study
    wins = sum(study.loss(cell[1] / 100, cell) < study.loss(study.speed(cell), cell) for cell in study.cells)
    return holds(wins == len(study.cells), f"{wins} of {len(study.cells)} cells, in the model")


def label_nearer(evidence: Evidence) -> Finding:
    """Whether the label is nearer to attention's speed at 50 % of an L40 than the speed of products is."""
    study = evidence.study
    attention, products = study.speed((study.lengths[-1], MIDDLE)), study.product_speed(MIDDLE)
    ours = f"at 50 % of an L40 attention keeps {number(attention)}, products {number(products)} of their speed"
    return holds(abs(attention - 0.5) < abs(attention - products), ours)


def operator_shows_less(evidence: Evidence) -> Finding:
    """Whether speeds of products and attention differ far less at 50 % here than on the L40."""
    ours, theirs = products_ahead(evidence), study_products_ahead(evidence)
    return holds(abs(ours) < theirs / 4, f"{points(ours)} of full speed at 50 %, {points(theirs)} on the L40")


# Rank order.


def released_even_first(evidence: Evidence) -> Finding:
    """Whether the released code's even split, the slow rank first at 50 %, takes what it takes on equal ranks."""
    times = evidence.study.released
    first, equal = times["50 100", 32768], times["100 100", 32768]
    proportional = [ms for (p, n), ms in times.items() if p in ("50 100", "100 50") and n in (21845, 43691)]
    ours = f"{number(first)} ms against {number(equal)} with equal ranks, and {span(proportional)} in proportion"
    return holds(first < 1.05 * equal and first < min(proportional), ours)


def order_decides(evidence: Evidence) -> Finding:
    """Whether exchanging the ranks gains at every percentage, and but for 10 more than sharing by percentage does."""
    even, uneven = (evidence.orders(name, "latency_ms") for name in (EVEN, UNEVEN))
    order, sharing = even["slow last"] / even["slow first"], even["slow last"] / uneven["slow last"]
    rest = order.index.drop(10)
    ours = f"exchanging {span(order[rest])} times faster, sharing {span(sharing[rest])}"
    return holds(
        min(order) > 1 and bool((order[rest] > sharing[rest]).all()),
        f"{ours}; at 10 % {number(order[10])} and {number(sharing[10])}",
    )


def order_on_one_pair(evidence: Evidence) -> Finding:
    """Whether order gains on one pair of GPUs what it gains between medians of jobs on several pairs."""
    apart = one_pair_apart(evidence)
    return holds(max(apart) < 0.03, f"{percent(max(apart))} apart at most, of calls of 65,536 tokens")


def one_pair_apart(evidence: Evidence) -> Series:
    """How far, as a fraction, the gain of order on one pair is from that of all jobs, by strategy and percentage.

    Of the longest rested call. The pair is the one with jobs in both orders at every percentage.
    """
    last, first = ORDERS
    times = evidence.by_pair.loc["bench"].xs(LONG, level="seq_len")
    every = concat({name: evidence.orders(name, "latency_ms") for name in (EVEN, BALANCED)})
    of_pairs, of_all = (each[last] / each[first] for each in (times, every))
    [(_, of_one)] = of_pairs.unstack(["strategy", "percentage"])[list(of_all.index)].dropna().iterrows()
    return abs(of_one / of_all - 1)


def order_closed_forms(evidence: Evidence) -> Finding:
    """Whether even and proportional contiguous shards agree with their closed forms, in both orders."""
    errors = closed_form_errors(evidence)
    return holds(max(map(abs, errors)) < 0.05, f"{percent(min(errors))} to {percent(max(errors))} from them")


def closed_form_errors(evidence: Evidence) -> list[float]:
    """Bound fractions of contiguous shards over those that pairs and profiled speeds predict, less one."""
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
    """T*/T of two contiguous causal shards by closed form.

    Args:
        share: Share of the tokens on the rank in front.
        speed: Speed of the slow rank relative to the other.
        order: "slow first" or "slow last".

    Returns:
        The bound fraction.
    """
    front, back = share**2, 1 - share**2
    slow_front = order == "slow first"
    time = max(front / (speed if slow_front else 1), back / (1 if slow_front else speed))
    return 1 / (1 + speed) / time


def even_first_near_bound(evidence: Evidence) -> Finding:
    """Whether even contiguous shards, slow rank first, are near the bound at 30 and 40 %; proportional, last, never."""
    fraction = evidence.orders(EVEN, "bound_fraction")["slow first"]
    proportional = max(evidence.orders(UNEVEN, "bound_fraction")["slow last"])
    near = set(fraction.index[fraction > 0.9]) == {30, 40}
    ours = f"{number(fraction[30])} at 30 %, {number(fraction[40])} at 40 %; {number(proportional)} at most"
    return holds(near and proportional < 0.7, ours)


def zigzag_any_order(evidence: Evidence) -> Finding:
    """Whether times of balanced zigzag shards are about the same in both orders, from MEDIUM tokens on."""
    apart = zigzag_apart(evidence)
    return holds(max(apart) < 0.05, f"{span([100 * each for each in apart])} % apart")


def zigzag_apart(evidence: Evidence) -> list[float]:
    """How far the times of balanced zigzag shards in both orders differ, as a fraction, from MEDIUM tokens on."""
    lengths = [length for length in sorted(set(evidence.both_orders.seq_len)) if length >= MEDIUM]
    times = [evidence.orders(BALANCED, "latency_ms", length) for length in lengths]
    return [abs(ratio - 1) for each in times for ratio in each["slow first"] / each["slow last"]]


def jobs_agree(evidence: Evidence) -> Finding:
    """Whether the medians of a cell's jobs agree, from MEDIUM tokens on, but for a few cells."""
    apart = jobs_apart(evidence)
    ours = (
        f"{percent(apart.median())} apart in the median of {len(apart)} cells, 95 in 100 by less than "
        f"{percent(apart.quantile(0.95))}, {percent(apart.max())} at most"
    )
    return holds(apart.quantile(0.95) < 0.03, ours)


def jobs_apart(evidence: Evidence, *, short: bool = False) -> Series:
    """How far the highest median of a job is above the lowest, as a fraction, in the ring's rested cells.

    These are cells from MEDIUM tokens on or, `short`, below.
    """
    rows = evidence.results.cells
    rows = rows[(rows.system == "ring") & (rows.condition == "rested") & (rows.jobs > 1)]
    rows = rows[(rows.seq_len < MEDIUM) == short]
    return rows.latency_high_ms / rows.latency_low_ms - 1


def short_zigzag_slow_first(evidence: Evidence) -> Finding:
    """Whether zigzag shards of the shortest length take longer with the slow rank first than with it last."""
    ratios = short_first_ratios(evidence)
    return holds(min(ratios) > 1 and max(ratios) > 1.1, f"{span(ratios)} times as long first as last")


def short_first_ratios(evidence: Evidence) -> list[float]:
    """The time of the same zigzag shards with the slow rank first over that with it last, at the shortest length."""
    times = evidence.orders(ZIGZAG_UNEVEN, "latency_ms", evidence.call.lengths[0])
    return list(times["slow first"] / times["slow last"])


def even_first_when_short(evidence: Evidence) -> Finding:
    """Whether even contiguous shards, slow rank first, beat balanced zigzag in few cells, all of the least length."""
    cells = evidence.call_first
    faster = [at for at in cells.throttled if cells(EVEN, at) < cells(BALANCED, at)]
    lengths = {length for length, _ in faster}
    ours = f"faster in {len(faster)} of {len(cells.throttled)} cells, all of {max(lengths, default=0):,} tokens"
    return holds(lengths == {cells.lengths[0]} and len(faster) < 0.1 * len(cells.throttled), ours)


def order_decides_allocators(evidence: Evidence) -> Finding:
    """Whether the look-up table beats shares by the label in most cells, slow rank first, and in few with it last."""
    last, first = (cells.wins(LUT, UNEVEN) for cells in (evidence.call, evidence.call_first))
    every = len(evidence.call.throttled)
    ours = f"the table is faster in {last} of {every} cells last, in {first} first"
    return holds(last < every / 4 and first > 3 * every / 4, ours)


def balanced_contiguous_level(evidence: Evidence) -> Finding:
    """Whether balanced contiguous shards are near balanced zigzag at the longest length, in both orders."""
    ratios = contiguous_ratios(evidence)
    return holds(max(abs(ratios - 1)) < 0.05, f"{span(ratios)} times zigzag/balanced, in either order")


def contiguous_ratios(
    evidence: Evidence, length: int = LONG, module: str = "attention", condition: str = "rested"
) -> Series:
    """The time with balanced contiguous shards over that with balanced zigzag ones, on unequal ranks in both orders."""
    rows = evidence.recorded(module=module, condition=condition, seq_len=length)
    times = rows[rows.order != "equal"].pivot(index="percentages", columns="strategy", values="latency_ms")
    return times[BALANCED_CONTIGUOUS] / times[BALANCED]


def balanced_contiguous_shares_move(evidence: Evidence) -> Finding:
    """Whether the balanced contiguous share depends on the order, and the zigzag one does not."""
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
    """Whether balanced zigzag shards come within 3 % of the bound at the longest length, in both orders."""
    fractions = long_fractions(evidence, BALANCED)
    return holds(min(fractions) > 0.97, f"{span(fractions)} at 65,536 tokens")


def long_fractions(evidence: Evidence, strategy: str) -> Series:
    """Bound fractions of the longest call on unequal ranks, in both orders."""
    return evidence.orders(strategy, "bound_fraction").stack()


def short_prompts_fall_short(evidence: Evidence) -> Finding:
    """Whether only short prompts are below 0.9 of the bound, in both orders, and the worst with the slow rank first."""
    rows = evidence.both_orders[evidence.both_orders.strategy == BALANCED]
    below, worst = set(rows.seq_len[rows.bound_fraction < 0.9]), rows.loc[rows.bound_fraction.idxmin()]
    ours = f"{number(worst.bound_fraction)} at worst, {worst.order}; above 0.9 from 16,384 tokens on"
    return holds(below == {4096, 8192} and worst.order == "slow first", ours)


def fastest_measured(evidence: Evidence) -> Finding:
    """Whether balanced zigzag is faster than every contiguous split but the balanced one, the slow rank last."""
    cells = evidence.call
    others = [name for name in CONTIGUOUS if name in cells.strategies and name != BALANCED_CONTIGUOUS]
    ratios = [cells(BALANCED, at) / min(cells(name, at) for name in others) for at in cells.throttled]
    return holds(max(ratios) < 1, f"{span([1 / each for each in ratios])} times faster than the best of them")


def zigzag_helps_equal_ranks(evidence: Evidence) -> Finding:
    """Whether even zigzag shards are 1.5 times faster than even contiguous ones on equal ranks."""
    cells = evidence.call
    ratio = cells.pooled(EVEN, cells.equal) / cells.pooled(ZIGZAG_EVEN, cells.equal)
    return holds(1.4 < ratio <= 1.55, f"{number(ratio)} times faster at 65,536 tokens; the count of pairs says 1.5")


def beats_fast_rank_alone(evidence: Evidence) -> Finding:
    """Whether calls of the longest length beat the fast rank alone at every percentage, and at the lowest by little."""
    cells = evidence.call
    ratios = [cells(BALANCED, at, "fast_alone_ms") / cells(BALANCED, at) for at in cells.at(length=LONG)]
    return holds(min(ratios) > 1.05 and ratios[0] < 1.15, f"{span(ratios)} times faster at 65,536 tokens")


def loses_to_one_gpu(evidence: Evidence) -> Finding:
    """Whether balanced zigzag calls take longer than on the fast rank alone only where the text says so.

    That is, rested or back to back at 4,096 tokens, if rested with the slow rank first; one at a time at 4,096 and
    8,192, whatever the percentages, and above at 10 %; as CUDA graphs by less than 2 %.
    """
    every = over_one_gpu(evidence)
    ratios = {name: every[name] for name in CONDITION_WORDS}
    lost = {name: list(each[each > 1].index) for name, each in ratios.items()}
    lengths = {name: sorted({length for length, _ in at}) for name, at in lost.items()}
    worst = {name: (max(each), *each.idxmax()) for name, each in ratios.items()}
    ours = "; ".join(
        f"{CONDITION_WORDS[name]} {number(most)} at worst ({length:,} tokens, {min(percentages)} %), "
        f"above 1 at {', '.join(map('{:,}'.format, lengths[name]))}"
        for name, (most, length, percentages) in worst.items()
    )
    only_first = all(order_of(percentages) == "slow first" for _, percentages in lost["rested"])
    eager = min(ratios["eager"][4096]) > 1 and min(ratios["eager"][8192]) > 1
    above = {percentages for length, percentages in lost["eager"] if length > 8192} == {(100, 10)}
    short = lengths["rested"] == lengths["sustained"] == [4096]
    return holds(short and only_first and eager and above and max(ratios["captured"]) < 1.02, ours)


def over_one_gpu(evidence: Evidence) -> Series:
    """The call's time with balanced zigzag shards over that of the fast rank alone, by condition, length and setting.

    Rested ones are in both orders, the others with the slow rank last; all with equal ranks, too.
    """
    rows = evidence.recorded(strategy=BALANCED).set_index(["condition", "seq_len", "percentages"])
    return (rows.latency_ms / rows.fast_alone_ms).sort_index()


def beats_torch(evidence: Evidence) -> Finding:
    """Whether balanced zigzag shards beat PyTorch's context_parallel at every percentage."""
    ratios = torch_ratios(evidence)
    return holds(min(ratios) > 1.15, f"{span(ratios)} times faster at 65,536 tokens")


def torch_ratios(evidence: Evidence) -> list[float]:
    """The time of PyTorch's context_parallel over that of balanced zigzag shards, at the longest length."""
    cells, torch = evidence.call, ring_cells(evidence.results, "context_parallel")
    return [torch(ZIGZAG_EVEN, at) / cells(BALANCED, at) for at in [*cells.at(length=LONG), cells.equal]]


def shares_by_label_cost(evidence: Evidence) -> Finding:
    """Whether proportional zigzag shards come within 7 % of the bound at the longest length, in both orders."""
    fractions = long_fractions(evidence, ZIGZAG_UNEVEN)
    return holds(min(fractions) > 0.93, f"{span(fractions)} of the bound at 65,536 tokens")


def pictured_order(evidence: Evidence) -> Finding:
    """Whether the extreme cell has the order of the closed forms: even, even zigzag, proportional, balanced zigzag."""
    cells, at = evidence.call, evidence.call.extreme
    times = [cells(name, at) for name in (EVEN, ZIGZAG_EVEN, UNEVEN, BALANCED)]
    return holds(times == sorted(times, reverse=True), ", ".join(map(number, times)) + " ms")


def formula_understates(evidence: Evidence) -> Finding:
    """Whether contiguous shards gain, and zigzag ones do not, where the formula understates the slow rank."""
    cells = evidence.call
    less = [at for at in cells.throttled if cells(FORMULA, at, "block_lens")[-1] < cells(UNEVEN, at, "block_lens")[-1]]
    contiguous, zigzag = (
        sum(ratio < 1 for ratio in cells.ratios(*names, less))
        for names in ((FORMULA, UNEVEN), (ZIGZAG_FORMULA, ZIGZAG_UNEVEN))
    )
    ours = f"in {len(less)} of {len(cells.throttled)} cells; faster there in {contiguous} contiguous, {zigzag} zigzag"
    return holds(2 * contiguous > len(less) > 2 * zigzag, ours)


def fast_rank_waits(evidence: Evidence) -> Finding:
    """Whether the fast rank waits for most of an even contiguous call in the extreme cell."""
    cells, at = evidence.call, evidence.call.extreme
    waits = 1 - cells(EVEN, at, "busy_ms")[0] / cells(EVEN, at)
    return holds(waits > 0.9, f"{percent(waits)} of the call at 65,536 tokens and 10 %")


def odd_lengths(evidence: Evidence) -> Finding:
    """Whether a length that is no multiple of a tile costs little per pair here, and much in the released code."""
    ours = odd_costs(evidence)
    theirs = 1 - evidence.study.released["100 10", 59584] / evidence.study.released["100 10", 59578]
    text = f"{percent(min(ours))} to {percent(max(ours))} more per pair; released code {percent(theirs)} for 6 tokens"
    return holds(max(ours) < 0.05 and theirs > 0.15, text)


def odd_costs(evidence: Evidence) -> list[float]:
    """What a pair costs at ODD tokens over what it costs at TILES, less one, back to back, by percentages."""
    rows = evidence.odd_lengths
    rows = rows[(rows.strategy == BALANCED) & (rows.condition == "sustained")]
    times = rows.pivot(index="percentages", columns="seq_len", values="latency_ms")
    return list(times[ODD] / times[TILES] * (TILES / ODD) ** 2 - 1)


def conditions(evidence: Evidence) -> Finding:
    """Whether calls that are not rested reach 0.9 of the bound at the longest length."""
    worst = evidence.condition_fractions.groupby("condition").min()
    ours = ", ".join(f"{CONDITION_WORDS[name]} {number(value)}" for name, value in worst.items())
    return holds(min(worst) > 0.9, f"least: {ours}")


def captured_contiguous_ahead(evidence: Evidence) -> Finding:
    """Whether, as CUDA graphs with a slow last rank, balanced contiguous shards are faster at the longest length."""
    ratios = contiguous_ratios(evidence, condition="captured")
    return holds(max(ratios) < 0.98, f"{span(ratios)} times zigzag/balanced at {len(ratios)} percentages")


def short_calls_are_the_hosts(evidence: Evidence) -> Finding:
    """Whether the host's work is most of a call of the shortest length that is made one at a time.

    That is the part of its time by which a call that the host has queued ahead is faster.
    """
    times = evidence.recorded(strategy=BALANCED, seq_len=evidence.call.lengths[0])
    times = times.pivot(index="percentages", columns="condition", values="latency_ms").dropna()
    parts, ratios = 1 - times.rested / times.eager, host_ratios(evidence)
    ours = f"{percent(min(parts))} to {percent(max(parts))} of it; {span(ratios)} times as long as on one rank"
    return holds(min(parts) > 0.5 and min(ratios) > 1, ours)


def host_ratios(evidence: Evidence) -> list[float]:
    """The time of the shortest call over that on the fast rank alone, both one at a time."""
    return list(over_one_gpu(evidence)["eager", evidence.call.lengths[0]])


def profile_of_attention(evidence: Evidence) -> Finding:
    """Whether zigzag shards by a profile of products mostly take longer than those by one of attention."""
    ratios = profile_ratios(evidence)
    return holds(median(ratios) > 1, f"{span(ratios)} times as long by products; median {number(median(ratios))}")


def profile_ratios(evidence: Evidence) -> list[float]:
    """Zigzag's time with shares by a table of products over that with shares by a table of attention, unequal ranks."""
    times = evidence.both_orders.pivot(index=["seq_len", "percentages"], columns="strategy", values="latency_ms")
    return list(times[ZIGZAG_LUT] / times[f"{ZIGZAG_LUT}@attention"])


# Speeds that change.


def rebalanced_near_oracle(evidence: Evidence) -> Finding:
    """Whether an adaptive split reaches 0.9 of an oracle while a GPU slows down and recovers."""
    adaptive, fixed = of_oracle(evidence.results.chunks)
    return holds(adaptive > 0.9, f"{number(adaptive)} of it, fixed splits {span(fixed)}")


def rebalanced_beside_neighbour(evidence: Evidence) -> Finding:
    """Whether an adaptive split beats fixed ones while another process takes part of the GPU."""
    adaptive, fixed = of_oracle(evidence.results.beside_neighbour)
    return holds(adaptive > 1.1 * max(fixed), f"{number(adaptive)} of an oracle, fixed splits {span(fixed)}")


def settles_beside_neighbour(evidence: Evidence) -> Finding:
    """Whether the adaptive split needs three chunks to settle beside a neighbour, and one in a green context."""
    runs = {"green": evidence.results.chunks, "neighbour": evidence.results.beside_neighbour}
    late = {throttle: chunks_late(chunks) for throttle, chunks in runs.items()}
    ours = ", ".join(f"{throttle_words(throttle).cause} {n}" for throttle, n in late.items())
    return holds(late == {"green": 1, "neighbour": 3}, ours)


def chunks_late(chunks: DataFrame) -> int:
    """In how many chunks with a slow rank the adaptive split differs from the oracle's: the most of any repetition."""
    slow = chunks[(chunks.seq_len == chunks.seq_len.max()) & (chunks.percentages.map(min) < 100)]
    splits = slow.pivot(index=["repetition", "prompt_len", "chunk"], columns="split", values="block_lens")
    return int((splits.rebalanced != splits.oracle).groupby("repetition").sum().max())


def of_oracle(chunks: DataFrame) -> tuple[float, Series]:
    """The oracle's time for a chunked prefill over that of the adaptive split, and over that of each fixed split."""
    totals = chunk_totals(chunks).of_oracle.drop("oracle")
    return totals["rebalanced"], totals.drop("rebalanced")

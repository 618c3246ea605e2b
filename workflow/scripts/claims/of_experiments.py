"""The paper's own claims about the records of experiments: what parts are worth, held-out settings, green contexts."""

from statistics import median

from pandas import DataFrame, Series

from claims.evidence import LONG, MEDIUM, Evidence, Finding, holds, percent, span
from heteroring.figures.plots.ablation import STEPS
from heteroring.results.strategy import Strategy, name_of
from paper.cells import BALANCED, BALANCED_CONTIGUOUS, EVEN, ZIGZAG_LUT

# The steps that the figure shows with the slow rank first and the record has in both orders: from even shards with
# nothing else to the full ring by shares, layout, whole tiles, and the fused first step.
LADDER = tuple(step.strategy for step in STEPS if step.order == "slow first")
# A look-up table of attention at a quarter of the prompt's length.
QUARTER = f"{ZIGZAG_LUT}:quarter@attention"


def order_and_shares(evidence: Evidence) -> Finding:
    """Whether balanced shares alone bring contiguous shards near the full ring, the slow rank first."""
    rest = ladder_rest(evidence)
    return holds(max(rest) < 1.1, f"{span(rest)} times what the full ring takes")


def ladder_rest(evidence: Evidence) -> list[float]:
    """The time of balanced contiguous shards with nothing else over that of the full ring, the slow rank first."""
    times = ablation_times(evidence).loc["slow first"]
    return list(times[LADDER[1]] / times[BALANCED])


def ablation_times(evidence: Evidence) -> DataFrame:
    """Milliseconds of the ablation's calls on unequal ranks by order, length and percentage, a column per strategy."""
    rows = evidence.recorded("ablation", condition="rested")
    return rows[rows.order != "equal"].pivot(
        index=["order", "seq_len", "percentage"], columns="strategy", values="latency_ms"
    )


def ladder_gains(evidence: Evidence, step: int) -> Series:
    """How many times faster a step of LADDER, counted from 1, makes the ring, in both orders."""
    times = ablation_times(evidence)
    return times[LADDER[step - 1]] / times[LADDER[step]]


def layout_by_order(evidence: Evidence) -> Finding:
    """Whether zigzag makes balanced shares faster than contiguous with the slow rank last, and not with it first."""
    gains = ladder_gains(evidence, 2)
    first, last = gains["slow first"], gains["slow last", MEDIUM]
    ours = f"first: {span(1 / first)} times as long; last, at 16,384 tokens: {span(last)} times faster"
    return holds(max(first) < 1.01 and min(last) > 1.1, ours)


def fused_first_step_gains(evidence: Evidence) -> Finding:
    """Whether the fused first step makes the ring faster in every cell."""
    gains = ladder_gains(evidence, 4)
    return holds(min(gains) > 1, f"{span(gains)} times faster")


def copy_engines_gain(evidence: Evidence) -> Finding:
    """Whether copy engines make the ring faster than send and receive in every cell."""
    gains = copy_engine_gains(evidence)
    return holds(min(gains) > 1, f"{span(gains)} times faster, with nothing fused")


def copy_engine_gains(evidence: Evidence) -> Series:
    """The time of the ring by send and receive over that by copy engines, neither with a fused first step."""
    times = ablation_times(evidence)
    return times[f"{BALANCED}:p2p"] / times[f"{BALANCED}:unfused"]


def masked_tiles_cost(evidence: Evidence) -> Finding:
    """Whether masked tiles cost contiguous shards more in long calls, and zigzag shards more in short ones."""
    contiguous, zigzag = masked_costs(evidence, "contiguous"), masked_costs(evidence, "zigzag")
    more = (contiguous > zigzag).unstack("seq_len")
    ours = "; ".join(
        f"{length:,} tokens: contiguous {span(contiguous[:, length])} times, zigzag {span(zigzag[:, length])}"
        for length in (LONG, MEDIUM)
    )
    lowest = more[MEDIUM].xs(min(contiguous.index.get_level_values("percentage")), level="percentage")
    return holds(more[LONG].all() and not lowest.any(), ours)


def masked_costs(evidence: Evidence, layout: str) -> Series:
    """The time with masked tiles computed over that with masked tiles skipped, by the portable kernel."""
    times = ablation_times(evidence)
    return times[name_of(layout, "balanced:masked")] / times[name_of(layout, "balanced:portable")]


def operator_not_length(evidence: Evidence) -> Finding:
    """Whether a table of attention at a quarter of the length does as well as a full one, and one of products worse."""
    products, quarter = (profile_costs(evidence, name) for name in (ZIGZAG_LUT, QUARTER))
    ours = f"products {span(products)} times as long, attention at a quarter of the length {span(quarter)}"
    return holds(max(abs(quarter - 1)) < 0.02 and (products > quarter).all(), ours)


def profile_costs(evidence: Evidence, strategy: str) -> Series:
    """The time of `strategy` over that of zigzag shards by a table of attention at the prompt's length."""
    times = ablation_times(evidence)
    return times[strategy] / times[f"{ZIGZAG_LUT}@attention"]


def held_out(evidence: Evidence) -> Finding:
    """Whether balanced shards of both layouts stay near the best split where no profile was taken."""
    regrets = held_out_regrets(evidence)
    found = {name: regrets[name] for name in (BALANCED, BALANCED_CONTIGUOUS)}
    ours = "; ".join(f"{name} {percent(median(each))}, {percent(max(each))} at most" for name, each in found.items())
    return holds(max(map(max, found.values())) < 0.05, f"slower than the best split found: {ours}")


def held_out_regrets(evidence: Evidence) -> DataFrame:
    """Regret by length and percentages, a column per strategy, where neither is that of a profile."""
    record = evidence.beside["heldout"]
    profiled = record.profile[record.profile.kind == "attention"]
    rows = evidence.recorded("heldout", condition="rested")
    rows = rows[~rows.percentage.isin(profiled.percentage) & ~rows.seq_len.isin(profiled["size"])]
    return rows.pivot(index=["seq_len", "percentages"], columns="strategy", values="regret")


def held_out_least(evidence: Evidence) -> Finding:
    """Whether, of each layout, balanced shards have the least median regret among all allocators."""
    medians = held_out_regrets(evidence).median()
    medians = medians[[":" not in name for name in medians.index]]
    others = medians.drop([BALANCED, BALANCED_CONTIGUOUS])
    ours = "; ".join(
        f"{layout} {percent(medians[name_of(layout, 'balanced')])}, "
        f"others {percent(each.min())} to {percent(each.max())}"
        for layout, each in others.groupby(lambda name: Strategy(name).layout)
    )
    return holds(max(medians[BALANCED], medians[BALANCED_CONTIGUOUS]) < min(others), ours)


def second_throttle(evidence: Evidence) -> Finding:
    """Whether in green contexts, too, rank order decides of even contiguous shards and not of balanced zigzag."""
    fractions, even, zigzag = green_fractions(evidence), green_orders(evidence, EVEN), green_orders(evidence, BALANCED)
    ours = (
        f"{span(fractions)} of the bound at 65,536 tokens; exchanging makes even contiguous shards {span(even)} times "
        f"faster, and the time of balanced zigzag ones differs by {percent(max(abs(zigzag - 1)))} at most"
    )
    return holds(min(fractions) > 0.97 and min(even) > 1.2 and max(abs(zigzag - 1)) < 0.05, ours)


def green_fractions(evidence: Evidence) -> Series:
    """Bound fractions of balanced zigzag shards with unequal ranks in green contexts, at the longest length."""
    rows = evidence.recorded("green", strategy=BALANCED, condition="rested", seq_len=LONG)
    return rows.bound_fraction[rows.order != "equal"]


def green_orders(evidence: Evidence, strategy: str) -> Series:
    """The time with the slow rank last over that with it first in green contexts, at the longest length."""
    rows = evidence.recorded("green", strategy=strategy, condition="rested", seq_len=LONG)
    times = rows.pivot(index="percentage", columns="order", values="latency_ms")
    return (times["slow last"] / times["slow first"]).dropna()

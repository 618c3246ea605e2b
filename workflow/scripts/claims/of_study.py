"""The public study's claims, each judged on this project's hardware: with the slow rank last, as there, and first."""

from collections.abc import Callable, Iterable
from statistics import median

from pandas import DataFrame

from claims.evidence import LONG, MIDDLE, NOT, PARTLY, REPRODUCED, Evidence, Finding, number, points, span
from heteroring.results.results import headline
from heteroring.results.strategy import Strategy, fitted_name
from paper.cells import EVEN, FORMULA, LUT, UNEVEN, CellTable
from paper.study import HALF, refitted

# Rank 0's tokens in the released code's proportional split at 10 %, slow rank last and first.
LAST, FIRST = 59578, 5958
# What remains with the slow rank first of a claim that is not about a ring.
NO_ORDER = "no order"

# What was timed with the slow rank last, or first.
Order = Callable[[Evidence], dict[str, CellTable]]


def within(values, low: float, high: float) -> str:
    """The verdict on values of which the study published a range.

    Args:
        values: The measured values.
        low: The least published value.
        high: The greatest.

    Returns:
        REPRODUCED if all lie between, PARTLY if some do, else NOT.
    """
    inside = [low <= value <= high for value in values]
    return REPRODUCED if all(inside) else PARTLY if any(inside) else NOT


def released(evidence: Evidence, percentages: str, tokens: int) -> float:
    """Slowdown of the study's released code against its even split on two full H200s.

    Args:
        percentages: Those of both ranks, such as "100 10".
        tokens: Tokens of rank 0, of 65,536.

    Returns:
        The slowdown.
    """
    times = evidence.study.released
    return times[percentages, tokens] / times["100 100", HALF]


def last(evidence: Evidence) -> dict[str, CellTable]:
    """Rested cells by what was timed, the slow rank last. The study timed a layer."""
    return {"call": evidence.call, "layer": evidence.layer}


def first(evidence: Evidence) -> dict[str, CellTable]:
    """The same with the slow rank first."""
    return {"call": evidence.call_first, "layer": evidence.layer_first}


def slowdowns(evidence: Evidence, name: str, order: Order = last) -> dict[str, list[float]]:
    """Latency at 10 % over that of even contiguous shards on two full ranks, by what was timed, each length's."""
    full = last(evidence)
    return {
        what: [cells(name, (n, 10)) / full[what](EVEN, (n, 100)) for n in cells.lengths]
        for what, cells in order(evidence).items()
    }


def efficiencies(evidence: Evidence, names: Iterable[str], order: Order = last) -> dict[str, list[float]]:
    """The inverse of `slowdowns`, of several strategies together."""
    found = [slowdowns(evidence, name, order) for name in names]
    return {what: [1 / value for each in found for value in each[what]] for what in found[0]}


def speedups(evidence: Evidence, order: Order = last, **at: int) -> dict[str, list[float]]:
    """Speedup of proportional over even contiguous shards, in the throttled cells of one length or percentage."""
    return {what: cells.ratios(EVEN, UNEVEN, cells.at(**at)) for what, cells in order(evidence).items()}


def shown(found: dict[str, list[float]], text: Callable[[list[float]], str] = span) -> str:
    """`call 4.25; layer 4.48`: what was timed, each with its values as `text` gives them."""
    return "; ".join(f"{what} {text(values)}" for what, values in found.items())


def together(found: dict[str, list[float]]) -> list[float]:
    """All values of whatever was timed."""
    return [value for values in found.values() for value in values]


def even_slowdown(evidence: Evidence) -> Finding:
    """Whether even shards at 10 % are slowed down 5 to 8 times."""
    found = slowdowns(evidence, EVEN)
    theirs, theirs_last = (number(released(evidence, order, HALF)) for order in ("10 100", "100 10"))
    remains = f"{shown(slowdowns(evidence, EVEN, first))}; released code {theirs}, last {theirs_last}"
    return Finding(within(together(found), 5, 8), shown(found), remains)


def proportional_slowdown(evidence: Evidence) -> Finding:
    """Whether proportional shards at 10 % are slowed down about 2 times, at the longest length."""
    found, found_first = (
        {what: values[-1:] for what, values in slowdowns(evidence, UNEVEN, order).items()} for order in (last, first)
    )
    theirs, theirs_last = (number(released(evidence, *split)) for split in (("10 100", FIRST), ("100 10", LAST)))
    remains = f"{shown(found_first)}; released code {theirs}, last {theirs_last}"
    return Finding(within(together(found), 1.5, 2.5), shown(found), remains)


def speedup(evidence: Evidence) -> Finding:
    """Whether proportional shards are some 4.4 times faster than even ones, at the longest length and 10 %."""
    found, found_first = (speedups(evidence, order, length=LONG, percentage=10) for order in (last, first))
    theirs, theirs_first = released_speedup(evidence, "100 10", LAST), released_speedup(evidence, "10 100", FIRST)
    return Finding(
        within([*together(found), theirs], 0.9 * 4.4, 1.1 * 4.4),
        f"{shown(found)}; released code {number(theirs)}",
        f"{shown(found_first)}; released code {number(theirs_first)}",
    )


def released_speedup(evidence: Evidence, percentages: str, tokens: int) -> float:
    """Speedup of the released code's split with these tokens on rank 0 over its even split."""
    return released(evidence, percentages, HALF) / released(evidence, percentages, tokens)


def grows_with_length(evidence: Evidence) -> Finding:
    """Whether the speedup at 10 % grows with length, in every job of the call and in the layer.

    Partly, if in the call the shortest length has the least speedup and the longest the most.
    """
    gains, gains_first = (speedups(evidence, order, percentage=10) for order in (last, first))
    growing = [each == sorted(each) for each in speedups_by_job(evidence)]
    call, layer = gains["call"], gains["layer"]
    overall = min(call) == call[0] and max(call) == call[-1]
    verdict = REPRODUCED if all(growing) and layer == sorted(layer) else PARTLY if overall else NOT

    def by_length(values: list[float]) -> str:
        return ", ".join(map(number, values))

    ours = f"{shown(gains, by_length)}; the call's at every step in {sum(growing)} of {len(growing)} jobs"
    return Finding(verdict, ours, shown(gains_first, by_length))


def times_by_job(evidence: Evidence) -> DataFrame:
    """Median time of the throttled call in each job, the slow rank last: columns by strategy, percentage, seq_len."""
    rows = headline(evidence.results.measurements)
    rows = rows[(rows.module == "attention") & (rows.system == "ring") & (rows.percentage < 100)]
    return rows.pivot_table("latency_ms", "job", ["strategy", "percentage", "seq_len"], "median")


def speedups_by_job(evidence: Evidence) -> list[list[float]]:
    """For each job, the speedup of proportional over even contiguous shards in the call at 10 %, by length."""
    times = times_by_job(evidence)
    return (times[EVEN, 10] / times[UNEVEN, 10]).to_numpy().tolist()


def grows_with_heterogeneity(evidence: Evidence) -> Finding:
    """Whether the speedup at the longest length grows as one rank gets slower."""
    gains, gains_first = (speedups(evidence, order, length=LONG) for order in (last, first))
    verdict = REPRODUCED if all(each == sorted(each, reverse=True) for each in gains.values()) else NOT
    low, *_ = percentages = [percentage for _, percentage in evidence.call_first.at(length=LONG)]

    def below_one(values: list[float]) -> str:
        slower = {p: gain for p, gain in zip(percentages, values, strict=True) if gain <= 1}
        rest = f", {span(slower.values())} from {min(slower)} % on" if slower else ""
        return f"{number(values[0])} at {low} %{rest}"

    return Finding(verdict, shown(gains), shown(gains_first, below_one))


def even_efficiency(evidence: Evidence) -> Finding:
    """Whether even shards are below 20 % efficiency at 10 %."""
    found = efficiencies(evidence, [EVEN])
    verdict = REPRODUCED if max(together(found)) < 0.2 else PARTLY if min(together(found)) < 0.2 else NOT
    theirs = number(1 / released(evidence, "10 100", HALF))
    return Finding(verdict, shown(found), f"{shown(efficiencies(evidence, [EVEN], first))}; released code {theirs}")


def adaptive_efficiency(evidence: Evidence) -> Finding:
    """Whether shards by the label, a table or the formula reach 40 to 50 % efficiency at 10 %."""
    found, found_first = (efficiencies(evidence, (UNEVEN, LUT, FORMULA), order) for order in (last, first))
    theirs = [
        1 / evidence.study.slowdown(split, (n, 10))
        for split in ("uneven", "lut", "formula")
        for n in evidence.study.lengths
    ]
    every = together(found)
    ours = f"{shown(found)}; median {number(median(every))}; the study's own record {span(theirs)}"
    theirs_first = number(1 / released(evidence, "10 100", FIRST))
    return Finding(within(every, 0.4, 0.5), ours, f"{shown(found_first)}; released code {theirs_first}")


def utilisation(evidence: Evidence) -> Finding:
    """Efficiency of proportional shards over that of even ones, which is the speedup."""
    found, found_first = (speedups(evidence, order, percentage=10) for order in (last, first))
    theirs = number(released_speedup(evidence, "10 100", FIRST))
    return Finding(within(together(found), 2, 3), shown(found), f"{shown(found_first)}; released code {theirs}")


def lut_rarely_better(evidence: Evidence) -> Finding:
    """Whether the look-up table rarely beats shares by the label."""
    return rarely(evidence, LUT)


def formula_rarely_better(evidence: Evidence) -> Finding:
    """Whether the formula rarely beats shares by the label."""
    return rarely(evidence, FORMULA)


def rarely(evidence: Evidence, name: str) -> Finding:
    """Whether `name` beats shares by the label in at most a quarter of the throttled cells of call and layer.

    Partly, if it does in less than a third of them.
    """
    study, every = evidence.study, len(evidence.call.throttled)
    won = {what: cells.wins(name, UNEVEN) for what, cells in last(evidence).items()}
    most, by_job = max(won.values()), wins_by_job(evidence, name)
    split = Strategy(name).allocator
    theirs = sum(study.latency[split][cell] < study.latency["uneven"][cell] for cell in study.cells)
    ours = (
        f"faster in {won['call']} of {every} ({min(by_job)} to {max(by_job)} by job), layer {won['layer']}; "
        f"in the study's own record in {theirs} of {len(study.cells)}"
    )
    gains = {what: (cells.wins(name, UNEVEN), cells.ratios(UNEVEN, name)) for what, cells in first(evidence).items()}
    remains = "; ".join(
        f"{what} {wins} of {every}, {number(median(ratios))} times in the median"
        for what, (wins, ratios) in gains.items()
    )
    verdict = REPRODUCED if most <= every / 4 else PARTLY if most < every / 3 else NOT
    return Finding(verdict, ours, f"faster in: {remains}")


def wins_by_job(evidence: Evidence, name: str) -> list[int]:
    """In how many throttled cells of the call `name` beats shares by the label, in each job."""
    times = times_by_job(evidence)
    return (times[name] < times[UNEVEN]).sum(axis="columns").tolist()


def regression_fit(evidence: Evidence) -> Finding:
    """Whether the formula fits the study's profile of products with R2 = 0.922."""
    model, ours = refitted(evidence.study), evidence.results.fitted_models[fitted_name("formula", "matmul")]
    held = f"{number(model.r2_leave_one_length_out)} at lengths left out"
    text = f"{model.r2:.3f} from the released profile, {held}; {ours['r2']:.3f} from ours"
    return Finding(REPRODUCED if f"{model.r2:.3f}" == "0.922" else NOT, text, NO_ORDER)


def products_ahead(evidence: Evidence) -> float:
    """Relative speed of products less that of attention, at MIDDLE percent."""
    return evidence.middle_speeds["matmul"] - evidence.middle_speeds["attention"]


def study_products_ahead(evidence: Evidence) -> float:
    """Relative speed of products less that of attention on the study's L40, at MIDDLE percent."""
    study = evidence.study
    return study.product_speed(MIDDLE) - study.speed((study.lengths[-1], MIDDLE))


def wrong_operator(evidence: Evidence) -> Finding:
    """Whether products keep more of their speed than attention does, as they do on the L40."""
    ours, theirs = products_ahead(evidence), study_products_ahead(evidence)
    verdict = REPRODUCED if ours > 0.5 * theirs else PARTLY if ours > 0.1 * theirs else NOT
    return Finding(verdict, f"{points(ours)} of full speed here, {points(theirs)} on the L40", NO_ORDER)

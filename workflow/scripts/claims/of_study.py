"""The public study's claims, each judged on this project's hardware: with the slow rank last, as there, and first."""

from statistics import median

from claims.evidence import LONG, MIDDLE, NOT, PARTLY, REPRODUCED, Evidence, Finding, number, percent, span
from heteroring.results.results import headline
from heteroring.results.strategy import Strategy, fitted_name
from paper.cells import EVEN, FORMULA, LUT, UNEVEN, CellTable
from paper.study import HALF, refitted

# Rank 0's tokens in the released code's proportional split at 10 %, slow rank last and first.
LAST, FIRST = 59578, 5958


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


def against_full_ranks(evidence: Evidence, name: str) -> dict[str, list[float]]:
    """Slowdown at 10 % against even contiguous shards on two full ranks, by what was timed, each length's."""
    tables = {"call": evidence.call, "layer": evidence.layer}
    return {what: slowdowns(cells, cells, name) for what, cells in tables.items()}


def first_against_full_ranks(evidence: Evidence, name: str) -> list[float]:
    """The same of the call with the slow rank first."""
    return slowdowns(evidence.call_first, evidence.call, name)


def slowdowns(cells: CellTable, full: CellTable, name: str) -> list[float]:
    """Latency at 10 % over that of even contiguous shards on two full ranks, which are in `full`, by length."""
    return [cells(name, (n, 10)) / full(EVEN, (n, 100)) for n in cells.lengths]


def even_slowdown(evidence: Evidence) -> Finding:
    """Whether even shards at 10 % are slowed down 5 to 8 times."""
    found = against_full_ranks(evidence, EVEN)
    ours = "; ".join(f"{what} {span(values)}" for what, values in found.items())
    verdict = within([value for values in found.values() for value in values], 5, 8)
    theirs, theirs_last = (released(evidence, order, HALF) for order in ("10 100", "100 10"))
    first = f"call {span(first_against_full_ranks(evidence, EVEN))}; "
    return Finding(verdict, ours, f"{first}released code {number(theirs)}, last {number(theirs_last)}")


def proportional_slowdown(evidence: Evidence) -> Finding:
    """Whether proportional shards at 10 % are slowed down about 2 times, at the longest length."""
    found = {what: values[-1] for what, values in against_full_ranks(evidence, UNEVEN).items()}
    ours = "; ".join(f"{what} {number(value)}" for what, value in found.items())
    theirs, theirs_last = released(evidence, "10 100", FIRST), released(evidence, "100 10", LAST)
    first = f"call {number(first_against_full_ranks(evidence, UNEVEN)[-1])}; "
    return Finding(
        within(found.values(), 1.5, 2.5),
        ours,
        f"{first}released code {number(theirs)}, last {number(theirs_last)}",
    )


def speedup(evidence: Evidence) -> Finding:
    """Whether proportional shards are some 4.4 times faster than even ones, at the longest length and 10 %."""
    tables = (evidence.call, evidence.layer, evidence.call_first)
    call, layer, call_first = (speedups(cells, length=LONG, percentage=10)[0] for cells in tables)
    theirs, theirs_first = released_speedup(evidence, "100 10", LAST), released_speedup(evidence, "10 100", FIRST)
    ours = f"call {number(call)}, layer {number(layer)}; released code {number(theirs)}"
    first = f"call {number(call_first)}; released code {number(theirs_first)}"
    return Finding(within([call, layer, theirs], 0.9 * 4.4, 1.1 * 4.4), ours, first)


def released_speedup(evidence: Evidence, percentages: str, tokens: int) -> float:
    """Speedup of the released code's split with these tokens on rank 0 over its even split."""
    return released(evidence, percentages, HALF) / released(evidence, percentages, tokens)


def speedups(cells: CellTable, **at: int) -> list[float]:
    """Speedup of proportional over even contiguous shards, in the throttled cells of one length or percentage."""
    return cells.ratios(EVEN, UNEVEN, cells.at(**at))


def grows_with_length(evidence: Evidence) -> Finding:
    """Whether the speedup at 10 % grows with length, in every job.

    Partly, if the shortest length has the least speedup and the longest the most.
    """
    gains, first = (speedups(cells, percentage=10) for cells in (evidence.call, evidence.call_first))
    growing = [each == sorted(each) for each in speedups_by_job(evidence)]
    overall = min(gains) == gains[0] and max(gains) == gains[-1]
    verdict = REPRODUCED if all(growing) else PARTLY if overall else NOT
    ours = f"{', '.join(map(number, gains))} by length; at every step in {sum(growing)} of {len(growing)} jobs"
    return Finding(verdict, ours, ", ".join(map(number, first)))


def speedups_by_job(evidence: Evidence) -> list[list[float]]:
    """For each job, the speedup of proportional over even contiguous shards in the call at 10 %, by length."""
    rows = headline(evidence.results.measurements)
    rows = rows[(rows.module == "attention") & (rows.percentage == 10)]
    times = rows.pivot_table("latency_ms", "job", ["strategy", "seq_len"], "median")
    return (times[EVEN] / times[UNEVEN]).to_numpy().tolist()


def grows_with_heterogeneity(evidence: Evidence) -> Finding:
    """Whether the speedup at the longest length grows as one rank gets slower."""
    gains, gains_first = (speedups(cells, length=LONG) for cells in (evidence.call, evidence.call_first))
    at = evidence.call_first.at(length=LONG)
    faster = [f"{number(gain)} at {p} %" for (_, p), gain in zip(at, gains_first, strict=True) if gain > 1]
    slower = [gain for gain in gains_first if gain <= 1]
    first = ", ".join([*faster, *([f"{span(slower)} above"] if slower else [])])
    return Finding(REPRODUCED if gains == sorted(gains, reverse=True) else NOT, span(gains), first)


def even_efficiency(evidence: Evidence) -> Finding:
    """Whether even shards are below 20 % efficiency at 10 %."""
    found = [1 / value for values in against_full_ranks(evidence, EVEN).values() for value in values]
    verdict = REPRODUCED if max(found) < 0.2 else PARTLY if min(found) < 0.2 else NOT
    first = f"call {span([1 / value for value in first_against_full_ranks(evidence, EVEN)])}"
    return Finding(verdict, span(found), f"{first}; released code {number(1 / released(evidence, '10 100', HALF))}")


def adaptive_efficiency(evidence: Evidence) -> Finding:
    """Whether shards by the label, a table or the formula reach 40 to 50 % efficiency at 10 %."""
    names = (UNEVEN, LUT, FORMULA)
    found = [1 / each for name in names for values in against_full_ranks(evidence, name).values() for each in values]
    theirs = [
        1 / evidence.study.slowdown(split, (n, 10))
        for split in ("uneven", "lut", "formula")
        for n in evidence.study.lengths
    ]
    ours = f"{span(found)}, median {number(median(found))}; the study's own record {span(theirs)}"
    first = span([1 / each for name in names for each in first_against_full_ranks(evidence, name)])
    theirs_first = number(1 / released(evidence, "10 100", FIRST))
    return Finding(within(found, 0.4, 0.5), ours, f"call {first}; released code {theirs_first}")


def utilisation(evidence: Evidence) -> Finding:
    """Efficiency of proportional shards over that of even ones, which is the speedup."""
    found = speedups(evidence.call, percentage=10) + speedups(evidence.layer, percentage=10)
    first = f"call {span(speedups(evidence.call_first, percentage=10))}"
    theirs = released_speedup(evidence, "10 100", FIRST)
    return Finding(within(found, 2, 3), span(found), f"{first}; released code {number(theirs)}")


def lut_rarely_better(evidence: Evidence) -> Finding:
    """Whether the look-up table rarely beats shares by the label."""
    return rarely(evidence, LUT)


def formula_rarely_better(evidence: Evidence) -> Finding:
    """Whether the formula rarely beats shares by the label."""
    return rarely(evidence, FORMULA)


def rarely(evidence: Evidence, name: str) -> Finding:
    """Whether `name` beats shares by the label in no more than a quarter of the throttled cells of the call."""
    cells, study = evidence.call, evidence.study
    won, all_cells = cells.wins(name, UNEVEN), len(cells.throttled)
    split = Strategy(name).allocator
    theirs = sum(study.latency[split][cell] < study.latency["uneven"][cell] for cell in study.cells)
    verdict = REPRODUCED if won <= all_cells / 4 else PARTLY if won <= all_cells / 2 else NOT
    ours = f"faster in {won} of {all_cells}; in the study's own record in {theirs} of {len(study.cells)}"
    first = evidence.call_first
    gain = number(median(first.ratios(UNEVEN, name)))
    faster = f"faster in {first.wins(name, UNEVEN)} of {len(first.throttled)}, {gain} times in the median"
    return Finding(verdict, ours, faster)


def regression_fit(evidence: Evidence) -> Finding:
    """Whether the formula fits the study's profile of products with R2 = 0.922."""
    model, ours = refitted(evidence.study), evidence.results.fitted_models[fitted_name("formula", "matmul")]
    held = f"{number(model.r2_leave_one_length_out)} at lengths left out"
    text = f"{model.r2:.3f} from the released profile, {held}; {ours['r2']:.3f} from ours"
    return Finding(REPRODUCED if f"{model.r2:.3f}" == "0.922" else NOT, text)


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
    return Finding(verdict, f"{percent(ours)} of full speed here, {percent(theirs)} on the L40", "")

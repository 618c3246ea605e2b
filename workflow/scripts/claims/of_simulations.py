"""The paper's own claims about simulated rings of two ranks and of many, and about predictions."""

from pandas import Series

from claims.evidence import MEDIUM, ORDERS, Evidence, Finding, holds, number, percent, span
from heteroring.figures.plots import simulated_scaling, simulated_slow_rank
from paper.cells import BALANCED, EVEN, ZIGZAG_EVEN

FEW = 4
# The predictions for more than two ranks of which the paper speaks.
PREDICTED_LENGTH, PREDICTED_SLOW = 131_072, "10"


def simulation_near_when_long(evidence: Evidence) -> Finding:
    """Whether the simulation's median error is below 1 % from MEDIUM tokens on, and larger in shorter calls."""
    errors = evidence.simulation_errors
    long = errors.index >= MEDIUM
    below, above = (span(100 * errors[at]) for at in (~long, long))
    ours = f"median errors of {above} % from 16,384 tokens on, {below} % below"
    return holds(max(errors[long]) < min(0.01, *errors[~long]), ours)


def more_ranks_lose(evidence: Evidence) -> Finding:
    """Whether every split's simulated bound fraction falls as ranks are added, to less than half with 1,024."""
    found = evidence.scaling
    falling = all(sorted(each, reverse=True) == each for each in found.values())
    halved = all(each[-1] < each[0] / 2 for each in found.values())
    ours = "; ".join(f"{name} {number(each[0])} to {number(each[-1])}" for name, each in found.items())
    return holds(falling and halved, ours)


def even_loses_speeds(evidence: Evidence) -> Finding:
    """Whether the simulated even split also loses the difference in speed up to 64 ranks, and not with 1,024."""
    found = evidence.scaling
    ratios = [even / balanced for even, balanced in zip(found["even"], found["balanced"], strict=True)]
    ours = (
        f"even {span(ratios[:-2])} of balanced up to {simulated_scaling.RANKS[-3]} ranks, {number(ratios[-1])} at 1,024"
    )
    return holds(max(ratios[:-2]) < 0.75 and ratios[-1] > 1, ours)


def one_slow_rank(evidence: Evidence) -> Finding:
    """Whether one slow rank holds up every simulated even ring, except a contiguous one that has it at the front."""
    even = {key: each for key, each in evidence.one_slow_rank.items() if key[0] in (EVEN, ZIGZAG_EVEN)}
    front = even.pop((EVEN, "slow first"))
    others = [ratio for each in even.values() for ratio in each]
    return holds(min(others) > 9 and max(front[2:]) < 2, f"{span(others)} times; contiguous, first: {span(front)}")


def balanced_approaches(evidence: Evidence) -> Finding:
    """Whether a simulated balanced zigzag with one slow rank comes nearer to one without it as ranks are added."""
    found = [evidence.one_slow_rank[BALANCED, order] for order in ORDERS]
    falling = all(sorted(each, reverse=True) == each and each[0] > 1.5 for each in found)
    return holds(falling and max(each[-1] for each in found) < 1.02, f"{span(found[0])} times; first: {span(found[1])}")


def kinds_in_turn(evidence: Evidence) -> Finding:
    """Whether many ranks of two kinds are faster in turn than in two rows, and few ranks are not."""
    ratios, (fast, slow) = {}, simulated_scaling.kinds(evidence.platform)
    for ranks in simulated_slow_rank.RANKS:
        apart = (fast,) * (ranks // 2) + (slow,) * (ranks // 2)
        times = [
            simulated_slow_rank.latency_us(evidence.platform, BALANCED, each)
            for each in (apart, apart[::-1], (fast, slow) * (ranks // 2))
        ]
        ratios[ranks] = min(times[:2]) / times[2]
    few, many = ([ratio for ranks, ratio in ratios.items() if (ranks <= FEW) == few] for few in (True, False))
    ours = f"{span(few)} times as long in rows as in turn up to {FEW} ranks, {span(many)} from {2 * FEW} on"
    return holds(max(few) < 1.01 and min(many) > 1.1, ours)


def predictions_came_true(evidence: Evidence) -> Finding:
    """Whether calls of MEDIUM tokens or more took about what had been predicted."""
    errors = prediction_errors(evidence)
    ours = f"{percent(errors.median())} off in the median, 95 in 100 by less than {percent(errors.quantile(0.95))}"
    return holds(errors.median() < 0.02 and errors.quantile(0.95) < 0.08, ours)


def prediction_errors(evidence: Evidence) -> Series:
    """Of predicted calls of MEDIUM tokens or more, the slow rank first, which the record has since, split alike."""
    rows = evidence.recorded(condition="rested", order="slow first")
    listed = {name: rows[name].map(lambda ranks: " ".join(map(str, ranks))) for name in ("percentages", "block_lens")}
    key = ["seq_len", "percentages", "strategy", "block_lens"]
    both = evidence.predictions["h200x2_slow_first"].merge(rows.assign(**listed), on=key)
    return abs(both.predicted_ms / both.latency_ms - 1)[both.seq_len >= MEDIUM]


def predicted_waits_together(evidence: Evidence) -> Finding:
    """Whether, of the rings predicted, those with two slow ranks side by side are furthest from the bound."""
    ours, least, losses = [], [], []
    for ranks in (4, 8):
        fractions, together, apart = predicted_fractions(evidence, ranks)
        ours.append(f"{ranks} ranks: {span(fractions)}, two slow ones side by side {number(together)}")
        least.append(min(fractions) - together)
        losses.append(apart - together)
    return holds(min(least) > 0 and min(losses) > 0.1, "; ".join(ours))


def predicted_fractions(evidence: Evidence, ranks: int) -> tuple[Series, float, float]:
    """Predicted bound fractions of balanced zigzags of PREDICTED_LENGTH tokens over as many ranks.

    Of all settings but that with two slow ranks side by side, then of that one, and of the one with these ranks apart.
    """
    rows = evidence.predictions[f"h200x{ranks}"]
    rows = rows[(rows.strategy == BALANCED) & (rows.seq_len == PREDICTED_LENGTH)].set_index("percentages")
    fractions, half = rows.bound_ms / rows.predicted_ms, ["100"] * (ranks // 2 - 1)
    apart, together = (" ".join(each) for each in ([*half, PREDICTED_SLOW] * 2, [*half * 2, *[PREDICTED_SLOW] * 2]))
    return fractions.drop(together), fractions[together], fractions[apart]

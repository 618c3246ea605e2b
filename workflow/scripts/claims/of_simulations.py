"""The paper's own claims about simulated rings of two ranks and of many."""

from claims.evidence import LONG, ORDERS, Evidence, Finding, holds, number, percent, span
from heteroring.figures.plots import simulated_scaling, simulated_slow_rank
from paper.cells import BALANCED, EVEN, ZIGZAG_EVEN

FEW = 4


def simulation_closer_when_long(evidence: Evidence) -> Finding:
    errors = evidence.simulation_errors
    ours = f"median errors {percent(errors[4096])} at 4,096 tokens, {percent(errors[LONG])} at 65,536"
    return holds(bool(errors.is_monotonic_decreasing) and errors[LONG] < 0.05, ours)


def more_ranks_lose(evidence: Evidence) -> Finding:
    found = evidence.scaling
    falling = all(sorted(each, reverse=True) == each for each in found.values())
    halved = all(each[-1] < each[0] / 2 for each in found.values())
    ours = "; ".join(f"{name} {number(each[0])} to {number(each[-1])}" for name, each in found.items())
    return holds(falling and halved, ours)


def even_loses_speeds(evidence: Evidence) -> Finding:
    found = evidence.scaling
    ratios = [even / balanced for even, balanced in zip(found["even"], found["balanced"], strict=True)]
    ours = (
        f"even {span(ratios[:-2])} of balanced up to {simulated_scaling.RANKS[-3]} ranks, {number(ratios[-1])} at 1,024"
    )
    return holds(max(ratios[:-2]) < 0.75 and ratios[-1] > 1, ours)


def one_slow_rank(evidence: Evidence) -> Finding:
    even = {key: each for key, each in evidence.one_slow_rank.items() if key[0] in (EVEN, ZIGZAG_EVEN)}
    front = even.pop((EVEN, "slow first"))
    others = [ratio for each in even.values() for ratio in each]
    return holds(min(others) > 9 and max(front[2:]) < 2, f"{span(others)} times; contiguous, first: {span(front)}")


def balanced_approaches(evidence: Evidence) -> Finding:
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

"""The paper's own claims about layers, whole models and decode."""

from statistics import median

from pandas import Series

from claims.evidence import LONG, ORDERS, Evidence, Finding, holds, number, percent, span
from claims.of_paper import contiguous_ratios
from heteroring.results.model_metrics import decode_cells
from heteroring.results.results import slow_last
from heteroring.results.strategy import alone_name, parts_of
from paper.cells import BALANCED, BALANCED_CONTIGUOUS, EVEN, UNEVEN

DECODED_AT = "46e7282"  # the commit of the short runs of decode that were made on one pair


def layer_too(evidence: Evidence) -> Finding:
    """Whether a whole attention layer with balanced zigzag shards comes near the bound at the longest length."""
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
    """Whether the best contiguous split of the longest layer is slower than balanced zigzag shards, in both orders."""
    ratios = layer_contiguous_ratios(evidence)
    return holds(min(ratios) > 1.03, f"{span(ratios)} times as long as balanced zigzag at 65,536 tokens")


def layer_contiguous_ratios(evidence: Evidence) -> list[float]:
    """The longest layer's time with the best contiguous split over that with balanced zigzag shards, in both orders."""
    rows = evidence.recorded(module="fms", condition="rested", seq_len=LONG)
    times = rows.pivot(index="percentages", columns="strategy", values="latency_ms")
    contiguous = [name for name in times if parts_of(name)[0] == "contiguous"]
    return list(times[contiguous].min(axis="columns") / times[BALANCED])


def layer_contiguous_behind(evidence: Evidence) -> Finding:
    """Whether balanced contiguous shards of the longest layer take longer than balanced zigzag ones, in both orders."""
    ratios = contiguous_ratios(evidence, module="fms")
    return holds(min(ratios) > 1.05, f"{span(ratios)} times as long at 65,536 tokens")


def layer_contiguous_waits(evidence: Evidence) -> Finding:
    """Whether what balanced contiguous shards lose in the longest layer is a wait for projections of the front rank."""
    apart = abs(layer_wait_apart(evidence))
    return holds(max(apart) < 0.05, f"{percent(max(apart))} of the layer's time at most, in {len(apart)} settings")


def layer_wait_apart(evidence: Evidence) -> Series:
    """The longest layer's measured time with balanced contiguous shards less the predicted one, over the measured one.

    Predicted, by profiles of one rank: the rank behind computes its projections, waits until the front rank has its
    own q, k and v, three of four equal projections, and computes its attention.
    """
    profile = evidence.results.profile
    times = profile[profile["size"] == LONG].pivot(index="percentage", columns="kind", values="latency_ms")
    token_ms = (times["layer"] - times["attention"]) / LONG

    def predicted(cell: Series) -> float:
        (front, behind), lens = cell.percentages, cell.block_lens
        front_ms, behind_ms = lens[0] * token_ms[front], lens[1] * token_ms[behind]
        wait_ms = max(0, 0.75 * (front_ms - behind_ms))
        return behind_ms + wait_ms + times["attention"][behind] * (1 - (lens[0] / LONG) ** 2)

    cells = evidence.recorded(strategy=BALANCED_CONTIGUOUS, module="fms", condition="rested", seq_len=LONG)
    return 1 - cells.apply(predicted, axis="columns") / cells.latency_ms


def model_contiguous_level(evidence: Evidence) -> Finding:
    """Whether balanced contiguous shards of a whole model's prefill are level with balanced zigzag ones everywhere."""
    ratios = prefill_contiguous_ratios(evidence)
    return holds(max(abs(each - 1) for each in ratios) < 0.02, f"{span(ratios)} times, in {len(ratios)} cells")


def prefill_contiguous_ratios(evidence: Evidence) -> list[float]:
    """The time to first token of balanced contiguous shards over that of balanced zigzag ones, in every cell."""
    tables = evidence.prefill, evidence.prefill_first
    return [ratio for cells in tables for ratio in cells.ratios(BALANCED_CONTIGUOUS, BALANCED, cells.grid)]


def model_near_fastest(evidence: Evidence) -> Finding:
    """Whether balanced zigzag is the fastest split of a whole model's prefill, or level with it, in every cell."""
    tables = evidence.prefill, evidence.prefill_first
    ratios = [cells(BALANCED, at) / cells(cells.fastest(at), at) for cells in tables for at in cells.grid]
    return holds(max(ratios) < 1.02, f"{span(ratios)} times the fastest of six, in {len(ratios)} cells")


def model_fraction(evidence: Evidence) -> Finding:
    """Whether a whole model's prefill with balanced zigzag shards comes near the bound in every cell."""
    fractions = prefill_fractions(evidence)
    return holds(min(fractions) > 0.93, span(fractions))


def prefill_fractions(evidence: Evidence) -> list[float]:
    """Bound fractions of a whole model's prefill with balanced zigzag shards, in both orders and with equal ranks."""
    tables = evidence.prefill, evidence.prefill_first
    return [each for cells in tables for each in cells.over(BALANCED, "bound_fraction", cells.grid)]


def models_in_both_orders(evidence: Evidence) -> Finding:
    """Whether rank order changes a model's prefill with even contiguous shards, and not with balanced zigzag ones.

    The latter in the medians of all jobs, and in those of each pair of GPUs that has jobs in both orders.
    """
    first, last = evidence.prefill_first, evidence.prefill
    ratios, of_pairs = prefill_order_ratios(evidence), prefill_order_of_pairs(evidence)
    changes = all(first(EVEN, at) < 0.8 * last(EVEN, at) for at in first.grid)
    level = all(abs(each - 1) < 0.03 for each in (*ratios, *of_pairs))
    return holds(
        changes and level, f"{span(ratios)} times as long first as last, within pairs of GPUs {span(of_pairs)}"
    )


def prefill_order_of_pairs(evidence: Evidence) -> Series:
    """`prefill_order_ratios` within the jobs of each pair of GPUs that measured a percentage in both orders."""
    last, first = ORDERS
    times = evidence.by_pair.loc["model", BALANCED]
    return times[first] / times[last]


def prefill_jobs_apart(evidence: Evidence) -> float:
    """How far, as a fraction, the jobs of a model's prefill with balanced zigzag shards are apart at most."""
    rows = evidence.results.model
    rows = rows[(rows.phase == "prefill") & (rows.strategy == BALANCED)]
    return max(rows.latency_high_ms / rows.latency_low_ms) - 1


def prefill_order_ratios(evidence: Evidence) -> list[float]:
    """The time to first token of balanced zigzag shards with the slow rank first over that with it last."""
    first, last = evidence.prefill_first, evidence.prefill
    return [first(BALANCED, at) / last(BALANCED, at) for at in first.grid]


def decode_breaks_even(evidence: Evidence) -> Finding:
    """Whether decode over the ring gains with the other rank at 100 or 50 %, breaks even at 30 %, and loses at 10 %."""
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
    """The most tokens cached with which the ring loses to one rank, and the fewest with which it wins.

    Tokens of all sequences; 0 stands for no recorded case.
    """
    rows = evidence.decode[evidence.decode.percentage == percentage]
    return max(rows.tokens[rows.gain < 1], default=0), min(rows.tokens[rows.gain > 1], default=0)


def decode_without_mps(evidence: Evidence) -> Finding:
    """Whether two full ranks without MPS decode slower than one behind a short prompt, and faster behind a long one."""
    short, long = (decoded_gains(evidence, length) for length in (4096, LONG))
    ours = f"{number(short[1])} and {number(long[1])} times as fast, under MPS {number(short[0])} and {number(long[0])}"
    return holds(short[1] < 1 < long[1] < long[0] and short[1] < short[0], ours)


def decoded_gains(evidence: Evidence, length: int) -> list[float]:
    """The better full rank's time alone over that of both, captured and not compiled, under MPS and without."""
    found = [decoded(evidence, length, how) for how in ("captured", "captured, without MPS")]
    return [alone / ring for alone, ring, _ in found]


def decode_compiled(evidence: Evidence) -> Finding:
    """Whether a compiled model decodes 1.5 times as fast over two full ranks as on one, and near its limit."""
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
    """Whether the lowest percentage leaves a fifth of the memory bandwidth, and slows decode two to five times."""
    slowed, bandwidth = decode_slowed(evidence), bandwidth_left(evidence)
    ours = f"{number(bandwidth)} of the bandwidth, {span(slowed)} times as long a token"
    return holds(0.15 < bandwidth < 0.25 and min(slowed) > 2 and max(slowed) < 5, ours)


def bandwidth_left(evidence: Evidence) -> float:
    """What of its memory bandwidth at 100 % rank 1 reaches at the lowest percentage."""
    return 1 / median(decode_slowed(evidence, "limit_ms"))


def decode_slowed(evidence: Evidence, column: str = "latency_ms") -> list[float]:
    """`column` of rank 1 decoding alone, at the lowest percentage over that at 100 %, by length and batch."""
    rows = decode_cells(slow_last(evidence.results.model))
    rows = rows[rows.strategy == alone_name(1)].pivot(index=["batch", "seq_len"], columns="percentage", values=column)
    return list(rows[min(rows)] / rows[100])

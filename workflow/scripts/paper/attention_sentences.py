"""Sentences of the paper about the attention call whose wording depends on the measurements."""

from collections.abc import Iterable
from math import gcd
from statistics import median

from heteroring.results.results import Results
from paper.cells import (
    BALANCED,
    CONTIGUOUS,
    STRATEGIES,
    ZIGZAG_EVEN,
    ZIGZAG_UNEVEN,
    Cell,
    Cells,
    above_one,
    place,
    strategy,
)
from paper.tex import count, out_of, percent, rounded, share

# PyTorch's attention on the unthrottled rank alone, as cells name it.
SDPA = "contiguous/alone"


def verdicts(results: Results, cells: Cells) -> dict[str, str]:
    """All of them, by unprefixed name."""
    everywhere = [(n, p) for n in cells.lengths for p in cells.percentages]
    fractions = [cells(name, cell, "bound_fraction") for name in STRATEGIES for cell in everywhere]
    return {
        "AboveOneSentence": above_one(fractions),
        "AlignmentSentence": aligned(cells),
        "AloneSentence": beside_the_rank_alone(cells),
        "EfficiencySentence": above_the_reference(cells),
        "EqualNoiseSentence": same_call(cells),
        "FormulaSentence": understated(cells),
        "LeftOutSentence": left_out(cells),
        "PeerSentence": beside_others(results, cells),
    }


def same_call(cells: Cells) -> str:
    """How far apart strategies are that make one and the same split of two equal ranks."""
    twins = {name: cells.twins(name, cells.equal) for name in (CONTIGUOUS[0], ZIGZAG_EVEN)}
    if any(len(names) < 2 for names in twins.values()):
        return ""

    def apart(names: Iterable[str]) -> str:
        times = [cells(name, cells.equal) for name in names]
        return share((max(times) - min(times)) / median(times))

    contiguous, zigzag = map(apart, twins.values())
    return (
        f"All {count(len(twins[CONTIGUOUS[0]]))} strategies with contiguous shards make the same call there, and "
        f"{count(len(twins[ZIGZAG_EVEN]))} with zigzag ones; we give the median of theirs. They lie {contiguous} and "
        f"{zigzag} apart: at this length, smaller differences between strategies mean nothing."
    )


def aligned(cells: Cells) -> str:
    """How much of what the balanced split gains on the proportional one may be that it comes in whole tiles."""
    both = [cell for cell in cells.throttled if cells.shared_out(BALANCED, cell)]
    tile = gcd(*(length for cell in both for length in cells(BALANCED, cell, "block_lens")))
    whole = [cell for cell in both if not any(n % tile for n in cells(ZIGZAG_UNEVEN, cell, "block_lens"))]
    if not whole or len(whole) == len(both):
        return ""

    def ratio(chosen: Iterable[Cell]) -> str:
        return rounded(median(cells(ZIGZAG_UNEVEN, cell) / cells(BALANCED, cell) for cell in chosen))

    return (
        f"Part of that is alignment, and not allocation: balanced splits come in multiples of {count(tile)} tokens, "
        f"proportional ones only in {count(len(whole))} of the cells. There they take {ratio(whole)} times as long as "
        f"the balanced ones in the median, and {ratio(set(both) - set(whole))} times in the other cells."
    )


def left_out(cells: Cells) -> str:
    """In which cells the balanced allocator leaves a rank without tokens, as part of a sentence; empty if in none."""
    without = [cell for cell in cells.throttled if not cells.shared_out(BALANCED, cell)]
    if not without:
        return ""
    return (
        f"; in {count(len(without))} it gives the whole prompt to rank~0, at no more than "
        f"{count(max(length for length, _ in without))} tokens and {percent(max(p for _, p in without))}"
    )


def above_the_reference(cells: Cells) -> str:
    """Where contiguous shards with a throttled rank are faster than the even ones of two unthrottled ranks."""
    above = [each for name in CONTIGUOUS for each in cells.over_grid(name, "efficiency") if each > 1]
    if not above:
        return ""
    return (
        f"Contiguous shards even exceed an efficiency of one, in {count(len(above))} throttled cells and by up to "
        f"{rounded(max(above))}: so far from balanced is the reference."
    )


def understated(cells: Cells) -> str:
    """Where the formula gives the slow rank less than the label does, and which layout is the better for it."""

    def tokens(allocator: str, cell: Cell) -> int:
        return cells(f"contiguous/{allocator}", cell, "block_lens")[-1]

    less = [cell for cell in cells.throttled if tokens("formula", cell) < tokens("uneven", cell)]
    wins = {
        layout: sum(cells(f"{layout}/formula", cell) < cells(f"{layout}/uneven", cell) for cell in less)
        for layout in ("contiguous", "zigzag")
    }
    where = out_of(len(less), len(cells.throttled))
    sentence = (
        f"In {where} cells the formula gives the slow rank fewer tokens than the label "
        f"does. There it is the faster one in {count(wins['contiguous'])} with contiguous shards and in "
        f"{count(wins['zigzag'])} with zigzag ones."
    )
    if not 2 * wins["contiguous"] > len(less) > 2 * wins["zigzag"]:
        return sentence
    return (
        f"{sentence} The shares are the same. Contiguous shards reward whatever understates the slow rank's speed, as "
        r"in Section~\ref{sec:label}; zigzag shards show the error."
    )


def beside_the_rank_alone(cells: Cells) -> str:
    """The balanced split against the unthrottled rank alone, in the cells that use both ranks and in the others."""
    ratios = {cell: cells(BALANCED, cell) / cells(BALANCED, cell, "fast_alone_ms") for cell in cells.throttled}
    both = {cell: ratio for cell, ratio in ratios.items() if cells.shared_out(BALANCED, cell)}
    sentences = []
    if both:
        worst = max(both, key=both.get)
        sentences.append(
            "Balanced zigzag shards beat the unthrottled rank alone in "
            f"{out_of(sum(ratio < 1 for ratio in both.values()), len(both))} cells in which they use both ranks; they "
            f"take at most {rounded(both[worst])} times as long as that, at {place(worst)}."
        )
    if others := [ratio for cell, ratio in ratios.items() if cell not in both]:
        took = " to ".join(dict.fromkeys(map(rounded, (min(others), max(others)))))
        sentences.append(
            f"In {count(len(others))} cells the allocator itself leaves the slow rank out, and the call is that of the "
            f"rank alone, measured again: it takes {took} times as long."
        )
    return " ".join(sentences)


def beside_others(results: Results, cells: Cells) -> str:
    """PyTorch's own context parallelism and its attention on one GPU, where they were measured."""
    name = r"PyTorch's \code{context\_parallel}"
    peer, single = Cells(results, "context_parallel"), Cells(results, "sdpa")
    if not peer:
        return f"{name} was not measured on this platform."

    def comparison(ours: str, cell: Cell) -> str:
        time, other = cells.pooled(ours, cell), peer(ZIGZAG_EVEN, cell)
        return f"{rounded(other)}\\,ms at {percent(cell[1])}, where {strategy(ours)} takes {rounded(time)}\\,ms"

    both = ", and ".join([comparison(ZIGZAG_EVEN, cells.equal), comparison(BALANCED, cells.extreme)])
    sentence = f"{name}, which shards evenly, takes {both}."
    if not single:
        return sentence
    theirs, ours = single(SDPA, cells.extreme), cells.alone("alone/rank0", cells.extreme)
    return (
        f"{sentence} On one unthrottled GPU, PyTorch's attention takes {rounded(theirs)}\\,ms and our kernel "
        f"{rounded(ours)}\\,ms."
    )

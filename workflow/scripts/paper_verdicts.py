"""Sentences on the attention call that read differently as the measurements do."""

from heteroring.bench.results import Results
from paper_cells import BALANCED, CONTIGUOUS, STRATEGIES, ZIGZAG_EVEN, Cell, Cells, above_one, place, strategy
from paper_tex import count, listed, out_of, percent, rounded

# PyTorch's attention on the unthrottled rank alone, as cells name it.
SDPA = "contiguous/alone"


def verdicts(results: Results, cells: Cells) -> dict[str, str]:
    """All of them, by unprefixed name."""
    [throttle] = set(results.measurements.throttle) - {"none"}
    everywhere = [(n, p) for n in cells.lengths for p in cells.percentages]
    fractions = [cells(name, cell, "bound_fraction") for name in STRATEGIES for cell in everywhere]
    return {
        "AboveOneSentence": above_one(fractions, throttle),
        "EfficiencySentence": above_the_reference(cells),
        "FormulaSentence": understated(cells),
        "AloneSentence": beside_the_rank_alone(cells),
        "PeerSentence": beside_others(results, cells),
    }


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
    left_out = [ratio for cell, ratio in ratios.items() if 0 in cells(BALANCED, cell, "block_lens")]
    both = {cell: ratio for cell, ratio in ratios.items() if 0 not in cells(BALANCED, cell, "block_lens")}
    wins = out_of(sum(ratio < 1 for ratio in ratios.values()), len(ratios))
    sentences = [f"Balanced zigzag shards beat the unthrottled rank alone in {wins} cells."]
    if left_out:
        sentences.append(
            f"In {count(len(left_out))} the allocator itself leaves the slow rank out; the call then takes up to "
            f"{rounded(max(left_out))} times as long as the rank alone."
        )
    if both:
        worst = max(both, key=both.get)
        sentences.append(
            f"A split over both ranks takes at most {rounded(both[worst])} times as long as that, at {place(worst)}."
        )
    return " ".join(sentences)


def beside_others(results: Results, cells: Cells) -> str:
    """PyTorch's own context parallelism and its attention on one GPU, where they were measured."""
    name = r"PyTorch's \code{context\_parallel}"
    peer, single = Cells(results, "context_parallel"), Cells(results, "sdpa")
    if not peer:
        return f"{name} was not measured on this platform."

    def comparison(ours: str, cell: Cell) -> str:
        time, other = cells(ours, cell), peer(ZIGZAG_EVEN, cell)
        return f"{rounded(other)}\\,ms at {percent(cell[1])}, where {strategy(ours)} takes {rounded(time)}\\,ms"

    both = listed([comparison(ZIGZAG_EVEN, cells.equal), comparison(BALANCED, cells.extreme)])
    sentence = f"{name}, which shards evenly, takes {both}."
    if not single:
        return sentence
    theirs, ours = single(SDPA, cells.extreme), cells.alone("alone/rank0", cells.extreme)
    return (
        f"{sentence} On one unthrottled GPU, PyTorch's attention takes {rounded(theirs)}\\,ms and our kernel "
        f"{rounded(ours)}\\,ms."
    )

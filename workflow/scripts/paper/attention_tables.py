"""Tables of the paper about the attention call, as whole tabulars, because their columns depend on the grid."""

from collections.abc import Callable, Sequence
from statistics import geometric_mean, median

from heteroring.results.results import Results
from paper.cells import BALANCED, CONTIGUOUS, STRATEGIES, ZIGZAG, ZIGZAG_EVEN, Cell, Cells, strategy
from paper.tex import count, emphasized, percent, rounded, spanning, tabular

# Marks the time of a split that gives one rank the whole prompt.
LEFT_OUT = r"\rlap{$^{\ast}$}"


def tables(results: Results, cells: Cells) -> dict[str, str]:
    """Whole tabulars, because their columns depend on the grid."""
    low, longest = cells.percentages[0], cells.lengths[-1]
    downwards = cells.percentages[::-1]
    peer = Cells(results, "context_parallel")
    by_strategy = "@{}l" + "r" * len(STRATEGIES)

    def head(*first: str, last: Sequence[str] = ()) -> list[Sequence[str]]:
        layouts = [(CONTIGUOUS, "contiguous"), (ZIGZAG, "zigzag")]
        spans = [spanning(len(names), layout) for names, layout in layouts]
        allocators = [strategy(name.allocator) for name in STRATEGIES]
        return [("",) * len(first) + (*spans, *("" for _ in last)), (*first, *allocators, *last)]

    def marked(best: Callable, cell: Cell, column: str = "latency_ms") -> list[str]:
        """The best is marked, unless all strategies of its layout make the same split: then they differ by chance."""
        values = [cells(name, cell, column) for name in STRATEGIES]
        texts = [rounded(value) for value in values]
        chosen = STRATEGIES[values.index(best(values))]
        marks = texts if cells.all_alike(chosen, cell) else emphasized(texts, rounded(best(values)))
        return [
            text + LEFT_OUT * (not cells.shared_out(name, cell)) for name, text in zip(STRATEGIES, marks, strict=True)
        ]

    latency = [
        (
            count(n),
            rounded(cells(BALANCED, (n, low), "bound_ms")),
            rounded(cells(BALANCED, (n, low), "fast_alone_ms")),
            *marked(min, (n, low)),
            *([rounded(peer(ZIGZAG_EVEN, (n, low)))] if peer else []),
        )
        for n in cells.lengths
    ]
    fractions = [(percent(p), *marked(max, (longest, p), "bound_fraction")) for p in downwards]
    tokens = [
        (percent(p), *(count(int(cells(name, (longest, p), "block_lens")[-1])) for name in ZIGZAG)) for p in downwards
    ]
    grid = [
        (percent(p), *(rounded(cells(BALANCED, (n, p), "bound_fraction")) for n in cells.lengths)) for p in downwards
    ]
    fastest = [cells.fastest(cell) for cell in cells.throttled]
    summary = {
        name: (
            strategy(name),
            count(fastest.count(name)),
            rounded(geometric_mean(cells.over_grid(name, "speedup"))),
            rounded(median(cells.over_grid(name, "bound_fraction"))),
            rounded(min(cells.over_grid(name, "bound_fraction"))),
            rounded(median(cells.over_grid(name, "imbalance"))),
        )
        for name in STRATEGIES
    }
    summary_head = [
        ("", "cells", "speed-", spanning(2, "bound fraction"), "imbal-"),
        ("", "won", "up", "median", "least", "ance"),
    ]
    return {
        "LatencyTable": tabular(
            "@{}rrr" + "r" * (len(STRATEGIES) + bool(peer)) + "@{}",
            head("tokens", "bound", "fast alone", last=["torch CP"] if peer else []),
            latency,
        ),
        "FractionTable": tabular(by_strategy + "@{}", head("slow rank"), fractions),
        "StrategyTable": tabular(
            "@{}l*{5}{r@{\\hspace{6pt}}}@{}",
            summary_head,
            [summary[name] for name in CONTIGUOUS],
            [summary[name] for name in ZIGZAG],
        ),
        "GridTable": tabular(
            "@{}l" + "r" * len(cells.lengths) + "@{}", [("slow rank", *map(count, cells.lengths))], grid
        ),
        "TokensTable": tabular(
            "@{}l" + "r" * len(ZIGZAG) + "@{}",
            [("slow rank", *(strategy(name.allocator) for name in ZIGZAG))],
            tokens,
        ),
    }

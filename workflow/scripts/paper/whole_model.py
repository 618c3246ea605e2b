"""Numbers of the paper about language models: time to first token, memory, decode, and one traced layer."""

import math
from collections import Counter
from collections.abc import Mapping

import pandas as pd

from heteroring.allocators.cost_model import CostModel
from heteroring.allocators.costs import predicted_ms
from heteroring.results.model_metrics import layer_shares
from heteroring.results.results import Results
from heteroring.results.strategy import Strategy, fitted_name
from heteroring.results.throttles import throttle_words
from heteroring.ring.partition import Partition
from paper.cells import (
    BALANCED,
    EVEN,
    ZIGZAG_EVEN,
    ZIGZAG_UNEVEN,
    Cell,
    CellTable,
    above_one,
    place,
    strategy,
)
from paper.tex import (
    TIE,
    count,
    duration,
    emphasized,
    escaped,
    listed,
    out_of,
    percent,
    rounded,
    share,
    spanning,
    tabular,
    versus,
)

QUOTED = {"Even": EVEN, "ZigzagEven": ZIGZAG_EVEN, "Uneven": ZIGZAG_UNEVEN, "Balanced": BALANCED}
# Memory bandwidth in TB/s, by the maker's data sheet.
BANDWIDTH = {"NVIDIA H200": 4.8}

# Tokens per second, by percentage.
Rates = dict[int, float]


class WholeCells(CellTable):
    """Cells of one phase of a whole model."""

    def __init__(self, results: Results, phase: str) -> None:
        rows = results.model
        rows = rows[rows.phase == phase]
        super().__init__(f"platform {results.platform}, {phase} of a model", rows)
        self.row = {} if rows.empty else rows.iloc[0].to_dict()
        ring = rows[rows.system == "ring"]
        self.strategies = [Strategy(name) for name in QUOTED.values() if name in set(ring.strategy)]
        self.repetitions = sorted(set(map(int, rows.repetitions)))

    @property
    def grid(self) -> list[Cell]:
        return [(n, p) for n in self.lengths for p in reversed(self.percentages)]

    def fastest(self, cell: Cell) -> str:
        return min(self.strategies, key=lambda name: self(name, cell))


def model_name(row: Mapping) -> str:
    return rf"\code{{{escaped(row['architecture'])}/{escaped(row['variant'])}}}"


def whole(results: Results) -> dict[str, str]:
    """A language model: time to first token, memory, and tokens per second."""
    if results.model.empty:
        return {"HasWhole": "0"}
    cells = WholeCells(results, "prefill")
    cell = cells.lengths[-1], cells.percentages[0]
    row, fractions = cells.row, {at: cells(BALANCED, at, "bound_fraction") for at in cells.grid}
    worst = min(fractions, key=fractions.get)
    alone = cells(BALANCED, cell, "fast_alone_ms")
    shared = "" if row["heads"] == row["kv_heads"] else f" ({row['kv_heads']} of KV)"
    each = [cells(name, at, "bound_fraction") for name in cells.strategies for at in cells.grid]
    numbers = {
        "HasWhole": "1",
        "WholeName": model_name(row),
        "WholeShape": f"{row['layers']} layers, {count(row['emb_dim'])} wide, {row['heads']} heads{shared} of "
        f"{row['head_dim']}, {escaped(row['dtype'])}",
        "WholeRepetitions": " to ".join(map(str, sorted({cells.repetitions[0], cells.repetitions[-1]}))),
        "WholeLongLength": count(cell[0]),
        "WholeLowPercentage": str(cell[1]),
        "WholeAloneTtft": duration(alone),
        "WholeBoundTtft": duration(cells(BALANCED, cell, "bound_ms")),
        "WholeBalancedVersusEven": versus(cells(BALANCED, cell), cells(EVEN, cell)),
        "WholeBalancedVersusUneven": versus(cells(BALANCED, cell), cells(ZIGZAG_UNEVEN, cell)),
        "WholeBalancedVersusAlone": versus(cells(BALANCED, cell), alone),
        "WholeWorstFraction": rounded(fractions[worst]),
        "WholeWorstPlace": place(worst),
        "WholeCellCount": count(len(cells.grid)),
        "WholeFasterStill": faster_still(cells, cell),
        "WholeFastestSentence": fastest_sentence(cells),
        "WholePredictionSentence": prediction(results, cells, cell),
        "WholeAboveSentence": above_one(each),
        "WholeMemorySentence": memory(cells, cell),
        "WholeTable": whole_table(cells),
    }
    for key, name in QUOTED.items():
        numbers[f"Whole{key}Ttft"] = duration(cells(name, cell))
        numbers[f"Whole{key}Fraction"] = rounded(cells(name, cell, "bound_fraction"))
    return {**numbers, **decode(results)}


def faster_still(cells: WholeCells, cell: Cell) -> str:
    """The end of a sentence that praises the balanced split, where another one is faster."""
    fastest = cells.fastest(cell)
    ratio = cells(BALANCED, cell) / cells(fastest, cell)
    return "" if ratio - 1 < TIE else f"; {strategy(fastest)} is {rounded(ratio)} times faster still"


def fastest_sentence(cells: WholeCells) -> str:
    """How often the balanced split is the fastest, and what it costs to use it where it is not."""
    fastest = {at: cells.fastest(at) for at in cells.grid}
    others = Counter(name for name in fastest.values() if name != BALANCED)
    times = len(fastest) - others.total()
    sentence = f"The balanced split is the fastest of the four in {out_of(times, len(fastest))} cells"
    if not others:
        return f"{sentence}."
    [(winner, number)] = others.most_common(1)
    loss = max(cells(BALANCED, at) / cells(name, at) for at, name in fastest.items())
    return (
        f"{sentence}, {strategy(winner)} in {count(number)}; the balanced split takes at most {rounded(loss)} times as "
        "long as the fastest."
    )


def prediction(results: Results, cells: WholeCells, cell: Cell) -> str:
    """Where the balanced split loses by wrong prices: what they predict of the faster one, and of ranks alone."""
    content, fastest = results.models.get(fitted_name("cost", "block")), cells.fastest(cell)
    if content is None or not faster_still(cells, cell):
        return ""
    model, layers = CostModel.from_json(content), cells.row["layers"]
    ranks = range(len(cells(fastest, cell, "block_lens")))
    costs = [model.predict(cell[0], percentage).cost for percentage in cells(fastest, cell, "percentages")]
    split = Partition(fastest.layout, tuple(cells(fastest, cell, "block_lens")))
    predicted = max(layers * each for each in predicted_ms(split, costs))
    if predicted <= (1 + TIE) * cells(fastest, cell):
        return ""

    def of_alone(rank: int) -> float:
        lens = tuple(cell[0] * (each == rank) for each in ranks)
        return layers * predicted_ms(Partition.contiguous(lens), costs)[rank] / cells(f"alone/rank{rank}", cell)

    alone = listed(f"{rounded(of_alone(rank))} times on rank~{rank}" for rank in ranks)
    return (
        f"At {place(cell)} that is a fault of its prices: taken from one block, times the layers, they put the faster "
        f"split at {duration(predicted)}, because of rank~{_slowest(split, costs)}, and not at the "
        f"{duration(cells(fastest, cell))} that were measured; the time of a rank alone they put at {alone} what was "
        "measured."
    )


def _slowest(split: Partition, costs: list) -> int:
    times = predicted_ms(split, costs)
    return times.index(max(times))


def memory(cells: WholeCells, cell: Cell) -> str:
    """The most that tensors took on each rank, where the platform knows."""
    ours, alone = (cells(name, cell, "peak_memory_gb") for name in (BALANCED, "alone/rank0"))
    if not any(ours):
        return "Memory is not recorded on this platform."
    ranks = listed(f"{rounded(peak)}\\,GB on rank~{rank}" for rank, peak in enumerate(ours))
    return (
        f"At {place(cell)}, the balanced split needs at most {ranks}, weights included; "
        f"rank~0 needs {rounded(alone[0])}\\,GB for the whole prompt alone."
    )


def whole_table(cells: WholeCells) -> str:
    """Time to first token by length and percentage, the fastest strategy in bold."""
    in_seconds = max(cells(name, at) for name in cells.strategies for at in cells.grid) >= 1000
    scale, unit = (1e-3, "s") if in_seconds else (1.0, "ms")
    recorded = any(any(cells(BALANCED, at, "peak_memory_gb")) for at in cells.grid)

    def row(at: Cell) -> tuple[str, ...]:
        times = [scale * cells(name, at) for name in cells.strategies]
        lens, peaks = (cells(BALANCED, at, column) for column in ("block_lens", "peak_memory_gb"))
        return (
            count(at[0]),
            percent(at[1]),
            rounded(scale * cells(BALANCED, at, "bound_ms")),
            rounded(scale * cells(BALANCED, at, "fast_alone_ms")),
            *emphasized(map(rounded, times), rounded(min(times))),
            rounded(cells(BALANCED, at, "bound_fraction")),
            count(int(lens[-1])),
            *(map(rounded, peaks) if recorded else ()),
        )

    ranks = len(cells(BALANCED, cells.grid[0], "block_lens"))
    peaks = [f"rank {rank}" for rank in range(ranks)] if recorded else []
    layouts, names = zip(*((name.layout, name.allocator) for name in cells.strategies), strict=True)
    spans = [
        *(spanning(layouts.count(layout), layout) for layout in dict.fromkeys(layouts)),
        spanning(2, strategy("balanced")),
        *([spanning(ranks, "peak memory (GB)")] if recorded else []),
    ]
    head = [
        ("", "slow", spanning(2 + len(names), f"time to first token ({unit})")),
        ("", "", "", "fast", *spans),
        ("tokens", "rank", "bound", "alone", *map(strategy, names), "fraction", "tokens", *peaks),
    ]
    groups = [[row(at) for at in cells.grid if at[0] == length] for length in cells.lengths]
    return tabular("@{}rr" + "r" * (4 + len(names) + len(peaks)) + "@{}", head, *groups)


def decode(results: Results) -> dict[str, str]:
    """Tokens per second behind the longest prompt, of the ring and of the ranks alone."""
    cells = WholeCells(results, "decode")
    if not cells.strategies:
        return {"HasDecode": "0"}
    length, low = cells.lengths[-1], cells.percentages[0]
    names = ["alone/rank0", "alone/rank1", *cells.strategies]
    rates = {name: decode_rates(cells, name) for name in names}
    rows = [(percent(p), *(rounded(rates[name][p]) for name in names)) for p in cells.percentages[::-1]]
    best = cells.strategies[-1]
    fast, slow, ours = rates["alone/rank0"], rates["alone/rank1"], rates[best]
    return {
        "HasDecode": "1",
        "DecodeLength": count(length),
        "DecodeNewTokens": count(int(cells(best, (length, low), "new_tokens"))),
        "DecodeFullRate": rounded(ours[cells.percentages[-1]]),
        "DecodeSlowRate": rounded(ours[low]),
        "DecodeLowPercentage": str(low),
        "DecodeVersusSentence": decode_versus(cells, ours, fast, slow),
        "DecodeVerdict": decode_verdict(ours, fast, slow),
        "DecodeLimitSentence": decode_limit(results, cells, ours, fast, slow),
        "DecodeTable": tabular(
            "@{}l" + "r" * len(names) + "@{}",
            [("slow rank", "rank 0 alone", "rank 1 alone", *map(strategy, cells.strategies))],
            rows,
        ),
    }


def decode_rates(cells: WholeCells, name: str) -> Rates:
    """Tokens per second behind the longest prompt, by percentage, from the highest down."""
    return {p: cells(name, (cells.lengths[-1], p), "tokens_per_second") for p in cells.percentages[::-1]}


def decode_versus(cells: WholeCells, ours: Rates, fast: Rates, slow: Rates) -> str:
    """The ring beside each rank alone at every percentage, and how much rank 0 alone differs from itself."""

    def beside(other: Rates) -> str:
        return listed(f"{versus(1 / ours[p], 1 / other[p])} it at {percent(p)}" for p in ours)

    least, most = min(fast.values()), max(fast.values())
    repetitions = listed(map(str, sorted({int(cells(cells.strategies[-1], at, "repetitions")) for at in cells.grid})))
    return (
        f"Beside rank~0 alone, the ring is {beside(fast)}; beside rank~1 alone, {beside(slow)}. The medians are of "
        f"{repetitions} repetitions, and rank~0 alone, which is never throttled, generates {rounded(least)} to "
        f"{rounded(most)} tokens per second."
    )


def decode_verdict(ours: Rates, fast: Rates, slow: Rates) -> str:
    """How often decoding over the ring is faster than both ranks alone, as the end of a sentence."""
    wins = sum(ours[p] > max(fast[p], slow[p]) for p in ours)
    return f"faster than each rank alone in {out_of(wins, len(ours))} settings"


def decode_limit(results: Results, cells: WholeCells, ours: Rates, fast: Rates, slow: Rates) -> str:
    """What does not limit the rates on a GPU, where the ring does not gain: multiprocessors, and reading memory."""
    low, high = cells.percentages[0], cells.percentages[-1]
    gains = all(ours[p] > fast[p] for p in ours)
    if not throttle_words(cells.row["throttle"]).takes_sms or gains or slow[low] < 0.9 * slow[high] or low == high:
        return ""
    alone, held = fast[high], cells("alone/rank0", (cells.lengths[-1], high), "peak_memory_gb")[0]
    bandwidth = BANDWIDTH.get(results.provenance["devices"][0], math.inf)
    reading = (
        f", and reading all of the {rounded(held)}\\,GB that rank~0 held takes {rounded(held / bandwidth, 2)}\\,ms at "
        rf"the {bandwidth}\,TB/s of its memory~\cite{{nvidia2024h200}}, where a token takes {rounded(1e3 / alone)}\,ms"
    )
    return (
        f"It is not computing that takes the time: rank~1 alone generates {rounded(slow[low])} tokens per second at "
        f"{percent(low)} of its multiprocessors, {rounded(slow[high])} at {percent(high)}"
        f"{reading if held / bandwidth else ''}. "
        "What is left is the host, which launches the kernels of each layer one by one, and in a ring the collective."
    )


def trace(results: Results) -> dict[str, str]:
    """How each rank spent one layer of the model."""
    if results.trace.empty:
        return {"HasTrace": "0"}
    shares = layer_shares(results.trace).sort_values(["percentage", "strategy", "rank"], ascending=[False, True, True])
    ours = shares[shares.strategy == BALANCED]
    groups = [
        [
            (
                percent(row.percentage) if line == 0 else "",
                strategy(row.strategy) if row.rank == 0 else "",
                str(row.rank),
                *(rounded(ms, places=2) for ms in (row.layer_ms, row.busy_ms, row.waiting_ms, row.exposed_ms)),
            )
            for line, row in enumerate(group.itertuples())
        ]
        for _, group in shares.groupby("percentage", sort=False)
    ]
    head = [("slow rank", "strategy", "rank", "layer", "busy", "waiting", "exposed")]
    low = shares.percentage.min()
    busy = [f"{rounded(row.busy_ms)}\\,ms" for row in ours[ours.percentage == low].itertuples()]
    return {
        "HasTrace": "1",
        "TraceAheadSentence": ahead(shares[(shares.strategy == EVEN) & (shares.percentage == low)]),
        "TraceLayer": str(int(shares.iloc[0].layer)),
        "TraceLength": count(int(shares.iloc[0].seq_len)),
        "TraceLowPercentage": str(low),
        "TraceBusy": listed(busy),
        "TraceWaiting": share((ours.waiting_ms / ours.layer_ms).max()),
        "TraceExposed": share((ours.exposed_ms / ours.layer_ms).max()),
        "TraceTable": tabular(r"@{}l@{\hspace{6pt}}l*{5}{@{\hspace{6pt}}r}@{}", head, *groups),
    }


def ahead(even: pd.DataFrame) -> str:
    """What becomes of rank 0's time under even contiguous shards; `even` has the shares of each rank in turn."""
    first, last = even.iloc[0], even.iloc[-1]
    times = f"{duration(first.layer_ms)} where it takes rank~{len(even) - 1} {duration(last.layer_ms)}"
    if first.waiting_ms < TIE * first.layer_ms:
        return f"the layer takes it {times}, and it is idle for the difference by the end of the prefill."
    return (
        f"the layer takes it {times}, though it is busy for {duration(first.busy_ms)} only: it does not go on before "
        "the others have come to this layer, too, and its keys have been taken."
    )

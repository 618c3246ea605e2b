"""What the paper says beyond the attention call: what a visit costs, FMS's whole attention layer, and whole models.

A platform need not have measured these. Each group has a flag, HasCost, HasLayer, HasWhole or HasTrace, that is 1 or 0;
without measurements the flag is all that is defined, and the paper's text is guarded by it.
"""

import math
from statistics import median

import pandas as pd

from heteroring.allocate.balanced import RING_MARGIN, RING_WAIT_US
from heteroring.allocate.profile_table import FOLD_KEYS
from heteroring.bench.model_metrics import layer_shares
from heteroring.bench.results import Results
from paper_cells import BALANCED, EVEN, UNEVEN, ZIGZAG_EVEN, ZIGZAG_UNEVEN, Cell, Cells, MissingData, place, strategy
from paper_tex import count, duration, escaped, listed, percent, rounded, tabular, versus
from published_study import Study

QUOTED = {"Even": EVEN, "ZigzagEven": ZIGZAG_EVEN, "Uneven": ZIGZAG_UNEVEN, "Balanced": BALANCED}


def constants() -> dict[str, str]:
    """What the method's text takes from the allocator."""
    return {
        "ModelRingMargin": rf"{rounded(100 * RING_MARGIN, 1)}\,\%",
        "ModelRingWait": rf"{rounded(RING_WAIT_US, 2)}\,\textmu s",
        "ModelFoldKeys": count(FOLD_KEYS),
    }


def visits(results: Results) -> dict[str, str]:
    """What a query row costs that is visited again, out of the cost model of attention."""
    model = results.models.get("cost-attention", {})
    if not any(map(any, model.get("revisit_us", ()))):
        return {"HasCost": "0"}
    lengths, percentages = model["lengths"], model["percentages"]
    fast, slow = percentages.index(max(percentages)), percentages.index(min(percentages))

    def share(index: int, price: str = "revisit_us") -> str:
        """Of rank 1's time in an even zigzag split on two full ranks: it visits all of its rows once more."""
        revisits = model[price][index][fast] * lengths[index] / 2
        return rf"{rounded(100 * revisits / (1e3 * model['attention_ms'][index][fast] / 2 + revisits), 2)}\,\%"

    def nanoseconds(percentage: int, price: str = "revisit_us") -> str:
        return rf"{rounded(1e3 * model[price][-1][percentage])}\,ns"

    joined = (
        "Joined with the visit to the rank's own keys, as the kernel measured here does it in the ring's first step, "
        f"the same row costs {nanoseconds(fast, 'join_us')}, and the shares fall to {share(0, 'join_us')} and "
        f"{share(-1, 'join_us')}."
    )
    return {
        "HasCost": "1",
        "CostRow": nanoseconds(fast),
        "CostRowSlow": nanoseconds(slow),
        "CostJoinSentence": "The kernel measured here makes each visit a pass of its own."
        if model["join_us"] == model["revisit_us"]
        else joined,
        "CostSlowPercentage": str(round(percentages[slow])),
        "CostShortLength": count(lengths[0]),
        "CostShortShare": share(0),
        "CostLongLength": count(lengths[-1]),
        "CostLongShare": share(-1),
    }


def layer(results: Results, study: Study) -> dict[str, str]:
    """FMS's attention layer beside the call alone, and beside the published whole-layer measurements."""
    cells, call = Cells(results, module="fms"), Cells(results)
    if not cells.throttled:
        return {"HasLayer": "0"}
    cell = cells.extreme
    fractions = cells.over_grid(BALANCED, "bound_fraction")
    numbers = {
        "HasLayer": "1",
        "LayerLongLength": count(cell[0]),
        "LayerLowPercentage": str(cell[1]),
        "LayerBoundMs": rounded(cells(BALANCED, cell, "bound_ms")),
        "LayerAloneMs": rounded(cells(BALANCED, cell, "fast_alone_ms")),
        "LayerUnevenSpeedup": rounded(cells(UNEVEN, cell, "speedup")),
        "LayerCallUnevenFraction": rounded(call(UNEVEN, cell, "bound_fraction")),
        "LayerCallBalancedFraction": rounded(call(BALANCED, cell, "bound_fraction")),
        "LayerBalancedVersusEven": versus(cells(BALANCED, cell), cells(EVEN, cell)),
        "LayerBalancedVersusUneven": versus(cells(BALANCED, cell), cells(UNEVEN, cell)),
        "LayerBalancedMedianFraction": rounded(median(fractions)),
        "LayerBalancedWorstFraction": rounded(min(fractions)),
        "LayerBalancedWorstPlace": place(cells.throttled[fractions.index(min(fractions))]),
        "LayerCellCount": count(len(cells.throttled)),
        "LayerCallShare": rounded(call.alone("alone/rank0", cells.equal) / cells.alone("alone/rank0", cells.equal)),
        "LayerCodeSentence": released_code(results, cells, study),
        "LayerTable": layer_table(cells, study),
    }
    for key, name in {"Even": EVEN, "Uneven": UNEVEN, "Balanced": BALANCED}.items():
        numbers[f"Layer{key}Ms"] = rounded(cells(name, cell))
        numbers[f"Layer{key}Fraction"] = rounded(cells(name, cell, "bound_fraction"))
    return numbers


def layer_table(cells: Cells, study: Study) -> str:
    """Slowdown against two unthrottled ranks with even contiguous shards, published and here, at the longest prompt."""
    longest = cells.lengths[-1]
    reference = cells(EVEN, cells.equal)

    def published(split: str, percentage: int) -> str:
        cell = study.lengths[-1], percentage
        if cell not in study.latency[split]:
            return "--"
        return rounded(study.latency[split][cell] / study.latency["reference_homogeneous"][cell])

    rows = [
        (
            percent(p),
            published("even", p),
            published("uneven", p),
            *(rounded(cells(name, (longest, p)) / reference) for name in (EVEN, UNEVEN, BALANCED)),
        )
        for p in cells.percentages[::-1]
        if p < 100
    ]
    head = [
        ("", _span(2, "published"), _span(3, "here")),
        ("", _span(2, "contiguous"), _span(2, "contiguous"), "zigzag"),
        ("slow rank", *map(strategy, ("even", "uneven", "even", "uneven", "balanced"))),
    ]
    return tabular("@{}lrrrrr@{}", head, rows)


def released_code(results: Results, cells: Cells, study: Study) -> str:
    """The published code against ours where both ran on the same devices."""
    devices = set(results.provenance["devices"])
    length, low = cells.extreme
    theirs = {
        split: ms for (device, split, *at), ms in study.rerun.items() if {device} == devices and at == [length, low]
    }
    if not theirs:
        return "We have no measurements of the released code on these devices."
    ours = cells(BALANCED, (length, low))
    quoted = listed(f"{rounded(ms)}\\,ms with {strategy(split)} shards" for split, ms in theirs.items())
    return (
        f"The study's released code, run on two of the same devices under the same limit, takes {quoted}; "
        f"the balanced zigzag layer is {versus(ours, min(theirs.values()))} the best of these."
    )


class WholeCells:
    """Cells of one phase of a whole model: values by strategy and (seq_len, percentage)."""

    def __init__(self, results: Results, phase: str) -> None:
        rows = results.model
        rows = rows[rows.phase == phase]
        self.platform, self.phase = results.platform, phase
        self.row = {} if rows.empty else rows.iloc[0].to_dict()
        self.lengths = sorted(map(int, rows.seq_len.unique()))
        self.percentages = sorted(map(int, rows.percentage.unique()))
        ring = rows[rows.system == "ring"]
        self.strategies = [name for name in QUOTED.values() if name in set(ring.strategy)]
        self.repetitions = sorted(set(map(int, rows.repetitions)))
        self._rows = {(r["strategy"], int(r["seq_len"]), int(r["percentage"])): r for r in rows.to_dict("records")}

    def __call__(self, name: str, cell: Cell, column: str = "latency_ms"):
        """The value of `column`. Raises MissingData, naming the cell, if it is not there or not known."""
        value = self._rows.get((name, *cell), {}).get(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise MissingData(
                f"platform {self.platform}, {self.phase} of a model: no {column} of strategy {name} at "
                f"{cell[0]} tokens and {cell[1]} %"
            )
        return value

    @property
    def grid(self) -> list[Cell]:
        return [(n, p) for n in self.lengths for p in reversed(self.percentages)]


def whole(results: Results) -> dict[str, str]:
    """A language model: time to first token, memory, and tokens a second."""
    if results.model.empty:
        return {"HasWhole": "0"}
    cells = WholeCells(results, "prefill")
    cell = cells.lengths[-1], cells.percentages[0]
    row, fractions = cells.row, {at: cells(BALANCED, at, "bound_fraction") for at in cells.grid}
    worst = min(fractions, key=fractions.get)
    alone = cells(BALANCED, cell, "fast_alone_ms")
    shared = "" if row["heads"] == row["kv_heads"] else f" ({row['kv_heads']} of KV)"
    numbers = {
        "HasWhole": "1",
        "WholeName": rf"\code{{{escaped(row['architecture'])}/{escaped(row['variant'])}}}",
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
        "WholeMemorySentence": memory(cells, cell),
        "WholeTable": whole_table(cells),
    }
    for key, name in QUOTED.items():
        numbers[f"Whole{key}Ttft"] = duration(cells(name, cell))
        numbers[f"Whole{key}Fraction"] = rounded(cells(name, cell, "bound_fraction"))
    return {**numbers, **decode(results)}


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
        best = min(cells(name, at) for name in cells.strategies)
        times = [(cells(name, at), rounded(scale * cells(name, at))) for name in cells.strategies]
        lens, peaks = (cells(BALANCED, at, column) for column in ("block_lens", "peak_memory_gb"))
        return (
            count(at[0]),
            percent(at[1]),
            rounded(scale * cells(BALANCED, at, "bound_ms")),
            rounded(scale * cells(BALANCED, at, "fast_alone_ms")),
            *(rf"\textbf{{{text}}}" if time == best else text for time, text in times),
            rounded(cells(BALANCED, at, "bound_fraction")),
            count(int(lens[-1])),
            *(map(rounded, peaks) if recorded else ()),
        )

    ranks = len(cells(BALANCED, cells.grid[0], "block_lens"))
    peaks = [f"rank {rank}" for rank in range(ranks)] if recorded else []
    layouts, names = zip(*(name.split("/") for name in cells.strategies), strict=True)
    spans = [
        *(_span(layouts.count(layout), layout) for layout in dict.fromkeys(layouts)),
        _span(2, strategy("balanced")),
        *([_span(ranks, "peak memory (GB)")] if recorded else []),
    ]
    head = [
        ("", "slow", _span(2 + len(names), f"time to first token ({unit})")),
        ("", "", "", "fast", *spans),
        ("tokens", "rank", "bound", "alone", *map(strategy, names), "fraction", "tokens", *peaks),
    ]
    groups = [[row(at) for at in cells.grid if at[0] == length] for length in cells.lengths]
    return tabular("@{}rr" + "r" * (4 + len(names) + len(peaks)) + "@{}", head, *groups)


def _span(columns: int, text: str) -> str:
    return rf"\multicolumn{{{columns}}}{{c}}{{{text}}}"


def decode(results: Results) -> dict[str, str]:
    """Tokens a second behind the longest prompt, of the ring and of the ranks alone."""
    cells = WholeCells(results, "decode")
    if not cells.strategies:
        return {"HasDecode": "0"}
    length, low = cells.lengths[-1], cells.percentages[0]
    names = ["alone/rank0", "alone/rank1", *cells.strategies]

    def rate(name: str, percentage: int) -> float:
        return cells(name, (length, percentage), "tokens_per_second")

    rows = [(percent(p), *(rounded(rate(name, p)) for name in names)) for p in cells.percentages[::-1]]
    best = cells.strategies[-1]
    return {
        "HasDecode": "1",
        "DecodeLength": count(length),
        "DecodeNewTokens": count(int(cells(best, (length, low), "new_tokens"))),
        "DecodeFullRate": rounded(rate(best, cells.percentages[-1])),
        "DecodeSlowRate": rounded(rate(best, low)),
        "DecodeLowPercentage": str(low),
        "DecodeVersusAlone": versus(1 / rate(best, low), 1 / rate("alone/rank0", low)),
        "DecodeTable": tabular(
            "@{}l" + "r" * len(names) + "@{}",
            [("slow rank", "rank 0 alone", "rank 1 alone", *map(strategy, cells.strategies))],
            rows,
        ),
    }


def trace(results: Results) -> dict[str, str]:
    """How each rank spent one layer of the model."""
    if results.trace.empty:
        return {"HasTrace": "0"}
    shares = layer_shares(results.trace).sort_values(["percentage", "strategy", "rank"], ascending=[False, True, True])
    ours = shares[shares.strategy == BALANCED]

    def most(column: str, rows: pd.DataFrame = ours) -> str:
        return rf"{rounded(100 * (rows[column] / rows.layer_ms).max(), 2)}\,\%"

    groups = [
        [
            (
                percent(row.percentage) if line == 0 else "",
                strategy(row.strategy) if row.rank == 0 else "",
                str(row.rank),
                *map(rounded, (row.layer_ms, row.busy_ms, row.waiting_ms, row.exposed_ms)),
            )
            for line, row in enumerate(group.itertuples())
        ]
        for _, group in shares.groupby("percentage", sort=False)
    ]
    head = [("slow rank", "strategy", "rank", "layer", "busy", "waiting", "exposed")]
    low = shares[(shares.strategy == EVEN) & (shares.percentage == shares.percentage.min())]
    first, last = low.layer_ms.iloc[0], low.layer_ms.iloc[-1]
    times = f"the layer takes it {duration(first)} where it takes rank~{len(low) - 1} {duration(last)}"
    return {
        "HasTrace": "1",
        "TraceAheadSentence": f"{times}, and it waits for the difference at the end of the prefill."
        if first < last / 2
        else f"{times}. Ranks that compare their calls in every layer, as they do on CPUs, keep step; "
        "that wait is outside of the marks, and counts as busy.",
        "TraceLayer": str(int(shares.iloc[0].layer)),
        "TraceLength": count(int(shares.iloc[0].seq_len)),
        "TraceWaiting": most("waiting_ms"),
        "TraceExposed": most("exposed_ms"),
        "TraceTable": tabular(r"@{}l@{\hspace{6pt}}l*{5}{@{\hspace{6pt}}r}@{}", head, *groups),
    }


def beyond_the_call(results: Results, study: Study) -> dict[str, str]:
    """Everything of one platform, by unprefixed name."""
    return {**visits(results), **layer(results, study), **whole(results), **trace(results)}

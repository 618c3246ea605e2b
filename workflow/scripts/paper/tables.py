"""Tables of the paper, as whole tabulars, because their columns depend on the grid."""

from collections import Counter
from statistics import median

from pandas import DataFrame

from heteroring.results.results import Results, headline
from heteroring.results.throttle_words import throttle_words
from heteroring.ring.partition import LAYOUTS
from paper.cells import BALANCED, Cell, CellTable, MissingData, ring_cells
from paper.study import KEY_TILE, MODELS, Study, error, scatter
from paper.tex import count, emphasized, escaped, listed, percent, rounded, share, spanning, strategy, tabular

# Marks the time of a split that gives one rank the whole prompt.
LEFT_OUT = r"\rlap{$^{\ast}$}"


def device(results: Results) -> str:
    """No line break inside "2 x NVIDIA H200"."""
    return escaped(results.device_label).replace(" x ", r"~$\times$~")


def environment(results: Results, cells: CellTable) -> str:
    """Place, date and versions of a platform's measurements."""
    record = results.provenance
    for key in ("devices", "cpu", "commit", "date"):
        if record.get(key) is None:
            raise MissingData(f"platform {results.platform}: provenance has no {key!r}")
    rows = headline(results.measurements)
    rows = rows[(rows.system == "ring") & (rows.module == "attention")]

    def used(column: str) -> str:
        return listed(map(escaped, sorted(set(rows[column].astype(str)))))

    throttles = sorted(set(rows.throttle) - {"none"})
    lines = [
        ("Platform", rf"\code{{{escaped(results.platform)}}}: {device(results)}"),
        ("Devices", listed(rf"{n} $\times$ {escaped(name)}" for name, n in Counter(record["devices"]).items())),
        ("Host", f"{escaped(record['cpu']['model'])}, {record['cpu']['cores']} cores"),
        ("Driver", escaped(record.get("driver") or "none")),
        (
            "Software",
            ", ".join(f"{name} {escaped(record.get(name) or 'none')}" for name in ("python", "torch", "triton")),
        ),
        ("Throttle", listed(throttle_words(name).method for name in throttles)),
        ("Kernel", f"{used('block')}; transport {used('transport')}"),
        ("Shape", f"batch {used('batch')}, {used('heads')} heads ({used('kv_heads')} of KV) of {used('head_dim')}"),
        ("Data type", used("dtype")),
        ("Tokens", listed(map(count, cells.lengths))),
        ("Percentages", rf"{listed(map(str, cells.percentages))}\,\%"),
        (
            "Measured",
            f"{dates(record)}, commit {listed(each[:10] for each in record['commit'].split())}",
        ),
        *([("Notes", escaped(results.notes))] if results.notes else []),
    ]
    return tabular(r"@{}l>{\raggedright\arraybackslash}p{0.74\columnwidth}@{}", lines)


def dates(record: dict) -> str:
    """The days of a platform's first and last job."""
    days = [each["date"][:10] for each in (record, *record.get("jobs", {}).values())]
    return escaped(" to ".join(dict.fromkeys((min(days), max(days)))))


def head(strategies: list, *first: str, last: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Two lines over a column for each strategy: layouts, then allocators."""
    layouts = Counter(name.layout for name in strategies)
    spans = [spanning(number, layout) for layout, number in layouts.items()]
    names = (strategy(name.allocator) for name in strategies)
    return [(*[""] * len(first), *spans, *("" for _ in last)), (*first, *names, *last)]


def latency(results: Results, cells: CellTable) -> str:
    """By length, at the lowest percentage; with the bound, the fast rank alone and torch's context_parallel.

    In bold are the fastest strategy and those whose repetitions overlap with its, from the 20th to the 80th percentile.
    """
    low, names, torch = cells.percentages[0], cells.strategies, ring_cells(results, "context_parallel")

    def line(length: int) -> tuple[str, ...]:
        at = length, low
        times = [rounded(cells(name, at)) for name in names]
        fastest = min(names, key=lambda name: cells(name, at))
        level = [cells(name, at, "latency_p20_ms") <= cells(fastest, at, "latency_p80_ms") for name in names]
        marks = [LEFT_OUT * (0 in cells(name, at, "block_lens")) for name in names]
        references = (cells(BALANCED, at, "bound_ms"), cells(BALANCED, at, "fast_alone_ms"))
        return (
            count(length),
            *map(rounded, references),
            *(text + mark for text, mark in zip(emphasized(times, level), marks, strict=True)),
            *([rounded(torch("zigzag/even", at))] if torch else []),
        )

    last = ("torch CP",) if torch else ()
    return tabular(
        "@{}rrr" + "r" * (len(names) + len(last)) + "@{}",
        head(names, "tokens", "bound", "fast alone", last=last),
        [line(length) for length in cells.lengths],
    )


def strategies(last: CellTable, first: CellTable) -> str:
    """A line for each strategy over all throttled cells, the slow rank last and first."""
    orders = [(cells, [cells.fastest(cell) for cell in cells.throttled]) for cells in (last, first)]

    def line(name: str) -> tuple[str, ...]:
        texts = [strategy(name)]
        for cells, fastest in orders:
            fractions = cells.over(name, "bound_fraction")
            texts += count(fastest.count(name)), rounded(median(fractions)), rounded(min(fractions))
        return tuple(texts)

    groups = [[line(name) for name in last.strategies if name.layout == layout] for layout in LAYOUTS]
    heads = [
        ("", spanning(3, "slow rank last"), spanning(3, "slow rank first")),
        ("", *("won", "median", "least") * 2),
    ]
    return tabular("@{}l*{6}{r@{\\hspace{6pt}}}@{}", heads, *groups)


CONDITION_WORDS = {"rested": "rested", "sustained": "back to back", "eager": "one at a time", "captured": "CUDA graph"}


def conditions(rows: DataFrame) -> str:
    """Latency in ms and bound fraction by length and condition; `rows`: cells of one strategy and percentage."""
    found = rows.set_index(["seq_len", "condition"])
    measured = [name for name in CONDITION_WORDS if name in set(rows.condition)]

    def cell(length: int, name: str) -> tuple[str, str]:
        row = found.loc[length, name]
        return rounded(row.latency_ms), rounded(row.bound_fraction)

    lines = [
        (count(length), *(text for name in measured for text in cell(length, name)))
        for length in sorted(set(rows.seq_len))
    ]
    heads = [("tokens", *(spanning(2, CONDITION_WORDS[name]) for name in measured))]
    return tabular("@{}r" + "r@{\\hspace{4pt}}r" * len(measured) + "@{}", heads, lines)


def account(study: Study) -> str:
    """Error and scatter of times of the study's code, by what is counted: whole tiles in both records, and all."""

    def sets(name: str) -> list[list[float]]:
        model = MODELS[name]
        return [study.excesses(model, KEY_TILE), study.released_excesses(model), study.excesses(model)]

    def line(name: str) -> tuple[str, ...]:
        return name, *(share(value) for each in sets(name) for value in (error(each), scatter(each)))

    sizes = [len(each) for each in sets("tokens")]
    heads = [
        (
            "",
            *(
                spanning(2, f"{what}, {size} cells")
                for what, size in zip(("L40", "H200", "L40, all"), sizes, strict=True)
            ),
        ),
        ("counted", *("error", "scatter") * 3),
    ]
    return tabular("@{}l*{3}{r@{\\hspace{5pt}}r}@{}", heads, [line(name) for name in MODELS])


def whole_model(cells: CellTable, first: CellTable) -> str:
    """Time to first token by length and percentage, the fastest strategy in bold; `first`: the slow rank first."""
    in_seconds = max(cells(name, at) for name in cells.strategies for at in cells.grid) >= 1000
    scale, unit = (1e-3, "s") if in_seconds else (1.0, "ms")

    def line(cells: CellTable, at: Cell) -> tuple[str, ...]:
        times = [scale * cells(name, at) for name in cells.strategies]
        references = (cells(BALANCED, at, "bound_ms"), cells(BALANCED, at, "fast_alone_ms"))
        return (
            count(at[0]),
            percent(at[1]) + ", first" * (cells is first),
            *(rounded(scale * time) for time in references),
            *emphasized(map(rounded, times), (rounded(each) == rounded(min(times)) for each in times)),
            rounded(cells(BALANCED, at, "bound_fraction")),
            count(int(cells(BALANCED, at, "block_lens")[0 if cells is first else -1])),
        )

    heads = head(cells.strategies, "tokens", "slow rank", f"bound ({unit})", "fast alone", last=("fraction", "slow"))
    groups = [
        [line(table, (length, p)) for table in (cells, first) for p in reversed(table.percentages)]
        for length in cells.lengths
    ]
    return tabular("@{}rr" + "r" * (len(heads[1]) - 2) + "@{}", heads, *groups)


def spread(cells: CellTable, at: list[Cell]) -> float:
    """The typical one of `distances`."""
    return median(distances(cells, at))


def distances(cells: CellTable, at: list[Cell]) -> list[float]:
    """Distances between the 20th and the 80th percentile of repetitions, over their median, of every strategy."""
    return [
        (cells(name, cell, "latency_p80_ms") - cells(name, cell, "latency_p20_ms")) / cells(name, cell)
        for name in cells.strategies
        for cell in at
    ]

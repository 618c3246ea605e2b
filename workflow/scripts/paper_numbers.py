"""Write the paper's numbers, the words that depend on them, and its tables, as TeX macros.

    python workflow/scripts/paper_numbers.py MAIN_FOLDER LIVE_FOLDER PUBLISHED_FOLDER OUTPUT.tex

Every platform that the paper shows gets its own set, prefixed by its part in the paper: Main or Live. (This file
is not called numbers.py because the standard library has a module of that name.)
"""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from heteroring.files import atomic_path
from heteroring.results.results import Results, headline
from heteroring.results.strategy import FITTED, fitted_name
from heteroring.results.throttles import throttle_words
from paper import published_study
from paper.attention_sentences import verdicts
from paper.attention_tables import tables
from paper.cells import (
    BALANCED,
    CONTIGUOUS,
    EVEN,
    STRATEGIES,
    UNEVEN,
    ZIGZAG,
    ZIGZAG_EVEN,
    ZIGZAG_UNEVEN,
    Cell,
    Cells,
    MissingData,
    place,
    ring_cells,
    strategy,
)
from paper.layer_and_costs import beyond_the_call, constants
from paper.tex import count, escaped, listed, out_of, render, rounded, share, tabular, versus

OPERATORS = {"matmul": "square matrix products", "attention": "attention"}

# The main platform is quoted in full; these are the numbers that the appendix gives for the reader's machine.
LIVE = frozenset(
    {
        "AloneSentence",
        "BalancedFraction",
        "BalancedMedianFraction",
        "BalancedMs",
        "BalancedVersusEven",
        "BalancedVersusUneven",
        "BoundMs",
        "CellCount",
        "Date",
        "Device",
        "EnvironmentTable",
        "EvenMs",
        "GridTable",
        "HasWhole",
        "LatencyTable",
        "LongLength",
        "LowPercentage",
        "Spread",
        "StrategyTable",
        "TokensTable",
        "UnevenMs",
        "WholeBalancedFraction",
        "WholeBalancedVersusEven",
        "WholeLongLength",
        "WholeLowPercentage",
        "WholeName",
        "WholeTable",
        "Winner",
        "WinnerCount",
    }
)
# Numbers that only the appendix gives.
ONLY_LIVE = frozenset({"GridTable", "TokensTable"})


def environment(results: Results, cells: Cells) -> dict[str, str]:
    """Where, when and with what the numbers were measured."""
    record = results.provenance

    def known(key: str):
        if record.get(key) is None:
            raise MissingData(f"platform {results.platform}: provenance has no {key!r}")
        return record[key]

    rows = headline(results.measurements)
    rows = rows[(rows.system == "ring") & (rows.module == "attention")]

    def used(column: str) -> list[str]:
        return sorted(set(rows[column].astype(str)))

    def one(column: str) -> str:
        return listed(map(escaped, used(column)))

    throttle = listed(throttle_words(name).method for name in used("throttle") if name != "none")
    sources = sorted(set(rows[rows.allocator == "lut"].model_source))
    profiled = listed(OPERATORS.get(name, escaped(name)) for name in sources)
    studied = ", as in the study" if sources == ["matmul"] else f" (in the study, to {OPERATORS['matmul']})"
    repetitions = sorted({int(n) for name in STRATEGIES for n in cells.over_grid(name, "repetitions")})
    devices = Counter(map(escaped, known("devices")))
    software = ("python", "torch", "triton", "numpy")
    date = escaped(str(known("date"))[:10])
    # No line break inside "2 x NVIDIA H200".
    device = escaped(results.device_label).replace(" x ", r"~$\times$~")
    commits = listed(escaped(commit[:10]) for commit in str(known("commit")).split())
    table = [
        ("Platform", rf"\code{{{escaped(results.platform)}}}: {device}"),
        ("Devices", listed(rf"{number} $\times$ {name}" for name, number in devices.items())),
        ("Host", f"{escaped(known('cpu')['model'])}, {known('cpu')['cores']} cores"),
        ("Driver", escaped(record.get("driver") or "none")),
        ("Software", ", ".join(f"{name} {escaped(record.get(name) or 'none')}" for name in software)),
        ("Throttle", throttle),
        ("Kernel", f"{one('block')}; transport {one('transport')}"),
        ("Shape", f"batch {one('batch')}, {one('heads')} heads ({one('kv_heads')} of KV) of {one('head_dim')}"),
        ("Data type", one("dtype")),
        ("Tokens", listed(map(count, cells.lengths))),
        ("Percentages", rf"{listed(map(str, cells.percentages))}\,\%"),
        ("Repetitions", f"{listed(map(str, repetitions))} per cell and strategy"),
        ("Measured", f"{date}, commit {commits}" + " (modified)" * bool(record.get("dirty"))),
    ]
    return {
        "Device": device,
        "Throttle": throttle,
        "Repetitions": listed(map(str, repetitions)),
        "Date": date,
        "Profiled": profiled + studied,
        "RecordNote": escaped(results.notes),
        "EnvironmentTable": tabular(r"@{}l>{\raggedright\arraybackslash}p{0.74\columnwidth}@{}", table),
    }


def equal_ranks(cells: Cells) -> dict[str, str]:
    """Both ranks at full speed, what the published study calls homogeneous; strategies that make one split, pooled."""
    times = {"Contiguous": cells.pooled(EVEN, cells.equal), "Zigzag": cells.pooled(ZIGZAG_EVEN, cells.equal)}
    numbers = {"EqualVersus": versus(times["Zigzag"], times["Contiguous"])}
    for key, name in (("Contiguous", EVEN), ("Zigzag", ZIGZAG_EVEN)):
        numbers[f"Equal{key}Ms"] = rounded(times[key])
        numbers[f"Equal{key}Fraction"] = rounded(cells(name, cells.equal, "bound_ms") / times[key])
        numbers[f"Equal{key}Megabytes"] = rounded(cells(name, cells.equal, "bytes_moved") / 1e6)
    return numbers


def extreme(cells: Cells) -> dict[str, str]:
    """The longest prompt with the slow rank at its slowest, and what the work model predicts for it."""
    cell = cells.extreme
    ours, alone = cells(BALANCED, cell), cells(BALANCED, cell, "fast_alone_ms")
    contiguous = min(CONTIGUOUS, key=lambda name: cells(name, cell))

    def median_at(length: int) -> str:
        at = [cells(BALANCED, each, "bound_fraction") for each in cells.throttled if each[0] == length]
        return f"{rounded(median(at))} at {count(length)}"

    numbers = {
        "LongLength": count(cell[0]),
        "ShortLength": count(cells.lengths[0]),
        "LowPercentage": str(cell[1]),
        "ZigzagEvenMs": rounded(cells(ZIGZAG_EVEN, cell)),
        "AloneMs": rounded(alone),
        "BoundMs": rounded(cells(BALANCED, cell, "bound_ms")),
        "EvenSlowdown": rounded(cells(EVEN, cell, "slowdown")),
        "UnevenSlowdown": rounded(cells(UNEVEN, cell, "slowdown")),
        "UnevenSpeedup": rounded(cells(UNEVEN, cell, "speedup")),
        "UnevenEfficiency": rounded(cells(UNEVEN, cell, "efficiency")),
        "PredictedSpeedup": rounded(cells.predicted(EVEN, cell) / cells.predicted(UNEVEN, cell)),
        "PredictedFraction": rounded(cells(UNEVEN, cell, "bound_ms") / cells.predicted(UNEVEN, cell)),
        "PerfectEfficiency": rounded(cells(EVEN, cells.equal, "bound_ms") / cells(EVEN, cell, "bound_ms")),
        "ContiguousBest": strategy(contiguous),
        "ContiguousBestMs": rounded(cells(contiguous, cell)),
        "BalancedVersusContiguous": versus(ours, cells(contiguous, cell)),
        "BalancedByLength": listed(map(median_at, cells.lengths)),
        "BalancedVersusEven": versus(ours, cells(EVEN, cell)),
        "BalancedVersusUneven": versus(ours, cells(UNEVEN, cell)),
        "BalancedVersusAlone": versus(ours, alone),
    }
    quoted = {"Even": EVEN, "Uneven": UNEVEN, "ZigzagUneven": ZIGZAG_UNEVEN, "Balanced": BALANCED}
    for key, name in quoted.items():
        numbers[f"{key}Ms"] = rounded(cells(name, cell))
        numbers[f"{key}Fraction"] = rounded(cells(name, cell, "bound_fraction"))
        numbers[f"{key}Imbalance"] = rounded(cells(name, cell, "imbalance"))
        numbers[f"{key}MedianFraction"] = rounded(median(cells.over_grid(name, "bound_fraction")))
    return numbers


def across(cells: Cells) -> dict[str, str]:
    """All cells in which one rank is throttled."""
    fastest = [cells.fastest(cell) for cell in cells.throttled]
    winner = max(STRATEGIES, key=fastest.count)
    speedups = cells.over_grid(UNEVEN, "speedup")
    fractions = cells.over_grid(BALANCED, "bound_fraction")
    best = cells.throttled[speedups.index(max(speedups))]
    each = [(name, cell) for name in STRATEGIES for cell in cells.throttled]
    spreads = {one: (cells(*one, "latency_p80_ms") - cells(*one, "latency_p20_ms")) / cells(*one) for one in each}
    ratios = {one: cells(*one) / cells.predicted(*one) for one in each}

    def at_the_longest(values: dict[tuple[str, Cell], float]) -> list[float]:
        return [value for (_, cell), value in values.items() if cell[0] == cells.lengths[-1]]

    modelled = [one for one in each if one[0].allocator in FITTED]
    shared = [(name, cell) for name, cell in zip(fastest, cells.throttled, strict=True) if cells.shared_out(name, cell)]
    return {
        "CellCount": count(len(cells.throttled)),
        "Winner": strategy(winner),
        "WinnerCount": count(fastest.count(winner)),
        "ZigzagWins": out_of(sum(name in ZIGZAG for name, _ in shared), len(fastest)),
        "ClearWins": out_of(sum(map(cells.clearly_won, cells.throttled)), len(fastest)),
        "BestSpeedupSentence": "Ours is the largest of the grid with contiguous shards"
        if best == cells.extreme
        else f"The largest of the grid with contiguous shards, {rounded(max(speedups))}, is at {place(best)}",
        "UnevenLosses": cells.wins(EVEN, UNEVEN),
        "LutWins": cells.wins("contiguous/lut", UNEVEN),
        "FormulaWins": cells.wins("contiguous/formula", UNEVEN),
        "ZigzagLutWins": cells.wins("zigzag/lut", ZIGZAG_UNEVEN),
        "ZigzagFormulaWins": cells.wins("zigzag/formula", ZIGZAG_UNEVEN),
        "BalancedWins": cells.wins(BALANCED, ZIGZAG_UNEVEN),
        "BalancedWorstFraction": rounded(min(fractions)),
        "BalancedWorstPlace": place(cells.throttled[fractions.index(min(fractions))]),
        "Spread": share(median(spreads.values())),
        "SpreadLong": share(median(at_the_longest(spreads))),
        "SpreadLongMost": share(max(at_the_longest(spreads))),
        "ModelRatio": rounded(median(ratios.values())),
        "ModelRatioLong": rounded(median(at_the_longest(ratios))),
        "ClampedCount": out_of(sum(bool(cells(*one, "clamped")) for one in modelled), len(modelled)),
    }


def profile(results: Results, cells: Cells) -> dict[str, str]:
    """Nominal percentage against the speeds that attention and matrix products reach at their largest sizes."""
    matmul, attention = (_relative_speeds(results, kind, cells.percentages) for kind in OPERATORS)
    throttled = [percentage for percentage in cells.percentages if percentage < 100]
    middle = min(throttled, key=lambda percentage: abs(percentage - 50))
    gap = max(throttled, key=lambda percentage: abs(matmul[percentage] - attention[percentage]))
    products = results.profile[results.profile.kind == "matmul"]
    numbers = {"MatmulSize": count(int(products["size"].max()))}
    for key, percentage in (("Middle", middle), ("Gap", gap)):
        numbers[f"{key}Percentage"] = str(percentage)
        numbers[f"Matmul{key}"] = rounded(matmul[percentage])
        numbers[f"Attention{key}"] = rounded(attention[percentage])
    for kind in OPERATORS:
        model = results.models.get(fitted_name("formula", kind), {})
        for key, suffix in (("r2", "Rsquared"), ("r2_leave_one_percentage_out", "HeldOut")):
            if model.get(key) is None:
                raise MissingData(f"platform {results.platform}: model formula-{kind} has no {key}")
            numbers[f"{kind.capitalize()}{suffix}"] = rounded(model[key])
    by_length = [results.models[fitted_name("formula", kind)].get("r2_leave_one_length_out") for kind in OPERATORS]
    return {**numbers, "HeldLengthClause": held_length(by_length)}


def held_length(by_length: Sequence[float | None]) -> str:
    """How well the formula predicts each size from the others; empty where an operator has one size only."""
    if None in by_length:
        return ""
    return f"; predicting each size from the others, {listed(map(rounded, by_length))}"


def _relative_speeds(results: Results, kind: str, percentages: Sequence[int]) -> dict[int, float]:
    """Speed at the largest size profiled, relative to 100 %, by percentage."""
    rows = results.profile[results.profile.kind == kind]
    rows = rows[rows["size"] == rows["size"].max()]
    speeds = dict(zip(map(int, rows.percentage), map(float, rows.relative_speed), strict=True))
    for percentage in percentages:
        if not math.isfinite(speeds.get(percentage, math.nan)):
            raise MissingData(f"platform {results.platform}: the {kind} profile has no speed at {percentage} %")
    return speeds


def platform_numbers(results: Results, study: published_study.Study) -> dict[str, str]:
    """Everything that can be said about one platform, by unprefixed name."""
    cells = ring_cells(results)
    return {
        **environment(results, cells),
        **equal_ranks(cells),
        **extreme(cells),
        **across(cells),
        **verdicts(results, cells),
        **profile(results, cells),
        **tables(results, cells),
        **beyond_the_call(results, study),
    }


def numbers(main: Results, live: Results, study: published_study.Study) -> dict[str, str]:
    """All macros by name, in order; LiveIsMain is 1 if both are the same platform, and 0 otherwise.

    Raises MissingData, naming platform, strategy and cell, if the paper quotes what was not measured.
    """
    of_main, of_live = (platform_numbers(results, study) for results in (main, live))
    return {
        **published_study.numbers(study),
        **constants(),
        "LiveIsMain": str(int(main.platform == live.platform)),
        **{f"Main{name}": text for name, text in of_main.items() if name not in ONLY_LIVE},
        **{f"Live{name}": text for name, text in of_live.items() if name in LIVE},
    }


def write(main: Path, live: Path, published: Path, output: Path) -> None:
    """Load both platforms' folders and the published record, and write all macros to `output`, whole or not at all."""
    text = render(numbers(Results.load(main), Results.load(live), published_study.read(published)))
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    write(*map(Path, sys.argv[1:]))

"""Write README's tables and its plan, and the picture docs/results.svg, from the record of two H200s.

    python workflow/readme.py

The study's claims are those of docs/claims.md, which is made first. All are tracked, so that they are seen without
building anything; a test holds them against the record.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from typer.testing import CliRunner

from heteroring.cli.main import app
from heteroring.digits import significant
from heteroring.figures.style import BASELINE_COLOUR, look
from heteroring.files import atomic_path
from heteroring.results.metrics import cells
from heteroring.results.rows import Measurement, read_rows
from heteroring.results.strategy import BALANCED, EVEN, Strategy

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "data" / "h200x2"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "results.svg"
CLAIMS = ROOT / "docs" / "claims.md"
BEGIN, END = "<!-- made by workflow/readme.py -->\n", "<!-- end of what workflow/readme.py makes -->\n"
# What README shows of each of the study's claims.
CLAIM_COLUMNS = ("claim", "public study", "measured", "verdict")
# The command of README's plan, and what it shows of the output.
PLAN = re.compile(r"(?<=^```console\n)\$ (heteroring plan .*)\n[^`]*(?=```$)", re.MULTILINE)

SEQ_LEN = 65536
SHOWN = [10, 50, 100]
TORCH, BEST, BOUND, ALONE = "torch context_parallel", "best contiguous", "capacity bound", "fast GPU alone"
# Colour, dashes and width of each line, in the order of the table.
LINES = {
    EVEN: (look("zigzag/even").colour, "", 1.5),
    TORCH: (BASELINE_COLOUR, "", 1.5),
    BEST: (look("zigzag/uneven").colour, "", 1.5),
    BALANCED: (look(BALANCED).colour, "", 3),
    BOUND: ("#000000", "2 3", 1.5),
    ALONE: ("#6B6B6B", "8 3", 1.5),
}


def results(record: Path) -> tuple[pd.DataFrame, pd.Series]:
    """Latencies in ms of the attention call at SEQ_LEN tokens, the slow rank last, and the best contiguous strategies.

    One row for each percentage of the slow rank, a column for each name in LINES. Raises ValueError, naming percentage
    and column, if something was not measured.
    """
    rows = read_rows(sorted((record / "bench").glob("*.csv")), Measurement)
    rows = [
        row
        for row in rows
        if (row.module, row.condition, row.seq_len, row.percentages[0]) == ("attention", "rested", SEQ_LEN, 100)
    ]
    if not rows:
        raise ValueError(f"{record}: no attention call of {SEQ_LEN} tokens was measured")
    table = cells(rows)
    ring = table[table["system"] == "ring"].pivot(index="percentage", columns="strategy", values="latency_ms")
    balanced = table[(table["system"] == "ring") & (table["strategy"] == BALANCED)].set_index("percentage")
    contiguous = ring[[name for name in ring if Strategy(name).layout == "contiguous"]]
    found = pd.DataFrame(
        {
            EVEN: ring.get(EVEN),
            TORCH: table[table["system"] == "context_parallel"].set_index("percentage")["latency_ms"],
            BEST: contiguous.min(axis=1),
            BALANCED: balanced["latency_ms"],
            BOUND: balanced["bound_ms"],
            ALONE: balanced["fast_alone_ms"],
        },
        index=sorted({*SHOWN, *ring.index}),
    )
    for percentage, name in found.isna().stack().loc[lambda missing: missing].index:
        raise ValueError(f"{record}: {name} was not measured at {SEQ_LEN} tokens and {percentage} %")
    return found, contiguous.idxmin(axis=1).map(lambda name: Strategy(name).allocator)


def markdown(found: pd.DataFrame, best: pd.Series) -> str:
    """The table of README."""
    lines = ["| slow rank at | " + " | ".join(f"{p} %" for p in SHOWN) + " |", "|---" * (1 + len(SHOWN)) + "|"]
    for name in LINES:
        texts = [significant(found[name][p]) + (f" ({best[p]})" if name == BEST else "") for p in SHOWN]
        bold = "**" if name == BALANCED else ""
        lines.append("| " + " | ".join(f"{bold}{text}{bold}" for text in (name, *texts)) + " |")
    return "\n".join(lines) + "\n"


def claims(page: str) -> str:
    """The public study's claims, from the text of docs/claims.md: CLAIM_COLUMNS, without what is behind a verdict.

    Raises ValueError if the page has no table with these columns.
    """
    table = page.partition("## Of the public study\n\n")[2].partition("\n\n")[0]
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in f"{table}\n\n".split("\n"))
    if not {*CLAIM_COLUMNS} <= {*head}:
        raise ValueError(f"{CLAIMS}: no table of the public study's claims with {', '.join(CLAIM_COLUMNS)}")
    rows = [dict(zip(head, cells, strict=True)) for cells in lines if len(cells) > 1]
    for row in rows:
        row["claim"] = row["claim"].partition(" *")[0].rstrip(".")
    shown = [CLAIM_COLUMNS, ("---",) * len(CLAIM_COLUMNS), *([row[name] for name in CLAIM_COLUMNS] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in shown) + "\n"


def planned(command: re.Match[str]) -> str:
    """README's plan: the command, the first lines of its output that are not empty or ruled, and the last two.

    Where the model's sizes cannot be had, for want of ibm-fms, it stays as it is.
    """
    if find_spec("fms") is None:
        return command[0]
    words = [str(ROOT / word) if word.endswith(".yaml") else word for word in command[1].split()[1:]]
    done = CliRunner().invoke(app, words)
    if done.exit_code:
        raise ValueError(f"{README}: {command[1]}: {done.output}")
    lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip(" ─")]
    return "\n".join([f"$ {command[1]}", *lines[:4], " ...", *lines[-2:], ""])


def svg(found: pd.DataFrame) -> str:
    """Latency, on a logarithmic axis, against the slow rank's percentage.

    Written by hand, because the output of a plotting library depends on its version.
    """
    left, right, top, bottom = 52, 520, 30, 370
    low, high = math.log10(0.9 * found.min(axis=None)), math.log10(1.1 * found.max(axis=None))
    first, last = found.index[0], found.index[-1]
    x = {p: left + (right - left) * (p - first) / (last - first) for p in found.index}

    def y(ms: float) -> float:
        return bottom - (bottom - top) * (math.log10(ms) - low) / (high - low)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 420" font-family="sans-serif" font-size="13">',
        f"<title>Latency of causal attention over {SEQ_LEN:,} tokens against the speed of the slow rank</title>",
        '<rect width="690" height="420" fill="white"/>',
    ]
    for ms in (25 * 2**doubling for doubling in range(-4, 8)):
        if low <= math.log10(ms) <= high:
            parts.append(f'<path d="M{left} {y(ms):.1f}H{right}" stroke="#DDDDDD"/>')
            parts.append(label(left - 6, y(ms) + 4, f"{ms:g}", "end"))
    parts.append(label(left - 6, top - 10, "ms", "end"))
    parts += [label(x[p], bottom + 18, f"{p} %", "middle") for p in found.index]
    parts.append(label((left + right) / 2, bottom + 40, "share of its GPU that the slow rank may use", "middle"))
    for (name, (colour, dashes, width)), end in zip(
        LINES.items(), apart([y(found[n][last]) for n in LINES]), strict=True
    ):
        points = " ".join(f"{x[p]:.1f},{y(found[name][p]):.1f}" for p in found.index)
        style = f'stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes or "none"}"'
        parts += [
            f'<polyline points="{points}" fill="none" {style}/>',
            label(right + 8, end + 4, name, "start", colour),
        ]
    return "\n".join([*parts, "</svg>\n"])


def label(x: float, y: float, words: str, anchor: str, colour: str = "#000000") -> str:
    """An SVG text.

    Args:
        x: Place from the left, in pixels.
        y: Place of the base line from the top, in pixels.
        words: The text.
        anchor: "start", "middle" or "end" of the text, which is at `x`.
        colour: Colour of the text.

    Returns:
        The element.
    """
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def apart(places: Sequence[float], least: float = 16) -> list[float]:
    """The places of labels, moved up where they would be less than `least` apart."""
    moved, free = {}, math.inf
    for index in sorted(range(len(places)), key=places.__getitem__, reverse=True):
        moved[index] = min(places[index], free)
        free = moved[index] - least
    return [moved[index] for index in range(len(places))]


def made(record: Path = RECORD) -> dict[Path, str]:
    """The text of README and of the picture, from the record.

    Raises ValueError if the record lacks something that they show, or README its plan or the marks around its tables.
    """
    found, best = results(record)
    tables = iter((markdown(found, best), claims(CLAIMS.read_text(encoding="utf-8"))))
    text, places = re.subn(
        f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})",
        lambda _: next(tables, ""),
        README.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if places != 2:
        raise ValueError(f"{README}: the lines {BEGIN.strip()} and {END.strip()} must stand around each of two tables")
    text, plans = PLAN.subn(planned, text)
    if not plans:
        raise ValueError(f"{README}: a block of the language console must begin with $ heteroring plan")
    return {README: text, PICTURE: svg(found)}


def main() -> None:
    """Write README's tables and picture."""
    for path, content in made().items():
        with atomic_path(path) as temporary:
            Path(temporary).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Judge every claim of workflow/claims.yaml by the data, and fail where the paper's text says otherwise.

    python workflow/scripts/check_claims.py RECORD PUBLISHED SHORT PREDICTED CLAIMS.yaml [OUTPUT.md|.html|.tex ...]

The folders are the recorded platform's, the public study's, that of the short measurements and that of predictions. The
table goes to standard output, and to each file in its format.
"""

import html
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from claims import of_experiments, of_models, of_paper, of_simulations, of_study
from claims.evidence import REPRODUCED, VERDICTS, Evidence, Finding
from heteroring.files import atomic_path
from paper.tex import escaped, tabular

FUNCTIONS = {
    "study": vars(of_study),
    "paper": vars(of_paper) | vars(of_models) | vars(of_experiments) | vars(of_simulations),
}
HEADS = {
    "study": ("claim", "public study", "measured", "slow rank first", "verdict"),
    "paper": ("claim", "measured", "verdict"),
}
# Verdicts whose wording in tables differs from their names.
READ_AS = {"study": {"not": "not reproduced"}, "paper": {"reproduced": "holds", "not": "does not hold"}}


@dataclass(frozen=True)
class Claim:
    """An entry of claims.yaml. `source`: the place in study or paper. `verdict` is what the paper's text says."""

    id: str
    of: str
    source: str
    words: str
    verdict: str
    published: str = ""
    why: str = ""

    @property
    def function(self) -> str:
        """Name of the function that judges it."""
        return self.id.replace("-", "_")

    def judge(self, evidence: Evidence) -> Finding:
        """The finding."""
        return FUNCTIONS[self.of][self.function](evidence)


def read(path: Path) -> list[Claim]:
    """The claims. Raises ValueError, naming it, if one has no function or no known verdict."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    claims = [Claim(name, "study", **entry) for name, entry in content["study"].items()]
    for source, entries in content["paper"].items():
        claims += [Claim(name, "paper", source, words, REPRODUCED) for name, words in entries.items()]
    for claim in claims:
        if claim.function not in FUNCTIONS[claim.of]:
            raise ValueError(f"{path}: claim {claim.id} of the {claim.of} has no function")
        if claim.verdict not in VERDICTS:
            raise ValueError(f"{path}: claim {claim.id}: verdict {claim.verdict!r} is none of {', '.join(VERDICTS)}")
    return claims


def judge(claims: Sequence[Claim], evidence: Evidence) -> dict[Claim, Finding]:
    """The finding on each claim."""
    return {claim: claim.judge(evidence) for claim in claims}


def contradictions(findings: dict[Claim, Finding]) -> list[str]:
    """A line for each claim whose verdict in the text differs from that of the data."""
    return [
        f"{claim.id}: the text says {claim.verdict!r}, the data {found.verdict!r} ({found.ours})"
        for claim, found in findings.items()
        if claim.verdict != found.verdict
    ]


def rows(
    findings: dict[Claim, Finding], of: str, *, heads: Sequence[str] = (), why: str | None = None
) -> list[tuple[str, ...]]:
    """The cells of a table of claims.

    Args:
        findings: The finding on each claim.
        of: "study" or "paper".
        heads: The table's columns; HEADS unless given.
        why: What stands around the words that follow each claim, on what is behind its verdict; None: they do not.

    Returns:
        Texts by row.
    """
    table = []
    for claim, found in findings.items():
        if claim.of != of:
            continue
        words = claim.words
        if why is not None:
            words += f". {why}{claim.why}{why}" if claim.why else "."
        cells = {
            "claim": words,
            "source": claim.source,
            "public study": claim.published,
            "measured": found.ours,
            "slow rank first": found.first,
            "verdict": READ_AS[of].get(found.verdict, found.verdict),
        }
        table.append(tuple(cells[name] for name in heads or HEADS[of]))
    return table


def with_source(of: str) -> tuple[str, ...]:
    """HEADS, with where each claim is made."""
    first, *others = HEADS[of]
    return first, "source", *others


def text(findings: dict[Claim, Finding]) -> str:
    """One line per claim: passed or failed, its verdict, its name, and the finding."""
    lines = [
        f"{'pass' if claim.verdict == found.verdict else 'FAIL'}  {found.verdict:<10}  {claim.id}: {found.ours}"
        + (f"; slow rank first: {found.first}" if found.first else "")
        for claim, found in findings.items()
    ]
    return "\n".join([*lines, summary(findings)]) + "\n"


def summary(findings: dict[Claim, Finding]) -> str:
    """How many claims have each verdict."""
    parts = []
    for of, whose in (("study", "the public study"), ("paper", "the paper")):
        found = Counter(finding.verdict for claim, finding in findings.items() if claim.of == of)
        words = READ_AS["study"] if of == "study" else {"reproduced": "hold", "not": "do not hold"}
        counts = ", ".join(f"{found[verdict]} {words.get(verdict, verdict)}" for verdict in VERDICTS if found[verdict])
        parts.append(f"Of {found.total()} claims of {whose}: {counts}.")
    return " ".join(parts)


def markdown(findings: dict[Claim, Finding]) -> str:
    """The claims as a page of the documentation."""

    def table(of: str) -> str:
        heads = with_source(of)
        lines = [heads, ("---",) * len(heads), *rows(findings, of, heads=heads, why="*")]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    return (
        "# Claims\n\nMade by `make readme` from `workflow/claims.yaml` and the recorded data. `make claims` judges\n"
        "each anew, and a build in which the data contradict the paper's text fails. Sources are sections of the\n"
        "study's report (`data/published/README.md`) and of the paper.\n\n"
        f"{summary(findings)}\n\n## Of the public study\n\n{table('study')}\n\n"
        f"## Of the paper\n\n{table('paper')}\n"
    )


def page(findings: dict[Claim, Finding]) -> str:
    """A page of the report, which stands by itself."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    tables = "".join(
        f"<h2>{title}</h2><table>{line('th', with_source(of))}"
        f"{''.join(line('td', row) for row in rows(findings, of, heads=with_source(of), why=''))}</table>"
        for of, title in (("study", "The public study's claims"), ("paper", "The paper's own"))
    )
    style = (
        "body{font:14px sans-serif;margin:1em}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:4px 8px;text-align:left;vertical-align:top}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Claims</title><style>{style}</style>'
        f"<p>{html.escape(summary(findings))}</p>{tables}</html>\n"
    )


def macros(findings: dict[Claim, Finding]) -> str:
    """The paper's tables: the study's claims with what remains with the slow rank first, and two of the paper's own.

    One page is too short for all of the latter.
    """
    ragged = r">{\raggedright\arraybackslash}"
    study, own = (
        [tuple(map(escaped, row)) for row in rows(findings, of, why="" if of == "study" else None)] for of in HEADS
    )
    first, more = (
        tabular(rf"@{{}}{ragged}p{{0.45\textwidth}}{ragged}p{{0.42\textwidth}}l@{{}}", [HEADS["paper"]], half)
        for half in (own[: len(own) // 2], own[len(own) // 2 :])
    )
    tables = {
        "ClaimsStudyTable": tabular(
            rf"@{{}}{ragged}p{{0.26\textwidth}}l{ragged}p{{0.26\textwidth}}{ragged}p{{0.17\textwidth}}l@{{}}",
            [HEADS["study"]],
            study,
        ),
        "ClaimsPaperTable": first,
        "ClaimsMoreTable": more,
        "ClaimsSummary": escaped(summary(findings)),
    }
    return "".join(f"\\newcommand{{\\{name}}}{{{content}}}\n" for name, content in tables.items())


FORMATS = {".md": markdown, ".html": page, ".tex": macros}


def main(record: str, published: str, short: str, predicted: str, claims: str, *outputs: str) -> None:
    """Judge all claims, and write their tables to `outputs`."""
    findings = judge(read(Path(claims)), Evidence.load(*map(Path, (record, published, short, predicted))))
    print(text(findings), end="")
    if wrong := contradictions(findings):
        sys.exit("\n".join([f"{len(wrong)} claims contradict the data:", *wrong]))
    for output in map(Path, outputs):
        with atomic_path(output) as temporary:
            temporary.write_text(FORMATS[output.suffix](findings), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])

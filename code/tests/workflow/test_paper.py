"""The paper: claims that data can refute, every number a macro, every reference defined, and a clean log."""

import csv
import html
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pytest
from workflow.preflight.link_checkout import paper_figures

import check_claims
import check_latex_log
import paper_numbers
import paper_overview
from claims.evidence import Evidence, Finding
from claims.of_study import NO_ORDER
from heteroring import figures
from heteroring.figures import NAMES, WIDTH
from heteroring.results.aggregate import aggregate
from paper import tex
from synthetic import TINY, synthetic_results
from tree import ROOT

pytestmark = pytest.mark.slow

LATEX = ROOT / "latex"
DATA = ROOT / "data"
CLAIMS = ROOT / "workflow" / "claims.yaml"

# Numbers that may be typed there: the method's own definitions, and quotations.
TYPED = ("method", "study")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    data = tmp_path_factory.mktemp("data")
    for found in DATA.glob("h200x2*/provenance.json"):
        shutil.copytree(found.parent, data / found.parent.name, ignore=shutil.ignore_patterns("derived"))
        aggregate(data / found.parent.name)
    return Evidence.load(data / "h200x2", *(DATA / name for name in ("published", "h200x2_short", "predictions")))


@pytest.fixture(scope="module")
def found(evidence) -> dict[check_claims.Claim, Finding]:
    return check_claims.judge(check_claims.read(CLAIMS), evidence)


@pytest.mark.slow
def test_the_text_says_of_every_claim_what_the_data_say(found):
    assert check_claims.contradictions(found) == []
    for of, functions in check_claims.FUNCTIONS.items():
        judging = {
            name for name, each in functions.items() if getattr(each, "__annotations__", {}).get("return") is Finding
        }
        named = {claim.function for claim in found if claim.of == of}
        assert named == judging - {"rarely", "holds"}, "a function without a claim, or the other way round"


def test_the_page_of_claims_is_that_of_the_record(found):
    assert (ROOT / "docs" / "claims.md").read_text() == check_claims.markdown(found), "make readme"


def test_every_verdict_on_the_study_is_explained_and_given_for_both_orders(found):
    """Of rings, what remains with the slow rank first is said of the call and of the layer that the study timed."""
    study, page = [claim for claim in found if claim.of == "study"], check_claims.page(found)
    assert [claim.id for claim in study if not claim.why or html.escape(claim.why) not in page] == []
    for claim in study:
        assert found[claim].first == NO_ORDER or re.search(r"\bcall\b.*\blayer\b", found[claim].first), claim.id


def changed(evidence: Evidence, change) -> Evidence:
    """The evidence with `change` applied to the cells and models of the record."""
    results = replace(evidence.results, cells=change(evidence.results.cells), model=change(evidence.results.model))
    return replace(evidence, results=results)


def scaled(evidence: Evidence, strategy: str, factor: float, **where: int | str) -> Evidence:
    """Times of the strategies whose names begin with `strategy`, multiplied by `factor` where `where` holds."""

    def change(table):
        table = table.copy()
        at = table.strategy.str.startswith(strategy)
        for column, value in where.items():
            at &= (table[column] == value) if column in table else False
        table.loc[at, "latency_ms"] *= factor
        table.loc[at, "bound_fraction"] /= factor
        return table

    return changed(evidence, change)


def followed_late(evidence: Evidence) -> Evidence:
    chunks = evidence.results.chunks.copy()
    chunks.loc[chunks.split == "rebalanced", "latency_ms"] *= 1.2
    return replace(evidence, results=replace(evidence.results, chunks=chunks, beside_neighbour=chunks))


def jobs_apart(evidence: Evidence) -> Evidence:
    return changed(evidence, lambda table: table.assign(latency_high_ms=1.1 * table.latency_low_ms))


def exchanged(evidence: Evidence) -> Evidence:
    """The rings' times with the slow rank last and first exchanged."""
    orders = {"slow last": "slow first", "slow first": "slow last"}
    cells = evidence.results.cells
    return replace(evidence, results=replace(evidence.results, cells=cells.assign(order=cells.order.replace(orders))))


def other_study(evidence: Evidence) -> Evidence:
    """The study's record with its even splits three times as slow, and the released code's on equal ranks as fast."""
    study = evidence.study
    latency = study.latency | {"even": {at: 3 * ms for at, ms in study.latency["even"].items()}}
    released = {key: ms / 3 if key[0] == "100 100" else ms for key, ms in study.released.items()}
    released["100 10", 59584] = released["100 10", 59578]
    coarse = study.profile._replace(values=tuple(tuple(speed**0.5 for speed in row) for row in study.profile.values))
    return replace(evidence, study=replace(study, latency=latency, released=released, profile=coarse))


def slower_products(evidence: Evidence) -> Evidence:
    """The study's products as throttled as its attention."""
    values = tuple(tuple(speed**2 for speed in row) for row in evidence.study.profile.values)
    return replace(evidence, study=replace(evidence.study, profile=evidence.study.profile._replace(values=values)))


def costly_odd_length(evidence: Evidence) -> Evidence:
    rows = evidence.odd_lengths.copy()
    rows.loc[rows.seq_len == 12345, "latency_ms"] *= 1.1
    return replace(evidence, odd_lengths=rows)


def predicted_otherwise(evidence: Evidence) -> Evidence:
    """All rings at the bound, or slower by a fifth where none is predicted."""
    tables = {
        name: rows.assign(predicted_ms=rows.get("bound_ms", 1.2 * rows.predicted_ms))
        for name, rows in evidence.predictions.items()
    }
    return replace(evidence, predictions=tables)


def costs(evidence: Evidence, change: Callable[[list[float]], list[float]]) -> Evidence:
    """The evidence with `change` applied to the times of attention by percentage, at each length of the cost model."""
    fitted = evidence.results.fitted_models
    model = fitted["cost-attention"]
    model = model | {"attention_ms": [change(row) for row in model["attention_ms"]]}
    results = replace(evidence.results, fitted_models=fitted | {"cost-attention": model})
    return replace(evidence, results=results)


def slower_rings(evidence: Evidence) -> Evidence:
    """The evidence with decode over two ranks in the short runs 1.2 times as slow as measured."""
    decoded = evidence.decoded.copy()
    decoded.loc[~decoded.block_lens.str.contains(r"\b0\b"), "latency_ms"] *= 1.2
    return replace(evidence, decoded=decoded)


def changed_beside(evidence: Evidence, name: str, strategy: str, factor: float, **where: int | str) -> Evidence:
    """Times of one strategy in the record of an experiment, multiplied by `factor` where `where` holds."""
    results = evidence.beside[name]
    cells = results.cells.copy()
    at = cells.strategy == strategy
    for column, value in where.items():
        at &= cells[column] == value
    cells.loc[at, "latency_ms"] *= factor
    cells.loc[at, "bound_fraction"] /= factor
    cells.loc[at, "regret"] = factor * (1 + cells.regret[at]) - 1
    other = replace(evidence)
    vars(other)["beside"] = evidence.beside | {name: replace(results, cells=cells)}
    return other


# The first refutes the claim about simulated cells, so that these are not simulated for each change.
CHANGES = [
    partial(scaled, strategy="zigzag", factor=1.3, seq_len=65536),
    other_study,
    exchanged,
    slower_products,
    costly_odd_length,
    predicted_otherwise,
    slower_rings,
    partial(costs, change=lambda row: [row[-1] for _ in row]),
    partial(costs, change=lambda row: [1000 * ms for ms in row]),
    followed_late,
    jobs_apart,
    *(
        partial(scaled, strategy=name, factor=factor, **where)
        for name, factor, where in [
            ("zigzag/balanced", 1.5, {}),
            ("zigzag", 1.2, {"order": "slow last"}),
            ("zigzag/balanced", 0.2, {"condition": "eager"}),
            ("zigzag/balanced", 0.9, {"condition": "captured"}),
            ("zigzag/lut@attention", 1.5, {}),
            ("contiguous/balanced", 1.1, {"module": "fms"}),
            ("contiguous/even", 0.1, {}),
            ("contiguous/uneven", 0.2, {}),
            ("alone/rank1", 2, {"percentage": 10}),
            ("alone/rank0", 1.1, {"percentage": 100}),
        ]
    ),
    *(
        partial(changed_beside, name=name, strategy=strategy, factor=factor, **where)
        for name, strategy, factor, where in [
            ("ablation", "contiguous/balanced:untiled.unfused", 1.1, {"order": "slow first"}),
            ("ablation", "zigzag/balanced", 1.1, {}),
            ("ablation", "zigzag/balanced:p2p", 0.9, {}),
            ("ablation", "zigzag/balanced:masked", 1.2, {}),
            ("ablation", "zigzag/lut:quarter@attention", 1.05, {}),
            ("heldout", "zigzag/balanced", 1.05, {}),
            ("green", "zigzag/balanced", 1.05, {}),
        ]
    ),
]


@pytest.mark.slow
def test_a_claim_whose_data_are_changed_fails(evidence, found):
    """Each verdict becomes another one under at least one change of what was measured."""
    standing = set(found)
    for change in CHANGES:
        other = change(evidence)
        for unchanged in ("beside", "by_pair"):  # not read anew
            vars(other).setdefault(unchanged, getattr(evidence, unchanged))
        standing = {claim for claim in standing if claim.judge(other).verdict == found[claim].verdict}
    assert not {claim.id for claim in standing}


def test_a_contradiction_stops_the_build(evidence, tmp_path, monkeypatch):
    monkeypatch.setattr(Evidence, "load", lambda *folders: evidence)
    claims, output = tmp_path / "claims.yaml", tmp_path / "claims.md"
    claims.write_text(CLAIMS.read_text().replace("verdict: partly", "verdict: reproduced", 1))
    with pytest.raises(
        SystemExit, match="1 claims contradict the data:\ngrows-with-length: the text says 'reproduced'"
    ):
        check_claims.main("a", "b", "c", "d", str(claims), str(output))
    assert not output.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("verdict: partly", "verdict: maybe", "verdict 'maybe' is none of reproduced, partly, not, not tested"),
        ("  speedup:", "  speed-up:", "claim speed-up of the study has no function"),
    ],
)
def test_an_unsound_claim_is_refused(tmp_path, old, new, message):
    path = tmp_path / "claims.yaml"
    path.write_text(CLAIMS.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        check_claims.read(path)


def source(path: Path) -> str:
    """A TeX file without its comments."""
    return re.sub(r"(?<!\\)%.*", "", path.read_text(encoding="utf-8"))


def sources() -> dict[str, str]:
    return {path.stem: source(path) for path in [LATEX / "report.tex", *sorted((LATEX / "sections").glob("*.tex"))]}


def everything() -> str:
    return "\n".join(sources().values())


@pytest.fixture(scope="module")
def macros(evidence, found) -> dict[str, str]:
    """All macros of generated/, by name."""
    return paper_numbers.numbers(evidence, synthetic_results(TINY)) | dict(
        re.findall(r"\\newcommand\{\\(\w+)\}\{(.*?)\}\n(?=\\newcommand|\Z)", check_claims.macros(found), re.DOTALL)
    )


def quoted() -> set[str]:
    """Macros typed in study.tex."""
    return set(re.findall(r"\\newcommand\{\\(Study\w+)\}", sources()["study"]))


def test_every_section_is_part_of_the_paper():
    inputs = set(re.findall(r"\\input\{sections/(\w+)\}", source(LATEX / "report.tex")))
    assert inputs == {path.stem for path in (LATEX / "sections").glob("*.tex")}


@pytest.mark.parametrize("name", sorted({path.stem for path in (LATEX / "sections").glob("*.tex")} - set(TYPED)))
def test_no_measured_number_is_typed(name):
    """Neither decimals nor numbers with a unit or a percent sign, except in macros and for counting."""
    text = re.sub(r"\\includegraphics\[[^]]*\]\{[^}]*\}", "", sources()[name])
    typed = r"\d[\d{},]*\.\d+|\d+\s*(?:\\,)?\s*(?:\\%|ms\b|MB\b|TFLOP)|\d\{,\}\d"
    assert re.findall(typed, re.sub(r"Python 3\.11|counting says\s+1\.5", "", text)) == []


def test_macros_used_and_macros_defined_are_the_same(macros):
    used = (
        set(re.findall(r"\\((?:Record|Live|Study|Model|Predicted|Rebalanced|Claims)[A-Z][A-Za-z]*)", everything()))
        - quoted()
    )
    assert quoted() & set(macros) == set(), "both quoted and computed"
    assert used - set(macros) == set(), "used, but not defined by the scripts"
    assert set(macros) - used == set(), "defined by the scripts, but not used"


def test_numbers_of_the_abstract_are_those_of_the_record(macros):
    """Computed from the rows alone."""

    def latency(percentages: str, layout: str, allocator: str) -> float:
        rows = []
        for path in (DATA / "h200x2" / "bench").glob(f"pct-{percentages}.job-*.csv"):
            with path.open(newline="") as file:
                rows += csv.DictReader(file)
        where = {"system": "ring", "module": "attention", "seq_len": "65536", "layout": layout, "allocator": allocator}
        return median(float(row["latency_ms"]) for row in rows if where.items() <= row.items())

    even = latency("100-010", "contiguous", "even")
    ratio = even / latency("100-010", "zigzag", "balanced")
    assert macros["RecordEvenRatio"] == f"{ratio:.1f}"
    assert macros["RecordMiddleBalancedMs"] == f"{latency('100-050', 'zigzag', 'balanced'):.1f}"
    assert macros["RecordOrderMost"] == f"{even / latency('010-100', 'contiguous', 'even'):.1f}"


def test_the_abstract_is_short():
    words = re.sub(r"\\(?:begin|end)\{abstract\}|[\\{}$,.%]", " ", sources()["abstract"]).split()
    assert len(words) < 190
    assert len(set(re.findall(r"\\Record(?!\w*(?:Percentage|Length))\w+", sources()["abstract"]))) == 3


def test_quoted_numbers_are_used():
    elsewhere = "\n".join(text for stem, text in sources().items() if stem != "study")
    assert quoted() - set(re.findall(r"\\(Study\w+)", elsewhere)) == set()


def test_no_macro_swallows_the_space_behind_it():
    """TeX drops the space after a command's name: \\RecordFoo text must be \\RecordFoo\\ text."""
    assert (
        re.findall(
            r"\\(?:Record|Live|Study|Model|Predicted|Rebalanced)[A-Z][A-Za-z]+(?: +|\n(?!\n|\\end|\\fi))[a-z(\\]",
            everything(),
        )
        == []
    )


def test_figures_shown_exist_and_are_shown_once():
    shown = paper_figures(LATEX)
    assert len(shown) == len(set(shown)) == everything().count(r"\includegraphics") - 1
    assert {each.partition("/")[2] for each in shown} <= set(NAMES)
    assert r"{images/overview}" in sources()["report"]


def test_figures_have_the_width_they_were_drawn_for():
    kinds = {"figure": ("column", r"\columnwidth"), "figure*": ("text", r"\textwidth")}
    floats = re.findall(r"\\begin\{(figure\*?)\}(.*?)\\end\{\1\}", everything(), flags=re.DOTALL)
    for kind, body in floats:
        for options, name in re.findall(r"\\includegraphics\[([^]]*)\]\{images/\w+/(\w+)\}", body):
            assert (WIDTH[name], options) == (kinds[kind][0], f"width={kinds[kind][1]}"), name


def test_floats_have_captions_and_those_of_this_machine_say_so():
    floats = re.findall(r"\\begin\{((?:figure|table)\*?)\}(.*?)\\end\{\1\}", everything(), flags=re.DOTALL)
    for _, body in floats:
        assert body.count(r"\caption") == body.count(r"\label") == 1, body
    for _, body in re.findall(r"\\begin\{((?:figure|table)\*?)\}(.*?)\\end\{\1\}", sources()["machine"], re.DOTALL):
        assert r"\caption{This machine" in body, body
        assert r"\Record" not in body, body


def test_citations_and_bibliography_agree():
    cited = {key.strip() for keys in re.findall(r"\\cite\{([^}]*)\}", everything()) for key in keys.split(",")}
    keys = re.findall(r"^@\w+\{([^,\s]+),", (LATEX / "refs.bib").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert cited == set(keys)


def test_references_and_labels_agree():
    labels = re.findall(r"\\label\{([^}]*)\}", everything())
    referenced = set(re.findall(r"\\(?:eq)?ref\{([^}]*)\}", everything()))
    assert [label for label, number in Counter(labels).items() if number > 1] == []
    assert referenced - set(labels) == set()
    assert {label for label in labels if label.startswith(("fig:", "tab:", "thm:"))} - referenced == set()


def test_only_lean_packages_are_used():
    """What these packages bring: latexmk, texlive-latex-recommended, texlive-publishers, texlive-fonts-recommended."""
    packages = re.findall(r"\\usepackage(?:\[[^]]*\])?\{([^}]*)\}", source(LATEX / "report.tex"))
    assert {name for entry in packages for name in entry.split(",")} == {
        *("amsmath", "amssymb", "array", "booktabs", "cite", "fontenc", "graphicx", "hyperref", "inputenc", "url"),
        "xcolor",
    }


CLEAN = r"""This is pdfTeX
Overfull \hbox (4.9pt too wide) in paragraph at lines 1--2
Underfull \hbox (badness 10000) in paragraph at lines 3--4
LaTeX Font Warning: Some font shapes were not available, defaults substituted.
Output written on report.pdf (9 pages, 123 bytes).
"""


@pytest.mark.parametrize(
    "line",
    [
        r"Overfull \hbox (5.01pt too wide) in paragraph at lines 75--83",
        r"Overfull \vbox (12.0pt too high) has occurred while \output is active",
        "LaTeX Warning: Reference `fig:x' on page 2 undefined on input line 7.",
        "LaTeX Warning: Citation `liu2023ring' on page 1 undefined on input line 7.",
        "LaTeX Warning: Citation `a-key-longer-than-what-is-left-of-a-line' on page 12 undefined on input line 7.",
        "LaTeX Warning: Label `fig:x' multiply defined.",
        "LaTeX Warning: There were undefined references.",
        "LaTeX Warning: Label(s) may have changed. Rerun to get cross-references right.",
        "! Undefined control sequence.",
        "Missing character: There is no x in font cmr10!",
        "LaTeX Warning: Float too large for page by 179.12183pt on input line 22.",
    ],
)
def test_the_log_check_finds(tmp_path, capsys, line):
    log = tmp_path / "report.log"
    check = check_latex_log
    log.write_text(CLEAN)
    assert check.main(str(log)) == 0
    wrapped = "\n".join(line[start : start + 79] for start in range(0, len(line), 79))
    log.write_text(CLEAN + wrapped + "\n")
    assert check.main(str(log)) == 1
    assert line in capsys.readouterr().err
    assert check.main(str(tmp_path / "absent.log")) == 2


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
@pytest.mark.ranks
def test_the_paper_builds_with_a_clean_log_in_eleven_pages(tmp_path, evidence, found):
    """With a machine of a long name; references end on page 11 at the latest."""
    shutil.copytree(LATEX, tmp_path / "latex", ignore=shutil.ignore_patterns("generated", "images", "report.[!t]*"))
    shutil.copy(ROOT / "latexmkrc", tmp_path)
    generated, images = tmp_path / "latex" / "generated", tmp_path / "latex" / "images"
    generated.mkdir()
    live = synthetic_results(replace(TINY, device_label="2 x NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"))
    (generated / "numbers.tex").write_text(tex.render(paper_numbers.numbers(evidence, live)))
    (generated / "claims.tex").write_text(check_claims.macros(found))
    images.mkdir()
    paper_overview.overview(evidence).savefig(images / "overview.pdf")
    drawn_from = {"record": evidence.results, "live": live, **evidence.beside}
    for name in paper_figures(LATEX):
        part, figure = name.split("/")
        (images / part).mkdir(exist_ok=True)
        figures.save(figure, drawn_from[part], images / f"{name}.pdf")
    done = subprocess.run(
        ["latexmk", "-cd", "latex/report.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:]
    log = tmp_path / "latex" / "report.log"
    assert check_latex_log.problems(log.read_text(errors="replace")) == []
    assert "Warning--" not in log.with_suffix(".blg").read_text(errors="replace")
    [page] = re.findall(r"\\newlabel\{sec:references\}\{\{[^}]*\}\{(\d+)\}", log.with_suffix(".aux").read_text())
    assert int(page) <= 11

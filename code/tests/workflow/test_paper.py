"""The paper's sources: every number a macro, every figure shown, every reference defined, and a clean log."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import check_latex_log
import paper_numbers
from heteroring.figures import NAMES, WIDTH, WIDTH_INCHES
from paper import published_study
from paper import tex as paper_tex
from synthetic import GPU, TINY, synthetic_results

ROOT = Path(__file__).parents[3]
LATEX = ROOT / "latex"
SCRIPTS = ROOT / "workflow" / "scripts"

# Sections that report or derive numbers. Only the method's are its own definitions and the example it draws, and only
# the quotations are typed.
WITHOUT_TYPED_NUMBERS = (
    *("abstract", "introduction", "background", "analysis", "implementation", "setup", "results", "threats"),
    *("conclusion", "figures", "machine", "models", "simulation"),
)


# A platform that has measured no more than it must.
ATTENTION_ONLY = {"modules": ("attention",), "model": False, "visit_pairs": 0}


def source(path: Path) -> str:
    """A TeX file without its comments."""
    return re.sub(r"(?<!\\)%.*", "", path.read_text(encoding="utf-8"))


def sources() -> dict[str, str]:
    return {path.stem: source(path) for path in [LATEX / "report.tex", *sorted((LATEX / "sections").glob("*.tex"))]}


def everything() -> str:
    return "\n".join(sources().values())


@pytest.fixture(scope="module")
def macros() -> dict[str, str]:
    results = synthetic_results(TINY)
    return generated(results, results)


def generated(main, live) -> dict[str, str]:
    """All macros of generated/numbers.tex."""
    return paper_numbers.numbers(main, live, published_study.read(ROOT / "data" / "published"))


def quoted() -> set[str]:
    """Macros typed in published.tex."""
    return set(re.findall(r"\\newcommand\{\\(Published\w+)\}", sources()["published"]))


def test_every_section_is_part_of_the_paper():
    inputs = set(re.findall(r"\\input\{sections/(\w+)\}", source(LATEX / "report.tex")))
    assert inputs == {path.stem for path in (LATEX / "sections").glob("*.tex")}
    assert set(WITHOUT_TYPED_NUMBERS) == inputs - {"method", "published"}


@pytest.mark.parametrize("name", WITHOUT_TYPED_NUMBERS)
def test_no_number_is_typed(name):
    """Neither decimals nor numbers with a unit, a factor or a percent sign, but for those out of macros."""
    text = re.sub(r"\\includegraphics\[[^]]*\]\{[^}]*\}", "", sources()[name])
    typed = r"\d[\d{},]*\.\d+|\d+\s*(?:\\,)?\s*(?:\\%|ms\b|MB\b|TFLOP)|\d+\s*\$?\\times|\b\d+\s+times\b|\d\{,\}\d"
    assert re.findall(typed, text) == []


def test_macros_used_and_macros_defined_are_the_same(macros):
    used = set(re.findall(r"\\((?:Main|Live|Published|Model)[A-Z][A-Za-z]*)", everything())) - quoted()
    assert quoted() & set(macros) == set(), "both quoted and computed"
    assert used - set(macros) == set(), "used, but not defined by the scripts"
    assert set(macros) - used == set(), "defined by the scripts, but not used"


def test_what_need_not_be_measured_is_quoted_behind_its_flag_only(macros):
    """Where a platform lacks it, TeX skips the text that quotes it, so that its macros need not exist."""
    bare = replace(TINY, **ATTENTION_ONLY)
    defined = generated(synthetic_results(bare), synthetic_results(bare))
    flags = {name for name, text in defined.items() if re.search(r"(?:Main|Live)Has[A-Z]", name) and text == "0"}
    assert flags == {"MainHasCost", "MainHasLayer", "MainHasWhole", "MainHasTrace", "LiveHasWhole"}
    text = everything()
    for flag in sorted(flags):
        text = re.sub(rf"\\ifnum\\{flag}=1\n.*?(?=\\else\n|\\fi\n)", "", text, flags=re.DOTALL)
    used = set(re.findall(r"\\((?:Main|Live)[A-Z][A-Za-z]*)", text))
    assert used - set(defined) == set()
    assert set(macros) - set(defined)


def test_quoted_numbers_are_used():
    elsewhere = "\n".join(text for stem, text in sources().items() if stem != "published")
    assert quoted() - set(re.findall(r"\\(Published\w+)", elsewhere)) == set()


def test_no_macro_swallows_the_space_behind_it():
    """TeX drops the space after a command's name: \\MainFoo text must be \\MainFoo\\ text."""
    assert re.findall(r"\\(?:Main|Live|Published|Model)[A-Za-z]+(?: +|\n(?!\n|\\end|\\fi))[a-z(\\]", everything()) == []


def test_all_figures_of_the_main_platform_are_shown_once():
    shown = re.findall(r"\\includegraphics\[[^]]*\]\{images/(\w+)\}", everything())
    assert Counter(shown) == Counter(NAMES)


def test_figures_of_this_machine_exist():
    shown = re.findall(r"\\includegraphics\[[^]]*\]\{images/live/(\w+)\}", everything())
    assert len(shown) == len(set(shown)) >= 3
    assert set(shown) <= set(NAMES)
    assert everything().count(r"\includegraphics") == len(shown) + len(NAMES)


def test_figures_have_the_width_they_were_drawn_for():
    kinds = {"figure": ("column", r"\columnwidth"), "figure*": ("text", r"\textwidth")}
    floats = re.findall(r"\\begin\{(figure\*?)\}(.*?)\\end\{\1\}", everything(), flags=re.DOTALL)
    for kind, body in floats:
        for options, name in re.findall(r"\\includegraphics\[([^]]*)\]\{images/(?:live/)?(\w+)\}", body):
            assert (WIDTH[name], options) == (kinds[kind][0], f"width={kinds[kind][1]}"), name


def test_floats_have_captions_that_name_their_platform():
    floats = re.findall(r"\\begin\{((?:figure|table)\*?)\}(.*?)\\end\{\1\}", everything(), flags=re.DOTALL)
    for _, body in floats:
        assert body.count(r"\caption") == body.count(r"\label") == 1, body
    for stem in ("setup", "results", "figures"):
        for _, body in re.findall(r"\\begin\{((?:figure|table)\*?)\}(.*?)\\end\{\1\}", sources()[stem], re.DOTALL):
            assert r"\MainDevice" in body, body
    for _, body in re.findall(r"\\begin\{((?:figure|table)\*?)\}(.*?)\\end\{\1\}", sources()["machine"], re.DOTALL):
        assert r"\LiveDevice" in body, body
        assert r"\Main" not in body, body


def test_citations_and_bibliography_agree():
    """In the sections, and in the sentences that the data choose, where braces are doubled."""
    generated = (
        "\n".join(path.read_text() for path in [SCRIPTS / "paper_numbers.py", *SCRIPTS.glob("paper/*.py")])
        .replace("{{", "{")
        .replace("}}", "}")
    )
    found = re.findall(r"\\cite\{([^}]*)\}", everything() + generated)
    cited = {key.strip() for keys in found for key in keys.split(",")}
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


def build(folder: Path, main, live) -> Path:
    """Typeset the paper of two platforms with blank figures of the right width; the path of its log."""
    import matplotlib.figure

    shutil.copytree(LATEX, folder / "latex", ignore=shutil.ignore_patterns("generated", "images", "report.[!t]*"))
    shutil.copy(ROOT / "latexmkrc", folder)
    (folder / "latex" / "generated").mkdir()
    numbers = paper_tex.render(generated(main, live))
    (folder / "latex" / "generated" / "numbers.tex").write_text(numbers)
    images = folder / "latex" / "images"
    (images / "live").mkdir(parents=True)
    for width, inches in WIDTH_INCHES.items():
        matplotlib.figure.Figure(figsize=(inches, 2.5)).savefig(folder / f"{width}.pdf")
    for name in NAMES:
        for place in (images, images / "live"):
            shutil.copy(folder / f"{WIDTH[name]}.pdf", place / f"{name}.pdf")
    done = subprocess.run(
        ["latexmk", "-cd", "latex/report.tex"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "latex" / "report.pdf").read_bytes().startswith(b"%PDF")
    return folder / "latex" / "report.log"


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
@pytest.mark.parametrize("case", ["one-platform", "two-platforms", "attention-only"])
@pytest.mark.ranks
def test_the_paper_builds_with_a_clean_log(tmp_path, case):
    bare = ATTENTION_ONLY if case == "attention-only" else {}
    live = synthetic_results(replace(TINY, **bare))
    grid = replace(GPU, device_label="2 x NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition, MPS", **bare)
    main = live if case == "one-platform" else synthetic_results(grid)
    log = build(tmp_path, main, live)
    assert check_latex_log.problems(log.read_text(errors="replace")) == []
    assert "Warning--" not in log.with_suffix(".blg").read_text(errors="replace")

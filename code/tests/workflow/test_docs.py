"""Names in the documentation exist, and its examples and numbers match the code and the record."""

import re
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command
from workflow.readme import PICTURE, README, made

from heteroring.cli.main import app
from heteroring.figures import NAMES
from heteroring.ring import reference, schedule
from heteroring.ring.partition import LAYOUTS, Partition
from heteroring.ring.workload import score_pairs
from tree import ROOT

PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

# Files that the reader of a page writes, or that are produced.
NOT_TRACKED = ("ring.py", "latex/report.pdf", "latex/generated/", "latex/images/", "figures/", "runs/", "data/cpu/")
PLACEHOLDERS = ("NAME", "PLATFORM")


def tree() -> set[str]:
    """Files and folders of the project, the latter with a slash at the end, without what is hidden."""
    hidden = (".", "__pycache__", "heteroring.egg-info")
    found = set()
    for path in ROOT.iterdir():
        if not path.name.startswith(hidden) and path.name not in ("runs", "figures", "logs", "build", "dist"):
            found |= {path, *path.rglob("*")} if path.is_dir() else {path}
    return {path.relative_to(ROOT).as_posix() + "/" * path.is_dir() for path in found}


def code_of(page: Path) -> str:
    """The text in backquotes and in blocks, one piece per line."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))])


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def first_column(page: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)


@EACH
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, section = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if section:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert section in map(slug, headings), target


@EACH
def test_files_and_folders_named_exist(page):
    """As a whole path or as the end of one: `ring/schedule.py`."""
    names = re.findall(r"[\w./-]*\w\.(?:py|md|smk|ya?ml|csv|svg|tex|ipynb|txt|toml|cff)\b(?!\w)", code_of(page))
    names += re.findall(r"(?<![\w./{-])[\w./-]+/(?![\w{*])", code_of(page))
    names = {name for name in names if not name.startswith((*NOT_TRACKED, "/"))}
    names = {name for name in names if not any(word in name for word in PLACEHOLDERS)}
    paths = {f"/{path}" for path in tree()}
    assert [name for name in sorted(names) if not any(path.endswith(f"/{name}") for path in paths)] == []


@EACH
def test_modules_and_functions_named_exist(page):
    for name in sorted(set(re.findall(r"\bheteroring(?:\.\w+)+", code_of(page)))):
        parent, _, last = name.rpartition(".")
        try:
            found = find_spec(name)
        except ModuleNotFoundError:  # the parent is a module and no package
            found = None
        assert found or hasattr(import_module(parent), last), name


@pytest.mark.slow
def test_readme_is_short_and_its_results_are_those_of_the_record():
    contents = made()
    assert README.read_text() == contents[README], "make readme"
    assert PICTURE.read_text() == contents[PICTURE], "make readme"
    assert len(README.read_text().splitlines()) <= 150


def test_paper_readme_and_citation_have_one_title():
    (title,) = re.findall(r"^# (.*)", README.read_text())
    paper = (ROOT / "latex" / "report.tex").read_text()
    assert f"pdftitle={{{title}}}" in paper
    assert re.search(r"\\title\{(.*)\}", paper)[1].replace(r"\\", " ") == title
    assert f'\ntitle: "{title}"\n' in (ROOT / "CITATION.cff").read_text()


def test_readme_shows_every_claim_of_the_study_that_is_on_the_page_of_claims():
    shown, page = README.read_text(), (ROOT / "docs" / "claims.md").read_text()
    lines = page.partition("## Of the public study")[2].partition("## Of the paper")[0].strip().splitlines()[2:]
    assert len(lines) == 12
    for line in lines:
        words, source, published, measured, _, verdict = (cell.strip() for cell in line.strip("|").split(" | "))
        assert source
        assert f"| {words.partition('. *')[0].rstrip('.')} | {published} | {measured} | {verdict} |" in shown


def test_every_figure_is_explained():
    assert first_column("figures.md") == list(NAMES)


def test_every_command_is_explained():
    commands = [f"heteroring {name}" for name in get_command(app).commands]
    assert sorted(name for name in first_column("command-line.md") if name.startswith("heteroring ")) == sorted(
        commands
    )


def test_the_ring_shown_is_the_reference():
    source = Path(reference.__file__).read_text().partition("\n\n\n")[2]
    assert f"```python\n{source}```\n" in (ROOT / "docs" / "ring.md").read_text()


def test_pictures_of_who_computes_what_are_drawn_by_the_partition():
    partitions = [Partition(layout, (8, 4)) for layout in LAYOUTS]
    for query in range(12):
        rows = []
        for partition in partitions:
            owner = {int(token): rank for rank in (0, 1) for token in partition.positions(rank)}
            mine = owner[query]
            rows.append("".join(str(mine) if owner[key] == mine else "ab"[mine] for key in range(query + 1)))
        line = f"{query:>5}   {rows[0]:<14}{rows[1]}\n"
        assert line in (ROOT / "docs" / "ring.md").read_text()
        assert line in schedule.__doc__
    pairs = "pairs   {} : {}       {} : {}\n".format(*score_pairs(partitions[0]), *score_pairs(partitions[1]))
    assert pairs in (ROOT / "docs" / "ring.md").read_text()
    assert pairs in schedule.__doc__


def test_make_help_lists_every_target_and_variable():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*\bhelp\b.*)$", makefile, re.MULTILINE)[0].split()
    variables = re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE)
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make ([a-z-]+) +\w", said, re.MULTILINE)) == set(targets)
    assert set(re.findall(r"^  ([A-Z_]+)=", said, re.MULTILINE)) >= set(variables)


@EACH
def test_make_targets_named_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make ([a-z-]+)\b", code_of(page), re.MULTILINE)) <= set(targets)

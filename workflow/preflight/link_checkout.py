"""Link the checkout, which may be read-only, into the folder that `snakemake --directory` names for the results.

Snakemake makes that the working directory, and rules name files relative to it. So the sources are linked there, and
results lie beside the links.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from workflow.preflight.platforms import MEASURABLE

WHOLE = ("code", "workflow", "latexmkrc", "data/published", "data/h200x2_short", "data/predictions")
PRODUCED = {"images", "generated"}


def link_checkout(checkout: Path, folder: Path = Path()) -> None:
    """Link the sources in `checkout` where `folder`, if it is another one, expects them.

    Raises ValueError, naming it, if something else is in the place of a link.
    """
    if folder.resolve() == checkout.resolve():
        return
    for name in (*WHOLE, *_recorded(checkout), *(f"latex/{source}" for source in paper_sources(checkout / "latex"))):
        link, target = folder / name, checkout.resolve() / name
        if not os.path.lexists(link):
            try:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
            except OSError as error:
                raise ValueError(f"cannot write in {folder.absolute()}: {error.strerror}") from error
        elif not link.exists() or not link.samefile(target):
            raise ValueError(f"{link.absolute()} is in the way of a link to {target}: name another --directory")


def _recorded(checkout: Path) -> Iterator[str]:
    """The files of recorded platforms, without derived tables."""
    for path in sorted(checkout.glob("data/*/provenance.json")):
        if path.parent.name not in MEASURABLE:
            yield from (
                f"data/{path.parent.name}/{each.name}" for each in path.parent.iterdir() if each.name != "derived"
            )


def paper_sources(latex: Path) -> list[str]:
    """The files in folder `latex` from which the paper is typeset, without generated ones."""
    paths = (path.relative_to(latex) for path in latex.rglob("*") if not path.is_dir())
    kinds = (".tex", ".bib", ".cls", ".sty", ".bst")
    return sorted(
        path.as_posix()
        for path in paths
        if (path.suffix in kinds or path.name == "latexmkrc") and not PRODUCED & set(path.parts)
    )


def paper_figures(latex: Path) -> list[str]:
    """The figures that the sections in folder `latex` include, as "record/NAME", "live/NAME" or "ablation/NAME"."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(latex.glob("sections/*.tex")))
    return re.findall(r"\\includegraphics\[[^]]*\]\{images/(\w+/\w+)\}", text)

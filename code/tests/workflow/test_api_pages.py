"""The pages of docs/ and of the API are made without a warning, and hold every public name."""

import subprocess
import sys
from pathlib import Path

import pytest

import heteroring
from heteroring import allocators

pytest.importorskip("sphinx")
pytest.importorskip("fms")

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.ranks
def test_pages_are_made_without_a_warning_and_hold_every_public_name(tmp_path):
    from heteroring import fms

    make = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        tmp_path / "trees",
        DOCS,
        tmp_path / "html",
    ]
    done = subprocess.run(make, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for module in (heteroring, allocators, fms):
        page = (tmp_path / "html" / "api" / f"{module.__name__.rpartition('.')[2]}.html").read_text()
        names = [name for name in module.__all__ if callable(getattr(module, name))]
        assert [name for name in names if f'id="{module.__name__}.{name}"' not in page] == []
    links = (tmp_path / "html" / "index.html").read_text()
    pages = [path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")]
    assert [page for page in pages if f'href="{page}"' not in links] == []

"""The pages of docs/ and of the API are made without a warning, and hold every public name with its arguments."""

import inspect
import re
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from typing import Protocol

import pytest

import heteroring
from heteroring import allocators
from tree import ROOT

pytest.importorskip("sphinx")
pytest.importorskip("fms")

DOCS = ROOT / "docs"


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


def documented():
    """Name and object of the functions, constructed classes and methods on the API's pages."""
    for page in (DOCS / "api").glob("*.rst"):
        for name, members in re.findall(r"automodule:: (\S+)\n +:members:(.*(?:\n {4,}[^:\s].*)*)", page.read_text()):
            module = import_module(name)
            for member in re.findall(r"\w+", members) or module.__all__:
                found = getattr(module, member)
                if not inspect.isclass(found):
                    yield f"{name}.{member}", found
                    continue
                if "__init__" in vars(found) and not is_dataclass(found) and Protocol not in found.__bases__:
                    yield f"{name}.{member}", found
                yield from (
                    (f"{name}.{member}.{method}", getattr(found, method))
                    for method in vars(found)
                    if not method.startswith("_") and inspect.isroutine(getattr(found, method))
                )


def test_what_is_on_an_api_page_says_its_arguments_and_its_result():
    found = {name: each for name, each in documented() if callable(each)}
    assert {"heteroring.allocate", "heteroring.Partition.zigzag", "heteroring.ring.workload.ring_time"} <= found.keys()
    lacking = []
    for name, each in found.items():
        signature, text = inspect.signature(each), inspect.getdoc(each) or ""
        if signature.parameters.keys() <= {"self"}:
            continue
        returns = not inspect.isclass(each) and signature.return_annotation not in (None, "None")
        lacking += [f"{name} lacks {part}" for part in ("Args:", *["Returns:"] * returns) if part not in text]
    assert lacking == []

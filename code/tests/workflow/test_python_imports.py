"""The files on which a rule depends are those that Python would import, in made-up modules and in the project."""

import ast
import re
from pathlib import Path

import pytest
from workflow.preflight.python_imports import with_imports

from tree import ROOT

TREE = {
    "code/room/__init__.py": "from room.door import open_it\n",
    "code/room/door.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from room.key import Key\n",
    "code/room/key.py": "",
    "code/room/late.py": "def later():\n    import room.lamp\n",
    "code/room/lamp.py": "import os\nfrom room import late\n",
    "scripts/main.py": "import neighbour\nfrom numpy import array\n",
    "scripts/neighbour.py": "from room.door import open_it\n",
    "scripts/broken.py": "def\n",
}


@pytest.fixture
def needed(tmp_path, monkeypatch):
    """What a file of the made-up tree needs beside itself."""
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    roots = (Path("code"), Path("scripts"))
    return lambda *names, known=None: set(with_imports(names, roots, known)) - set(names)


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("code/room/key.py", set()),
        ("code/room/door.py", set()),  # imports for type checkers only do not run
        ("code/room/__init__.py", {"code/room/door.py"}),
        ("code/room/late.py", {"code/room/lamp.py"}),  # inside a function, and back again
        ("scripts/neighbour.py", {"code/room/door.py"}),  # the package on the way does not count
        ("scripts/main.py", {"scripts/neighbour.py", "code/room/door.py"}),
    ],
)
def test_what_a_file_needs(needed, name, needs):
    assert needed(name) == needs


def test_a_name_that_is_no_module_is_of_the_package(needed, tmp_path):
    (tmp_path / "scripts" / "main.py").write_text("from room import open_it\n")
    assert needed("scripts/main.py") == {"code/room/__init__.py", "code/room/door.py"}


def test_files_that_are_not_python_are_taken_as_they_are(needed, tmp_path):
    (tmp_path / "a.mplstyle").write_text("font.size: 8\n")
    assert needed("a.mplstyle", "code/room/key.py") == set()


def test_what_is_known_is_not_parsed_again(needed, monkeypatch):
    parsed, parse, known = [], ast.parse, {}
    monkeypatch.setattr(ast, "parse", lambda source: parsed.append(source) or parse(source))
    assert needed("scripts/main.py", known=known) == needed("scripts/main.py", known=known)
    needed("scripts/main.py", "scripts/neighbour.py", known=known)
    assert len(parsed) == len(set(parsed)) == 3


@pytest.mark.parametrize("name", ["scripts/broken.py", "scripts/gone.py"])
def test_a_file_that_cannot_be_read_is_named(needed, name):
    with pytest.raises(ValueError, match=f"cannot read the imports of {re.escape(name)}"):
        needed(name)


@pytest.mark.parametrize(
    ("path", "needs"),
    [
        (
            "code/heteroring/results/aggregate.py",
            ("ring/workload", "results/metrics", "results/repetitions", "results/column_rules"),
        ),
        (
            "code/heteroring/allocators/fitting.py",
            ("allocators/lut", "allocators/formula", "allocators/cost_model", "files"),
        ),
        ("workflow/scripts/paper_numbers.py", ("allocators/dispatch", "allocators/balanced", "results/results")),
        ("code/heteroring/results/results.py", ("results/metrics", "results/rows", "ring/workload")),
    ],
)
def test_what_the_rules_follow_reaches_what_defines_their_numbers(path, needs, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = with_imports([path])
    assert {f"code/heteroring/{name}.py" for name in needs} <= set(found)
    # Of the kernels, a split depends only on the sizes of tiles.
    assert {name for name in found if "/kernels/" in name or "/fms/" in name} <= {
        "code/heteroring/kernels/launch_configs.py"
    }

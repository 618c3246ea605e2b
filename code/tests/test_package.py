"""The installed package: the wheel, built from the sdist, away from the checkout; and its types."""

import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import typing
import zipfile
from pathlib import Path

import pytest

import heteroring
from tree import ROOT

pytest.importorskip("build")

RING = """
import torch, torch.distributed as dist, heteroring as hr
dist.init_process_group("gloo", init_method="file://{store}", rank=0, world_size=1)
q = torch.randn(1, 2, 8, 16)
out, lse = hr.ring_attention(q, q, q, hr.Partition.zigzag((8,)))
torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True))
dist.destroy_process_group()
from heteroring.figures import style
print(hr.__file__, len(style.STRATEGIES))
"""


def python(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel made from it, of what is tracked or would be, without network."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "code", source / "code", ignore=unwanted)
    python("-m", "build", "--no-isolation", "--outdir", made, source)
    return made


@pytest.mark.ranks
def test_wheel_holds_the_package_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "code" / "heteroring"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(package.parent).as_posix() for path in files}
    assert {"heteroring/py.typed", "heteroring/figures/paper.mplstyle"} <= names


@pytest.mark.ranks
def test_sdist_holds_what_builds_it_and_no_measurements(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert tops == {"LICENSE", "PKG-INFO", "README.md", "code", "pyproject.toml", "setup.cfg"}
    assert sdist.stat().st_size < 1e6


@pytest.mark.ranks
def test_installed_wheel_works_away_from_the_checkout(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    site, away = tmp_path / "site", tmp_path / "away"
    away.mkdir()
    python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel)
    there = {"cwd": away, "env": os.environ | {"PYTHONPATH": str(site)}}
    said = python(site / "bin" / "heteroring", "--help", **there).stdout
    assert "allocate" in said
    split = python(
        site / "bin" / "heteroring", "allocate", "uneven", "--seq-len", 12, "--percentages", "100,50", **there
    )
    assert split.stdout.split() == ["8", "4"]
    said = python("-c", RING.format(store=tmp_path / "store"), **there).stdout
    assert Path(said.split()[0]).is_relative_to(site)


def test_type_checkers_see_every_public_name(monkeypatch):
    """The names are imported on first use, which no type checker follows."""
    monkeypatch.setattr(typing, "TYPE_CHECKING", True)
    seen = runpy.run_path(heteroring.__file__)
    assert [name for name in heteroring.__all__ if seen.get(name) != getattr(heteroring, name)] == []

"""pyproject.toml, constraints.txt, environment.yml and the Makefile describe one environment."""

import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tree import ROOT

PYTHONS = ("3.11", "3.12", "3.13")


def machine(python: str) -> dict[str, str]:
    """Linux on x86-64 with that Python, as markers of requirements see it."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
    }


def pins(python: str) -> dict[str, str]:
    """Name to version as pip would read constraints.txt under that Python, on Linux x86-64."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate(machine(python)):
            continue
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is pinned twice for Python {python}"
        found[name] = specifier.version
    return found


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def direct(project) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for group in (project["dependencies"], *extras) for text in group]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_direct_dependency_is_locked_within_its_range(direct, python):
    locked = pins(python)
    for requirement in direct:
        if requirement.marker and not requirement.marker.evaluate(machine(python)):
            continue
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in constraints.txt: run `make lock`"
        assert requirement.specifier.contains(locked[name]), f"{name}=={locked[name]} is outside {requirement}"


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_torch_and_the_triton_that_its_cuda_build_declares(python):
    locked = pins(python)
    assert (locked["torch"], locked["triton"]) == ("2.13.0", "3.7.1")


def test_makefile_locks_the_torch_of_the_lock():
    makefile = (ROOT / "Makefile").read_text()
    (version,) = re.findall(r"^LOCKED_TORCH := (.+)$", makefile, re.MULTILINE)
    assert version == pins("3.12")["torch"]


def test_package_accepts_older_torch_than_the_lock(direct):
    (torch,) = (requirement for requirement in direct if requirement.name == "torch")
    assert torch.specifier.contains("2.11.0")


@pytest.mark.parametrize(("python", "there"), [("3.11", True), ("3.12", True), ("3.13", False)])
def test_foundation_model_stack_is_locked_where_its_wheel_installs(python, there):
    assert ("ibm-fms" in pins(python)) is there


def test_lock_names_no_machine():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"file:|https?:|@|^-|\+cpu|\+cu", text, re.MULTILINE)
    assert "make lock" in text


def test_build_requirement_is_locked():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    for text in build["requires"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins("3.11")[canonicalize_name(requirement.name)])


def test_conda_environment_installs_this_package_under_the_lock(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == project["name"]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "-c constraints.txt" in pip
    (install,) = (line for line in pip if line.startswith("-e "))
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", install)[1].split(",")
    assert set(extras) == set(project["optional-dependencies"])


def test_rules_name_the_environment_that_conda_users_make():
    ours = yaml.safe_load((ROOT / "environment.yml").read_text())
    rules = (ROOT / "workflow" / "envs" / "heteroring.yml").read_text()
    del ours["name"]
    assert yaml.safe_load(rules.replace("../../.[", ".[").replace("../../", "")) == ours


def test_conda_python_is_one_that_is_locked_and_accepted(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (python,) = (entry.partition("=")[2] for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert python in PYTHONS
    assert all(SpecifierSet(project["requires-python"]).contains(version) for version in PYTHONS)


def test_continuous_integration_runs_targets_that_exist_on_every_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert [job["python"] for job in jobs if job["name"] == "fast"] == list(PYTHONS)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = {target for job in jobs for words in re.findall(r"make ([a-z -]+)", job["run"]) for target in words.split()}
    assert {"lint", "docs", "test-fast"} <= asked <= set(targets)
    assert [job["run"] for job in jobs if ".ci/run" in job["run"]] == ["bash .ci/run"]


def test_makefile_installs_declared_extras(project):
    (extras,) = re.findall(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(extras.split(",")) == set(project["optional-dependencies"]) - {"notebook"}  # which tests run without


def test_make_clean_keeps_measurements_and_sources(tmp_path):
    kept = ("data/cpu/bench/pct-050.csv", "data/cpu/models/lut-matmul.json", "latex/report.tex")
    gone = ("figures/cpu/strategy_eval.png", "latex/report.pdf", "latex/generated/numbers.tex", "logs/a.log")
    gone += ("data/cpu/derived/cells.csv",)
    for run in (tmp_path, tmp_path / "runs" / "mine"):
        for name in kept + gone:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).touch()
    subprocess.run(["make", "-f", ROOT / "Makefile", "clean"], cwd=tmp_path, check=True, capture_output=True)
    for run in (tmp_path, tmp_path / "runs" / "mine"):
        assert all((run / name).exists() for name in kept)
        assert not any((run / name).exists() for name in gone)

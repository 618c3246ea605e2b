"""Set-up on machines that lack programs: it installs what it may, and names in one line what it may not install."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tree import ROOT

SETUP = ROOT / "workflow" / "setup"
# Programs that the scripts use besides those that these tests fake.
BASICS = ("bash", "chmod", "dirname", "env", "mkdir")


class Machine:
    """A PATH with only basic programs and fakes; every call of a fake is recorded."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.bin.mkdir()
        for name in BASICS:
            (self.bin / name).symlink_to(shutil.which(name))

    def install(self, name: str, body: str = "exit 0") -> None:
        program = self.bin / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >>{self.calls}\n{body}\n')
        program.chmod(0o755)

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [SETUP / script, *arguments],
            env={"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/")} | env,
            cwd=self.bin.parent,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def machine(tmp_path) -> Machine:
    machine = Machine(tmp_path)
    machine.install("id", "echo 1000")
    return machine


def tex(machine: Machine) -> str:
    """The calls of apt that provide TeX on this machine."""
    return "; ".join(
        f"printf '#!/bin/bash\\n' >{machine.bin}/{name}; chmod +x {machine.bin}/{name}"
        for name in ("latexmk", "pdflatex", "kpsewhich")
    )


def test_complete_tex_is_left_alone(machine):
    for name in ("latexmk", "pdflatex", "kpsewhich", "apt-get", "sudo"):
        machine.install(name)
    assert machine.run("tex.sh", "check").returncode == 0
    assert machine.run("tex.sh", "install").returncode == 0
    assert not any("apt-get" in call for call in machine.called())


def test_tex_that_lacks_a_package_is_incomplete(machine):
    for name in ("latexmk", "pdflatex"):
        machine.install(name)
    machine.install("kpsewhich", "exit 1")
    assert machine.run("tex.sh", "check").returncode != 0


@pytest.mark.parametrize("user", ["root", "sudoer"])
def test_missing_tex_is_installed_where_that_is_allowed(machine, user):
    machine.install("apt-get", f'[ "$1" = update ] || {{ {tex(machine)}; }}')
    if user == "root":
        machine.install("id", "echo 0")
    else:
        machine.install("sudo", '[ "$1" = -n ] && shift; "$@"')
    done = machine.run("tex.sh", "install")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    calls = [call for call in machine.called() if call.startswith("apt-get")]
    assert len(calls) == 2
    assert calls[0].startswith("apt-get update")
    assert calls[1].startswith("apt-get install")
    assert "--no-install-recommends latexmk" in calls[1]
    assert machine.run("tex.sh", "check").returncode == 0


@pytest.mark.parametrize("lacking", ["rights", "apt", "network"])
def test_missing_tex_that_cannot_be_installed_is_one_line_and_no_failure(machine, lacking):
    if lacking != "apt":
        machine.install("apt-get", "exit 100")
    machine.install("sudo", "exit 1" if lacking == "rights" else '[ "$1" = -n ] && shift; "$@"')
    done = machine.run("tex.sh", "install")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "apt-get install --no-install-recommends latexmk" in line
    assert machine.run("tex.sh", "check").returncode != 0
    installs = [call for call in machine.called() if call.startswith("apt-get")]
    assert bool(installs) == (lacking == "network")


def test_unknown_word_is_refused(machine):
    done = machine.run("tex.sh", "instal")
    assert (done.returncode, done.stderr) == (2, "usage: tex.sh check|install\n")
    done = machine.run("venv.sh", "instal")
    assert (done.returncode, done.stderr) == (2, "usage: venv.sh install FOLDER EXTRAS | has-python FOLDER\n")


@pytest.fixture
def python(machine) -> Machine:
    """A machine whose python3 makes environments in which pip records its arguments."""
    made = (
        'mkdir -p "$4/bin"',
        f'printf \'#!/bin/bash\\necho "pip $*" >>{machine.calls}\\n\' >"$4/bin/python"',
        'chmod +x "$4/bin/python"',
    )
    machine.install("python3", "\n".join(['[ "$2" = venv ] || exit 0', *made]))
    return machine


def lines_of(machine: Machine, word: str) -> list[str]:
    return [call for call in machine.called() if call.startswith(word)]


def test_environment_is_made_and_filled_under_the_lock(python):
    done = python.run("venv.sh", "install", "env", "workflow,dev")
    assert done.returncode == 0, done.stderr
    installs = [call for call in lines_of(python, "pip") if " install " in call]
    assert len(installs) == 2
    assert all("-c constraints.txt" in call for call in installs)
    assert installs[-1].endswith("-e .[workflow,dev]")


def test_usable_environment_is_kept(python, tmp_path):
    python.run("venv.sh", "install", "env", "dev")
    (tmp_path / "env" / "mine").touch()
    assert python.run("venv.sh", "install", "env", "dev").returncode == 0
    assert (tmp_path / "env" / "mine").exists()
    assert len(lines_of(python, "python3 -m venv")) == 1


def test_environment_left_half_made_is_made_anew(python, tmp_path):
    broken = tmp_path / "env" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/bash\nexit 1\n")
    broken.chmod(0o755)
    assert python.run("venv.sh", "install", "env", "dev").returncode == 0
    assert lines_of(python, "python3 -m venv") == ["python3 -m venv --clear env"]


def test_missing_python_is_named(machine):
    done = machine.run("venv.sh", "install", "env", "dev", PYTHON="python3.99")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "python3.99 not found" in line
    assert "3.11 or newer" in line


def test_old_python_is_refused_with_its_version(machine, tmp_path):
    machine.install("python3", 'if [ "$1" = -V ]; then echo Python 3.9.2; else exit 1; fi')
    done = machine.run("venv.sh", "install", "env", "dev")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "python3 is Python 3.9.2" in line
    assert "3.11 or newer" in line
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize("may", [True, False])
def test_python_without_ensurepip_gets_its_package_or_a_line_that_names_it(machine, may):
    real = sys.executable
    machine.install(
        "python3",
        f'case "$*" in *"import ensurepip"*) exit 1;; "-m venv"*) exit 1;; *) exec {real} "$@";; esac',
    )
    machine.install("apt-get")
    machine.install("sudo", '[ "$1" = -n ] && shift; "$@"' if may else "exit 1")
    done = machine.run("venv.sh", "install", "env", "dev")
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    assert done.returncode != 0
    if may:
        assert any(call.endswith(package) for call in lines_of(machine, "apt-get"))
    else:
        (line,) = done.stderr.splitlines()
        assert f"apt-get install {package}" in line
        assert not lines_of(machine, "apt-get")


def interpreter(path: Path, version: str) -> str:
    """A Python at `path` that reports `version`, and whose environments are of the same version; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = 'mkdir -p "$4/bin" && cp "$0" "$4/bin/python"'
    path.write_text(f'#!/bin/bash\ncase "$*" in *base_prefix*) echo "/usr {version}";; "-m venv"*) {made};; esac\n')
    path.chmod(0o755)
    return str(path)


def test_environment_of_another_python_than_named_is_made_anew(machine, tmp_path):
    old, new = (interpreter(tmp_path / name, name) for name in ("3.11", "3.12"))
    env = tmp_path / "env"
    machine.install("cp", f'exec {shutil.which("cp")} "$@"')
    for python, fresh in [(old, True), (old, False), ("", False), (new, True), ("", False)]:
        stays = env / "stays"
        if env.exists():
            stays.touch()
        if fresh and env.exists():
            assert machine.run("venv.sh", "has-python", "env", PYTHON=python).returncode == 1
            stays.unlink()
        done = machine.run("venv.sh", "install", "env", "dev", PYTHON=python)
        assert done.returncode == 0, done.stderr
        assert machine.run("venv.sh", "has-python", "env", PYTHON=python).returncode == 0
        assert stays.exists() != fresh


def test_python_that_is_named_and_missing_costs_no_environment(python, tmp_path):
    python.run("venv.sh", "install", "env", "dev")
    (tmp_path / "env" / "bin" / "python").write_text("#!/bin/bash\necho 3.11\n")
    done = python.run("venv.sh", "install", "env", "dev", PYTHON="python3.99")
    assert done.returncode != 0
    assert "python3.99 not found" in done.stderr
    assert (tmp_path / "env" / "bin" / "python").exists()


@pytest.mark.parametrize("name", ['"', "$HOME", "a:b", "back\\slash", "a\nb"])
def test_path_that_a_shell_would_take_apart_is_refused_before_anything_is_installed(python, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    done = subprocess.run(
        [SETUP / "venv.sh", "install", "env", "dev"],
        env={"PATH": str(python.bin)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert str(folder) in done.stderr
    assert not any(folder.iterdir())
    assert not lines_of(python, "python3")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder that looks to make like a project with a complete environment, of Python 3.11."""
    shutil.copytree(SETUP, tmp_path / "workflow" / "setup")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(SETUP.parents[1] / name, tmp_path / name)
    interpreter(tmp_path / ".venv" / "bin" / "python", "3.11")
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def install_of(checkout: Path, *arguments: str, **env: str) -> bool:
    """Whether `make setup` would install."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
    done = subprocess.run(
        ["make", "-n", "setup", *arguments], cwd=checkout, env=clean | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return "venv.sh install" in done.stdout


def test_make_looks_again_where_another_python_is_named(checkout):
    same, other = (interpreter(checkout / "pythons" / name, name) for name in ("3.11", "3.12"))
    assert not install_of(checkout)
    assert not install_of(checkout, f"PYTHON={same}")
    assert install_of(checkout, f"PYTHON={other}")
    assert install_of(checkout, PYTHON=other)
    assert install_of(checkout, "PYTHON=python3.99")
    (checkout / "constraints.txt").touch()
    assert install_of(checkout)

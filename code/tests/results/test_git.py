"""Provenance names the commit of the package's own repository; only files that can change results make it dirty."""

import subprocess

import pytest

from heteroring.results import git as module
from heteroring.results.git import read_commit


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository that tracks the package and measurements; the module believes that it lies there."""
    for name in ("code/heteroring/results/git.py", "code/tests/test.py", "data/h200x2/rows.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "all")
    believe(monkeypatch, tmp_path / "code/heteroring/results/git.py")
    monkeypatch.delenv("HETERORING_COMMIT", raising=False)
    return tmp_path


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def believe(monkeypatch, path):
    monkeypatch.setattr(module, "__file__", str(path))


def test_the_head_of_a_clean_tree(repository):
    assert read_commit() == (git(repository, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("path", ["code/heteroring/results/git.py", "code/tests/test.py"])
def test_a_tracked_file_that_was_changed_makes_a_tree_dirty(repository, path):
    (repository / path).write_text("2")
    assert read_commit().dirty is True


def test_a_new_file_in_the_package_makes_a_tree_dirty(repository):
    (repository / "code/heteroring/new.py").write_text("1")
    assert read_commit().dirty is True


@pytest.mark.parametrize("path", ["data/gpu/bench/pct-100.csv", "data/h200x2/rows.csv", "notes.txt"])
def test_what_jobs_write_does_not_make_later_ones_dirty(repository, path):
    (repository / path).parent.mkdir(parents=True, exist_ok=True)
    (repository / path).write_text("2")
    assert read_commit().dirty is False


def test_a_package_installed_inside_a_foreign_repository_has_no_commit(repository, monkeypatch):
    (repository / ".gitignore").write_text(".venv\n")
    installed = repository / ".venv/lib/heteroring/bench/commit.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("1")
    believe(monkeypatch, installed)
    assert read_commit() == ("unknown", None)
    monkeypatch.setenv("HETERORING_COMMIT", "abc123")
    assert read_commit() == ("abc123", None)


def test_a_repository_of_another_user_is_warned_of_with_what_mends_it(repository, monkeypatch, capsys):
    assert read_commit().name != "unknown"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert read_commit() == ("unknown", None)
    said = capsys.readouterr().err
    assert said.startswith("heteroring: warning: ")
    assert said.endswith(f"git config --global --add safe.directory {repository}\n")
    assert said.count("\n") == 1


def test_without_git_a_commit_is_unknown(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert read_commit() == ("unknown", None)


def test_a_tree_copied_without_git_is_told_its_commit(repository, monkeypatch):
    monkeypatch.setenv("HETERORING_COMMIT", "abc123")
    assert read_commit() == ("abc123", None)

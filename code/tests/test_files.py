"""Text and JSON files: atomic writing, and clear errors."""

import errno
import os
import stat

import pytest

from heteroring.files import atomic_path, read_json


def test_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "rows.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("a,b\n")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".csv"
    assert target.read_text() == "a,b\n"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_older_file_survives_a_failed_write(tmp_path, exception):
    target = tmp_path / "rows.csv"
    target.write_text("old\n")

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half of the n")
            raise exception

    with pytest.raises(exception):
        write()
    assert target.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [target]


def test_what_was_written_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("replace"), replace(old, new)))
    with atomic_path(tmp_path / "rows.csv") as temporary:
        temporary.write_text("x")
    assert done == [str(temporary), "replace", str(tmp_path)]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    target = tmp_path / "rows.csv"

    def write(inner):
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            if inner:
                with atomic_path(inner):
                    raise OSError(errno.ENOSPC, "No space left on device")
            raise OSError(errno.ENOSPC, "No space left on device")

    for inner in (None, tmp_path / "inner.json"):
        with pytest.raises(OSError, match=f"^cannot write {inner or target}: No space left on device$"):
            write(inner)
        assert list(tmp_path.iterdir()) == []


def test_json_that_cannot_be_read_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "a.json"
    for text in ("{", "[" * 100_000, "1" * 5000, "\ufffe"):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"^{path} is not JSON") as caught:
            read_json(path)
        assert len(str(caught.value).splitlines()) == 1


def test_missing_folders_are_created(tmp_path):
    with atomic_path(tmp_path / "a" / "b" / "rows.csv") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a" / "b" / "rows.csv").read_text() == "x"


def test_mode_follows_the_umask(tmp_path):
    previous = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "rows.csv") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "rows.csv").stat().st_mode) == 0o644


def test_unwritable_place_is_named_before_the_block_runs(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "rows.csv", tmp_path):
        with pytest.raises(ValueError, match=rf"cannot write {target}: "), atomic_path(target):
            pytest.fail("the block ran")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="Permission denied"), atomic_path(tmp_path / "rows.csv"):
        pytest.fail("the block ran")

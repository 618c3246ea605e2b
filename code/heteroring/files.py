"""Text and JSON files: reading with clear errors, and atomic writing, so that no reader sees half a file."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, lines ended by "\\n", without a byte order mark.

    Raises ValueError, naming the file, if it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path}: not a UTF-8 text file ({error})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. Raises ValueError, naming it, if it cannot be read or parsed."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from error


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until what was written to `path`, a file or a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` when the block ends without an exception.

    The temporary file keeps the suffix of `path`, because writers choose a format by it; its name starts
    with a dot. It exists, empty, when the block starts, so that an unwritable folder is known before any
    work is done. Folders on the way to `path` are created. On any exception, KeyboardInterrupt too, it is
    removed and an older `path` stays. `path` is on the disk before the block is left.

    Raises ValueError, naming `path` and the reason, if no file can be written there; and OSError, naming `path`, if
    writing fails later, for instance because the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except FileExistsError as error:
        raise ValueError(f"cannot write {path}: {path.parent} is not a folder") from error
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # An error that names a file, or that an inner atomic_path has already reworded, stays as it is.
        if isinstance(error, OSError) and error.errno and error.filename in (None, os.fspath(temporary)):
            raise OSError(f"cannot write {path}: {error.strerror}") from error
        raise

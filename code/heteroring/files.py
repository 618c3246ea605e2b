"""Writing a file whole or not at all: a reader never meets half a record, however the writer ends."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` when the block ends without an exception.

    The temporary file keeps the suffix of `path`, because writers choose a format by it; its name starts
    with a dot. It exists, empty, when the block starts, so that an unwritable folder is known before any
    work is done. Folders on the way to `path` are created. On any exception, KeyboardInterrupt too, it is
    removed and an older `path` stays.

    Raises ValueError, naming `path` and the reason, if no file can be written there.
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
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

"""Check before any job starts that the results of this run can be written."""

import os
from collections.abc import Iterable
from pathlib import Path


def check_writable(folders: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ValueError, naming folder and reason, unless each of `folders` can be created or written in."""
    for folder in map(Path, folders):
        there = next(path for path in (folder, *folder.parents, Path()) if path.exists())
        if not there.is_dir():
            raise ValueError(f"cannot write in {folder}: {there} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"cannot write in {folder}: no permission to write in {there}")

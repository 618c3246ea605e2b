"""Read runs of Weights & Biases back from the folders in which they are kept offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK, _FILE_HEADER, _HEADER = 32768, 7, 7
_FULL, _FIRST, _LAST = 1, 2, 4


@dataclass(frozen=True)
class Run:
    """A run's metadata, its configuration, the numbers of its summary, and its last logged values."""

    name: str
    project: str
    group: str
    job_type: str
    config: dict[str, Any]
    summary: dict[str, Any]
    folder: Path

    def table(self, key: str) -> list[dict[str, Any]]:
        """A logged table, one dictionary per row."""
        table = json.loads((self.folder / "files" / self.summary[f"{key}/path"]).read_text())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def runs(folder: Path) -> list[Run]:
    """The runs kept in `folder`, the first one first."""
    return [_run(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)]


def _run(path: Path) -> Run:
    from wandb.proto.wandb_internal_pb2 import Record

    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    about = None
    for chunk in _chunks(path.read_bytes()):
        record = Record.FromString(chunk)
        if record.HasField("run"):
            about = record.run
        for updates, kept in (
            (record.run.config.update, config),
            (record.config.update, config),
            (record.summary.update, summary),
            (record.history.item, summary),
        ):
            kept |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
    return Run(about.display_name, about.project, about.run_group, about.job_type, config, summary, path.parent)


def _chunks(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind W&B's own header: each in one piece, or in several over blocks."""
    at, whole = _FILE_HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece = data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        whole = piece if kind in (_FULL, _FIRST) else whole + piece
        if kind in (_FULL, _LAST):
            yield whole

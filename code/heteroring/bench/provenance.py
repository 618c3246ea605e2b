"""Where measurements come from: devices, versions, commit, command and date, as a JSON file beside them."""

from __future__ import annotations

import json
import os
import platform as python_platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heteroring.files import atomic_path

if TYPE_CHECKING:
    from heteroring.bench.launch import Rank

UNKNOWN = "unknown"
COMMIT_VARIABLE = "HETERORING_COMMIT"


@dataclass(frozen=True)
class RankReport:
    """What one rank ran on. `throttle` is what its throttle says that it really got."""

    device: str
    multiprocessors: int
    throttle: Mapping[str, float]


def report(rank: Rank) -> RankReport:
    """The report of `rank`, which is this process."""
    name, multiprocessors = rank.device.describe()
    return RankReport(name, multiprocessors, dict(rank.throttle.report()))


def provenance(
    *,
    platform: str,
    throttle: str,
    percentages: Sequence[int],
    ranks: Sequence[RankReport],
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of one job, in JSON types.

    `platform` is what its rows call it, `settings` what the job was asked to do, `notes` what is odd about it.
    Lists have one entry a rank; `multiprocessors` is empty on platforms that have none. What cannot be found
    out, the commit without git for one, is "unknown", and `dirty` then null.
    """
    # Whoever only reads records has no use for torch, which `device` imports.
    from heteroring.bench.device import cpu_model

    commit, dirty = _commit()
    multiprocessors = [rank.multiprocessors for rank in ranks if rank.multiprocessors]
    return {
        "platform": platform,
        "devices": [rank.device for rank in ranks],
        "multiprocessors": multiprocessors,
        "driver": _driver() if multiprocessors else "",
        "python": python_platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count()},
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "throttle": throttle,
        "percentages": list(percentages),
        "achieved": [dict(rank.throttle) for rank in ranks],
        "settings": dict(settings),
        "notes": [*notes, *_shortfalls(ranks)],
    }


def settings_of(job: Any) -> dict[str, Any]:
    """The fields of a job, a frozen dataclass, in JSON types."""
    return json.loads(json.dumps(asdict(job), default=str))


def _shortfalls(ranks: Sequence[RankReport]) -> Iterator[str]:
    """What a rank did not get as it was asked for."""
    for number, rank in enumerate(ranks):
        seen, expected = (rank.throttle.get(name) for name in ("multiprocessors", "expected_multiprocessors"))
        if expected is not None and seen != expected:
            yield f"rank {number}: {seen} multiprocessors where {expected} were asked for"


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON, whole or not at all. Raises ValueError if `path` cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. Raises ValueError, naming it, if it cannot be read or parsed."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def merge(jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One record for a platform from those of its jobs, by name ("bench/pct-050").

    It describes the platform as the first job with every rank at 100 % saw it (the first job, if none has).
    date is the last job's, percentages is every one that was set, commit and command name all there were, and
    `jobs` keeps each job's own record. Raises ValueError if there are no jobs, or jobs of several platforms.
    """
    if not jobs:
        raise ValueError("there is no record of a job to merge")
    platforms = sorted({job["platform"] for job in jobs.values()})
    if len(platforms) > 1:
        raise ValueError(f"jobs of several platforms cannot be merged: {', '.join(platforms)}")
    # A ring's job says more about the platform than a profile's, which has one rank.
    ordered = [jobs[name] for name in sorted(jobs)]
    unthrottled = [job for job in ordered if set(job["percentages"]) == {100}]
    base = max(unthrottled or ordered, key=lambda job: len(job["devices"]))
    return {
        **{key: value for key, value in base.items() if key not in ("achieved", "notes", "settings")},
        "commit": " ".join(sorted({job["commit"] for job in ordered})),
        "dirty": _any_dirty(job["dirty"] for job in ordered),
        "date": max(job["date"] for job in ordered),
        "command": "; ".join(dict.fromkeys(job["command"] for job in ordered)),
        "percentages": sorted({p for job in ordered for p in job["percentages"]}),
        "settings": base["settings"],
        "jobs": dict(sorted(jobs.items())),
    }


def _any_dirty(states: Iterable[bool | None]) -> bool | None:
    """True if one is known to be; None, unknown, if one is not known and none is."""
    found = set(states)
    return True if True in found else None if None in found else False


def _program() -> str:
    """What the user started, without the folder that it happens to be installed in."""
    name = Path(sys.argv[0]).name
    return "heteroring" if name == "__main__.py" else name


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def _commit() -> tuple[str, bool | None]:
    """The commit, and whether the tree differs from it. COMMIT_VARIABLE names that of a tree copied without git."""
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE], None
    here = ["git", "-C", str(Path(__file__).parent)]
    head = _output([*here, "rev-parse", "HEAD"])
    if head is None:
        return UNKNOWN, None
    return head, bool(_output([*here, "status", "--porcelain"]))


def _driver() -> str:
    versions = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return versions.splitlines()[0] if versions else UNKNOWN


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

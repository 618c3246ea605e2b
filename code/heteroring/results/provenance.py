"""Provenance of measurements, a JSON file beside them: devices, versions, commit, command and date."""

from __future__ import annotations

import json
import os
import platform as python_platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heteroring.files import atomic_path, read_json, sync
from heteroring.procfs import cpu_model
from heteroring.results.git import UNKNOWN, Commit, output_of

if TYPE_CHECKING:
    from heteroring.launch.launch import Rank

_ALIKE = ("platform", "torch", "driver", "throttle")
"""Entries that, where known, have one value in all records that are merged; throttle "none" goes with any other."""


_ENTRIES = {
    **dict.fromkeys(("platform", "driver", "torch", "commit", "date", "command", "throttle"), str),
    **dict.fromkeys(("devices", "multiprocessors", "percentages"), list),
    "dirty": bool | None,
    "settings": dict,
}
"""Entries of a record that are read, and their types."""
_OF_ONE_JOB = ("achieved", "gpus", "notes", "row_count", "seconds", "settings")
"""Entries of one job that do not describe its platform."""
_LISTS = {"devices": str, "multiprocessors": int, "percentages": int}


@dataclass(frozen=True)
class RankReport:
    """The device of one rank. `throttle`: the share that it actually got, by its throttle; `uuid`: that of a GPU."""

    device: str
    multiprocessors: int
    throttle: Mapping[str, float]
    uuid: str = ""


def report(rank: Rank) -> RankReport:
    """The report of `rank`, which is this process."""
    name, multiprocessors = rank.device.describe()
    return RankReport(name, multiprocessors, dict(rank.throttle.report()), rank.device.uuid())


def provenance(
    *,
    platform: str,
    throttle: str,
    percentages: Sequence[int],
    ranks: Sequence[RankReport],
    settings: Mapping[str, Any],
    commit: Commit,
    row_count: int,
    notes: Sequence[str] = (),
    seconds: float = 0.0,
    gpus: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The record of one job, in JSON types.

    A value that cannot be determined, such as the commit without git, is "unknown", and `dirty` then null.
    `multiprocessors` is empty on devices that have none.

    Args:
        platform: The platform's name in the rows.
        throttle: Name of the throttle.
        percentages: Percentage of each rank.
        ranks: The report of each rank.
        settings: Those of the job.
        commit: That of the code.
        row_count: Number of rows.
        notes: Irregularities.
        seconds: Duration of the job.
        gpus: Readings of this machine's GPUs (`heteroring.bench.telemetry`); those of the ranks' GPUs are kept.

    Returns:
        The record.
    """
    known = {gpu["uuid"]: dict(gpu) for gpu in gpus}
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
        "commit": commit.name,
        "dirty": commit.dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "throttle": throttle,
        "percentages": list(percentages),
        "row_count": row_count,
        "achieved": [dict(rank.throttle) for rank in ranks],
        "seconds": round(seconds, 1),
        "gpus": [{"uuid": rank.uuid} | known.get(rank.uuid, {}) for rank in ranks if rank.uuid],
        "settings": dict(settings),
        "notes": [*notes, *_shortfalls(ranks)],
    }


def settings_of(job: Any) -> dict[str, Any]:
    """The fields of a job, a frozen dataclass, in JSON types, by the names that records use."""
    names = {each.name: each.metadata.get("recorded_as", each.name) for each in fields(job)}
    return json.loads(json.dumps({names[name]: value for name, value in asdict(job).items()}, default=str))


def _shortfalls(ranks: Sequence[RankReport]) -> Iterator[str]:
    """A note for each rank that did not get the SMs that were asked for."""
    for number, rank in enumerate(ranks):
        seen, expected = (rank.throttle.get(name) for name in ("multiprocessors", "expected_multiprocessors"))
        if expected is not None and seen != expected:
            yield f"rank {number}: {seen} SMs where {expected} were asked for"


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON, whole or not at all.

    Args:
        path: Path of the file.
        content: What is written.

    Raises:
        ValueError: If `path` cannot be written.
    """
    with atomic_path(path) as temporary:
        dump_json(temporary, content)


def dump_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON over `path`, and wait until it is on the disk."""
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync(path)


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the record of a job, or of a platform.

    Args:
        path: The JSON file beside a job's rows, or a platform's provenance.json.

    Returns:
        The entries of the record.

    Raises:
        ValueError: Naming file and entry, if `path` does not hold a record.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no record of a measurement: a JSON object is needed")
    for name, kind in _ENTRIES.items():
        if name not in record or not isinstance(record[name], kind):
            raise ValueError(f"{path} is no record of a measurement: its {name} is missing or has the wrong type")
    for name, of in _LISTS.items():
        if not all(isinstance(entry, of) for entry in record[name]):
            raise ValueError(f"{path} is no record of a measurement: its {name} hold a value of the wrong type")
    return record


def merge(jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One record for a platform from those of its jobs, by name ("bench/pct-050").

    It describes the platform as recorded by the first job with every rank at 100 % (the first job, if none has).
    date is the last job's, percentages are all that were set, commit and command name those of all jobs, and `jobs`
    keeps each job's own record. Raises ValueError if there are no jobs, or, naming two of them, if they differ in
    platform, devices, torch, driver or throttle: their rows could not be compared.
    """
    if not jobs:
        raise ValueError("there is no record of a job to merge")
    _check_alike(jobs)
    # The job with the most ranks describes the platform best.
    ordered = [jobs[name] for name in sorted(jobs)]
    unthrottled = [job for job in ordered if set(job["percentages"]) == {100}]
    base = max(unthrottled or ordered, key=lambda job: len(job["devices"]))
    return {
        **{key: value for key, value in base.items() if key not in _OF_ONE_JOB},
        "commit": " ".join(sorted({job["commit"] for job in ordered})),
        "dirty": _any_dirty(job["dirty"] for job in ordered),
        "date": max(job["date"] for job in ordered),
        "command": "; ".join(dict.fromkeys(job["command"] for job in ordered)),
        "percentages": sorted({p for job in ordered for p in job["percentages"]}),
        "settings": base["settings"],
        "jobs": dict(sorted(jobs.items())),
    }


def _check_alike(jobs: Mapping[str, Mapping[str, Any]]) -> None:
    for key in _ALIKE:
        known = {name: job[key] for name, job in sorted(jobs.items()) if job[key] not in (UNKNOWN, "none")}
        first = next(iter(known), "")
        for name, value in known.items():
            if value != known[first]:
                raise _unlike(key, first, known[first], name, value)
    # A profile has one rank, and on a machine with different devices sees one of them.
    names = sorted(jobs)
    largest = max(names, key=lambda name: len(jobs[name]["devices"]))
    devices = jobs[largest]["devices"]
    for name in names:
        found = jobs[name]["devices"]
        if found != devices and (len(found) == len(devices) or not set(found) <= set(devices)):
            raise _unlike("devices", largest, ", ".join(devices), name, ", ".join(found))


def _unlike(key: str, one: str, value: str, other: str, different: str) -> ValueError:
    return ValueError(f"{one} and {other} cannot be merged: {key} is {value} in one and {different} in the other")


def _any_dirty(states: Iterable[bool | None]) -> bool | None:
    """True if any state is True; else None, unknown, if any is None; else False."""
    found = set(states)
    return True if True in found else None if None in found else False


def _program() -> str:
    """The program that the user started, without the folder in which it is installed."""
    name = Path(sys.argv[0]).name
    return "heteroring" if name == "__main__.py" else name


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def _driver() -> str:
    versions = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return versions.splitlines()[0] if versions else UNKNOWN

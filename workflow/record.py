"""Record a platform: measure the workflow's grid on a machine that has GPUs but no Snakemake.

    python workflow/record.py data/h200x2 [--minutes 8] [--only ring [--share 1/2]] [--repetitions 5] [--dry-run]

runs the commands that the rules run, one after another: profiles, models, the ring in every setting, whole models, the
tables. Existing measurements are not repeated, and no measurement is started that would not end in time, so the same
command resumes where it stopped, even on another day and another machine of the same kind. For the ring, the first job
of every setting comes before any second one, and both rank orders of a percentage come one after the other; each job's
record names the GPUs that it ran on. Exit codes: 0 the record is complete; 3 jobs are left; 1 a command failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from commands import BLOCK_COST_MODEL, BLOCK_FIT, Commands
from preflight.conflicts import conflicts

CONFIG = Path(__file__).parent / "config" / "default.yaml"
SCHEMA = Path(__file__).parent / "schemas" / "config.schema.yaml"
PARTS = ("profile", "models", "ring", "sustained", "eager", "captured", "model", "decode")
# Values of the config's key `platform` that are not names of records.
TAKEN = ("auto", "cpu", "gpu")
# Guessed seconds of a job of a part that was never timed, and those that starting a job adds to its recorded time.
GUESS_SECONDS = {"models": 10.0, "model": 400.0, "decode": 90.0}
UNKNOWN_SECONDS, START_SECONDS = 60.0, 15.0
LEFT = 3


@dataclass(frozen=True)
class Job:
    """One `heteroring` command, the `part` to which it belongs, whose jobs take similar times, and its output file."""

    part: str
    output: Path
    arguments: tuple[str, ...]


def jobs(folder: Path, config: dict) -> Iterator[Job]:
    """All jobs of the record in `folder`, in order; `config` is that of the workflow."""
    commands = Commands(config, "gpu", config["modules"], folder.name)
    profiles = {each: folder / "profile" / f"pct-{each:03d}.csv" for each in commands.profiled_percentages}
    for percentage, path in profiles.items():
        yield Job("profile", path, commands.profile(percentage, path))
    models = folder / "models"
    for name, fit in commands.fits.items():
        path = models / f"{name}.json"
        yield Job("models", path, commands.fit(*fit, profiles.values(), path))
    for setting in commands.settings():
        path = folder / "bench" / f"{setting.name}.csv"
        yield Job(setting.part or "ring", path, commands.bench(setting, models, path))
    if config["model_percentages"]:
        yield from _model_jobs(folder / "model", commands)


def _model_jobs(folder: Path, commands: Commands) -> Iterator[Job]:
    """Whole models, and the profile of a block that their balanced split needs."""
    profiles = {each: folder / "profile" / f"pct-{each:03d}.csv" for each in commands.model_profiles}
    for percentage, path in profiles.items():
        yield Job("profile", path, commands.model_profile(percentage, path))
    cost = folder / "models" / f"{BLOCK_COST_MODEL}.json"
    yield Job("models", cost, commands.fit(*BLOCK_FIT, profiles.values(), cost))
    for setting in commands.model_settings():
        path, trace = folder / f"{setting.name}.csv", folder / f"{setting.trace}.csv"
        yield Job("model", path, commands.model(setting, cost.parent, path, trace))
    for setting in commands.decode_settings():
        path = folder / f"{setting.name}.csv"
        yield Job("decode", path, commands.decode(setting, cost.parent, path))


def left_to_do(
    folder: Path, config: dict, only: str = "", share: slice = slice(None)
) -> tuple[list[Job], dict[str, float]]:
    """The jobs whose output is missing.

    Args:
        folder: Folder of the record.
        config: The workflow's configuration.
        only: The part whose jobs count; empty for all.
        share: Which of these jobs count, done or not.

    Returns:
        The jobs, and guesses of seconds for a job of each part: the time of its longest recorded job.
    """
    everything = list(jobs(folder, config))
    guesses = dict.fromkeys(PARTS, UNKNOWN_SECONDS) | GUESS_SECONDS
    taken: dict[str, float] = {}
    for job in everything:
        taken[job.part] = max(taken.get(job.part, 0.0), _seconds(job.output.with_suffix(".json")))
    guesses |= {part: START_SECONDS + seconds for part, seconds in taken.items() if seconds}
    mine = [job for job in everything if only in ("", job.part)][share]
    return [job for job in mine if not job.output.exists()], guesses


def _seconds(record: Path) -> float:
    """The duration of the job whose provenance is `record`; 0 if it is missing or does not say."""
    try:
        return float(json.loads(record.read_text()).get("seconds", 0))
    except (OSError, ValueError, AttributeError):
        return 0.0


def record(
    folder: Path,
    config: dict,
    minutes: float,
    run: Callable[[tuple[str, ...]], None],
    clock: Callable[[], float] = time.monotonic,
    only: str = "",
    share: slice = slice(None),
) -> list[Job]:
    """Run missing jobs of the record.

    Args:
        folder: Folder of the record.
        config: The workflow's configuration.
        minutes: No job is started that would, as guessed, end later than this.
        run: Runs a command.
        clock: The time, in seconds.
        only: The part whose jobs are run; empty for all.
        share: Which of these jobs are run.

    Returns:
        The jobs that are left.
    """
    deadline = clock() + 60 * minutes
    todo, guesses = left_to_do(folder, config, only, share)
    timed: dict[str, float] = {}
    while todo and clock() + timed.get(todo[0].part, guesses[todo[0].part]) <= deadline:
        job, start = todo.pop(0), clock()
        job.output.parent.mkdir(parents=True, exist_ok=True)
        run(job.arguments)
        timed[job.part] = max(timed.get(job.part, 0.0), clock() - start)
        print(f"{job.output}: {clock() - start:.1f} s, {len(todo)} jobs left", flush=True)
    if not todo and not only:
        run(("aggregate", "--platform-dir", str(folder)))
    return todo


def outlook(todo: list[Job], guesses: dict[str, float]) -> str:
    """A line for each job that is left, and one for the estimated time."""
    lines = [f"{job.output}: about {guesses[job.part] / 60:.1f} min" for job in todo]
    total = sum(guesses[job.part] for job in todo) / 60
    return "\n".join([*lines, f"{len(todo)} jobs left, about {total:.0f} min"])


def check_name(folder: Path) -> None:
    """Raise ValueError unless the name of `folder` is a valid platform, so that the workflow can show the record."""
    pattern = yaml.safe_load(SCHEMA.read_text())["properties"]["platform"]["pattern"]
    if not re.fullmatch(pattern, folder.name):
        raise ValueError(f"{folder}: the workflow finds no platform called {folder.name!r}, since it is not {pattern}")
    if folder.name in TAKEN:
        raise ValueError(f"{folder}: {folder.name} is no name for a record: {', '.join(TAKEN)} mean something else")


def share_of(text: str, only: str) -> slice:
    """A share of a part's jobs: for "2/3", every third one from the second on. Raises ValueError for other texts."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"--share {text} is not K/N, with K from 1 to N")
    if found[2] != "1" and not only:
        raise ValueError(f"--share {text} goes with --only: parts build on one another")
    return slice(int(found[1]) - 1, None, int(found[2]))


def overlaid(config: dict, over: dict) -> dict:
    """`config` with the values of `over`, key by key; lists are replaced."""
    merged = {
        key: overlaid(config[key], value) if isinstance(config.get(key), dict) else value for key, value in over.items()
    }
    return config | merged


def read_config(path: Path, **changed: int) -> dict:
    """The workflow's configuration, laid over the full grid as `snakemake --configfile` does, with some keys changed.

    The changed keys are of the gpu platform. Raises ValueError, naming `path`, if it cannot be read or has values that
    exclude each other.
    """
    try:
        config = overlaid(*(yaml.safe_load(each.read_text(encoding="utf-8")) for each in (CONFIG, path)))
        config["platforms"]["gpu"] |= changed
        found = conflicts(config)
        list(jobs(path, config))
    except (AttributeError, LookupError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no configuration: {' '.join(str(error).split())}") from error
    if found:
        raise ValueError("\n".join([f"{path}:", *found]))
    return config


def _heteroring(arguments: tuple[str, ...], launcher: Sequence[str] = ()) -> None:
    """Run a command; those with several ranks by `launcher`, such as "srun --ntasks=2"."""
    start = launcher if arguments[0] in ("bench", "model") else ()
    subprocess.run([*start, sys.executable, "-m", "heteroring", *arguments], check=True)


def main() -> int:
    """Run missing jobs of the record; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the platform; its name is what rows call it")
    parser.add_argument("--config", type=Path, default=CONFIG, help="what to change of the workflow's configuration")
    parser.add_argument("--minutes", type=float, default=8.0, help="to end in")
    parser.add_argument("--only", choices=PARTS, default="", help="part of the record to go on with")
    parser.add_argument(
        "--share",
        default="1/1",
        metavar="K/N",
        help="every N-th job of the part, where N of these commands run at once",
    )
    parser.add_argument(
        "--launcher", default="", help="command that starts the ranks, on several nodes: srun --ntasks=2"
    )
    parser.add_argument("--warmup", type=int, help="in place of the config's")
    parser.add_argument("--repetitions", type=int, help="in place of the config's")
    parser.add_argument("--dry-run", action="store_true", help="list what is left to do, and do nothing")
    options = parser.parse_args()
    try:
        check_name(options.folder)
        if not 0 < options.minutes < math.inf:
            raise ValueError(f"--minutes {options.minutes} is not a positive, finite number")
        share = share_of(options.share, options.only)
        changed = {key: getattr(options, key) for key in ("warmup", "repetitions")}
        config = read_config(options.config, **{key: value for key, value in changed.items() if value is not None})
        os.environ["HETERORING_TRACK"] = str(config.get("track", "none"))
    except ValueError as error:
        parser.error(str(error))
    if options.dry_run:
        print(outlook(*left_to_do(options.folder, config, options.only, share)))
        return 0
    try:
        run = partial(_heteroring, launcher=shlex.split(options.launcher))
        left = record(options.folder, config, options.minutes, run, only=options.only, share=share)
    except subprocess.CalledProcessError as error:
        print(
            f"heteroring {error.cmd[error.cmd.index('heteroring') + 1]} failed with exit code {error.returncode}",
            file=sys.stderr,
        )
        return 1
    for job in left:
        print(f"left to do: {job.output}")
    return LEFT if left else 0


if __name__ == "__main__":
    raise SystemExit(main())

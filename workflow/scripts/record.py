"""Record a platform: the grid of the workflow, measured on a machine that has GPUs but no Snakemake.

    python workflow/scripts/record.py data/h200x2 [--minutes 8] [--repetitions 5] [--warmup 1]

runs the commands that the rules run, one after another: profiles, models, the ring at every percentage, the tables.
What is there already is not measured again, and no measurement is started that would not end in time, so the same
command goes on where it stopped. Exit codes: 0 the record is complete; 3 some is left to do; 1 a command failed.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from conflicts import conflicts

CONFIG = Path(__file__).parents[1] / "config" / "default.yaml"
SCHEMA = Path(__file__).parents[1] / "schemas" / "config.schema.yaml"
PARTS = ("profile", "models", "bench", "model")
# Words that mean something else as the config's platform.
TAKEN = ("auto", "cpu", "gpu")
# Of a job that nothing like it has been timed before: start of the processes included.
GUESS_SECONDS = 60.0
LEFT = 3


@dataclass(frozen=True)
class Job:
    """One `heteroring` command, of a `stage` whose jobs take about as long, and the file that it leaves."""

    stage: str
    output: Path
    arguments: tuple[str, ...]


def jobs(folder: Path, config: dict) -> Iterator[Job]:
    """Everything that makes up the record in `folder`, in order; `config` is that of the workflow."""
    settings = config["platforms"]["gpu"]
    shared = ["--platform", "gpu", "--label", folder.name, "--throttle", settings["throttle"]]
    shared += ["--seq-lens", _listed(settings["seq_lens"])]
    for key in ("batch", "heads", "kv_heads", "head_dim", "dtype", "warmup", "repetitions"):
        shared += [f"--{key.replace('_', '-')}", settings[key]]
    percentages = sorted(config["percentages"], reverse=True)
    profiles = {each: folder / "profile" / f"pct-{each:03d}.csv" for each in percentages}
    models = folder / "models"
    layer = ["layer"] if "fms" in config["modules"] else []
    fms_lengths = ["--fms-seq-lens", _listed(settings["fms_seq_lens"])] if layer else []
    kinds = ["--kinds", _listed(["matmul", "attention", "fold", *layer]), *fms_lengths]
    fits = {"lut": ["matmul", "attention"], "formula": ["matmul", "attention"], "cost": ["attention", *layer]}
    for percentage, path in profiles.items():
        sizes = _listed(settings["matmul_sizes"])
        yield _job("profile", path, *shared, "--percentage", percentage, "--sizes", sizes, *kinds)
    for kind, sources in fits.items():
        for source in sources:
            path = models / f"{kind}-{source}.json"
            yield _job("fit", path, "--kind", kind, "--source", source, *profiles.values())
    measured = ["--strategies", _listed(config["strategies"]), "--peers"]
    measured += ["--models", models, "--model-source", config["model_source"], "--module", _listed(config["modules"])]
    measured += fms_lengths
    for percentage in percentages:
        path = folder / "bench" / f"pct-{percentage:03d}.csv"
        yield _job("bench", path, *shared, *measured, "--percentages", f"100,{percentage}")
    yield from _model_jobs(folder / "model", config)


def _model_jobs(folder: Path, config: dict) -> Iterator[Job]:
    """Whole models, and the profile of a block that their balanced split needs."""
    platform = config["platforms"]["gpu"]
    settings = platform["model"]
    shared = ["--platform", "gpu", "--label", folder.parent.name, "--throttle", platform["throttle"]]
    shared += ["--model", settings["name"], "--seq-lens", _listed(settings["seq_lens"]), "--dtype", settings["dtype"]]
    percentages = sorted(config["model_percentages"], reverse=True)
    profiles = [folder / "profile" / f"pct-{each:03d}.csv" for each in sorted({100, *percentages}, reverse=True)]
    heads = ["--heads", settings["heads"], "--kv-heads", settings["kv_heads"]]
    head_dim = settings["emb_dim"] // settings["heads"] if settings["heads"] else 0
    for path in profiles if percentages else []:
        options = ["--kinds", "attention,fold,block", "--head-dim", head_dim, "--percentage", int(path.stem[4:])]
        options += ["--repetitions", platform["repetitions"]]
        yield _job("profile", path, *shared, *heads, *options)
    cost = folder / "models" / "cost-block.json"
    if percentages:
        yield _job("fit", cost, "--kind", "cost", "--source", "block", *profiles)
    options = ["--layers", settings["layers"], "--emb-dim", settings["emb_dim"], "--new-tokens", settings["new_tokens"]]
    options += ["--repetitions", settings["repetitions"], "--cell-seconds", settings["cell_seconds"]]
    options += ["--strategies", _listed(config["model_strategies"])]
    for percentage in percentages:
        path = folder / f"pct-{percentage:03d}.csv"
        yield _job(
            "model", path, *shared, *heads, *options, "--models", cost.parent, "--percentages", f"100,{percentage}"
        )


def record(
    folder: Path,
    config: dict,
    minutes: float,
    run: Callable[[tuple[str, ...]], None],
    clock: Callable[[], float] = time.monotonic,
    only: str = "",
) -> list[Job]:
    """Run what is missing, by `run`, as far as it goes in `minutes`; with `only`, what lies in that part of `folder`.

    Returns what is left to do.
    """
    deadline = clock() + 60 * minutes
    longest = {"fit": 10.0}
    todo = [job for job in jobs(folder, config) if not job.output.exists() and job.output.is_relative_to(folder / only)]
    while todo and clock() + longest.get(todo[0].stage, GUESS_SECONDS) <= deadline:
        job, start = todo.pop(0), clock()
        job.output.parent.mkdir(parents=True, exist_ok=True)
        run(job.arguments)
        longest[job.stage] = max(longest.get(job.stage, 0.0), clock() - start)
        print(f"{job.output}: {clock() - start:.1f} s, {len(todo)} jobs left", flush=True)
    if not todo and not only:
        run(("aggregate", "--platform-dir", str(folder)))
    return todo


def check_name(folder: Path) -> None:
    """Raise ValueError unless the workflow can show what is recorded in `folder`: its name is the platform's."""
    pattern = yaml.safe_load(SCHEMA.read_text())["properties"]["platform"]["pattern"]
    if not re.fullmatch(pattern, folder.name):
        raise ValueError(f"{folder}: the workflow finds no platform called {folder.name!r}, since it is not {pattern}")
    if folder.name in TAKEN:
        raise ValueError(f"{folder}: {folder.name} is no name for a record: {', '.join(TAKEN)} mean something else")


def read_config(path: Path, **changed: int) -> dict:
    """The workflow's configuration, with some keys of its gpu platform changed.

    Raises ValueError, naming `path`, unless it can be read, and has every key and values that go together.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["platforms"]["gpu"] |= changed
        found = conflicts(config)
        list(jobs(path, config))
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}: it is not a whole configuration") from error
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no configuration: {' '.join(str(error).split())}") from error
    if found:
        raise ValueError("\n".join([f"{path}:", *found]))
    return config


def _job(stage: str, output: Path, *arguments: object) -> Job:
    return Job(stage, output, (stage, *map(str, arguments), "--output", str(output)))


def _listed(values: list) -> str:
    return ",".join(map(str, values))


def _heteroring(arguments: tuple[str, ...]) -> None:
    subprocess.run([sys.executable, "-m", "heteroring", *arguments], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the platform; its name is what rows call it")
    parser.add_argument("--config", type=Path, default=CONFIG, help="of the workflow")
    parser.add_argument("--minutes", type=float, default=8.0, help="to end in")
    parser.add_argument("--only", choices=PARTS, default="", help="part of the folder to record")
    parser.add_argument("--warmup", type=int, help="in place of the config's")
    parser.add_argument("--repetitions", type=int, help="in place of the config's")
    options = parser.parse_args()
    try:
        check_name(options.folder)
        if not 0 < options.minutes < math.inf:
            raise ValueError(f"--minutes {options.minutes} is not a positive, finite number")
        changed = {key: getattr(options, key) for key in ("warmup", "repetitions")}
        config = read_config(options.config, **{key: value for key, value in changed.items() if value is not None})
    except ValueError as error:
        parser.error(str(error))
    try:
        left = record(options.folder, config, options.minutes, _heteroring, only=options.only)
    except subprocess.CalledProcessError as error:
        print(f"heteroring {error.cmd[3]} failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    for job in left:
        print(f"left to do: {job.output}")
    return LEFT if left else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The measurement of `heteroring demo` without --rebalance: a small language model on two unequal ranks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from heteroring.allocators import fit
from heteroring.bench.model import run as model_run
from heteroring.bench.model.job import COST, ModelJob
from heteroring.bench.model.prefill_decode import prompt
from heteroring.bench.model.spec import ModelSpec
from heteroring.bench.profile import run as profile
from heteroring.bench.profile.job import ProfileJob
from heteroring.launch.launch import check_ranks
from heteroring.results.model_metrics import model_cells
from heteroring.results.model_rows import DECODED
from heteroring.results.rows import write_rows
from heteroring.results.strategy import EVEN, alone_name, fitted_name

STRATEGIES = (EVEN, "zigzag/even", DECODED)
KINDS = ("attention", "fold", "block")
REPETITIONS = 3
CELL_SECONDS = 0.5  # a cell that takes longer is not repeated
HANG_SECONDS = 60.0


@dataclass(frozen=True)
class Line:
    """One split of the prompt: tokens per rank, time to first token, and its ratios to split EVEN and to the bound."""

    name: str
    tokens: tuple[int, ...]
    ttft_ms: float
    speedup: float
    bound_fraction: float


@dataclass(frozen=True)
class Demo:
    """The demo's result: its lines, the capacity bound, and the tokens that the ring and one process generated."""

    percentages: tuple[int, ...]
    lines: tuple[Line, ...]
    bound_ms: float
    generated: list[int]
    expected: list[int]

    @property
    def right(self) -> bool:
        """Whether the ring generated the tokens that one process did."""
        return self.generated == self.expected


def demo_job(seq_len: int, percentage: int, new_tokens: int, seed: int) -> ModelJob:
    """A LLaMA of 4 layers on two paced CPU ranks, at 100 % and at `percentage`.

    Args:
        seq_len: Tokens of the prompt.
        percentage: Speed of the second rank in percent, 1 to 100.
        new_tokens: Tokens to generate.
        seed: Seed of weights and inputs.

    Returns:
        The job.
    """
    spec = ModelSpec(
        "llama/micro",
        layers=4,
        emb_dim=256,
        heads=4,
        kv_heads=2,
        vocabulary=1024,
        max_seq_len=seq_len + new_tokens,
    )
    return ModelJob(
        device_kind="cpu",
        platform="cpu",
        throttle="pacing",
        percentages=(100, percentage),
        model=spec,
        seq_lens=(seq_len,),
        strategies=STRATEGIES,
        new_tokens=new_tokens,
        repetitions=REPETITIONS,
        cell_seconds=CELL_SECONDS,
        seed=seed,
    )


def run(job: ModelJob, progress: Progress) -> Demo:
    """Measure the cost of a block of the model on each rank, split the prompt by it, and prefill and decode.

    Raises ValueError if this machine cannot run the ranks, and whatever `heteroring.launch.launch.launch` raises.
    """
    check_ranks(job.device_kind, job.throttle, job.percentages)
    with tempfile.TemporaryDirectory(prefix="heteroring-demo-") as folder:
        profiles = []
        for percentage in dict.fromkeys(job.percentages):
            costs = _profile_job(job, percentage)
            with _step(progress, f"What a block costs at {percentage} %", profile.steps(costs)) as on_progress:
                measured = profile.run(costs, hang_timeout=HANG_SECONDS, on_progress=on_progress)
            profiles.append(Path(folder, f"pct-{percentage:03d}.csv"))
            write_rows(profiles[-1], measured.rows)
        fit("cost", COST, profiles).save(Path(folder, f"{fitted_name('cost', COST)}.json"))
        job = replace(job, fitted_models=Path(folder))
        with _step(progress, "Prefill and decode on two ranks", model_run.steps(job)) as on_progress:
            result = model_run.run(job, hang_timeout=HANG_SECONDS, on_progress=on_progress)
    with _step(progress, "The same in one process", 1) as on_progress:
        expected = one_process(job)
        on_progress(1)
    cells = model_cells(result.rows)
    cells = cells[cells["phase"] == "prefill"].set_index("strategy")
    even_ms = cells.loc[EVEN].latency_ms
    lines = [_line(cells.loc[name], name, even_ms) for name in STRATEGIES]
    lines.append(_line(cells.loc[alone_name(0)], "fast rank alone", even_ms))
    [generated] = result.generated[f"{DECODED} at {job.seq_lens[0]}"]
    return Demo(job.percentages, tuple(lines), float(cells["bound_ms"].iloc[0]), generated, expected)


def one_process(job: ModelJob) -> list[int]:
    """The token ids that FMS's own `generate` appends to the prompt in one process, without a ring."""
    from fms.utils.generation import generate

    model = job.model.build(torch.device("cpu"), job.seed)
    ids, length = prompt(job), job.seq_lens[0] + job.new_tokens
    with torch.no_grad():
        whole = generate(model, ids, max_seq_len=length, max_new_tokens=job.new_tokens, do_sample=False, use_cache=True)
    return whole[0, job.seq_lens[0] :].tolist()


def table(demo: Demo) -> Table:
    """The demo's result as a table: one row per split, and one for the fast rank alone."""
    shown = Table(title="Time to first token of a small LLaMA on two paced CPU ranks", box=SIMPLE_HEAD)
    shown.add_column("tokens", no_wrap=True)
    for column in [*(f"at {p} %" for p in demo.percentages), "ms", "speedup", "of bound"]:
        shown.add_column(column, justify="right", no_wrap=True)
    for line in demo.lines:
        numbers = (f"{line.ttft_ms:.0f}", f"{line.speedup:.2f}x", f"{line.bound_fraction:.2f}")
        shown.add_row(line.name, *map(str, line.tokens), *numbers)
    return shown


def _line(cell: pd.Series, name: str, even_ms: float) -> Line:
    ttft_ms = float(cell.latency_ms)
    return Line(name, cell.block_lens, ttft_ms, float(even_ms) / ttft_ms, float(cell.bound_fraction))


def _profile_job(job: ModelJob, percentage: int) -> ProfileJob:
    return ProfileJob(
        device_kind=job.device_kind,
        platform=job.platform,
        throttle=job.throttle,
        percentages=(percentage,),
        sizes=(),
        seq_lens=job.seq_lens,
        kinds=KINDS,
        shape=job.model.shape(job.batch),
        model=job.model.name,
        repetitions=REPETITIONS,
        seed=job.seed,
    )


def progress_display(console: Console) -> Progress:
    """A progress display with one bar per step of the demo."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


@contextmanager
def _step(progress: Progress, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of the display, filled when the context ends."""
    task = progress.add_task(name, total=total)
    yield lambda done: progress.update(task, completed=min(done, total))
    progress.update(task, completed=total)

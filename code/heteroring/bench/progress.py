"""A progress bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of steps done so far, out of `total`, from any thread.

    The bar appears with the first such call, so that an earlier error is printed on a clean line. On a terminal it
    moves; in a log file it is one line at the end.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(description, total=total)

    def on_progress(steps: int) -> None:
        bar.start()
        bar.update(task, completed=steps)

    try:
        yield on_progress
    finally:
        if bar.live.is_started:
            bar.stop()

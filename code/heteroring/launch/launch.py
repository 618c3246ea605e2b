"""Run a task on N new ranks with PyTorch's elastic launcher, and end all of them when one fails.

Where torchrun or srun has started ranks already, the task runs on them (`heteroring.launch.external_ranks`).
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from heteroring.interrupts import ctrl_c_held
from heteroring.launch import heartbeat
from heteroring.launch.device import Device, check_loopback, open_device
from heteroring.launch.errors import Interrupted, RankError
from heteroring.launch.external_ranks import World, machines_held, named_world, store_of
from heteroring.launch.machine_lock import Lock, machine_lock
from heteroring.launch.root_cause import Accounts, blame
from heteroring.launch.stack_dumps import Stacks
from heteroring.launch.watchdog import Watchdog
from heteroring.throttle import Throttle, throttle_type
from heteroring.throttle.mps_daemon import PIPES

HANG_TIMEOUT = 120.0
SHUTDOWN_SECONDS = 3
GROUP_TIMEOUT = timedelta(days=1)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_CONFIGURABLE = {f.name for f in fields(LaunchConfig)}  # newer versions of torch have more fields


@dataclass(frozen=True)
class Rank:
    """A launched rank, the first argument of its task. The default process group is initialized."""

    rank: int
    world_size: int
    device: Device
    torch_device: torch.device
    throttle: Throttle


@dataclass(frozen=True)
class _Setup:
    """The data that a new process needs to become a rank."""

    folder: str
    parent: int
    device_kind: str
    throttle: str
    percentages: tuple[int, ...]
    signals: tuple[signal.Signals, ...]
    variables: dict[str, str]
    lock: Lock | None


def launch(
    task: Callable[..., Any],
    *args: Any,
    device_kind: str,
    throttle: str,
    percentages: Sequence[int],
    hang_timeout: float = HANG_TIMEOUT,
    on_progress: Callable[[int], None] | None = None,
) -> list[Any]:
    """Run a task in one new process per percentage.

    Where torchrun or srun has started this process as one rank of several, the task runs here instead. Only one group
    of ranks runs on a machine at a time: while another is at work, this waits (`machine_lock`). No rank outlives an
    error, or this process, by more than a few seconds.

    Args:
        task: A module-level function, called as `task(rank, *args)` with a Rank. Until it is done, some rank must call
            `heartbeat.beat` or `advance` at least every `hang_timeout` seconds.
        *args: Further arguments of the task; they and its results can be pickled.
        device_kind: "cpu" or "gpu".
        throttle: Name of the throttle.
        percentages: The percentage of each rank, 1 to 100, as the throttle sets it.
        hang_timeout: Seconds without a heartbeat after which a rank hangs.
        on_progress: Called from another thread with the number of steps that all ranks have advanced; None for nothing.

    Returns:
        What the task returned on every rank, in rank order.

    Raises:
        ValueError: Before any process is started, for an unknown device kind or throttle, a percentage that it cannot
            set, too few devices, or a machine whose processes cannot meet.
        RankError: If a rank raises, dies or hangs.
        Interrupted: On SIGTERM, SIGINT, SIGHUP or SIGQUIT; those of the last three that this process ignores, as under
            `nohup`, do not end the run.
    """
    percentages, signals = tuple(percentages), _heeded()
    check_ranks(device_kind, throttle, percentages)
    if (world := named_world()) is not None:
        return _join(world, task, args, device_kind, throttle, percentages)
    with machine_lock() as lock, _folder() as folder:
        board = heartbeat.Board(Path(folder, "heartbeat"), len(percentages))
        accounts, stacks = Accounts(Path(folder)), Stacks(Path(folder))
        watchdog = Watchdog(board, hang_timeout, stacks, on_progress)
        try:
            with throttle_type(throttle).session() as variables, _quiet_launcher(), _own_signals(), watchdog:
                setup = _Setup(folder, os.getpid(), device_kind, throttle, percentages, signals, dict(variables), lock)
                config = _config(folder, len(percentages), signals)
                with _whole_starts():
                    results = elastic_launch(config, _run_rank)(setup, task, args)
        except SignalException as error:
            if watchdog.gave_up:
                raise blame(None, watchdog, accounts, stacks) from None
            raise Interrupted(error.sigval) from None
        except ChildFailedError as error:
            raise blame(error, watchdog, accounts, stacks) from None
        finally:
            with ctrl_c_held():
                watchdog.stop()
                board.close()
    return [results[rank] for rank in range(len(percentages))]


def _folder() -> tempfile.TemporaryDirectory:
    """A folder that is gone behind its context. Ctrl-C waits until it is made, and so cannot leave it behind."""
    with ctrl_c_held():
        return tempfile.TemporaryDirectory(prefix="heteroring-")


def check_ranks(device_kind: str, throttle: str, percentages: Sequence[int]) -> None:
    """Check that this machine can run throttled ranks.

    Where torchrun or srun started the ranks, it must only be able to run this process's rank.

    Args:
        device_kind: "cpu" or "gpu".
        throttle: Name of the throttle.
        percentages: The percentage of each rank.

    Raises:
        ValueError: Naming what is unknown or missing.
    """
    device, throttling = open_device(device_kind), throttle_type(throttle)
    if device_kind not in throttling.device_kinds:
        raise ValueError(
            f"throttle {throttle!r} works on {' or '.join(throttling.device_kinds)}, not on {device_kind!r}"
        )
    if not percentages:
        raise ValueError("percentages is empty: name one for each rank")
    for percentage in percentages:
        throttling(percentage)
    world = named_world()
    if world is None:
        device.check(len(percentages))
        check_loopback()
        return
    if world.size != len(percentages):
        raise ValueError(
            f"percentages are {', '.join(map(str, percentages))}: one is needed for each of the {world.size} ranks "
            "that were started"
        )
    if throttle == "mps" and PIPES not in os.environ:
        raise ValueError(f"throttle 'mps' of ranks that others started needs a daemon on each node: name it by {PIPES}")
    device.check(1)


def _heeded() -> tuple[signal.Signals, ...]:
    """The signals that end a run.

    Signals that this process ignores do not, except SIGTERM, with which the watchdog interrupts the launcher.
    """
    if "signals_to_handle" not in _CONFIGURABLE:
        return _SIGNALS
    ignored = {signum for signum in _SIGNALS[1:] if signal.getsignal(signum) is signal.SIG_IGN}
    return tuple(signum for signum in _SIGNALS if signum not in ignored)


def _config(folder: str, world_size: int, signals: Sequence[signal.Signals]) -> LaunchConfig:
    options: dict[str, Any] = {}
    if "shutdown_timeout" in _CONFIGURABLE:  # torch >= 2.12
        options["shutdown_timeout"] = SHUTDOWN_SECONDS
    if set(signals) != set(_SIGNALS):
        options["signals_to_handle"] = ",".join(signum.name for signum in signals)
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=Path(folder).name,
        role="heteroring",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        **options,
    )


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    """Keep the launcher's own report of a failure off stderr, because RankError reports it."""
    # Each of its modules sets the level of its own logger, so setting that of a parent has no effect.
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing"))
        if isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the handlers of the signals that the launcher handles."""
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) is not handler:
                signal.signal(signum, handler)


@contextmanager
def _whole_starts() -> Iterator[None]:
    """Delay signals that arrive during the start of a process until the start is complete.

    A process whose start is interrupted would wait for its task, and print an error. Ctrl-C is blocked in the new
    process until `_run_rank`, where it can end the process without a traceback.
    """
    start = SpawnProcess.start
    heeded = [signum for signum in _SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        heeded = []  # only the main thread receives signals

    def start_whole(process: SpawnProcess) -> None:
        noted = []
        handlers = {signum: signal.signal(signum, lambda signum, _: noted.append(signum)) for signum in heeded}
        try:
            with ctrl_c_held():
                start(process)
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
        for signum in noted:
            signal.raise_signal(signum)

    resource_tracker.ensure_running()  # else the first start would do it, and unblock Ctrl-C
    SpawnProcess.start = start_whole
    try:
        yield
    finally:
        SpawnProcess.start = start


def _join(
    world: World,
    task: Callable[..., Any],
    args: tuple,
    device_kind: str,
    throttle: str,
    percentages: tuple[int, ...],
) -> list[Any]:
    """Run the task as this process's rank of `world`, and return what it returned on every rank."""
    with machines_held(world), throttle_type(throttle).session() as variables:
        setup = _Setup("", 0, device_kind, throttle, percentages, (), dict(variables), None)
        try:
            members = {"store": store_of(world), "rank": world.rank, "world_size": world.size}
            return _work(setup, world.rank, world.local_rank, _gathered, (task, args), members)
        except Exception as error:
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            raise RankError(world.rank, f"rank {world.rank} raised:\n{''.join(lines).rstrip()}") from error


def _gathered(rank: Rank, task: Callable[..., Any], args: tuple) -> list[Any]:
    results: list[Any] = [None] * rank.world_size
    dist.all_gather_object(results, task(rank, *args))
    return results


def _run_rank(setup: _Setup, task: Callable[..., Any], args: tuple) -> Any:
    rank = int(os.environ["RANK"])
    _die_with(setup.parent)
    for signum in setup.signals:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    heartbeat.join(heartbeat.Board(Path(setup.folder, "heartbeat"), len(setup.percentages)), rank)
    with Stacks(Path(setup.folder)).ready(rank):
        try:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
            result = _work(setup, rank, int(os.environ["LOCAL_RANK"]), task, args)
        except BaseException as error:
            Accounts(Path(setup.folder)).write(rank, error, beyond=__file__)
            heartbeat.leave(heartbeat.FAILED)
            raise
    heartbeat.leave(heartbeat.DONE)
    gc.freeze()  # else the last garbage collection before exit scans everything that the task imported
    return result


def _work(
    setup: _Setup, rank: int, local_rank: int, task: Callable[..., Any], args: tuple, members: dict | None = None
) -> Any:
    """Run the task as `rank`. `members` says how the ranks find one another, where the environment does not."""
    throttle = throttle_type(setup.throttle)(setup.percentages[rank])
    throttle.while_idle = heartbeat.beat
    os.environ.update({**setup.variables, **throttle.environment()})
    device = open_device(setup.device_kind)
    torch_device = device.start(local_rank)
    throttle.start()
    # Only the watchdog decides that a rank hangs: a rank may wait for another for as long as that one works.
    dist.init_process_group(
        device.backend,
        timeout=GROUP_TIMEOUT,
        device_id=torch_device if torch_device.index is not None else None,
        **(members or {}),
    )
    gc.freeze()  # imported objects, which a task that collects garbage before it measures would scan each time
    result = task(Rank(rank, len(setup.percentages), device, torch_device, throttle), *args)
    dist.barrier()
    dist.destroy_process_group()
    return result


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("the launching process has gone")

"""Ranks that torchrun or srun started, on one node or many: how they find one another, and end together.

`launch` joins such a world in place of starting processes. Its ranks agree through a store, which rank 0 or torchrun
keeps: whatever ends one of them ends all, and each says why in one line.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from threading import Event, Thread
from typing import TYPE_CHECKING, NoReturn

from heteroring.launch import heartbeat
from heteroring.launch.errors import RankError
from heteroring.launch.machine_lock import machine_lock
from heteroring.launch.watchdog import START_SECONDS

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_SECONDS = 0.2
LEAVE_SECONDS = 5.0
_FIRST_PORT, _PORTS = 20000, 10000


@dataclass(frozen=True)
class World:
    """This process's place in a world that the environment names; `local_rank` is that on its node."""

    rank: int
    size: int
    local_rank: int


def named_world() -> World | None:
    """The world that this process belongs to, as torchrun or a step of srun with two tasks or more names it, or None.

    Raises ValueError, naming the variable, if what is named is no world.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":  # not SLURM_NTASKS, which a batch script sees as well
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return None
    world = World(*map(_integer, names))
    if not 0 <= world.rank < world.size:
        raise ValueError(f"{names[0]}={world.rank} is no rank of {names[1]}={world.size}")
    return world


def leads() -> bool:
    """Whether this process is the one that prints and writes: rank 0, or one that belongs to no world."""
    world = named_world()
    return world is None or world.rank == 0


@contextmanager
def together(hang_timeout: float) -> Iterator[None]:
    """Context that ends on all ranks together, or fails on all; does nothing for a single process.

    An error of this rank is raised after the others have been told of it. An error of another rank ends this process,
    with that rank's exit code and its reason on stderr, and so do `hang_timeout` seconds without a heartbeat of any
    rank.
    """
    world = named_world()
    if world is None:
        yield
        return
    store = store_of(world)
    over = Event()
    watcher = Thread(target=_watch, args=(store.clone(), world, hang_timeout, over), daemon=True)
    watcher.start()
    failure = ""
    try:
        yield
        _meet(store, "done", world.size)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        code = 2 if isinstance(error, ValueError) else getattr(error, "exit_code", 1)
        failure = f"{code} {reason if isinstance(error, RankError) else f'rank {world.rank} failed: {reason}'}"
        raise
    finally:
        over.set()
        watcher.join()
        if failure:
            store.compare_set("failed", "", failure)
        _leave(store, world)


@cache
def store_of(world: World) -> Store:
    """The store through which the ranks of this command agree. It may be the second command of the same world."""
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    job = hashlib.blake2b(repr(sys.argv).encode(), digest_size=4).hexdigest()
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = first_host(os.environ["SLURM_STEP_NODELIST"])
    if "MASTER_PORT" not in os.environ:  # the next command, which may start while this one ends, gets another port
        number = int(os.environ.get("SLURM_JOB_ID", "0")) + int(job, 16)
        os.environ["MASTER_PORT"] = str(_FIRST_PORT + number % _PORTS)
    store, *_ = next(iter(rendezvous("env://", world.rank, world.size)))
    return PrefixStore(f"heteroring/{job}", store)


def first_host(nodelist: str) -> str:
    """The first of the hosts that Slurm abbreviates: "node[07-09,12],gpu1" begins with node07."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,]*)", nodelist)
    if not found:
        raise ValueError(f"SLURM_STEP_NODELIST={nodelist} names no host")
    return "".join(part or "" for part in found.groups())


@contextmanager
def machines_held(world: World) -> Iterator[None]:
    """Hold the lock of every machine of the world; on each, the first of its ranks takes it."""
    store = store_of(world)
    store.set(f"host of {world.rank}", socket.gethostname())
    hosts = [store.get(f"host of {rank}") for rank in range(world.size)]
    first = hosts.index(hosts[world.rank]) == world.rank
    with machine_lock() if first else nullcontext():
        _meet(store, "machines held", world.size)
        yield


def _integer(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ValueError(f"{name}={text} is not a number, and torchrun or srun must have set it")
    return int(text)


def _meet(store: Store, what: str, size: int, deadline: float = math.inf) -> None:
    """Wait until `size` ranks have called this for `what`, or until the deadline."""
    there = store.add(what, 1)
    while there < size and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        there = store.add(what, 0)


def _watch(store: Store, world: World, hang_timeout: float, over: Event) -> None:
    """End this process when another rank has failed, or when no rank has written a heartbeat for too long."""
    told, total, heard_at = -1, 0, time.monotonic()
    try:
        while not over.wait(POLL_SECONDS):
            if store.check(["failed"]):
                code, _, reason = store.get("failed").decode().partition(" ")
                _quit(int(code), reason, store, world)
            beats = heartbeat.beats()
            before, total, told = total, store.add("beats", beats - told), beats
            now = time.monotonic()
            heard_at = now if total != before else heard_at
            # Before the first heartbeat come imports and allocations, which write none.
            if now - heard_at > (hang_timeout if beats else max(START_SECONDS, hang_timeout)):
                store.compare_set("failed", "", f"1 no rank has shown a sign of life for {now - heard_at:.1f} s")
    except RuntimeError:
        _quit(1, "the ranks have lost contact: the process that keeps their store has ended")


def _quit(code: int, reason: str, store: Store | None = None, world: World | None = None) -> NoReturn:
    """End this process, whose main thread may be waiting for a rank that has gone."""
    try:
        os.write(2, f"heteroring: error: {reason}\n".encode())
        if store is not None and world is not None:
            _leave(store, world)
    finally:
        os._exit(code)


def _leave(store: Store, world: World) -> None:
    """Report that this rank no longer needs the store, and wait briefly for all reports, rank 0 until all saw them.

    Rank 0 may keep the store, so it leaves last. Besides, torchrun or srun may end all ranks when one is gone, and
    those that have not printed their error yet never would.
    """
    deadline = time.monotonic() + LEAVE_SECONDS
    with suppress(RuntimeError):  # a rank died, and rank 0 has stopped waiting for it
        _meet(store, "left", world.size, deadline)
        if world.rank == 0:
            _meet(store, "gone", world.size, deadline)
        else:
            store.add("gone", 1)

"""A pool of ranks that runs test functions, so that many cases share one start of the processes."""

from __future__ import annotations

import gc
import os
import tempfile
import traceback
from datetime import timedelta

import torch
import torch.multiprocessing as mp

from heteroring.launch import heartbeat
from heteroring.launch.device import open_device
from heteroring.launch.launch import Rank
from heteroring.throttle import throttle_type

# Imported once by the server that a session's CPU ranks are forked from; ranks that are spawned take seconds each.
_COMMAND = [f"heteroring.{name}" for name in ("cli.main", "bench.measure", "bench.ring.run", "results.summary")]
mp.set_forkserver_preload([*_COMMAND, "fms.models", "torch._dynamo", "pytest", "hypothesis"])


class RankError(AssertionError):
    """A rank raised: carries the rank, the exception's class name and its traceback."""

    def __init__(self, rank: int, kind: str, text: str):
        super().__init__(f"rank {rank} raised {kind}:\n{text}")
        self.rank, self.kind, self.text = rank, kind, text


class Ranks:
    """`world_size` processes in one group with a file rendezvous; `run` calls a function on all of them.

    The group is gloo, or NCCL for `device` "cuda": with one GPU per rank, or with the first for all where there are
    fewer.
    """

    def __init__(self, world_size: int, timeout_s: float = 60.0, device: str = "cpu"):
        context = mp.get_context("spawn" if device == "cuda" else "forkserver")
        self.world_size = world_size
        self._folder = tempfile.TemporaryDirectory()
        self._inbox = [context.SimpleQueue() for _ in range(world_size)]
        self._outbox = context.Queue()
        self._timeout_s = timeout_s
        store = os.path.join(self._folder.name, "store")
        self._processes = [
            context.Process(
                target=_serve,
                args=(rank, world_size, store, timeout_s, device, self._inbox[rank], self._outbox),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in self._processes:
            process.start()

    def attempt(self, function, *args, dying: int = 0) -> list:
        """Result of `function(rank, world_size, *args)` on each rank; a RankError where it raised.

        The result of each of the `dying` ranks that end without an answer is None.
        """
        for inbox in self._inbox:
            inbox.put((function, args))
        results: list = [None] * self.world_size
        for _ in range(self.world_size - dying):
            rank, ok, value = self._outbox.get(timeout=self._timeout_s + 60)
            results[rank] = value if ok else RankError(rank, *value)
        return results

    def run(self, function, *args) -> list:
        """Like `attempt`, but the first rank that raised fails the test."""
        results = self.attempt(function, *args)
        for result in results:
            if isinstance(result, RankError):
                raise result
        return results

    def launch(self, task, *args, throttle, percentages, on_progress=None, **_) -> list:
        """Run `task` as `heteroring.launch.launch.launch` does, on these ranks instead of new ones."""
        results, steps = zip(*self.run(_as_launched, task, args, throttle, percentages), strict=True)
        if on_progress is not None:
            on_progress(min(steps))
        return list(results)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        self._folder.cleanup()


def _as_launched(rank, world_size, task, args, throttle, percentages):
    """The result of `task`, and the steps by which it advanced."""
    slowed, device = throttle_type(throttle)(percentages[rank]), open_device("cpu")
    slowed.start()
    before = heartbeat._pulse.steps
    result = task(Rank(rank, world_size, device, device.start(rank), slowed), *args)
    return result, heartbeat._pulse.steps - before


def _share_a_gpu(rank: int) -> None:
    """Let this rank share the GPU of another, which NCCL, PyTorch's symmetric memory and the ring otherwise refuse.

    NCCL refuses a GPU twice on a host, so each rank poses as a host of its own; they talk over the loopback interface.
    """
    from heteroring.ring.transport import peer_access as peers

    os.environ |= {"NCCL_HOSTID": f"rank-{rank}", "NCCL_SOCKET_IFNAME": "lo"}
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    peers._reaches = lambda device, mine, everyone: True


def _serve(rank, world_size, store, timeout_s, device, inbox, outbox) -> None:
    torch.set_num_threads(1)
    gpu = rank
    if device == "cuda" and torch.cuda.device_count() < world_size:
        gpu = 0
        _share_a_gpu(rank)
    if device == "cuda":
        torch.cuda.set_device(gpu)
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        device_id=torch.device(device, gpu) if device == "cuda" else None,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    gc.freeze()  # as launched ranks do
    while True:
        function, args = inbox.get()
        try:
            outbox.put((rank, True, function(rank, world_size, *args)))
        except Exception as error:
            outbox.put((rank, False, (type(error).__name__, traceback.format_exc())))

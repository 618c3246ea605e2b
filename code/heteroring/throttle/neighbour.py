"""The throttle `neighbour`: another process computes on the rank's GPU, as on a machine that is shared."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

from heteroring.throttle.base import Throttle, check_percentage

# The other process: multiplies matrices while it is told to, and ends with the process that started it.
_WORK = """
import select, sys, torch
size = int(sys.argv[2])
matrix = torch.randn(size, size, device=sys.argv[1], dtype=torch.bfloat16)
busy = False
print("ready", flush=True)
while True:
    if not busy or select.select([sys.stdin], [], [], 0)[0]:
        line = sys.stdin.readline()
        if not line:
            break
        busy = line == "busy\\n"
        print("heard", flush=True)
    if busy:
        for _ in range(8):
            matrix @ matrix
        if matrix.is_cuda:
            torch.cuda.synchronize()
"""


class Neighbour(Throttle):
    """A process beside the rank multiplies matrices on its GPU at any percentage below 100, and rests at 100.

    How much that leaves the rank is up to CUDA: both processes get time slices in turn, or, where the environment names
    an MPS daemon, share the SMs. So the percentage only says whether the neighbour computes, which can change (`set`).
    """

    name: ClassVar[str] = "neighbour"
    device_kinds: ClassVar[tuple[str, ...]] = ("gpu",)
    can_change: ClassVar[bool] = True

    def __init__(self, percentage: int) -> None:
        super().__init__(percentage)
        self._process: Any = None

    def start(self) -> None:
        """Start the process. Raises RuntimeError if it ends at once."""
        import torch

        self._start_on(f"cuda:{torch.cuda.current_device()}")
        self.set(self.percentage)

    def _start_on(self, device: str, size: int = 4096) -> None:
        # In a session of its own: Ctrl-C reaches the ranks, with which it ends.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORK, device, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._answer()

    def set(self, percentage: int) -> None:
        """Have the process compute if `percentage` is below 100, else rest; the host waits for its acknowledgement."""
        self.percentage = check_percentage(percentage)
        try:
            self._process.stdin.write("busy\n" if percentage < 100 else "rest\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer raises for this, too
        self._answer()

    def _answer(self) -> None:
        if not self._process.stdout.readline():
            raise RuntimeError(f"throttle 'neighbour': its process ended with exit code {self._process.wait()}")

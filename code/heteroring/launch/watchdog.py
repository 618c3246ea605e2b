"""The watchdog, a thread of the launching process that detects dead and hanging ranks and ends the others."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from heteroring.interrupts import ctrl_c_held
from heteroring.launch.heartbeat import DONE, FAILED, STARTING, Beat, Board
from heteroring.launch.stack_dumps import ASK, Stacks
from heteroring.procfs import is_stopped

POLL_SECONDS = 0.05
GRACE_SECONDS = 3.0
STACK_SECONDS = 1.0
START_SECONDS = 120.0
AWAY_SECONDS = 1.0


class Watchdog:
    """Watches ranks, child processes of this one, within the context; afterwards none is alive.

    A rank may wait for another for as long as that one writes heartbeats. If no rank does for `hang_timeout` seconds
    although one is not done, one rank hangs and the others wait for it. Then every rank writes its stack, the hanging
    rank is chosen, and all are killed. The choice is a stopped process if there is one, otherwise a rank that was not
    waiting for another; among several, the first to fall silent. If this process was stopped together with its ranks,
    as by Ctrl-Z, silence counts from when it continued. Once a rank has died or failed, the launcher ends the others;
    those still alive GRACE_SECONDS later, such as stopped processes, are killed. A launcher that keeps waiting for dead
    ranks is then interrupted.

    After the end, `hung` is the hanging rank and `silent_for` its silence in seconds; `killed` is the rank that a
    signal ended before any rank was being ended, and `signal` that signal. They are None if there was none. `gave_up`
    says whether the launcher was interrupted, by SIGTERM in the main thread.

    Args:
        board: Where the ranks write their heartbeats.
        hang_timeout: Seconds without a heartbeat of any rank after which one hangs.
        stacks: Where the ranks write their stacks.
        on_progress: Called from another thread with the number of steps that all ranks have advanced; None for nothing.
    """

    def __init__(
        self,
        board: Board,
        hang_timeout: float,
        stacks: Stacks,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.hung: int | None = None
        self.silent_for: float | None = None
        self.killed: int | None = None
        self.signal: int | None = None
        self.gave_up = False
        self.world_size = board.world_size
        self._board = board
        self._hang_timeout = hang_timeout
        self._stacks = stacks
        self._on_progress = on_progress or (lambda steps: None)
        self._trouble_at: float | None = None
        self._awake_at = 0.0
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._watching = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._deaths = select.poll()
        self._pidfds: dict[int, int] = {}
        self._strangers: set[int] = set()

    def __enter__(self) -> Watchdog:
        self._strangers = {child.pid for child in multiprocessing.active_children()}
        with ctrl_c_held():
            self._thread.start()
            self._watching = True
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop watching, and kill the ranks that are still alive; does nothing if watching has ended or never began.

        To be called before the board is closed: Ctrl-C may have come while the context was entered or left.
        """
        if not self._watching:
            return
        self._stopping.set()
        self._thread.join()
        self._kill_all()
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])
        self._watching = False  # a pid may soon be another process's

    def _watch(self) -> None:
        now = time.monotonic()
        while not self._stopping.is_set():
            self._wait_for_death()
            before, now = now, time.monotonic()
            if now - before > AWAY_SECONDS:
                self._awake_at = now
            beats = self._board.read()
            self._on_progress(min(beat.steps for beat in beats))
            if self._trouble_at is None:
                self._look_for_death(beats)
            if self._trouble_at is None:
                self._look_for_silence(beats, now)
            else:
                self._end(beats)

    def _end(self, beats: list[Beat]) -> None:
        """Kill ranks that the launcher has not ended in time, and then interrupt a launcher that keeps waiting."""
        since = time.monotonic() - self._trouble_at
        if since > GRACE_SECONDS:
            self._kill_all()
        # The launcher waits forever for a rank that died while it waited for the launcher's event of completion.
        if since > 2 * GRACE_SECONDS and self._in_main_thread and not self.gave_up and all(map(_has_ended, beats)):
            self.gave_up = True
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    def _wait_for_death(self) -> None:
        """Wait for POLL_SECONDS, or until a rank dies, so that no rank that dies as a consequence is seen first."""
        for beat in self._board.read():
            if beat.pid and beat.pid not in self._pidfds:
                with suppress(OSError):
                    self._pidfds[beat.pid] = os.pidfd_open(beat.pid)
                    self._deaths.register(self._pidfds[beat.pid], select.POLLIN)
        if self._trouble_at is None and self._pidfds:
            self._deaths.poll(POLL_SECONDS * 1000)
        else:
            self._stopping.wait(POLL_SECONDS)

    def _look_for_death(self, beats: list[Beat]) -> None:
        for rank, beat in enumerate(beats):
            exit_code = _exit_code(beat.pid) if beat.state != STARTING else None
            if exit_code is not None and exit_code < 0 and self.killed is None:
                self.killed, self.signal = rank, -exit_code
            died = exit_code is not None and (exit_code < 0 or beat.state != DONE)
            if died or beat.state == FAILED:
                self._trouble_at = time.monotonic()

    def _look_for_silence(self, beats: list[Beat], now: float) -> None:
        # Running ranks wait for ranks that are starting or ending, which write no heartbeat meanwhile.
        starting = [rank for rank, beat in enumerate(beats) if beat.state == STARTING]
        working = [rank for rank, beat in enumerate(beats) if beat.state != DONE]
        awaited = starting or working or [rank for rank, beat in enumerate(beats) if _exit_code(beat.pid) is None]
        allowed = self._hang_timeout if working and not starting else max(START_SECONDS, self._hang_timeout)
        # The last heartbeat of a finished rank counts, too: ranks that waited for it continue from then on.
        heard = max(beats[rank].at for rank in starting or range(len(beats)))
        if awaited and now - max(heard, self._awake_at) > allowed:
            self._end_hang(beats, {rank: now - max(beats[rank].at, self._awake_at) for rank in awaited})

    def _end_hang(self, beats: list[Beat], silence: dict[int, float]) -> None:
        """Choose the hanging rank among the silent ones (seconds of silence by rank), and kill all ranks."""
        self._trouble_at = time.monotonic()
        stopped = {rank for rank in silence if is_stopped(beats[rank].pid)}
        running = [rank for rank in silence if rank not in stopped]
        self._ask(beats, running)
        for rank in running:
            _send(beats[rank].pid, signal.SIGKILL)
        # A stopped process answers once it goes on. The others are killed first, so that it cannot finish the job.
        self._ask(beats, stopped)
        self.hung = min(silence, key=lambda rank: (rank not in stopped, self._stacks.waits(rank), beats[rank].at))
        self.silent_for = silence[self.hung]
        self._kill_all()

    def _ask(self, beats: list[Beat], ranks: Collection[int]) -> None:
        """Ask `ranks` to write their stacks, and wait for them for at most STACK_SECONDS."""
        for rank in ranks:
            _send(beats[rank].pid, ASK)
            _send(beats[rank].pid, signal.SIGCONT)
        deadline = time.monotonic() + STACK_SECONDS
        while time.monotonic() < deadline and not all(map(self._stacks.answered, ranks)):
            time.sleep(POLL_SECONDS)

    def _kill_all(self) -> None:
        """Kill all ranks, including those that never wrote to the board."""
        beats = self._board.read()
        for beat in beats:
            _send(beat.pid, signal.SIGKILL)
        if any(beat.state == STARTING for beat in beats):
            for child in multiprocessing.active_children():
                if child.pid not in self._strangers:
                    child.kill()


def _exit_code(pid: int) -> int | None:
    """How this process's child `pid` ended, negative for a signal; None while it lives.

    The child is left for the launcher to reap. If the launcher has reaped it already, and so knows how it ended, 0 is
    returned.
    """
    try:
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _has_ended(beat: Beat) -> bool:
    return beat.state == STARTING or _exit_code(beat.pid) is not None


def _send(pid: int, signum: int) -> None:
    """Signal the child `pid` if it is alive; the number of a reaped child may belong to another process by now."""
    if pid and _exit_code(pid) is None:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)

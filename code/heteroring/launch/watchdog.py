"""A thread beside the launched ranks that finds out which one died or hangs, and ends what does not end itself."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from heteroring.launch.heartbeat import DONE, FAILED, STARTING, Beat, Board
from heteroring.launch.procfs import is_stopped
from heteroring.launch.stack_dumps import ASK, Stacks

POLL_SECONDS = 0.05
GRACE_SECONDS = 3.0
STACK_SECONDS = 1.0
START_SECONDS = 120.0
AWAY_SECONDS = 1.0


class Watchdog:
    """Watches the ranks of a board, children of this process, from `with` to its end; then none is left alive.

    A rank may wait for another for as long as that one beats; if none does for `hang_timeout` seconds and one is not
    done, one hangs, and the others wait for it. So every rank writes its stack, and the cause is a stopped process
    if there is one, otherwise one that was not waiting for another, of several the first to fall silent. Then all are
    killed. Where this process was stopped itself, with its ranks, as by Ctrl-Z, silence counts from when it went on.
    Once a rank has died or failed, the launcher ends the others; what is left GRACE_SECONDS later, a stopped process
    for one, is killed. A launcher that waits on for the dead is then interrupted.

    After the end, `hung` is the hanging rank and `silent_for` its silence in seconds; `killed` is the rank
    that a signal ended while nobody was ending ranks, and `signal` that signal. They are None if there was
    none. `gave_up` tells that the launcher was interrupted, by SIGTERM in the main thread.
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
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._deaths = select.poll()
        self._pidfds: dict[int, int] = {}
        self._strangers: set[int] = set()

    def __enter__(self) -> Watchdog:
        self._strangers = {child.pid for child in multiprocessing.active_children()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._kill_all()
        for pidfd in self._pidfds.values():
            os.close(pidfd)

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
        """See to it that the ranks end, and then the launcher, which has had its time to end them."""
        since = time.monotonic() - self._trouble_at
        if since > GRACE_SECONDS:
            self._kill_all()
        # It sets an event that finished ranks wait for, and so waits for ever for one that died waiting.
        if since > 2 * GRACE_SECONDS and self._in_main_thread and not self.gave_up and all(map(_has_ended, beats)):
            self.gave_up = True
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    def _wait_for_death(self) -> None:
        """Wait for POLL_SECONDS, or less if a rank dies: whoever dies of the first death must not be seen first."""
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
        # Whoever is up waits for those that start: they import and allocate without a beat, and end without one.
        starting = [rank for rank, beat in enumerate(beats) if beat.state == STARTING]
        working = [rank for rank, beat in enumerate(beats) if beat.state != DONE]
        awaited = starting or working or [rank for rank, beat in enumerate(beats) if _exit_code(beat.pid) is None]
        allowed = self._hang_timeout if working and not starting else max(START_SECONDS, self._hang_timeout)
        # One that is done has beaten as well: whoever waited for it goes on from then.
        heard = max(beats[rank].at for rank in starting or range(len(beats)))
        if awaited and now - max(heard, self._awake_at) > allowed:
            self._end_hang(beats, {rank: now - max(beats[rank].at, self._awake_at) for rank in awaited})

    def _end_hang(self, beats: list[Beat], silence: dict[int, float]) -> None:
        """Find the rank that hangs among those that are silent, by seconds of silence, and kill all."""
        self._trouble_at = time.monotonic()
        stopped = {rank for rank in silence if is_stopped(beats[rank].pid)}
        running = [rank for rank in silence if rank not in stopped]
        self._ask(beats, running)
        for rank in running:
            _send(beats[rank].pid, signal.SIGKILL)
        # A stopped process answers when it goes on. With the others gone it cannot finish the job after all.
        self._ask(beats, stopped)
        self.hung = min(silence, key=lambda rank: (rank not in stopped, self._stacks.waits(rank), beats[rank].at))
        self.silent_for = silence[self.hung]
        self._kill_all()

    def _ask(self, beats: list[Beat], ranks: Collection[int]) -> None:
        """Have `ranks` write their stacks, and wait for that, but not for long."""
        for rank in ranks:
            _send(beats[rank].pid, ASK)
            _send(beats[rank].pid, signal.SIGCONT)
        deadline = time.monotonic() + STACK_SECONDS
        while time.monotonic() < deadline and not all(map(self._stacks.answered, ranks)):
            time.sleep(POLL_SECONDS)

    def _kill_all(self) -> None:
        """Kill the ranks, those too that never got as far as the board."""
        beats = self._board.read()
        for beat in beats:
            _send(beat.pid, signal.SIGKILL)
        if any(beat.state == STARTING for beat in beats):
            for child in multiprocessing.active_children():
                if child.pid not in self._strangers:
                    child.kill()


def _exit_code(pid: int) -> int | None:
    """How this process's child `pid` ended, negative for a signal; None while it lives.

    The child is left for the launcher to reap. If that has happened already, how it ended is the launcher's
    to tell, and 0 is returned.
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
    """Signal the child `pid` if it lives: a number that has been reaped may belong to another process by now."""
    if pid and _exit_code(pid) is None:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)

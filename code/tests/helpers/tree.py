"""A copy of the project, and Snakemake in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

ROOT = Path(__file__).parents[3]
HAS_TEX = shutil.which("latexmk") is not None
ALL = "all" if HAS_TEX else "all_but_pdf"
RUN = Path("runs/tiny")
# A time-out in seconds that is never reached, even on a busy machine.
PATIENCE = 1800.0
TINY = "workflow/config/tiny.yaml"
# Forks a Snakemake for each command that it reads, since importing it and its plugins takes longer than a dry run.
PLANNER = """
import json, os, sys
import smart_open
from snakemake.cli import get_argument_parser, main
get_argument_parser()
for line in sys.stdin:
    folder, env, arguments, output = json.loads(line)
    if (pid := os.fork()) == 0:
        status = 1
        try:
            os.dup2(os.open(output, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(env)
            sys.path[:1] = [folder, *env["PYTHONPATH"].split(os.pathsep)]
            sys.argv = ["snakemake", *arguments]
            main()
        except SystemExit as ended:
            status = ended.code or 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@cache
def planner() -> subprocess.Popen:
    """The server for dry runs; it ends with the process that started it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-c", PLANNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    )


class Tree:
    """A copy of the project, and Snakemake in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = os.environ | {
            "PYTHONPATH": str(root / "code"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def start(
        self, *arguments: str, within: Sequence[str] = (), umask: int = -1, **env: str | None
    ) -> subprocess.Popen:
        """Snakemake as the leader of a process group of its own, so that signals reach it as Ctrl-C would.

        It is started by the command `within`, if there is one. A variable that is None is taken out of its environment.
        """
        return subprocess.Popen(
            [*within, sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=self.root,
            env=self._env(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            umask=umask,
        )

    def _env(self, changes: dict[str, str | None]) -> dict[str, str]:
        return {name: value for name, value in (self.env | changes).items() if value is not None}

    def snakemake(self, *arguments: str, **options: object) -> tuple[int, str]:
        process = self.start(*arguments, **options)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output

    def tiny(self, *arguments: str, overlay: str = "", **options: object) -> tuple[int, str]:
        """Words for the tiny grid, changed by the file `overlay`."""
        return self.snakemake(*arguments, "--configfile", TINY, *filter(None, [overlay]), **options)

    def plan(self, *arguments: str, config: str = TINY, overlay: str = "", **env: str | None) -> tuple[int, str]:
        """A dry run on the grid of `config`, changed by `overlay`: exit status and output."""
        files = [name for name in (config, overlay) if name]
        arguments = (*arguments, "-n", "--cores", "2", *(["--configfile", *files] if files else []))
        with NamedTemporaryFile("r") as output:
            asked = [str(self.root), self._env(env), arguments, output.name]
            print(json.dumps(asked), file=planner().stdin, flush=True)
            return int(planner().stdout.readline()), output.read()

    def stop(self, when: Callable[[], bool], how: signal.Signals, target: str) -> tuple[int, str]:
        """Build `target` on the tiny grid, and send the signal to every process of the run once its ranks work."""
        process = self.start(target, "--configfile", TINY)
        try:
            # A shell that has opened the job's log, or a command that still imports, could swallow the signal.
            wait_until(lambda: when() and has_ranks(process.pid), process)
            os.killpg(process.pid, how)
            output, _ = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output

    def measured(self) -> dict[str, int]:
        """Modification time of each finished measurement."""
        data = self.root / RUN / "data" / "cpu"
        files = [*(data / "bench").glob("*.csv"), *(data / "profile").glob("*.csv")]
        return {path.relative_to(data).as_posix(): path.stat().st_mtime_ns for path in files}

    def log_of(self, job: str) -> Path:
        """The log of a job, which is created when the job starts."""
        return self.root / RUN / "logs" / "cpu" / "bench" / f"{job}.log"


def wait_until(holds: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until `holds()` is true; fails if `process`, whose output is piped, ends before."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "what was waited for never came"
        time.sleep(0.02)


def processes(session: int) -> dict[int, str]:
    """Command lines of the processes, by number, that the leader of `session` started and that have not ended."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if os.getsid(pid := int(path.parent.name)) == session and (command := path.read_bytes()):
                found[pid] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def ranks_of(session: int) -> list[int]:
    """The processes of a session that are ranks, in the order in which they were started."""
    return sorted(pid for pid, command in processes(session).items() if "spawn_main" in command)


def has_ranks(session: int) -> bool:
    """Whether a measurement that Snakemake, the leader of `session`, has started has started its ranks."""
    return bool(ranks_of(session))


def sources() -> list[str]:
    """The files of the project: those that git tracks or would track, or all files of a tree without git."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode == 0:
        return [name for name in listing.stdout.split("\0") if name]
    produced = (".venv/", ".snakemake/", "runs/", "figures/", "logs/", "data/cpu/", "data/gpu/")
    produced += ("latex/images/", "latex/generated/")
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    return [name for name in files if not name.startswith(produced) and "__pycache__" not in name]


def copied(root: Path) -> Tree:
    """A copy of the project in the folder `root`."""
    for name in sources():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    return Tree(root)


def jobs(output: str) -> dict[str, int]:
    """Rule to number of jobs, from Snakemake's table."""
    table = output.partition("Job stats:")[2].partition("\n\n")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}

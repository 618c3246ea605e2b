"""Commands in a network, a mount table or a host name of their own, where the kernel lets this user have one."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest


def within(*flags: str, script: str = "") -> list[str]:
    """What to put before a command so that it runs behind `unshare` with `flags`, after the shell's `script`.

    Skips the test where that is not permitted.
    """
    command = ["unshare", *flags, "bash", "-euc", f'{script}\nexec "$@"', "bash"]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if tried.returncode:
        pytest.skip(f"unshare {' '.join(flags)} is not permitted here: {tried.stderr.strip().splitlines()[-1]}")
    return command


NO_LOOPBACK = ("--net",)
"""A new network, of which nothing is up, the loopback interface neither."""

_UP = """
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any:
    fcntl.ioctl(any, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # SIOCSIFFLAGS: up, loopback, running
"""


def no_network() -> list[str]:
    """Before a command that is to reach nothing but its own machine."""
    return within("--net", script=f"{shlex.quote(sys.executable)} -c {shlex.quote(_UP)}")

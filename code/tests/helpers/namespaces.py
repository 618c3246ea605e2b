"""Commands in Linux namespaces of their own, and two such nodes joined by a link, where the kernel permits them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


def within(*flags: str, script: str = "") -> list[str]:
    """Words to put before a command so that it runs under `unshare` with `flags`, after the shell's `script`.

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


def no_network(*flags: str, script: str = "") -> list[str]:
    """Words to put before a command that may reach only its own machine; `flags` and `script` as for `within`."""
    return within("--net", *flags, script=f"{shlex.quote(sys.executable)} -c {shlex.quote(_UP)}\n{script}")


@dataclass(frozen=True)
class Nodes:
    """Two network namespaces with one cable between them, which look like two machines to their processes."""

    names: tuple[str, str]
    addresses = ("10.84.0.1", "10.84.0.2")
    interface = "cable"

    def within(self, node: int) -> list[str]:
        """Words to put before a command that is to run on that node."""
        return ["ip", "netns", "exec", self.names[node]]

    def received(self, node: int) -> int:
        """Bytes that the node has received over the cable."""
        path = f"/sys/class/net/{self.interface}/statistics/rx_bytes"
        return int(subprocess.run([*self.within(node), "cat", path], capture_output=True, check=True).stdout)

    def shape(self, *rule: str) -> str:
        """Have `tc` put the rule at both ends of the cable. Returns why that is not permitted, if it is not."""
        for node in range(2):
            shaped = [*self.within(node), "tc", "qdisc", "replace", "dev", self.interface, "root", *rule]
            if refusal := _refusal(shaped):
                return refusal
        return ""


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Two nodes with a cable; skips the test where that is not permitted."""
    nodes = Nodes((f"heteroring-{os.getpid()}-0", f"heteroring-{os.getpid()}-1"))
    try:
        for name in nodes.names:
            _permitted(["ip", "netns", "add", name])
        ends = [["name", nodes.interface, "netns", name] for name in nodes.names]
        _permitted(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]])
        for node, address in enumerate(nodes.addresses):
            _permitted([*nodes.within(node), "ip", "address", "add", f"{address}/24", "dev", nodes.interface])
            for interface in ("lo", nodes.interface):
                _permitted([*nodes.within(node), "ip", "link", "set", interface, "up"])
        yield nodes
    finally:
        for name in nodes.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _permitted(command: list[str]) -> None:
    if refusal := _refusal(command):
        pytest.skip(refusal)


def _refusal(command: list[str]) -> str:
    """Run the command. Returns why it failed, if it did."""
    try:
        tried = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return f"there is no {command[0]} here"
    return f"not permitted here: {' '.join(command)}: {tried.stderr.strip()}" if tried.returncode else ""

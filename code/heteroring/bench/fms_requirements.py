"""Checks, before any process is started, of what a measurement of FMS layers and models needs."""

from __future__ import annotations

from importlib.util import find_spec


def check_fms(what: str) -> None:
    """Raise ValueError, saying that `what` needs it, unless the package ibm-fms is installed."""
    if find_spec("fms") is None:
        raise ValueError(f"{what} needs ibm-fms, which is not installed: pip install ibm-fms")


def check_layer(what: str, head_dim: int) -> None:
    """Raise ValueError, saying that `what` needs it, without ibm-fms, or with heads that positions cannot rotate."""
    check_fms(what)
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}: {what} has rotary positions, which need an even one")

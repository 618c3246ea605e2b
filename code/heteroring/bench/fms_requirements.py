"""Checks, before any process is started, of the requirements for measuring FMS layers and models."""

from __future__ import annotations

from importlib.util import find_spec


def check_fms(what: str) -> None:
    """Raise ValueError, saying that `what` needs it, unless the package ibm-fms is installed."""
    if find_spec("fms") is None:
        raise ValueError(f"{what} needs ibm-fms, which is not installed: pip install ibm-fms")


def check_layer(what: str, head_dim: int) -> None:
    """Raise ValueError, naming `what`, without ibm-fms, or for a head size that rotary positions do not support."""
    check_fms(what)
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}: {what} has rotary positions, which need an even one")

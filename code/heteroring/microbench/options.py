"""Parsing and checks of the options of microbenchmarks."""

from __future__ import annotations

import argparse

import torch

from heteroring.words import listed


def count(text: str) -> int:
    """Parse an integer of 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def indices(text: str) -> list[int]:
    """Parse integers of 0 or more, separated by commas or spaces."""
    found = list(map(int, listed("list", text)))
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"{min(found)} is below 0")
    return found


def counts(text: str) -> list[int]:
    """Parse integers of 1 or more, separated by commas or spaces."""
    return [count(part) for part in listed("list", text)]


def check_gpu(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with a message if heads is no multiple of KV heads, or if there is no GPU."""
    if options.heads % options.kv_heads:
        parser.error(f"--heads {options.heads} is not a multiple of --kv-heads {options.kv_heads}")
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to measure")

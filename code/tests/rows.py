"""Rows of measurements as tests need them: one that is sound, to be varied."""

from __future__ import annotations

from heteroring.bench.records import Measurement, ProfileRow


def measurement(**changes) -> Measurement:
    """A ring of two ranks, the second at 50 %, at 100 tokens."""
    values = {
        "platform": "cpu",
        "system": "ring",
        "module": "attention",
        "condition": "rested",
        "seq_len": 100,
        "batch": 1,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "dtype": "float32",
        "causal": True,
        "layout": "zigzag",
        "allocator": "even",
        "model_source": "",
        "clamped": False,
        "throttle": "pacing",
        "percentages": (100, 50),
        "block_lens": (50, 50),
        "block": "cpu",
        "transport": "p2p",
        "job": 1,
        "repetition": 0,
        "latency_ms": 1.25,
        "busy_ms": (0.5, 1.0),
        "bytes_moved": 4096,
    }
    return Measurement(**values | changes)


def profile_row(**changes) -> ProfileRow:
    """A matmul of 128 x 128 x 128 at 50 %."""
    values = {
        "platform": "cpu",
        "kind": "matmul",
        "size": 128,
        "batch": 0,
        "heads": 0,
        "kv_heads": 0,
        "head_dim": 0,
        "dtype": "float32",
        "causal": False,
        "throttle": "pacing",
        "percentage": 50,
        "repetition": 0,
        "latency_ms": 0.5,
        "tflops": 2 * 128**3 / 0.5 / 1e9,
    }
    return ProfileRow(**values | changes)

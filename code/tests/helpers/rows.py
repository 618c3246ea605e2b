"""Valid rows of measurements and profiles, whose fields a test may change."""

from __future__ import annotations

from heteroring.results.rows import Measurement, ProfileRow


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


def profile_row(kind="matmul", size=128, **changes) -> ProfileRow:
    """An operator at 50 %, by default a matmul of 128 x 128 x 128 in 0.5 ms; latency or speed may be given."""
    heads = 0 if kind == "matmul" else 4
    values = {
        "platform": "cpu",
        "kind": kind,
        "size": size,
        "batch": heads // 4,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": 16 * heads,
        "dtype": "float32",
        "causal": kind not in ("matmul", "fold"),
        "throttle": "pacing",
        "percentage": 50,
        "repetition": 0,
    }
    values |= changes
    flops = _flops(kind, size, values["batch"] * values["heads"] * values["head_dim"])
    latency_ms = changes.get("latency_ms", flops / changes["tflops"] / 1e9 if "tflops" in changes else 0.5)
    return ProfileRow(**{"latency_ms": latency_ms, "tflops": flops / latency_ms / 1e9} | values)


def _flops(kind: str, size: int, width: int) -> int:
    """Operations, computed independently; in a layer or block, an invented number per token beside attention."""
    causal, further, tokens = 2 * width * size * (size + 1), 4 * width * size * 128, 1_000_000 * size
    return {
        "matmul": 2 * size**3,
        "attention": causal,
        "fold": further,
        "join": causal + further,
        "layer": causal + tokens,
        "block": causal + 2 * tokens,
    }[kind]

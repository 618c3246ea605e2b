"""Valid rows of a measured whole model, whose fields a test may change."""

from heteroring.results.model_rows import ModelRow, TraceRow


def model_row(**changes) -> ModelRow:
    """A prefill of 100 tokens by two ranks, the second at 50 %."""
    values = {
        "platform": "cpu",
        "phase": "prefill",
        "system": "ring",
        "architecture": "llama",
        "variant": "micro",
        "layers": 4,
        "emb_dim": 128,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "dtype": "float32",
        "batch": 1,
        "seq_len": 100,
        "new_tokens": 0,
        "layout": "contiguous",
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
        "latency_ms": 60.0,
        "peak_memory_bytes": (3_000_000_000, 2_000_000_000),
        "captured": False,
        "compiled": False,
        "limit_ms": 0.0,
    }
    return ModelRow(**values | changes)


def alone(rank, latency_ms, **changes):
    lens = tuple(100 * (rank == other) for other in (0, 1))
    return model_row(system="alone", allocator="alone", block_lens=lens, latency_ms=latency_ms, **changes)


def event(**changes) -> TraceRow:
    values = {
        "platform": "cpu",
        "strategy": "zigzag/balanced",
        "seq_len": 100,
        "percentages": (100, 50),
        "job": 1,
        "layer": 2,
        "rank": 0,
        "kind": "layer",
        "step": 0,
        "start_ms": 1.0,
        "stop_ms": 2.0,
    }
    return TraceRow(**values | changes)

"""Measurements on four or eight GPUs: the ring, fewer ranks and PyTorch's baselines, each result verified."""

import pytest

from gpu import of_gpus
from heteroring.bench.ring import run as ring_run
from heteroring.bench.ring.job import RingJob
from heteroring.bench.shape import Shape
from heteroring.results.metrics import cells, choices_of_ranks
from tree import ROOT

MODELS = ROOT / "data" / "h200x2" / "models"
STRATEGIES = ("contiguous/even", "contiguous/uneven", "zigzag/even", "zigzag/balanced")


@pytest.mark.parametrize("condition", ["rested", "sustained"])
@pytest.mark.parametrize("transport", ["p2p", "copy-engine"])
@pytest.mark.parametrize("throttle", ["none", "mps", "green"])
@pytest.mark.parametrize("count", of_gpus(4, 8))
def test_every_cell_is_right_beside_its_baselines(count, throttle, transport, condition):
    slow = 100 if throttle == "none" else 20
    job = RingJob(
        device_kind="gpu",
        platform="gpu",
        throttle=throttle,
        percentages=(100, slow, *(100,) * (count - 3), slow),
        seq_lens=(4096, 16384),
        strategies=STRATEGIES,
        fitted_models=MODELS,
        shape=Shape(heads=8, kv_heads=8, head_dim=128, dtype="bfloat16"),
        transport=transport,
        repetitions=2,
        condition=condition,
        baselines=True,
    )
    done = ring_run.run(job)
    table = cells(done.rows)
    assert len(table) == 2 * (len(STRATEGIES) + (count - 2) + count + (1 + count))
    assert set(table.system) == {"ring", "subset", "alone", "context_parallel", "sdpa"}
    for row in done.rows:
        if row.system in ("ring", "subset", "alone"):
            assert max(row.busy_ms) <= row.latency_ms
            assert all((busy > 0) == (tokens > 0) for busy, tokens in zip(row.busy_ms, row.block_lens, strict=True))
    assert len(choices_of_ranks(table)) == 2

"""FMS's attention layer over two GPUs; each first result is compared with the stock layer on one of them."""

import pytest

from gpu import two_gpus

pytest.importorskip("fms")

from heteroring.bench.ring import run as ring_run
from heteroring.bench.ring.job import RingJob
from heteroring.bench.shape import Shape

pytestmark = two_gpus

ON_GPU = {"device_kind": "gpu", "platform": "gpu"}
STRATEGIES = ("contiguous/even", "contiguous/uneven", "zigzag/even", "zigzag/uneven")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("transport", ["p2p", "copy-engine"])
@pytest.mark.parametrize(("throttle", "percentages"), [("none", (100, 100)), ("green", (100, 50))])
def test_the_layer_is_right_beside_its_attention(dtype, transport, throttle, percentages):
    job = RingJob(
        **ON_GPU,
        throttle=throttle,
        percentages=percentages,
        seq_lens=(1024,),
        strategies=STRATEGIES,
        shape=Shape(heads=8, kv_heads=2, head_dim=128, dtype=dtype),
        transport=transport,
        repetitions=2,
        modules=("attention", "fms"),
        fms_seq_lens=(777, 1024),
    )
    done = ring_run.run(job)
    assert len(done.rows) == 2 * 3 * (len(STRATEGIES) + 2)
    for row in done.rows:
        assert max(row.busy_ms) <= row.latency_ms
        assert all((busy > 0) == (tokens > 0) for busy, tokens in zip(row.busy_ms, row.block_lens, strict=True))


def test_a_gpu_without_tokens_takes_part():
    job = RingJob(
        **ON_GPU,
        throttle="green",
        percentages=(100, 1),
        seq_lens=(40,),
        strategies=("zigzag/uneven",),
        shape=Shape(batch=2, heads=4, kv_heads=4, head_dim=64, dtype="float16"),
        repetitions=1,
        modules=("fms",),
    )
    ring = [row for row in ring_run.run(job).rows if row.system == "ring"]
    assert [row.block_lens for row in ring] == [(40, 0)]

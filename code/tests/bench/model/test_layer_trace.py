"""A traced layer has its events on every rank that holds tokens, also where one rank holds them all."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("fms")

import fms_models
from heteroring.bench.model.layer_trace import LayerTrace
from heteroring.fms import ring_prefill
from heteroring.kernels.backend import resolve
from heteroring.launch.device import Cpu
from heteroring.ring.partition import Partition
from oracle import assert_same_logits


def traced(rank, world_size, lens):
    """Events of the second layer of a prefill, and the logits."""
    model, device, partition = fms_models.ring("llama3"), Cpu(), Partition.zigzag(lens)
    trace = LayerTrace(device, resolve("cpu", torch.device("cpu")), meets=True)
    start = device.mark()
    with trace.of(model.base_model.layers[1]):
        logits = ring_prefill(model, fms_models.prompt(sum(lens)), partition, block=trace).logits
    return trace.events(start, partition, rank), logits


@pytest.mark.parametrize(
    ("lens", "expected"),
    [
        ((30, 11), [{("block", 0), ("block", 1), ("wait", 0), ("wait", 1), ("sent", 1)}] * 2),
        ((41, 0), [{("block", 0), ("wait", 0)}, None]),
        ((0, 41), [None, {("block", 0), ("wait", 0)}]),
    ],
    ids=["both", "first", "second"],
)
def test_every_rank_with_tokens_has_its_events_in_order(ranks, lens, expected):
    with torch.no_grad():
        want = fms_models.stock("llama3")(fms_models.prompt(sum(lens)))[:, -1]
    for (events, logits), steps in zip(ranks(2).run(traced, lens), expected, strict=True):
        assert_same_logits(logits, want)
        if steps is None:
            assert events == []
            continue
        assert {(e.kind, e.step) for e in events} == steps | {("layer", 0), ("ready", 0)}
        (layer,), (ready,) = ([e for e in events if e.kind == kind] for kind in ("layer", "ready"))
        within = sorted((e for e in events if e.kind not in ("layer", "ready")), key=lambda e: e.start_ms)
        assert layer.start_ms <= within[0].start_ms
        assert within[-1].stop_ms <= layer.stop_ms
        assert all(a.stop_ms <= b.start_ms for a, b in pairwise(within))
        assert next(e for e in within if e.kind == "block").start_ms >= ready.start_ms

"""Operands of any strides on two GPU ranks: right by every backend and both transports."""

import pytest
import torch

import strides
from gpu import one_gpu
from heteroring.kernels.backend import BACKENDS
from oracle import assert_both_accurate, attention64, flash_errors

pytestmark = one_gpu

ON_GPUS = [block for block in BACKENDS if block != "cpu"]


@pytest.mark.parametrize("block", ON_GPUS)
@pytest.mark.parametrize(
    ("verb", "keywords"),
    [
        ("ring_attention", {"transport": "p2p"}),
        ("ring_attention", {"transport": "copy-engine"}),
        ("ring_decode", {}),
    ],
    ids=["p2p", "copy-engine", "decode"],
)
@pytest.mark.parametrize("lens", [(384, 256), (301, 0)], ids=str)
def test_every_backend_takes_any_strides(gpus, verb, keywords, block, lens):
    answers = gpus.run(strides.called, verb, block, lens, torch.bfloat16, "cuda", keywords)
    causal, positions = verb == "ring_attention", torch.arange(sum(lens), device="cuda")
    for name, operands, result in strides.joined(answers, verb, lens):
        q, k, v = (x.cuda() for x in operands)
        want, want_lse = attention64(q, k, v, *((positions, positions) if causal else ()))
        errors = flash_errors(q, k, v, causal, want, want_lse)
        lse = result[1].cuda() if causal else want_lse
        try:
            assert_both_accurate(result[0].cuda(), lse, want, want_lse, errors)
        except AssertionError as error:
            raise AssertionError(name) from error

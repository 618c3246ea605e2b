"""Operands of any strides give right results with every backend, whether it can read them or needs a copy."""

import pytest
import torch

import strides
from oracle import assert_as_accurate_as_torch, attention64

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.mark.parametrize("verb", ["ring_attention", "ring_decode"])
@pytest.mark.parametrize(
    ("block", "dtype", "lens"),
    [
        *(("cpu", torch.float32, lens) for lens in ((13,), (9, 4), (0, 5))),
        ("cpu", torch.bfloat16, (9, 4)),
        ("reference", torch.float64, (9, 4)),
        ("triton", torch.float32, (13,)),
    ],
    ids=str,
)
def test_every_backend_takes_any_strides(ranks, block, dtype, verb, lens):
    if block == "triton":  # in its interpreter; that of 3.6 fails with the NumPy of today
        pytest.importorskip("triton", minversion="3.7")
    answers = ranks(len(lens)).run(strides.called, verb, block, lens, dtype)
    positions = torch.arange(sum(lens))
    order = (positions, positions) if verb == "ring_attention" else ()
    mask = positions[None, :] <= positions[:, None] if order else None
    for name, (q, k, v), result in strides.joined(answers, verb, lens):
        want, want_lse = attention64(q, k, v, *order)
        lse = result[1] if order else want_lse
        try:
            assert_as_accurate_as_torch(result[0], lse, q, k, v, want, want_lse, mask)
        except AssertionError as error:
            raise AssertionError(name) from error

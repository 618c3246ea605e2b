"""Operands of any strides give right results with every backend, whether it can read them or needs a copy."""

import pytest
import torch

import strides
from oracle import assert_as_accurate_as_torch

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
    for name, operands, result in strides.joined(answers, verb, lens):
        out, lse, offset = (*result, 0) if verb == "ring_attention" else (result[0], None, None)
        try:
            assert_as_accurate_as_torch(out, lse, *operands, offset=offset)
        except AssertionError as error:
            raise AssertionError(name) from error

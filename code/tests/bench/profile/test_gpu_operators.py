"""The operators of a profile on a GPU: a `join` is measured on the same call as the ring's fused first step."""

from types import SimpleNamespace

import torch
from test_operators import Throttle, job

from gpu import one_gpu
from heteroring.bench.profile.operators import OPERATORS
from heteroring.bench.shape import Shape
from oracle import LSE_ROUNDING, assert_as_accurate_as_torch

pytestmark = one_gpu


def test_fused_first_steps_are_right_and_made_where_the_ring_makes_them():
    shape = Shape(1, 8, 2, 128, "bfloat16")
    here = SimpleNamespace(throttle=Throttle(), torch_device=torch.device("cuda", 0))
    found = list(OPERATORS["fold"](here, job(device_kind="gpu", seq_lens=(256, 1024), shape=shape)))
    fused = [(each.kind, each.size) for each in found[2:]]
    hopper = torch.cuda.get_device_capability(0) == (9, 0)
    assert fused == ([("join", 256), ("join", 1024)] if hopper else [])
    assert all(torch.isfinite(each.call()[0]).all() for each in found)
    for operator in found[2:]:
        result = operator.call()
        (q, k, v), options = here.throttle.calls[-1]
        pending = options["pending"]
        both = (torch.cat(pair, dim=2) for pair in ((pending.k, k), (pending.v, v)))
        assert_as_accurate_as_torch(*result, q, *both, offset=128, lse_error=LSE_ROUNDING)

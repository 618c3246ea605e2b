"""The operators of a profile: the work of each kind, and jobs that are refused."""

import ctypes
import gc
from functools import wraps
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from heteroring.bench.profile import operators
from heteroring.bench.profile.job import ProfileJob
from heteroring.bench.profile.operators import OPERATORS
from heteroring.bench.profile.run import steps
from heteroring.bench.shape import Shape
from heteroring.bench.verify import WrongResult
from heteroring.kernels.backend import PendingKVBackend

needs_fms = pytest.mark.skipif(find_spec("fms") is None, reason="needs ibm-fms")
SHAPE = Shape(batch=2, heads=4, kv_heads=2, head_dim=8)


def job(**changes):
    values = {"device_kind": "cpu", "platform": "cpu", "throttle": "none", "percentages": (100,)}
    values |= {"sizes": (8,), "seq_lens": (3, 200), "shape": SHAPE}
    return ProfileJob(**values | changes)


class Throttle:
    """Records the functions that it was asked to slow."""

    def __init__(self):
        self.calls = []

    def wrap(self, function):
        @wraps(function)
        def wrapped(*args, **kwargs):
            self.calls.append((args, kwargs))
            return function(*args, **kwargs)

        return wrapped


def rank():
    return SimpleNamespace(throttle=Throttle(), torch_device=torch.device("cpu"))


def test_a_fold_is_a_ring_step_of_128_keys_that_goes_on_from_a_running_result():
    here = rank()
    found = list(OPERATORS["fold"](here, job()))
    assert [(each.kind, each.size, each.flops) for each in found] == [
        ("fold", rows, 4 * 2 * 4 * 8 * rows * 128) for rows in (3, 200)
    ]
    for operator in found:
        before, _ = operator.call()
        before = before.clone()
        ((q, k, v), options), *_ = here.throttle.calls[-1:]
        assert q.shape == (2, 4, operator.size, 8)
        assert k.shape == v.shape == (2, 2, 128, 8)
        out, lse = options["running"]
        assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, q.dtype, q.shape[:3], torch.float32)
        # Merging the same keys again changes only the weight of earlier keys, and never lets the running sum overflow.
        scores = torch.einsum("bhmd,bhnd->bhmn", q, k.repeat_interleave(2, dim=1)) * SHAPE.scale
        once = torch.logsumexp(scores, -1)
        operator.call()
        assert torch.allclose(lse, torch.logaddexp(torch.zeros_like(once), once + torch.log(torch.tensor(2.0))))
        assert not torch.equal(out, before)


def fusing(q, k, v, *, scale, causal_offset=None, running=None, pending=None):
    """A backend that can go on to pending KV, and returns what it was given."""
    if pending:
        counter = ctypes.c_int32.from_address(pending.arrived).value
        return q.shape, pending.k.shape, pending.v.shape, pending.first_query, counter * pending.heads
    return running


def in_whole_tiles(q, k, v, causal_offset, pending):
    return causal_offset == 0 and q.shape[2] % 8 == 0


def test_a_join_is_the_attention_that_goes_on_to_128_keys_where_the_backend_can(monkeypatch):
    monkeypatch.setattr(operators, "resolve", lambda *_: PendingKVBackend(fusing, in_whole_tiles))
    here = rank()
    here.throttle.wrap = lambda function: function
    found = list(OPERATORS["fold"](here, job(seq_lens=(16, 3, 200))))
    assert [(each.kind, each.size) for each in found] == [
        *(("fold", n) for n in (16, 3, 200)),
        ("join", 16),
        ("join", 200),
    ]
    join = found[-1]
    assert join.flops == 4 * 2 * 4 * 8 * (200 * 201 // 2 + 200 * 128)
    gc.collect()
    # All KV heads of the batch are there.
    assert join.call() == ((2, 4, 200, 8), (2, 2, 128, 8), (2, 2, 128, 8), 0, 4)


def off_by_a_tile(function):
    def wrong(*args, **kwargs):
        result = function(*args, **kwargs)
        (result if torch.is_tensor(result) else result[0])[..., :4, :4] = 7
        return result

    return wrong


@pytest.mark.parametrize("kind", ["matmul", "attention"])
def test_a_wrong_result_is_told_from_a_right_one(kind):
    here = rank()
    for operator in OPERATORS[kind](here, job()):
        operator.verify(operator.call())
    here.throttle.wrap = off_by_a_tile
    for operator in OPERATORS[kind](here, job()):
        with pytest.raises(WrongResult, match=f"{kind} of {operator.size}"):
            operator.verify(operator.call())


def test_steps_count_the_operators_of_every_kind():
    assert steps(job(kinds=("fold",), repetitions=3, warmup=2, sizes=())) == 2 * 5
    assert steps(job(kinds=("matmul", "attention", "fold"), repetitions=3, warmup=0)) == 5 * 4
    assert steps(job(kinds=("matmul",), seq_lens=())) == 6


@needs_fms
def test_a_layer_has_lengths_of_its_own_at_which_its_attention_is_measured_too():
    asked = job(kinds=("matmul", "attention", "fold", "layer"), fms_seq_lens=(200, 40))
    found = {kind: asked.sizes_of(kind) for kind in asked.kinds}
    assert found == {"matmul": (8,), "attention": (3, 200, 40), "fold": (3, 200, 40), "layer": (200, 40)}
    made = [each.size for kind in ("attention", "fold") for each in OPERATORS[kind](rank(), asked)]
    assert made == [3, 200, 40] * 2
    assert steps(asked) == (1 + 3 + 3 + 2) * (asked.warmup + asked.repetitions)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kinds": ()}, "kinds is empty"),
        ({"kinds": ("matmul", "matmul")}, "kinds holds matmul twice"),
        ({"kinds": ("join",)}, "profile kind 'join' is unknown: choose one of matmul, attention"),
        ({"fms_seq_lens": (8,)}, "fms_seq_lens is given, but kind 'layer' is not measured"),
        ({"warmup": -1}, "warmup is -1"),
    ],
)
def test_a_job_that_cannot_be_measured_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        job(**changes)


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_a_kind_of_fms_is_refused_without_it_before_a_process_starts(monkeypatch, kind):
    monkeypatch.setattr("heteroring.bench.fms_requirements.find_spec", lambda name: None)
    job(kinds=("attention",))
    with pytest.raises(ValueError, match=f"profile kind '{kind}' needs ibm-fms"):
        job(kinds=("attention", kind))

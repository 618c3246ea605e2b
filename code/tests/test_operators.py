"""What a profile times: the work of each kind of operator, and kinds whose modules are imported only when asked for."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from heteroring.bench import operators as registry
from heteroring.bench.operators import Operator, operators
from heteroring.bench.profile import ProfileJob, steps
from heteroring.bench.shape import Shape

SHAPE = Shape(batch=2, heads=4, kv_heads=2, head_dim=8)


def job(**changes):
    values = {"platform": "cpu", "label": "cpu", "throttle": "none", "percentage": 100}
    values |= {"sizes": (8,), "seq_lens": (3, 200), "shape": SHAPE}
    return ProfileJob(**values | changes)


class Throttle:
    """Notes what it was asked to slow."""

    def __init__(self):
        self.calls = []

    def wrap(self, function):
        def wrapped(*args, **kwargs):
            self.calls.append((args, kwargs))
            return function(*args, **kwargs)

        return wrapped


def rank():
    return SimpleNamespace(throttle=Throttle(), torch_device=torch.device("cpu"))


def test_a_fold_is_a_visit_of_128_keys_that_goes_on_from_a_running_result():
    here = rank()
    found = list(operators("fold", here, job()))
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
        # The same keys again change nothing but the weight of what came before them, and never the running sum's end.
        scores = torch.einsum("bhmd,bhnd->bhmn", q, k.repeat_interleave(2, dim=1)) * SHAPE.scale
        once = torch.logsumexp(scores, -1)
        operator.call()
        assert torch.allclose(lse, torch.logaddexp(torch.zeros_like(once), once + torch.log(torch.tensor(2.0))))
        assert not torch.equal(out, before)


def test_steps_count_the_operators_of_every_kind():
    assert steps(job(kinds=("fold",), repetitions=3, warmup=2, sizes=())) == 2 * 5
    assert steps(job(kinds=("matmul", "attention", "fold"), repetitions=3, warmup=0)) == 5 * 4
    assert steps(job(kinds=("matmul",), seq_lens=())) == 6


def test_a_kind_elsewhere_checks_the_job_and_makes_its_operators(monkeypatch):
    module = ModuleType("heteroring_test_kind")
    seen = []
    module.check = seen.append
    module.operators = lambda rank, job: iter([Operator("layer", n, 1, int) for n in job.seq_lens])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry._ELSEWHERE, "layer", module.__name__)
    asked = job(kinds=("attention", "layer"))
    assert seen == [asked]
    assert [each.size for each in operators("layer", rank(), asked)] == [3, 200]


def test_a_kind_elsewhere_can_refuse_before_a_process_starts(monkeypatch):
    module = ModuleType("heteroring_test_kind")

    def check(job):
        raise ValueError("needs something that is not here")

    module.check = check
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry._ELSEWHERE, "block", module.__name__)
    job(kinds=("attention",))
    with pytest.raises(ValueError, match="needs something"):
        job(kinds=("attention", "block"))

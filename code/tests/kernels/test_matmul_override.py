"""PyTorch's products replaced by heteroring's, in a process of its own, because the replacement lasts."""

import subprocess
import sys

import pytest
import torch

from heteroring.kernels import matmul_override as products
from heteroring.kernels.matmul_override import avoid_clusters

PROGRAM = """
import torch
from torch.nn.functional import linear
from heteroring.kernels.matmul_override import divert

taken = []
REFUSED = 1234.0

def product(a, b, out=None):
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and a.dtype == b.dtype == torch.float64
    if not fits or (out is not None and not out.is_contiguous()) or a[0, 0] == REFUSED:
        return None
    taken.append((tuple(a.shape), tuple(b.shape)))
    want = (a[:, :, None] * b[None]).sum(1)
    return want if out is None else out.copy_(want)


g = torch.Generator().manual_seed(0)
x, w, bias, pair, other = (
    torch.randn(s, generator=g, dtype=torch.float64) for s in ((2, 5, 3), (4, 3), (4,), (6, 5, 3), (6, 3, 2))
)
calls = {
    "linear": (lambda x, w, bias, pair, other: linear(x, w), 1),
    "linear with a bias": (lambda x, w, bias, pair, other: linear(x[0], w, bias), 1),
    "addmm": (lambda x, w, bias, pair, other: torch.addmm(bias, x[0], w.T, beta=0.5, alpha=2), 1),
    "addmm that ignores": (lambda x, w, bias, pair, other: torch.addmm(bias * torch.nan, x[0], w.T, beta=0), 1),
    "matmul": (lambda x, w, bias, pair, other: torch.matmul(x[0], w.T), 1),
    "into out": (lambda x, w, bias, pair, other: torch.matmul(x[0], w.T, out=torch.empty_like(x[0] @ w.T)), 2),
    "batch": (lambda x, w, bias, pair, other: pair @ other, 6),
    "einsum": (lambda x, w, bias, pair, other: torch.einsum("bij,bjk->bik", pair, other), 6),
}
tensors = x, w, bias, pair, other
want = {name: call(*tensors) for name, (call, _) in calls.items()}
single = {name: call(*(t.float() for t in tensors)) for name, (call, _) in calls.items()}
library = divert("CPU", product)
for name, (call, count) in calls.items():
    taken.clear()
    torch.testing.assert_close(call(*tensors), want[name])
    assert len(taken) == count, (name, taken)
    taken.clear()
    assert torch.equal(call(*(t.float() for t in tensors)), single[name]), name
    assert not taken, (name, taken)
part = pair.clone()
part[2, 0, 0] = REFUSED
taken.clear()
torch.testing.assert_close(part @ other, (part[..., None] * other[:, None]).sum(2))
assert len(taken) == 2, "a batch is left at the first product that is not covered"
taken.clear()
rows = torch.empty(4, 5, dtype=torch.float64).t()
torch.testing.assert_close(torch.mm(x[0], w.T, out=rows), want["matmul"])
assert not taken, "an out that is not covered"
refused = [
    lambda: torch.addmm(bias.float(), x[0], w.T),
    lambda: torch.addmm(torch.zeros(8, 4).double(), x[0, :1], w.T),
    lambda: torch.addmm(torch.zeros(2, 1, 4).double(), x[0, :1], w.T),
    lambda: torch.bmm(pair[:2], other[:3]),
    lambda: torch.bmm(pair[:, :, :2], other),
    lambda: torch.mm(x[0], w),
]
for i, call in enumerate(refused):
    try:
        call()
    except RuntimeError:
        continue
    raise AssertionError(f"call {i} was not refused")
assert torch.bmm(pair[:0], other[:0]).shape == (0, 5, 2)
del library
taken.clear()
torch.testing.assert_close(linear(x, w), want["linear"])
assert not taken
print("done")
"""


@pytest.mark.ranks
def test_covered_products_are_taken_over_and_others_left():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_devices_other_than_hopper_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert avoid_clusters(torch.device("cpu")) is None
    assert avoid_clusters(torch.device("cuda", 5)) is None


def test_a_hopper_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(products, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"Triton, .* is not installed: install it, or take --throttle green"):
        avoid_clusters(torch.device("cuda", 6))

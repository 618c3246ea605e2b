"""PyTorch's products where ours take their place. What is replaced stays so: in a process of its own."""

import subprocess
import sys

PROGRAM = """
import torch
from torch.nn.functional import linear
from heteroring.throttle.products import divert

taken = []

def covers(a, b, out=None):
    return a.dtype == torch.float64

def product(a, b, out=None):
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
library = divert("CPU", covers, product)
for name, (call, count) in calls.items():
    taken.clear()
    torch.testing.assert_close(call(*tensors), want[name])
    assert len(taken) == count, (name, taken)
    taken.clear()
    assert torch.equal(call(*(t.float() for t in tensors)), single[name]), name
    assert not taken, (name, taken)
del library
taken.clear()
torch.testing.assert_close(linear(x, w), want["linear"])
assert not taken
print("done")
"""


def test_covered_products_are_taken_over_and_others_left():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")

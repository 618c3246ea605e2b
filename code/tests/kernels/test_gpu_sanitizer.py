"""The kernels under NVIDIA's compute-sanitizer: no access out of bounds, no race for shared memory.

racecheck judges the portable kernel only: in the Hopper kernel it reports only Triton's hand-over to specialised warps,
as races (docs/experiments/kernels.md). test_hopper_kernel.py looks for real ones, by results that change.
"""

import os
import shutil
import subprocess
import sys

import pytest

from gpu import one_gpu
from tree import ROOT

SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")

# Odd sizes, a causal rectangle, a dense one merged into it, and pending whole tiles in the same pass, if a kernel can.
CASE = """
import sys
import torch
from heteroring.kernels import hopper_launch
from heteroring.kernels.backend import resolve
from heteroring.kernels.pending_kv import PendingKV

def operands(m, n):
    return [torch.randn(1, heads, length, 128, device="cuda").bfloat16() for heads, length in ((4, m), (2, n), (2, n))]

if sys.argv[1] == "racecheck":
    hopper_launch.covers = lambda *_: False
compute = resolve("triton", torch.device("cuda"))
q, k, v = operands(333, 333)
out, lse = compute(q, k, v, scale=0.09, causal_offset=0)
_, far_k, far_v = operands(333, 201)
compute(q, far_k, far_v, scale=0.09, running=(out, lse))
there = torch.ones(1, dtype=torch.int32, device="cuda")
pending = PendingKV(*operands(128, 256)[1:], 128, there.data_ptr(), 2)
if compute.takes_pending(q, k, v, 0, pending):
    compute(q, k, v, scale=0.09, causal_offset=0, pending=pending)
torch.cuda.synchronize()
assert out.isfinite().all() and lse.isfinite().all()
"""


@pytest.mark.skipif(SANITIZER is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize(("tool", "clean"), [("memcheck", "0 errors"), ("racecheck", "0 hazards displayed")])
class TestSanitizer:
    pytestmark = one_gpu

    def test_a_small_case_is_clean(self, tool, clean):
        environment = os.environ | {"PYTHONPATH": str(ROOT / "code"), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(
            [SANITIZER, "--tool", tool, sys.executable, "-c", CASE, tool],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert f"SUMMARY: {clean}" in done.stdout, done.stdout[-2000:]

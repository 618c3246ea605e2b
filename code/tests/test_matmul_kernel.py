"""Matrix products by our kernel against exact ones. Without a GPU it runs in Triton's interpreter."""

import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from heteroring.kernels.matmul import covers, matmul  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
# Triton's interpreter takes what a tensor descriptor loads of bfloat16 for integers.
DTYPES = [torch.float16, torch.bfloat16] if GPU else [torch.float16]

SHAPES = [(1, 8, 8), (1, 40, 64), (17, 32, 48), (64, 24, 40), (65, 40, 8), (100, 72, 136)]
LARGE = [(1, 4096, 12288), (64, 4096, 4096), (409, 4096, 12288), (1024, 14336, 4096), (3000, 1000, 5000)]


def operands(m, k, n, dtype, by_columns, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=g).to(DEVICE, dtype) for shape in ((m, k), (n, k) if by_columns else (k, n)))
    return a, b.t() if by_columns else b


def assert_right(got, a, b):
    """Every element rounded once, from a sum in fp32 of exact products."""
    want = a.double() @ b.double()
    slack = torch.finfo(a.dtype).eps * want.abs() + 1e-6 * a.double().abs() @ b.double().abs()
    assert got.dtype == a.dtype
    assert ((got.double() - want).abs() <= slack).all()


@pytest.mark.parametrize("by_columns", [True, False], ids=["weights", "rows"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES + (LARGE if GPU else []), ids=str)
def test_it_is_the_product(shape, dtype, by_columns):
    a, b = operands(*shape, dtype, by_columns)
    assert_right(matmul(a, b), a, b)


def test_it_goes_where_it_is_told_and_nowhere_else():
    a, b = operands(33, 40, 24, torch.float16, True)
    whole = torch.full((40, 64), torch.nan, dtype=torch.float16, device=DEVICE)
    out = whole[3:36, 8:32]
    assert matmul(a, b, out) is out
    assert_right(out, a, b)
    assert whole.isnan().sum() == whole.numel() - out.numel()


def test_operands_may_be_parts_of_larger_matrices():
    a, b = operands(40, 64, 48, torch.float16, False)
    assert_right(matmul(a[5:30, 8:40], b[:32, 16:]), a[5:30, 8:40], b[:32, 16:])


def test_without_a_gpu_nothing_is_covered():
    a, b = (torch.ones(16, 16, dtype=torch.bfloat16) for _ in range(2))
    assert not covers(a, b)

"""The kernel of matrix products against exact products. Without a GPU it runs in Triton's interpreter."""

import pytest
import torch

GPU = torch.cuda.is_available()
pytest.importorskip("triton", minversion=None if GPU else "3.7")

from heteroring.kernels import launch_configs  # noqa: E402
from heteroring.kernels import matmul as matmul_module  # noqa: E402
from heteroring.kernels.launch_cache import LaunchCache  # noqa: E402
from heteroring.kernels.matmul import matmul  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        GPU and torch.cuda.get_device_capability() != matmul_module.ARCHITECTURE, reason="needs a Hopper GPU"
    ),
]
DEVICE = "cuda" if GPU else "cpu"
# Triton's interpreter treats bfloat16 loaded through a tensor descriptor as integers.
DTYPES = [torch.float16, torch.bfloat16] if GPU else [torch.float16]

SHAPES = [(1, 8, 8), (1, 40, 64), (17, 32, 48), (64, 24, 40), (65, 40, 8), (100, 72, 136)]
TRANSPOSED = launch_configs.MatmulConfig(16, *((64, 128) if GPU else (32, 16)), 2, 4, 3, columns_first=True)
THIN = [(1, 4096, 12288), (16, 1000, 264), (17, 1000, 264), (64, 4096, 4096)]
LARGE = [(409, 4096, 12288), (1024, 14336, 4096), (3000, 1000, 5000)]


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
@pytest.mark.parametrize("shape", SHAPES + (THIN + LARGE if GPU else []), ids=str)
def test_it_is_the_product(shape, dtype, by_columns):
    a, b = operands(*shape, dtype, by_columns)
    assert_right(matmul(a, b), a, b)


@pytest.mark.parametrize("by_columns", [True, False], ids=["weights", "rows"])
@pytest.mark.parametrize("shape", SHAPES + (THIN if GPU else []), ids=str)
def test_it_is_the_product_by_transposed_tiles(shape, by_columns):
    a, b = operands(*shape, torch.float16, by_columns)
    assert_right(matmul(a, b, config=TRANSPOSED), a, b)


def test_one_launch_serves_all_operands_alike_and_no_others(prepared):
    for seed in range(3):
        a, b = operands(33, 40, 24, torch.float16, True, seed)
        assert_right(matmul(a, b), a, b)
    assert len(prepared) == 1
    for m, k, n, by_columns in ((33, 40, 24, False), (33, 24, 40, True), (17, 40, 24, True)):
        a, b = operands(m, k, n, torch.float16, by_columns)
        assert_right(matmul(a, b), a, b)
    assert len(prepared) == 4
    assert_right(matmul(a, b, config=TRANSPOSED), a, b)
    assert len(prepared) == 5


def test_an_address_that_is_not_aligned_is_not_taken_for_one_that_is(prepared):
    rows, b = half(5, 24), half(16, 24)
    assert matmul(rows[:, :16], b) is not None
    assert matmul(rows[:, 4:20], b) is None


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


@pytest.mark.skipif(GPU, reason="of machines without a GPU")
def test_without_a_gpu_it_does_nothing_unless_triton_interprets(monkeypatch, prepared):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert matmul(half(16, 16), half(16, 16)) is None


@pytest.fixture
def prepared(monkeypatch):
    """The launches that are prepared during a test; there are none before."""
    prepared = LaunchCache()
    monkeypatch.setattr(matmul_module, "_PREPARED", prepared)
    return prepared


def half(rows, columns):
    return torch.ones(rows, columns, dtype=torch.float16, device=DEVICE)


@pytest.mark.parametrize(
    ("operands", "fit"),
    {
        "weights": (lambda: (half(5, 16), half(24, 16).t()), True),
        "rows": (lambda: (half(5, 16), half(16, 24)), True),
        "one row": (lambda: (half(1, 16), half(16, 24)), True),
        "an odd row of a matrix": (lambda: (half(40, 3).t()[1:2], half(40, 24)), False),
        "parts": (lambda: (half(9, 40)[2:, 8:24], half(40, 32)[8:24, 8:]), True),
        "into out": (lambda: (half(5, 16), half(16, 24), half(5, 24)), True),
        "into a part": (lambda: (half(5, 16), half(16, 24), half(9, 40)[2:7, 8:32]), True),
        "shapes that do not meet": (lambda: (half(5, 16), half(24, 16)), False),
        "nothing": (lambda: (half(0, 16), half(16, 24)), False),
        "no columns": (lambda: (half(5, 16), half(16, 0)), False),
        "rows of 12 elements": (lambda: (half(5, 12), half(12, 24)), False),
        "results of 12 elements": (lambda: (half(5, 16), half(16, 12)), False),
        "an address of 8 bytes": (lambda: (half(5, 24)[:, 4:20], half(16, 24)), False),
        "columns on the left": (lambda: (half(16, 8).t(), half(16, 24)), False),
        "every other column": (lambda: (half(5, 16), half(16, 48)[:, ::2]), False),
        "broadcast rows": (lambda: (half(1, 16).expand(5, 16), half(16, 24)), False),
        "out by columns": (lambda: (half(5, 16), half(16, 24), half(24, 8).t()[:5]), False),
        "out of another shape": (lambda: (half(5, 16), half(16, 24), half(6, 24)), False),
        "out of another dtype": (lambda: (half(5, 16), half(16, 24), half(5, 24).bfloat16()), False),
        "out with rows on one another": (
            lambda: (half(5, 16), half(16, 24), half(5, 24).as_strided((5, 24), (8, 1))),
            False,
        ),
        "more than two dimensions": (lambda: (half(5, 16)[None], half(16, 24)[None]), False),
    }.values(),
)
def test_what_is_covered(operands, fit):
    a, *others = operands()
    got = matmul(a, *others)
    assert (got is not None) is fit
    if fit:
        assert (got == a.shape[1]).all()


def test_what_is_written_to_must_not_be_read():
    a, b = half(16, 16), half(16, 16)
    assert matmul(a, b, a) is None
    assert matmul(a, b, b) is None
    assert (a == 1).all()
    assert (b == 1).all()


def test_the_tile_is_the_one_whose_waves_end_first():
    assert launch_configs.matmul(16, 4096, 132) == launch_configs.MATMUL_THIN
    assert launch_configs.matmul(17, 4096, 132) == launch_configs.matmul(64, 4096, 132) == launch_configs.MATMUL_FLAT
    assert launch_configs.matmul(256, 4096, 132) == launch_configs.MATMUL_NARROW  # one wave either way
    assert launch_configs.matmul(2048, 2048, 132) == launch_configs.MATMUL_WIDE  # 1 against 2
    assert launch_configs.matmul(2048, 2048, 118) == launch_configs.MATMUL_NARROW  # 2 against 3
    assert launch_configs.matmul(8192, 8192, 132) == launch_configs.MATMUL_WIDE  # 16 against 32

"""The Triton backend against attention written out in fp64, and a count of the tiles that it computes.

Without a GPU the kernel runs in Triton's interpreter; with one, the same tests run compiled.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

GPU = torch.cuda.is_available()
pytest.importorskip("triton")

import compiled  # noqa: E402
from heteroring.kernels import launch_configs  # noqa: E402
from heteroring.kernels.masked_tiles import masked, portable  # noqa: E402
from heteroring.kernels.triton_backend import backend  # noqa: E402
from oracle import assert_as_accurate_as_torch, rectangle64, visible_keys  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"


def operands(m, n, *, heads=2, kv_heads=2, head_dim=64, dtype=torch.float32, batch=1, seed=None):
    generator = torch.Generator().manual_seed(torch.seed() % 2**31 if seed is None else seed)
    shapes = ((batch, heads, m, head_dim), (batch, kv_heads, n, head_dim), (batch, kv_heads, n, head_dim))
    return [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes]


def assert_close(got, *operands):
    """Assert the accuracy rule of oracle.py for q, k, v, the scale and the causal offset."""
    assert_as_accurate_as_torch(*got, *operands)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill every uninitialised allocation with NaN: an element that the kernel forgets to write shows."""

    def poisoned(allocate):
        return lambda *args, **kwargs: allocate(*args, **kwargs).fill_(math.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.mark.parametrize(("m", "n"), [(1, 129), (129, 1), (17, 63), (111, 17)])
def test_dense_rectangles_of_odd_size(m, n):
    q, k, v = operands(m, n)
    assert_close(backend(q, k, v, scale=0.125), q, k, v, 0.125, None)


@pytest.mark.parametrize(
    ("m", "n", "offset"),
    [
        *((1, 1, offset) for offset in (-1, 0)),
        *((17, 63, offset) for offset in (-(2**40), -16, 46, 2**40)),  # none, one query; the last key too
        *((63, 17, offset) for offset in (-20, 15)),  # all keys seen by some queries; all but one pair
        *((111, 111, offset) for offset in (0, 13, 32)),  # the diagonal within tiles, and along their borders
        (129, 64, 62),  # a last tile of one query
    ],
)
def test_causal_offsets(m, n, offset):
    q, k, v = operands(m, n)
    assert_close(backend(q, k, v, scale=0.125, causal_offset=offset), q, k, v, 0.125, offset)


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [
        (torch.float32, 80),
        (torch.float32, 256),
        (torch.float16, 7),
        (torch.float16, 96),
        (torch.bfloat16, 96),
        (torch.bfloat16, 128),
    ],
    ids=str,
)
def test_types_and_head_sizes(dtype, head_dim):
    q, k, v = operands(63, 111, head_dim=head_dim, dtype=dtype)
    out, lse = backend(q, k, v, scale=head_dim**-0.5, causal_offset=40)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert_close((out, lse), q, k, v, head_dim**-0.5, 40)


@pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(2, 4, 2), (1, 3, 1)])
def test_query_heads_share_kv_heads(batch, heads, kv_heads):
    q, k, v = operands(33, 63, heads=heads, kv_heads=kv_heads, batch=batch)
    assert_close(backend(q, k, v, scale=0.2, causal_offset=20), q, k, v, 0.2, 20)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 0.5])
def test_any_scale(scale):
    q, k, v = operands(17, 63)
    assert_close(backend(q, k, v, scale=scale, causal_offset=3), q, k, v, scale, 3)


def test_strided_operands_and_views():
    """Tokens before heads, a slice of a longer buffer, a running state that is a slice: no copy is needed."""
    m, n, heads, head_dim = 37, 70, 2, 64
    buffer = torch.randn(1, 2 * n, 3, heads, head_dim).to(DEVICE)
    q = buffer[:, :m, 0].transpose(1, 2)
    k, v = (buffer[:, 5 : 5 + 2 * n : 2, i].transpose(1, 2)[:, :, : n - 5] for i in (1, 2))
    assert not q.is_contiguous()
    assert_close(backend(q, k, v, scale=0.125, causal_offset=9), q, k, v, 0.125, 9)

    wide_out = torch.full((1, m, heads, head_dim), 7.0, device=DEVICE)
    wide_lse = torch.full((1, m, heads), 7.0, device=DEVICE)
    running = wide_out.transpose(1, 2)[:, :, 10:], wide_lse.transpose(1, 2)[:, :, 10:]
    running[0].zero_()
    running[1].fill_(-math.inf)
    got = backend(q[:, :, 10:], k, v, scale=0.125, running=running)
    assert got[0] is running[0]
    assert got[1] is running[1]
    assert_close(got, q[:, :, 10:], k, v, 0.125, None)
    assert (wide_out[:, :10] == 7).all()
    assert (wide_lse[:, :10] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_an_fp32_result_is_not_rounded(dtype):
    q, k, v = operands(30, 50, dtype=dtype)
    wide, lse = backend(q, k, v, scale=0.125, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert not torch.equal(wide, wide.to(dtype).float())
    narrow, same = backend(q, k, v, scale=0.125, out_dtype=dtype)
    assert torch.equal(narrow, wide.to(dtype))
    assert torch.equal(lse, same)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_merging_into_a_result_of_16_bits(dtype):
    q, k, v = operands(40, 64, dtype=dtype)
    running = backend(q, k[:, :, :30], v[:, :, :30], scale=0.125)
    out, lse = backend(q, k[:, :, 30:], v[:, :, 30:], scale=0.125, running=running)
    assert out is running[0]
    assert out.dtype == dtype
    want_out, want_lse = (x.cpu() for x in rectangle64(q, k, v, 0.125, None))
    bound = torch.finfo(dtype).eps * want_out.abs().max()  # rounded twice, by half of this each time
    assert (out.cpu().double() - want_out).abs().max() <= 2 * bound
    torch.testing.assert_close(lse.cpu().double(), want_lse, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "cuts"),
    [(torch.bfloat16, (0, 1, 2, 111)), (torch.float32, (0, 50, 50, 111))],
    ids=str,
)
def test_merged_parts_equal_attention_over_all_keys(cuts, dtype):
    q, k, v = operands(40, 111, heads=2, kv_heads=1, dtype=dtype)
    offset = 60
    out = torch.zeros(q.shape, dtype=torch.float32, device=DEVICE)
    lse = torch.full(q.shape[:3], -math.inf, device=DEVICE)
    for start, stop in pairwise(cuts):
        part = k[:, :, start:stop], v[:, :, start:stop]
        got = backend(q, *part, scale=0.125, causal_offset=offset - start, running=(out, lse))
        assert got[0] is out
        assert got[1] is lse
    assert_close((out, lse), q, k, v, 0.125, offset)


def test_merging_where_one_side_saw_nothing():
    """Rows that see no key of this part keep their bits; rows that had seen none before take those of the part."""
    q, k, v = operands(64, 48)
    out, lse = torch.randn(q.shape, device=DEVICE), torch.randn(q.shape[:3], device=DEVICE)
    out[:, :, 50:], lse[:, :, 50:] = 0, -math.inf
    before = out.clone(), lse.clone()
    backend(q, k, v, scale=0.125, causal_offset=-20, running=(out, lse))
    assert torch.equal(out[:, :, :20], before[0][:, :, :20])
    assert torch.equal(lse[:, :, :20], before[1][:, :, :20])
    alone_out, alone_lse = backend(q, k, v, scale=0.125, causal_offset=-20)
    assert torch.equal(out[:, :, 50:], alone_out[:, :, 50:])
    assert torch.equal(lse[:, :, 50:], alone_lse[:, :, 50:])
    # In between, the log-sum-exp is that of both sides, wherever they lie.
    want = torch.logaddexp(before[1].double(), alone_lse.double())
    torch.testing.assert_close(lse[:, :, 20:50].double(), want[:, :, 20:50], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shift", [-1e4, -90.0, 90.0, 1e4])
def test_merging_does_not_overflow(shift):
    q, k, v = operands(16, 32)
    alone_out, alone_lse = backend(q, k, v, scale=0.125)
    out, lse = torch.full(q.shape, 3.0, device=DEVICE), alone_lse + shift
    old = lse.clone()
    backend(q, k, v, scale=0.125, running=(out, lse))
    assert torch.equal(lse, torch.maximum(old, alone_lse))
    torch.testing.assert_close(out, torch.full_like(out, 3.0) if shift > 0 else alone_out)


@pytest.mark.parametrize(("m", "n"), [(0, 5), (5, 0), (0, 0)], ids=["no query", "no key", "neither"])
def test_zero_lengths_launch_nothing(m, n, monkeypatch):
    launch = "heteroring.kernels.triton_backend.launch"
    monkeypatch.setattr(launch, lambda *_args, **_kwargs: pytest.fail("launched"))
    q, k, v = operands(m, n)
    out, lse = backend(q, k, v, scale=1.0, causal_offset=0)
    assert out.shape == q.shape
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    running = torch.ones(q.shape, device=DEVICE), torch.ones(q.shape[:3], device=DEVICE)
    backend(q, k, v, scale=1.0, running=running)
    assert (running[0] == 1).all()
    assert (running[1] == 1).all()


@pytest.mark.parametrize(
    ("m", "n", "offset", "poison"),
    [(40, 129, 10, math.nan), (33, 100, -7, math.inf), (1, 64, 0, math.inf), (65, 200, 31, math.nan)],
)
def test_keys_that_no_query_sees_never_enter(m, n, offset, poison):
    q, k, v = operands(m, n)
    seen = m + offset
    clean = backend(q, k, v, scale=0.125, causal_offset=offset)
    k[:, :, seen:], v[:, :, seen:] = poison, poison
    got = backend(q, k, v, scale=0.125, causal_offset=offset)
    assert torch.equal(got[0], clean[0])
    assert torch.equal(got[1], clean[1])


@pytest.mark.skipif(GPU, reason="counts the products that the interpreter executes")
@pytest.mark.parametrize(
    ("m", "n", "offset"),
    [
        (129, 111, None),
        *((129, 111, offset) for offset in (-40, 0)),
        *((64, 200, offset) for offset in (31, 32, 500)),
        (1, 97, -1),
    ],
)
def test_tiles_without_a_visible_key_are_not_computed(m, n, offset, monkeypatch):
    q, k, v = operands(m, n, heads=1, kv_heads=1)
    seen, _ = tiles_of(visible_keys(m, n, offset))
    count = count_products(monkeypatch)
    backend(q, k, v, scale=0.125, causal_offset=offset)
    assert count() == 2 * seen * q.shape[1]  # Q K^T and P V


@pytest.mark.skipif(GPU, reason="counts what the interpreter does")
def test_masked_tiles_are_computed_where_they_are_to_be_compared(monkeypatch):
    q, k, v = operands(97, 97, heads=1, kv_heads=1)
    seen, every = tiles_of(visible_keys(97, 97, 0))
    assert seen < every
    count = count_products(monkeypatch)
    for compute, tiles in ((portable, seen), (masked, every)):
        before = count()
        assert_close(compute(q, k, v, scale=0.125, causal_offset=0), q, k, v, 0.125, 0)
        assert count() - before == 2 * tiles * q.shape[1]


def tiles_of(visible):
    """How many tiles there are of which some score is visible, and how many of all."""
    shape = launch_configs.INTERPRETED
    m, n = visible.shape
    corners = [(i, j) for i in range(0, m, shape.block_m) for j in range(0, n, shape.block_n)]
    seen = [bool(visible[i : i + shape.block_m, j : j + shape.block_n].any()) for i, j in corners]
    return sum(seen), len(seen)


def count_products(monkeypatch):
    """A function that says how many products of tiles Triton's interpreter has made."""
    from triton.runtime.interpreter import InterpreterBuilder

    count = 0
    create_dot = InterpreterBuilder.create_dot

    def counted(*args):
        nonlocal count
        count += 1
        return create_dot(*args)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    return lambda: count


def test_sections_of_heads_cover_every_tile(monkeypatch):
    """The order that keeps KV in L2 does not affect results: a last, narrower section is right, too."""
    monkeypatch.setattr("heteroring.kernels.launch_configs.L2_BYTES", 2 * 2 * 40 * 64 * 4)
    q, k, v = operands(70, 40, heads=5, kv_heads=5)
    assert_close(backend(q, k, v, scale=0.125, causal_offset=0), q, k, v, 0.125, 0)


def test_nan_in_a_visible_key_comes_out():
    q, k, v = operands(8, 8)
    v[:, :, 2] = math.nan
    assert backend(q, k, v, scale=1.0)[0].isnan().all()
    k[:, :, 2] = math.nan
    out, lse = backend(q, k, v, scale=1.0)
    assert out.isnan().all()
    assert lse.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(q=a["q"][0]), "q has 3 dimensions"),
        (lambda a: a.update(k=a["k"].double()), "k is torch.float64"),
        (lambda a: a.update(v=a["v"].half()), "v is torch.float16"),
        (lambda a: a.update(q=a["q"].double(), k=a["k"].double(), v=a["v"].double()), "q is torch.float64"),
        (lambda a: a.update({x: a[x].repeat(1, 1, 1, 5) for x in "qkv"}), "head_dim is 320, but must be 256 or less"),
        (lambda a: a.update(q=a["q"].mT.contiguous().mT), "q has stride 5 in its last dimension"),
        (lambda a: a.update(v=a["v"][:, :, 1:]), "v has shape"),
        (lambda a: a.update(q=a["q"].repeat(2, 1, 1, 1)), "k has shape"),
        (lambda a: a.update(q=a["q"][:, :3]), "q has 3 heads"),
        (lambda a: a.update(scale=math.nan), "scale is nan"),
        (lambda a: a.update(causal_offset=0.5), "causal_offset is 0.5"),
        (lambda a: a.update(running=(a["q"], a["q"][..., 0].half())), "running lse is torch.float16"),
        (lambda a: a.update(out_dtype=torch.float16), "out_dtype is torch.float16"),
        (lambda a: a.update(running=(a["q"].half(), a["q"][..., 0])), "running out is torch.float16"),
        (lambda a: a.update(running=(a["q"][:, :, 1:], a["q"][..., 0])), "running out is"),
    ],
)
def test_bad_operands_are_named(change, message):
    q, k, v = operands(5, 7, heads=4, kv_heads=2)
    arguments = {"q": q, "k": k, "v": v, "scale": 1.0}
    change(arguments)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        backend(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


MISSING = """
import sys

sys.modules["triton"] = None
import torch

from heteroring.kernels.triton_backend import backend

x = torch.randn(1, 1, 4, 64)
for _ in ("Triton", "a GPU"):
    try:
        backend(x, x, x, scale=1.0)
    except RuntimeError as error:
        print(error)
    sys.modules.pop("triton", None)
"""


@pytest.mark.ranks
def test_what_is_missing_shows_on_use_only():
    without_triton, without_gpu = compiled.run(MISSING).splitlines()
    assert "needs triton" in without_triton
    assert "TRITON_INTERPRET=1" in without_gpu


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("offset", [None, 0, 1111, -777])
def test_long_rectangles_on_the_gpu(dtype, head_dim, offset):
    q, k, v = operands(2047, 3001, heads=8, kv_heads=2, head_dim=head_dim, dtype=dtype)
    scale = head_dim**-0.5
    assert_close(backend(q, k, v, scale=scale, causal_offset=offset), q, k, v, scale, offset)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_moving_error_is_a_race():
    """The same inputs give the same bits, twenty times, with other work in between."""
    q, k, v = operands(1500, 1777, heads=8, kv_heads=2, head_dim=128, dtype=torch.bfloat16)
    first = backend(q, k, v, scale=0.09, causal_offset=200)
    for _ in range(20):
        q2, k2, v2 = operands(1500, 1777, heads=8, kv_heads=2, head_dim=128, dtype=torch.bfloat16)
        assert_close(backend(q2, k2, v2, scale=0.09, causal_offset=200), q2, k2, v2, 0.09, 200)
        again = backend(q, k, v, scale=0.09, causal_offset=200)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])

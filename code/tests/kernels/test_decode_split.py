"""The split-KV decode kernel against fp64. Without a GPU it runs in Triton's interpreter."""

import json
import time

import pytest
import torch

GPU = torch.cuda.is_available()
pytest.importorskip("triton")

import compiled  # noqa: E402
from heteroring.kernels import decode_partials, decode_split  # noqa: E402
from oracle import LSE_ROUNDING, assert_accurate, assert_as_accurate_as_torch, attention64  # noqa: E402

pytestmark = pytest.mark.slow

DEVICE = "cuda" if GPU else "cpu"


def operands(heads, kv_heads, n, head_dim, dtype=torch.float32, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((heads, 1), (kv_heads, n), (kv_heads, n))
    return tuple(torch.randn(batch, h, m, head_dim, generator=g).to(dtype).to(DEVICE) for h, m in shapes)


def attend(q, k, v, scale, most):
    """(out, lse, number of parts)"""
    parts = decode_split.partials(q, k, v, scale, most)
    assert parts.dtype == torch.float32
    merged = decode_split.combine(parts, torch.float32, with_lse=True)
    return merged[..., None, :-1], merged[..., None, -1], len(parts)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "n", "head_dim", "most", "dtype"),
    [
        (4, 4, 1, 64, 1, torch.float32),
        (4, 4, 63, 64, 8, torch.bfloat16),
        (8, 2, 300, 128, 3, torch.float16),
        (6, 1, 129, 80, 2, torch.bfloat16),
        (20, 1, 129, 96, 100, torch.float32),
        (3, 3, 70, 256, 2, torch.float16),
    ],
    ids=str,
)
def test_as_fp64(heads, kv_heads, n, head_dim, most, dtype):
    q, k, v = operands(heads, kv_heads, n, head_dim, dtype, seed=n)
    out, lse, _ = attend(q, k, v, head_dim**-0.5, most)
    assert_as_accurate_as_torch(out, lse, q, k, v, lse_error=LSE_ROUNDING)


def test_however_the_keys_are_cut():
    q, k, v = operands(4, 2, 330, 64, batch=1)
    results = {parts: (out, lse) for out, lse, parts in (attend(q, k, v, 0.2, most) for most in (1, 2, 5, 1000))}
    assert len(results) == 4
    for out, lse in results.values():
        assert_as_accurate_as_torch(out, lse, q, k, v, 0.2, lse_error=LSE_ROUNDING)


@pytest.mark.parametrize("cached", [0, 64, 137])
def test_the_number_of_keys_may_lie_on_the_device_and_the_cache_behind_them_is_not_read(cached):
    q, k, v = operands(4, 2, 200, 64)
    used = [x[:, :, :cached].contiguous() for x in (k, v)]
    k[:, :, cached:], v[:, :, cached:] = torch.nan, torch.nan
    want, want_lse, _ = attend(q, *used, 0.2, 3)
    out, lse, _ = attend(q, k[:, :, :cached], v[:, :, :cached], 0.2, 3)
    assert torch.equal(out, want)
    assert torch.equal(lse, want_lse)
    counted = decode_split.partials(q, k, v, 0.2, 3, torch.tensor([cached], device=DEVICE))
    assert len(counted) > 1  # cut for all of the cache
    merged = decode_split.combine(counted, torch.float32, with_lse=True)
    torch.testing.assert_close(merged[..., None, :-1], want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(merged[..., None, -1], want_lse, atol=1e-6, rtol=1e-5)


MOST_HEADS = 6


def exchanged(rank, world_size, path, calls):
    """Outputs of `calls` exchanges of parts of many shapes, in memory that the ranks share, each rank late by turns."""
    size = 2 * world_size * MOST_HEADS * decode_split.WORDS
    words = [torch.from_file(f"{path}/{each}", shared=True, size=size, dtype=torch.int64) for each in range(world_size)]
    places = torch.tensor([each.data_ptr() for each in words])
    made = torch.zeros(MOST_HEADS, dtype=torch.int32)
    outs = []
    for call in range(calls):
        time.sleep(0.02 * ((call + rank) % 3 == 0))
        outs.append(decode_split.exchange(parts_of(call, world_size)[rank], torch.float32, places, made, rank))
    return outs


def parts_of(call, world_size):
    """Each rank's parts in one call, as many as ranks differ in: [S, B, Hq, D + 1]; every third rank saw no key."""
    g = torch.Generator().manual_seed(call)
    batch, heads, head_dim = ((2, 3, 24), (1, 3, 64), (2, 2, 16))[call % 3]
    parts = [torch.randn(1 + rank, batch, heads, head_dim + 1, generator=g) for rank in range(world_size)]
    parts[(call + 1) % 3 % world_size] *= torch.cat((torch.zeros(head_dim), torch.full((1,), torch.inf)))
    parts[(call + 1) % 3 % world_size][..., -1] = -torch.inf
    return parts


@pytest.mark.skipif(GPU, reason="ranks would run Triton's interpreter")
def test_ranks_exchange_their_parts_in_each_others_memory(ranks, tmp_path):
    """Calls of different shapes follow one another, over the same words; none may see the words of another."""
    world_size, calls = 3, 5
    results = ranks(world_size).run(exchanged, str(tmp_path), calls)
    for call in range(calls):
        want = decode_partials.merge_to_output(torch.cat(parts_of(call, world_size)), torch.float32)[:, :, 0]
        for out in (each[call] for each in results):
            assert torch.equal(out, results[0][call])
            torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 30.0])
def test_any_scale(scale):
    q, k, v = operands(4, 2, 100, 64)
    out, lse, _ = attend(q, k, v, scale, 2)
    want, want_lse = attention64(q, k, v, scale=scale)
    assert_accurate(out, want, 1e-4)  # scores near 1,000 are rounded in fp32
    assert_accurate(lse, want_lse, 5e-4)


def test_no_keys_give_nothing():
    out, lse, parts = attend(*operands(4, 2, 0, 64), 0.2, 5)
    assert parts == 1
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))


def test_nan_in_a_key_is_not_hidden():
    q, k, v = operands(4, 2, 100, 64)
    k[1, 0, 40] = torch.nan
    out, lse, _ = attend(q, k, v, 0.2, 2)
    assert out[1, :2].isnan().all()
    assert lse[1, :2].isnan().all()
    assert not out[1, 2:].isnan().any()
    assert not out[0].isnan().any()


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_are_merged_as_the_merge_does(count, dtype):
    g = torch.Generator().manual_seed(count)
    parts = torch.randn(count, 2, 3, 25, generator=g)
    parts[..., -1] *= 20
    parts[count // 2, 0] = torch.cat((torch.zeros(3, 24), torch.full((3, 1), -torch.inf)), 1)  # saw no key
    merged = decode_split.combine(parts.to(DEVICE), torch.float32, with_lse=True).cpu()
    out = decode_split.combine(parts.to(DEVICE), dtype, with_lse=False).cpu()
    want = decode_partials.merge_partials(parts)  # on the CPU: heteroring.kernels.merge, part by part
    torch.testing.assert_close(merged, want, atol=1e-5, rtol=1e-5)
    assert out.dtype == dtype
    torch.testing.assert_close(out, want[..., :-1].to(dtype))


def test_queries_of_any_stride():
    q, k, v = operands(4, 2, 50, 64)
    spread = torch.stack((q, q), -1)[..., 0]
    assert spread.stride(3) == 2
    assert torch.equal(attend(spread, k, v, 0.2, 1)[0], attend(q, k, v, 0.2, 1)[0])


@pytest.mark.parametrize("most", [1, 7, 264])
@pytest.mark.parametrize("n", [0, 1, 64, 65, 4096, 59_000])
def test_the_cut_covers_all_keys_in_equal_whole_tiles(n, most):
    chunks = decode_split.cut(n, 64, most)
    chunk = -(-n // (64 * chunks)) * 64  # as the kernel cuts them
    assert 1 <= chunks <= most
    assert (chunks - 1) * chunk <= n <= chunks * chunk
    assert chunk < n / most + 64 + 1


def test_queries_that_share_a_kv_head_are_one_tile_or_not_covered():
    assert decode_split.fits(32, 256)
    assert decode_split.fits(33, 128)
    assert not decode_split.fits(33, 256)
    assert not decode_split.fits(1, 257)


COMPILE = """
import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from heteroring.kernels.decode_kernel import chunk_kernel

CUDABackend.make_cubin = lambda *_: b""  # shared memory is known before
names, operands = chunk_kernel.arg_names, ("q", "k", "v")
strides = [f"stride_{x}{d}" for x, dims in (("q", "bh"), ("k", "bhn"), ("v", "bhn")) for d in dims]
for dtype, itemsize, group, head_dim, rows in json.loads(sys.argv[1]):
    constants = dict(GROUP=group, HEAD_DIM=head_dim, BLOCK_G=max(16, group), BLOCK_N=rows, BLOCK_D=head_dim,
                     PRECISION="ieee" if itemsize == 4 else "tf32", COUNTED=True)
    types = dict.fromkeys(operands, "*" + dtype) | {"parts": "*fp32", "log2_scale": "fp32", "n": "*i64"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in (*operands, *strides)}
    source = ASTSource(chunk_kernel, signature, {(names.index(k),): v for k, v in constants.items()}, aligned)
    options = {"num_warps": 4, "num_stages": 3 if itemsize == 2 else 2}
    print(triton.compile(source, target=GPUTarget("cuda", 86, 32), options=options).metadata.shared)
"""


LAUNCHES = """
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import JITFunction
from triton.runtime.driver import driver

from heteroring.kernels import decode_split

launched = []


class Launcher:
    def __init__(self, source, metadata):
        self.name = metadata.name

    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *others):
        launched.append((self.name, (x, y, z), [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in others]))


class Driver:  # compiles for a GPU, and launches nothing
    launcher_cls = Launcher
    utils = SimpleNamespace(
        load_binary=lambda *_: (1, 2, 32, 0, 1024), get_device_properties=lambda _: {"max_shared_mem": 232448}
    )

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


CUDABackend.make_cubin = lambda *_: b""
driver.set_active(Driver())
k, v = torch.randn(2, 1, 2, 4096, 16).half()
q, parts, cached = torch.randn(1, 8, 1, 16).half(), torch.randn(5, 1, 8, 17), torch.tensor([7])
places, calls = torch.zeros(2, dtype=torch.int64), torch.zeros(8, dtype=torch.int32)
odd = torch.randn(1 + q.numel()).half()[1:].view(q.shape)  # whose address is no multiple of 16


def decode(n, query=q):
    chunks = decode_split.partials(query, k[:, :, :n], v[:, :, :n], 0.1, 8)
    counted = decode_split.partials(query, k, v, 0.1, 8, cached)
    exchanged = decode_split.exchange(parts, q.dtype, places, calls, 1)
    return chunks, counted, exchanged, decode_split.combine(parts, q.dtype, False)


def called(*arguments):
    launched.clear()
    decode(*arguments)
    return [(name, grid, *map(str, others)) for name, grid, others in launched]


bound = {}
for arguments in ((4096,), (100,), (4096, odd)):
    decode(*arguments)  # launches are prepared
    with_jit, JITFunction.run = JITFunction.run, None
    bound[arguments] = called(*arguments)  # by prepared launches alone
    JITFunction.run = with_jit
decode_split._launch = lambda kernel, grid, operands, rest, constants, stages=3: kernel[grid](
    *operands, *rest, **constants, num_warps=4, num_stages=stages
)
for arguments, of_prepared in bound.items():
    of_triton = called(*arguments)
    assert [each[:2] for each in of_triton] == [each[:2] for each in of_prepared], (of_triton, of_prepared)
    for one, other in zip(of_triton, of_prepared):
        differ = [i for i, pair in enumerate(zip(one[2:], other[2:])) if len(set(pair)) > 1]
        allowed = {"chunk_kernel": {3}, "exchange_kernel": {1}, "combine_kernel": {1}}[one[0]]  # what is allocated
        assert len(one) == len(other) and set(differ) <= allowed, (one, other)
print("same")
"""


LARGEST = [("bf16", 2, 64, 128), ("fp32", 4, 32, 256)]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The output of both programs, run one after the other in one process."""
    cases = [(*kind, decode_split._rows(kind[3], kind[1])) for kind in LARGEST]
    cache = str(tmp_path_factory.mktemp("triton"))
    return compiled.run(COMPILE + LAUNCHES, json.dumps(cases), TRITON_CACHE_DIR=cache).split()


@pytest.mark.ranks
def test_the_largest_tiles_fit_the_smallest_shared_memory(printed):
    """99 KB per thread block, on compute capability 8.6 and 8.9."""
    for kind, shared in zip(LARGEST, printed[:-1], strict=True):
        _, _, group, head_dim = kind
        assert decode_split.fits(group, head_dim)
        assert not decode_split.fits(group + 1, head_dim)
        assert 0 < int(shared) <= 99 * 1024, kind


@pytest.mark.ranks
def test_bound_launches_are_those_that_triton_would_make(printed):
    """With a driver that launches nothing: the same kernels on the same arguments, without Triton's own search."""
    assert printed[-1] == "same"

"""The Hopper kernel: what it covers, how it compiles (no GPU needed), and on a Hopper GPU its results."""

from __future__ import annotations

import json
import math
import re
import time

import pytest
import torch

import compiled
from heteroring.kernels import hopper_launch, launch_configs, tensor_map
from heteroring.kernels.launch_cache import LaunchCache
from heteroring.kernels.pending_kv import PendingKV
from heteroring.kernels.triton_backend import backend, takes_pending
from oracle import LSE_ROUNDING, assert_as_accurate_as_torch

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == hopper_launch.ARCHITECTURE
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")


def test_tensor_maps_take_aligned_addresses_and_strides_only():
    x = torch.zeros(2, 3, 40, 64, dtype=torch.bfloat16)
    fits = tensor_map.fits
    assert fits(x)
    assert fits(x.transpose(1, 2))
    assert fits(x[:, :, 5:])
    assert not fits(torch.zeros(2, 3, 40 * 64 + 4, dtype=x.dtype)[..., 4:].view(2, 3, 40, 64))  # 8-byte address
    assert not fits(torch.zeros(2, 3, 40, 68, dtype=x.dtype)[..., :64])  # stride of 136 bytes
    assert not fits(x[:1].expand(2, -1, -1, -1))
    # The stride of a dimension of one element is never used.
    lone = x[:1, :1].as_strided((1, 1, 40, 64), (1, 3, 64, 1))
    assert fits(lone)
    assert tensor_map.strides(lone) == [64, 64, 64, 1]
    assert tensor_map.strides(x) == list(x.stride())


def test_the_cpu_is_not_covered():
    x = torch.zeros(1, 1, 8, 64, dtype=torch.bfloat16)
    assert not hopper_launch.covers(x, x, x)


def test_heads_side_by_side_fit_in_l2():
    for keys in (1, 4096, 16384, 65536, 10**7):
        heads = launch_configs.section(32, 4, keys, 128, 2)
        assert heads % 4 == 0
        assert heads == 4 or heads // 4 * 2 * keys * 128 * 2 <= launch_configs.L2_BYTES
        assert heads == 32 or (heads // 4 + 1) * 2 * keys * 128 * 2 > launch_configs.L2_BYTES


def test_as_few_heads_start_as_fill_the_device():
    for group in (1, 4):
        for sms in (1, 12, 132):
            for tiles in (1, 5, 12, 200):
                heads = launch_configs.first_section(1000, group, tiles, sms)
                assert heads % group == 0
                assert heads * tiles >= sms
                assert heads == group or (heads - group) * tiles < sms
    assert launch_configs.first_section(7, 1, 1, 132) == 7  # no more than later


COMPILE = """
import contextlib, io, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout
from heteroring.kernels import hopper_kernel
from heteroring.kernels import launch_configs

kernel = hopper_kernel.forward_kernel
names = kernel.arg_names
for head_dim, dtype, causal, result in json.loads(sys.argv[1]):
    block_d, merge = launch_configs.padded(head_dim), result == "merge"
    config, layout = launch_configs.HOPPER[block_d], NVMMASharedLayout(128, 16, rank=4)
    constants = dict(GROUP=4, HEAD_DIM=head_dim, BLOCK_N=config.block_n, BLOCK_D=block_d, STAGES=config.stages,
                     CAUSAL=causal, MERGE=merge, Q_IN_REGISTERS=config.q_in_registers, PENDING=result == "pending")
    tile = lambda rows: f"tensordesc<{dtype}[1, 1, {rows}, {block_d}],{layout!r}>"
    keys = tile(config.block_n)
    types = dict(q=tile(64), k=keys, v=keys, pending_k=keys, pending_v=keys, out="*fp32" if merge else "*" + dtype,
                 lse="*fp32", log2_scale="fp32", arrived="i64")
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in ("out", "stride_om", "stride_oh")}
    source = GluonASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()}, aligned)
    with contextlib.redirect_stdout(io.StringIO()) as log:
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    products = compiled.asm["ptx"].count("wgmma.mma_async")
    print(json.dumps([log.getvalue(), compiled.metadata.shared, products]))
"""


@pytest.mark.ranks
def test_the_compiler_keeps_products_in_flight_and_registers_in_registers(tmp_path):
    """ptxas says when it had to serialise wgmma (C75xx) or to spill: in the loop, either would cost much of the speed.

    A spilled tile would be kilobytes; a few spilled words around the epilogue are accepted.
    """
    pytest.importorskip("triton.experimental.gluon")
    kinds = [
        (128, "bf16", True, "pending"),  # the code of a new result without pending KV, and one more loop
        (64, "fp16", False, "merge"),
        (256, "bf16", True, "merge"),
    ]
    found = compiled.run(COMPILE, json.dumps(kinds), TRITON_CACHE_DIR=str(tmp_path), TRITON_DUMP_PTXAS_LOG="1")
    for kind, line in zip(kinds, found.splitlines(), strict=True):
        log, shared, products = json.loads(line)
        assert "Potential Performance Loss" not in log, (kind, log)
        stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log).groups())
        assert max(stores, loads) <= 64, (kind, log)
        assert shared <= 227 * 1024, kind
        assert products > 0, kind


def operands(m, n, *, heads=4, kv_heads=2, head_dim=128, dtype=torch.bfloat16, batch=1, layout="heads first"):
    def random(h, length):
        if layout == "tokens first":
            return torch.randn(batch, length, h, head_dim, device="cuda").to(dtype).transpose(1, 2)
        return torch.randn(batch, h, length, head_dim, device="cuda").to(dtype)

    return random(heads, m), random(kv_heads, n), random(kv_heads, n)


def assert_close(got, *operands):
    """Assert the accuracy rule of oracle.py for q, k, v, the scale and the causal offset; LSE is rounded as in fp32."""
    assert_as_accurate_as_torch(*got, *operands, lse_error=LSE_ROUNDING)


@pytest.fixture(params=["hopper", "portable"])
def path(request, monkeypatch):
    """Run a test on both kernels, and check that the intended one runs."""
    prepare, prepared = hopper_launch.prepare, []

    def chosen(*args, **kwargs):
        prepared.append(prepare(*args, **kwargs) if request.param == "hopper" else None)
        return prepared[-1]

    monkeypatch.setattr(hopper_launch, "prepare", chosen)
    yield
    assert all(prepared) == (request.param == "hopper")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill every new result with NaN: an element that the kernel forgets to write shows."""
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: new_empty(*args, **kwargs).fill_(math.nan))


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_rectangles_of_odd_size(dtype, head_dim, path):
    for m, n in ((1, 1), (17, 129), (63, 111), (128, 128), (129, 64), (777, 1111)):
        for offset in (None, 0, n - m, 50, -40, n + 9):
            q, k, v = operands(m, n, head_dim=head_dim, dtype=dtype)
            got = backend(q, k, v, scale=head_dim**-0.5, causal_offset=offset)
            assert_close(got, q, k, v, head_dim**-0.5, offset)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("layout", ["heads first", "tokens first"])
def test_merged_parts_equal_attention_over_all_keys(layout, path):
    for heads, kv_heads, batch in ((4, 4, 1), (8, 2, 3), (4, 1, 2)):
        q, k, v = operands(300, 700, heads=heads, kv_heads=kv_heads, batch=batch, layout=layout)
        wide = torch.zeros(batch, 350, heads, 128, device="cuda"), torch.zeros(batch, 350, heads, device="cuda")
        out, lse = (x.transpose(1, 2)[:, :, 50:] for x in wide)
        lse.fill_(-math.inf)
        for start, stop in ((0, 250), (250, 251), (251, 600), (600, 700)):
            part = k[:, :, start:stop], v[:, :, start:stop]
            backend(q, *part, scale=0.09, causal_offset=400 - start, running=(out, lse))
        assert_close((out, lse), q, k, v, 0.09, 400)
        assert not wide[0][:, :50].any()
        assert not wide[1][:, :50].any()


@pytest.mark.gpu
@on_hopper
def test_keys_that_no_query_sees_never_enter(path):
    for m, n, offset in ((300, 700, 100), (300, 700, -150), (1, 200, 0), (64, 200, 63)):
        q, k, v = operands(m, n)
        clean = backend(q, k, v, scale=0.09, causal_offset=offset)
        k[:, :, m + offset :], v[:, :, m + offset :] = math.nan, math.nan
        got = backend(q, k, v, scale=0.09, causal_offset=offset)
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[1], clean[1])


@pytest.mark.gpu
@on_hopper
def test_operands_that_tma_cannot_address_run_portably():
    q, k, v = operands(100, 130)
    crooked = torch.zeros(1, 2, 130, 132, dtype=k.dtype, device="cuda")[..., :128].copy_(k)
    assert not hopper_launch.covers(q, crooked, v)
    assert_close(backend(q, crooked, v, scale=0.09, causal_offset=30), q, k, v, 0.09, 30)
    shared = k[:, :1].expand(-1, 2, -1, -1)
    assert not hopper_launch.covers(q, shared, v)
    assert_close(backend(q, shared, v, scale=0.09), q, shared, v, 0.09, None)


@pytest.mark.gpu
@on_hopper
def test_prepared_launches_are_reused_and_hold_no_tensor():
    hopper_launch._PREPARED.clear()
    for _ in range(3):
        q, k, v = operands(200, 300)
        assert_close(backend(q, k, v, scale=0.09, causal_offset=-10), q, k, v, 0.09, -10)
    assert len(hopper_launch._PREPARED) == 1
    before = torch.cuda.memory_allocated()
    del q, k, v
    assert torch.cuda.memory_allocated() < before


@pytest.mark.gpu
@on_hopper
def test_a_moving_error_is_a_race(path):
    """The same inputs give the same bits, twenty times, with other inputs in between."""
    q, k, v = operands(1500, 2777, heads=16, kv_heads=4)
    first = backend(q, k, v, scale=0.09, causal_offset=1000)
    assert_close(first, q, k, v, 0.09, 1000)
    for _ in range(20):
        other = operands(1111, 2000, heads=16, kv_heads=4)
        assert_close(backend(*other, scale=0.09, causal_offset=700), *other, 0.09, 700)
        again = backend(q, k, v, scale=0.09, causal_offset=1000)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def arriving(k, v, first_query, parts):
    """KV that has not arrived: (PendingKV, its counter, a function that has it arrive part by part).

    It comes from the host, by a copy engine: a kernel might find no room beside the one that waits.
    """
    heads = k.shape[0] * k.shape[1] // parts
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")
    room = torch.full((2, *k.shape), math.nan, dtype=k.dtype, device="cuda")
    sent = torch.stack([k, v]).cpu().pin_memory()
    counts = torch.arange(parts + 1, dtype=torch.int32).pin_memory()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()

    def arrive():
        with torch.cuda.stream(stream):
            for part in range(parts):
                time.sleep(0.001)
                for target, source in zip(room, sent, strict=True):
                    rows = slice(part * heads, (part + 1) * heads)
                    target.flatten(0, 1)[rows].copy_(source.flatten(0, 1)[rows], non_blocking=True)
                counter.copy_(counts[part + 1 : part + 2], non_blocking=True)

    return PendingKV(*room.unbind(0), first_query, counter.data_ptr(), heads), counter, arrive


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pending_keys", [1, 841, 1664])
@pytest.mark.parametrize(("m", "first_query"), [(100, 37), (256, 128), (777, 300), (1280, 0), (1281, 1279)])
@pytest.mark.parametrize(("heads", "kv_heads", "batch", "parts"), [(4, 4, 1, 1), (8, 2, 3, 6), (8, 4, 2, 4)])
def test_keys_that_arrive_while_it_computes_are_waited_for(
    causal, pending_keys, m, first_query, heads, kv_heads, batch, parts
):
    q, k, v = operands(m, m, heads=heads, kv_heads=kv_heads, batch=batch)
    _, more_k, more_v = operands(m, pending_keys, heads=heads, kv_heads=kv_heads, batch=batch)
    offset = 0 if causal else None
    pending, counter, arrive = arriving(more_k, more_v, first_query, parts)
    assert takes_pending(q, k, v, offset, pending)
    got = backend(q, k, v, scale=0.09, causal_offset=offset, pending=pending)
    arrive()
    torch.cuda.synchronize()
    assert counter.item() == parts
    # The pending keys come first, so that one offset describes the mask: queries from first_query on see all of them.
    rows = slice(first_query, None)
    both = torch.cat([more_k, k], 2), torch.cat([more_v, v], 2)
    seen = None if offset is None else pending_keys + first_query
    assert_close([x[:, :, rows] for x in got], q[:, :, rows], *both, 0.09, seen)
    if first_query:
        own = slice(0, first_query)
        assert_close([x[:, :, own] for x in got], q[:, :, own], k, v, 0.09, offset)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("section", [2, 3, 5, 14])
def test_sections_of_heads_cover_every_tile(monkeypatch, section, first):
    """The order does not affect results: sections narrower than the others are right, too."""
    monkeypatch.setattr(launch_configs, "section", lambda heads, *_: min(heads, section))
    monkeypatch.setattr(launch_configs, "first_section", lambda section, *_: first)
    monkeypatch.setattr(hopper_launch, "_PREPARED", LaunchCache())
    q, k, v = operands(640, 640, heads=7, kv_heads=7, batch=2)
    assert_close(backend(q, k, v, scale=0.09, causal_offset=0), q, k, v, 0.09, 0)
    _, more_k, more_v = operands(640, 256, heads=7, kv_heads=7, batch=2)
    pending, _, arrive = arriving(more_k, more_v, 0, 14)
    got = backend(q, k, v, scale=0.09, causal_offset=0, pending=pending)
    arrive()
    torch.cuda.synchronize()
    assert_close(got, q, torch.cat([more_k, k], 2), torch.cat([more_v, v], 2), 0.09, 256)


@pytest.mark.gpu
@on_hopper
def test_pending_keys_that_tma_cannot_address_are_not_taken():
    q, k, v = operands(512, 512)
    crooked = torch.zeros(1, 2, 128, 132, dtype=k.dtype, device="cuda")[..., :128]
    for keys, taken in ((k[:, :, :100], True), (crooked, False), (k[:, :, :0], False)):
        pending = PendingKV(keys, keys, 100, 0, 2)
        assert takes_pending(q, k, v, 0, pending) == taken
        assert takes_pending(q, k, v, None, pending) == taken
        assert not takes_pending(q, k, v, -5, pending)
        if not taken:
            with pytest.raises(ValueError, match="takes_pending"):
                backend(q, k, v, scale=0.09, causal_offset=0, pending=pending)

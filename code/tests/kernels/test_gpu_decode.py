"""Decode on GPUs: the split-KV kernel and ring_decode against fp64, and a host that never waits."""

import time
from random import Random

import pytest
import torch

import heteroring as hr
from gpu import one_gpu, poison
from heteroring.kernels import decode_partials
from oracle import assert_as_accurate_as_torch
from ranks import Ranks

SHARES = [(3000, 500), (2048, 2048), (777, 0), (0, 1), (1, 1)]
SYNC_FREE = [(32, 8, 128), (8, 8, 64)]


def whole(tokens, heads, kv_heads, head_dim, dtype, seed, batch=1):
    g = torch.Generator("cuda").manual_seed(seed)
    shapes = ((heads, 1), (kv_heads, tokens), (kv_heads, tokens))
    return tuple(torch.randn(batch, h, n, head_dim, generator=g, device="cuda").to(dtype) for h, n in shapes)


def assert_right(out, *operands):
    assert out.dtype == operands[0].dtype
    assert_as_accurate_as_torch(out, None, *operands)


class TestOneRank:
    pytestmark = one_gpu

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
    @pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (8, 8), (8, 1)], ids=["gqa", "mha", "mqa"])
    @pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
    @pytest.mark.parametrize("tokens", [1, 65, 20_000])
    def test_as_accurate_as_torch(self, dtype, heads, kv_heads, head_dim, tokens):
        q, k, v = whole(tokens, heads, kv_heads, head_dim, dtype, torch.seed() % 2**30, batch=2)
        poison()
        assert_right(hr.ring_decode(q, k, v), q, k, v)

    def test_the_kernel_computes_it(self, monkeypatch):
        """And not a backend for many queries, which would leave most of the GPU idle."""
        monkeypatch.setattr(decode_partials, "resolve", None)
        q, k, v = whole(5000, 32, 8, 128, torch.bfloat16, 0)
        assert_right(hr.ring_decode(q, k, v), q, k, v)

    def test_many_chunks_share_a_head(self):
        q, k, v = whole(59_000, 32, 8, 128, torch.bfloat16, 0)
        assert (
            len(decode_partials.partials(q, k, v, 0.1))
            >= torch.cuda.get_device_properties(0).multi_processor_count // 8
        )

    def test_a_cache_that_grows_compiles_nothing_and_the_host_never_waits(self):
        from heteroring.kernels.decode_kernel import chunk_kernel, combine_kernel

        q, k, v = whole(4200, 8, 2, 128, torch.bfloat16, 0)
        hr.ring_decode(q, k[:, :, :4090], v[:, :, :4090])
        compiled = [_variants(kernel) for kernel in (chunk_kernel, combine_kernel)]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for n in (1, 16, 255, 4091, 4096, 4112, 4200):
                hr.ring_decode(q, k[:, :, :n], v[:, :, :n])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert [_variants(kernel) for kernel in (chunk_kernel, combine_kernel)] == compiled


def _variants(kernel):
    return sum(len(caches[0]) for caches in kernel.device_caches.values())


def decode(rank, world_size, lens, heads, kv_heads, head_dim, dtype, seed, calls=1):
    """`calls` calls back to back, each on a query and keys of its own and on poisoned memory."""
    shards = []
    for call in range(calls):
        q, k, v = whole(sum(lens), heads, kv_heads, head_dim, dtype, seed + call)
        mine = slice(sum(lens[:rank]), sum(lens[: rank + 1]))
        shards.append((q, k[:, :, mine], v[:, :, mine]))
    poison()
    torch.cuda.synchronize()
    outs = [hr.ring_decode(*shard) for shard in shards]
    return [out.cpu() for out in outs]


def without_waiting(rank, world_size, heads, kv_heads, head_dim):
    """Calls after the first, with one more key each, under PyTorch's check that the host does not wait."""
    q, k, v = whole(2000, heads, kv_heads, head_dim, torch.bfloat16, 0)
    hr.ring_decode(q, k[:, :, :1900], v[:, :, :1900])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for n in range(1901, 1960):
            hr.ring_decode(q, k[:, :, : n + rank], v[:, :, : n + rank])
    finally:
        torch.cuda.set_sync_debug_mode("default")


class TestTwoRanks:
    pytestmark = one_gpu

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
    @pytest.mark.parametrize("lens", SHARES, ids=str)
    def test_as_accurate_as_torch_on_one_and_the_same_on_both(self, gpus, lens, dtype):
        seed = torch.seed() % 2**30
        (first,), (second,) = gpus.run(decode, lens, 32, 8, 128, dtype, seed)
        assert torch.equal(first, second)
        assert_right(first.cuda(), *whole(sum(lens), 32, 8, 128, dtype, seed))

    @pytest.mark.parametrize("lens", [(900, 0, 3000, 1), (17, 0, 800, 1, 64, 64, 0, 500)], ids=str)
    def test_many_ranks_return_the_same_bits(self, lens):
        seed, ranks = torch.seed() % 2**30, Ranks(len(lens), device="cuda")
        try:
            results = ranks.run(decode, lens, 32, 8, 128, torch.bfloat16, seed, 20)
        finally:
            ranks.close()
        for call, (first, *others) in enumerate(zip(*results, strict=True)):
            assert all(torch.equal(first, other) for other in others)
            assert_right(first.cuda(), *whole(sum(lens), 32, 8, 128, torch.bfloat16, seed + call))

    def test_twenty_calls_in_flight_do_not_meet(self, gpus):
        results = gpus.run(decode, (3000, 500), 8, 2, 128, torch.bfloat16, 11, 20)
        for call, (first, second) in enumerate(zip(*results, strict=True)):
            assert torch.equal(first, second)
            assert_right(first.cuda(), *whole(3500, 8, 2, 128, torch.bfloat16, 11 + call))

    @pytest.mark.parametrize("shape", SYNC_FREE, ids=str)
    def test_the_host_never_waits(self, gpus, shape):
        gpus.run(without_waiting, *shape)


def counts(lens, replay):
    """How many of its keys each rank counts in one replay: none, all but one, or all."""
    return [(0, max(0, held - 1), held)[(replay + rank) % 3] for rank, held in enumerate(lens)]


def replayed(rank, world_size, lens, heads, kv_heads, head_dim, dtype, seed, replays):
    """Outputs of a call recorded as a CUDA graph: each replay on other inputs, which are written into the same tensors.

    Sometimes another call, of other shapes, comes in between; each rank is late at random, on the host or the device;
    nothing waits for the device until the end. The replays' results are copied to tensors of NaN.
    """
    mine = slice(sum(lens[:rank]), sum(lens[: rank + 1]))

    def inputs(number):
        q, k, v = whole(sum(lens), heads, kv_heads, head_dim, dtype, seed + number)
        return q, k[:, :, mine].contiguous(), v[:, :, mine].contiguous()

    held, other = inputs(0), whole(40 + rank, 4, 2, 64, dtype, seed)
    cached = torch.zeros(1, dtype=torch.int64, device="cuda")
    hr.ring_decode(*held, cached=cached)
    hr.ring_decode(*other)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = hr.ring_decode(*held, cached=cached)
    poison()
    random, outs = Random(f"{seed} {rank}"), []
    for replay in range(replays):
        for x, fresh in zip(held, inputs(replay), strict=True):
            x.copy_(fresh)
        cached.fill_(counts(lens, replay)[rank])
        late = random.choice(("", "host", "device"))
        if late == "host":
            time.sleep(random.uniform(0, 0.003))
        elif late == "device":
            torch.cuda._sleep(random.randrange(5_000_000))
        if replay % 3 == 1:
            hr.ring_decode(*other)
        graph.replay()
        outs.append(out.clone())
    return [out.cpu() for out in outs]


class TestCaptured:
    pytestmark = one_gpu

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
    @pytest.mark.parametrize("lens", [(3000, 500), (2048, 0), (1, 70)], ids=str)
    def test_100_replays_with_inputs_rewritten_other_calls_between_and_ranks_late(self, gpus, lens, dtype):
        seed, shape = torch.seed() % 2**30, (32, 8, 128)
        results = gpus.run(replayed, lens, *shape, dtype, seed, 100)
        for replay, (first, second) in enumerate(zip(*results, strict=True)):
            assert torch.equal(first, second), replay
            q, k, v = whole(sum(lens), *shape, dtype, seed + replay)
            starts = (0, lens[0])
            seen = [range(start, start + n) for start, n in zip(starts, counts(lens, replay), strict=True)]
            used = torch.tensor([position for each in seen for position in each], dtype=torch.int64, device="cuda")
            if not len(used):
                assert not first.any(), replay
                continue
            assert_right(first.cuda(), q, k[:, :, used], v[:, :, used])

"""A small LLaMA 3 over two ranks against the same model on one GPU: prefill, decode and generation."""

import copy
import time
from random import Random

import pytest
import torch

pytest.importorskip("fms")

from fms.utils.generation import generate

import fms_models
from gpu import one_gpu, poison, two_gpus
from heteroring.fms import ring_decode_step, ring_generate, ring_prefill
from heteroring.fms.continuation import Continuation
from heteroring.kernels.backend import resolve
from heteroring.planning.rebalance import Rebalancer
from heteroring.ring import consistency
from heteroring.ring.partition import Partition
from ranks import Ranks

pytestmark = one_gpu

SIZE = {"emb_dim": 512, "nheads": 8, "kvheads": 2, "nlayers": 3, "max_expected_seq_len": 2048, "src_vocab_size": 97}
SHARES = [(900, 100), (500, 500), (1000, 0), (0, 1000)]


@pytest.fixture
def fresh_gpus():
    started = []

    def pool(world_size):
        started.append(Ranks(world_size, device="cuda"))
        return started[-1]

    yield pool
    for each in started:
        each.close()


def made(make, dtype):
    return make("llama3", device_type=f"cuda:{torch.cuda.current_device()}", data_type=dtype, **SIZE)


def over_the_ring(rank, world_size, layout, lens, dtype, transport):
    """Logits of the prompt's last token and of 8 tokens decoded after it, fed with token 5."""
    model = made(fms_models.ring, dtype)
    ids = fms_models.prompt(sum(lens), 2)
    logits, cache = ring_prefill(model, ids, Partition(layout, lens), capacity=8, transport=transport)
    results = [logits]
    token = torch.full((2, 1), 5, device="cuda")
    results.extend(ring_decode_step(model, token, cache) for _ in range(8))
    everything = ring_prefill(model, ids, Partition(layout, lens), all_logits=True, transport=transport).logits
    return torch.stack(results, 1).float().cpu(), everything.float().cpu()


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("transport", ["copy-engine", "p2p"])
@pytest.mark.parametrize("lens", SHARES, ids=str)
def test_logits_are_as_accurate_as_on_one_gpu(gpus, layout, dtype, transport, lens):
    """Compared with fp32: the ring's error is at most twice that of one GPU in the same dtype."""
    stock = made(fms_models.stock, dtype)
    exact = copy.deepcopy(stock).float()
    ids = torch.cat((fms_models.prompt(sum(lens), 2), torch.full((2, 8), 5)), 1).cuda()
    with torch.no_grad():
        own, want = (model(ids).float().cpu() for model in (stock, exact))
    first, second = gpus.run(over_the_ring, layout, lens, dtype, transport)
    for mine, other in zip(first, second, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-2, rtol=1e-2)
    for got, tokens in zip(first, (slice(sum(lens) - 1, None), slice(0, sum(lens))), strict=True):
        error, allowed = ((x - want[:, tokens]).norm() for x in (got, own[:, tokens]))
        assert error <= 2 * allowed


def again_and_again(rank, world_size, layout, lens, dtype, transport):
    """The logits of `over_the_ring` in a first call, and whether those of 20 calls on poisoned memory are the same."""
    first, _ = over_the_ring(rank, world_size, layout, lens, dtype, transport)
    same = []
    for _ in range(20):
        poison()
        same.append(torch.equal(over_the_ring(rank, world_size, layout, lens, dtype, transport)[0], first))
    return first, same


@pytest.mark.parametrize("transport", ["copy-engine", "p2p"])
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize("lens", [(250,) * 4, (500, 0, 370, 130), (300, 0, 5, 240, 1, 130, 0, 324)], ids=str)
def test_more_ranks_too(fresh_gpus, layout, transport, lens):
    """As above, where ranks have more steps than slots, and some hold nothing. A difference between calls is a race."""
    dtype, last = torch.bfloat16, slice(sum(lens) - 1, None)
    stock = made(fms_models.stock, dtype)
    ids = torch.cat((fms_models.prompt(sum(lens), 2), torch.full((2, 8), 5)), 1).cuda()
    with torch.no_grad():
        own, want = (model(ids).float().cpu() for model in (stock, copy.deepcopy(stock).float()))
    for got, same in fresh_gpus(len(lens)).run(again_and_again, layout, lens, dtype, transport):
        assert (got - want[:, last]).norm() <= 2 * (own - want)[:, last].norm()
        assert all(same)


def generated(rank, world_size, layout, lens):
    model = made(fms_models.ring, torch.float32)
    return ring_generate(model, fms_models.prompt(sum(lens), 2).cuda(), Partition(layout, lens), 32).cpu()


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize("lens", [(900, 100), (0, 300)], ids=str)
def test_32_greedy_tokens_are_those_of_one_gpu(gpus, layout, lens):
    stock = made(fms_models.stock, torch.float32)
    want = generate(stock, fms_models.prompt(sum(lens), 2).cuda(), max_new_tokens=32, do_sample=False, use_cache=True)
    for ids in gpus.run(generated, layout, lens):
        assert torch.equal(ids, want.cpu())


NEW, LONG = 256, {"max_expected_seq_len": 320}


def replayed(rank, world_size, name, lens, seeds, repetitions=1):
    """Greedy ids of prompts of two sequences, one for each seed, each made by replays of its own CUDA graph.

    The replays alternate over one group, and each rank is late at random. Caches hold NaN behind the prompt, and all
    memory did before; they are full at the end. All of that is repeated.
    """
    model = fms_models.ring(name, device_type="cuda", **LONG)
    random, found = Random(rank), []
    for _ in range(repetitions):
        made = []
        for seed in seeds:
            poison()
            ids = fms_models.prompt(sum(lens), 2, seed).cuda()
            prefill = ring_prefill(model, ids, Partition.zigzag(lens), capacity=NEW - 1)
            for x in (x for layer in prefill.cache.layers for x in layer):
                x[:, :, lens[rank] :] = torch.nan
            made.append(Continuation(model, prefill, NEW, lambda logits: logits.argmax(-1, keepdim=True)))
            made[-1].advance()
            made[-1].capture()
            assert made[-1].captured
        while made[-1].tokens < NEW:
            for each in made:
                if random.random() < 0.1:
                    time.sleep(random.uniform(0, 0.002))
                elif random.random() < 0.1:
                    torch.cuda._sleep(random.randrange(2_000_000))
                each.advance()
        assert all(each._cache.room == 0 for each in made)
        found.append([each.ids.cpu() for each in made])
    return found


def greedy(name, tokens, seed):
    """The ids that stock FMS makes on one GPU."""
    model = fms_models.stock(name, device_type=f"cuda:{torch.cuda.current_device()}", **LONG)
    ids = fms_models.prompt(tokens, 2, seed).cuda()
    return generate(model, ids, max_new_tokens=NEW, do_sample=False, use_cache=True)[:, tokens:].cpu()


@pytest.mark.parametrize("name", fms_models.TINY)
def test_256_captured_tokens_of_one_rank_are_those_of_fms(name):
    ids = fms_models.prompt(37, 2).cuda()
    got = ring_generate(fms_models.ring(name, device_type="cuda", **LONG), ids, max_new_tokens=NEW)
    assert torch.equal(got[:, 37:].cpu(), greedy(name, 37, 1))


@pytest.mark.parametrize(
    "keywords", [{"do_sample": True, "temperature": 1.2, "top_k": 7, "seed": 5}, {"eos_token_id": 0}], ids=str
)
def test_captured_tokens_are_those_made_one_by_one(monkeypatch, keywords):
    model, ids = fms_models.ring("llama3", device_type="cuda", **LONG), fms_models.prompt(40).cuda()
    if "eos_token_id" in keywords:
        keywords = {"eos_token_id": int(ring_generate(model, ids, max_new_tokens=64)[0, 40 + 37])}
    captured = [ring_generate(model, ids, max_new_tokens=64, **keywords) for _ in range(2)]
    monkeypatch.setattr(Continuation, "capture", lambda self: None)
    want = ring_generate(model, ids, max_new_tokens=64, **keywords)
    assert all(torch.equal(got, want) for got in captured)


def steps_without_waiting(rank, world_size):
    """Decode steps after the first under PyTorch's check that the host does not wait for the device."""
    model = made(fms_models.ring, torch.bfloat16)
    _, cache = ring_prefill(model, fms_models.prompt(200), Partition.zigzag((150, 50)), capacity=20)
    token = torch.full((1, 1), 5, device="cuda")
    ring_decode_step(model, token, cache)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(19):
            ring_decode_step(model, token, cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_host_never_waits_between_tokens(gpus):
    gpus.run(steps_without_waiting)


def on_their_own_devices(rank, world_size):
    torch.manual_seed(0)
    architecture, variant, config = fms_models.TINY["llama3"]
    from heteroring.fms import get_model

    model = get_model(architecture, variant, device_type="cuda", **config)
    return {str(parameter.device) for parameter in model.parameters()}


def rebalanced(rank, world_size, dtype):
    """Logits and splits of 1,000 tokens in chunks of 125; attention on rank 1 is slow from the third chunk on."""
    model, compute, splits = made(fms_models.ring, dtype), resolve("auto", torch.device("cuda"), dtype, 64), []
    layers = 0

    def block(q, k, v, **options):
        nonlocal layers
        if options.get("running") is None:  # the first call of a layer
            layers += 1
            if rank == 1 and layers > 2 * SIZE["nlayers"]:
                # 15 ms or more for half a chunk: long against what the host needs to ask for the kernels of a layer
                torch.cuda._sleep(500_000 * q.shape[2])
        return compute(q, k, v, **options)

    class Noted(Rebalancer):
        def observe(self, partition, seconds):
            splits.append((partition.block_lens, seconds))
            super().observe(partition, seconds)

    for _ in range(3):  # the first ones compile, which keeps a rank busy for seconds and changes its share
        splits.clear()
        layers = 0
        logits, _ = ring_prefill(model, fms_models.prompt(1000, 2), chunk=125, rebalance=Noted((1, 1)), block=block)
    return logits.float().cpu(), splits


class Unmoved(Rebalancer):
    """Is told the busy times, and keeps its split."""

    def observe(self, partition, seconds):
        pass


def chunks_queued_ahead(rank, world_size):
    """Whether the GPU still had work whenever the next attention was queued, in chunks that are compared anew.

    Every block takes some 50 ms, which is long against what the host does between any two, also from chunk to chunk.
    """
    model, compute = made(fms_models.ring, torch.bfloat16), resolve("auto", torch.device("cuda"), torch.bfloat16, 64)
    cycles, queued, had_work = 0, [], []

    def block(q, k, v, **options):
        if queued:
            had_work.append(not queued[-1].query())
        result = compute(q, k, v, **options)
        if cycles:
            torch.cuda._sleep(cycles)
            queued.append(torch.cuda.Event())
            queued[-1].record()
        return result

    def prefill():
        for calls in consistency._calls.values():
            calls.kinds.clear()
        ring_prefill(model, fms_models.prompt(1000, 2), chunk=250, rebalance=Unmoved((1, 1)), block=block)
        torch.cuda.synchronize()

    prefill()
    cycles = 100_000_000
    prefill()
    return had_work


class TestTwoGpus:
    pytestmark = two_gpus

    def test_chunks_follow_what_the_gpus_take_by_their_own_clocks(self, gpus):
        dtype = torch.bfloat16
        stock, ids = made(fms_models.stock, dtype), fms_models.prompt(1000, 2).cuda()
        with torch.no_grad():
            own, want = (model(ids)[:, -1].float().cpu() for model in (stock, copy.deepcopy(stock).float()))
        (logits, splits), (other, same) = gpus.run(rebalanced, dtype)
        assert splits == same
        for found in (logits, other):
            assert (found - want).norm() <= 2 * (own - want).norm()
        lens, seconds = splits[2]
        assert seconds[1] > 3 * seconds[0]  # the other's waiting is not counted
        assert splits[4][0][1] < lens[1] / 2

    def test_no_chunk_makes_the_host_wait_until_its_gpu_is_idle(self, gpus):
        for had_work in gpus.run(chunks_queued_ahead):
            assert len(had_work) >= 4 * SIZE["nlayers"] - 1
            assert all(had_work)

    @pytest.mark.parametrize("lens", [(29, 8), (37, 0)], ids=str)
    @pytest.mark.parametrize("name", fms_models.TINY)
    def test_256_captured_tokens_are_those_of_one_gpu(self, gpus, name, lens):
        want = greedy(name, sum(lens), 1)
        for [[ids]] in gpus.run(replayed, name, lens, (1,)):
            assert torch.equal(ids, want)

    def test_two_generations_that_alternate_do_not_meet_20_times(self, gpus):
        want = [greedy("llama3", 37, seed) for seed in (1, 2)]
        for repetitions in gpus.run(replayed, "llama3", (29, 8), (1, 2), 20):
            for each in repetitions:
                assert all(map(torch.equal, each, want))

    def test_cuda_is_the_current_device_of_each_rank(self, gpus):
        assert gpus.run(on_their_own_devices) == [{"cuda:0"}, {"cuda:1"}]

"""The ring on GPUs: both transports against fp64 over the whole sequence, and consecutive calls that must not mix."""

from random import Random

import pytest
import torch

import heteroring as hr
from gpu import of_gpus, one_gpu, poison, random_qkv
from heteroring.kernels.backend import resolve
from heteroring.kernels.hopper_launch import ARCHITECTURE
from heteroring.ring import consistency as agreement
from heteroring.ring.partition import Partition
from heteroring.ring.transport.limits import TRANSPORTS
from heteroring.ring.transport.transport import choose_transport
from oracle import assert_both_accurate, attention64, flash_errors
from ranks import Ranks

SHARES = [(1024, 1024), (1537, 511), (1999, 50), (1000, 0), (0, 777), (1, 1), (3, 130)]
# More steps than a rank has slots, in which some ranks have nothing to send, or to compute.
MORE_SHARES = [
    (512, 512, 512, 512),
    (1537, 0, 511, 130),
    (1, 900, 0, 64),
    (0, 0, 777, 0),
    (1, 1, 1, 1),
    (256,) * 8,
    (700, 0, 5, 640, 1, 130, 0, 300),
]


# New tokens by rank, and earlier ones.
PREFIXES = [
    ((1024, 1024), (2048, 512)),
    ((700, 301), (0, 1234)),
    ((0, 777), (333, 0)),
    ((512, 0, 256, 130), (700, 128, 0, 5)),
]


@pytest.fixture(scope="module")
def pools():
    """Pools of CUDA ranks by world size, started when first asked for."""
    made = {}

    def pool(world_size):
        if world_size not in made:
            made[world_size] = Ranks(world_size, device="cuda")
        return made[world_size]

    yield pool
    for ranks in made.values():
        ranks.close()


@pytest.fixture(scope="module")
def gpus(pools):
    return pools(2)


def ring(rank, world_size, layout, lens, transport, heads, head_dim, dtype, block, seed, calls=1, causal=True):
    """`calls` calls back to back, each on inputs of its own and on poisoned memory, then all results at once."""
    partition = Partition(layout, lens)
    shards = []
    for call in range(calls):
        whole = random_qkv(partition.seq_len, *heads, head_dim, dtype, seed + call)
        shards.append([hr.shard(x, partition, rank, 2) for x in whole])
    poison()
    torch.cuda.synchronize()
    results = [
        hr.ring_attention(q, k, v, partition, causal=causal, transport=transport, block=block) for q, k, v in shards
    ]
    return [(out.cpu(), lse.cpu()) for out, lse in results]


def behind_a_prefix(rank, world_size, layout, lens, prefix_lens, transport, cached, passing, seed):
    """Attention from the tokens behind the first sum(prefix_lens) of a sequence, which lie rank by rank."""
    partition, earlier = Partition(layout, lens), sum(prefix_lens)
    whole = random_qkv(earlier + partition.seq_len, 8, 2, 128, torch.bfloat16, seed)
    start, held = sum(prefix_lens[:rank]), prefix_lens[rank]
    q, k, v = (hr.shard(x[:, :, earlier:], partition, rank, 2) for x in whole)
    prefix = [x[:, :, start : start + held] for x in whole[1:]]
    if cached:
        buffers = [torch.cat(both, 2) for both in zip(prefix, (k, v), strict=True)]
        prefix, (k, v) = [x[:, :, :held] for x in buffers], [x[:, :, held:] for x in buffers]
    poison()
    options = {"prefix": hr.Prefix(*prefix, prefix_lens), "transport": transport, "passing": passing}
    out, lse = hr.ring_attention(q, k, v, partition, **options)
    return out.cpu(), lse.cpu()


def check(results, partition, heads, head_dim, dtype, seed, causal=True):
    """Results [rank][call] of `ring` are as accurate as PyTorch on one GPU."""
    positions = torch.arange(partition.seq_len, device="cuda")
    for call in range(len(results[0])):
        q, k, v = random_qkv(partition.seq_len, *heads, head_dim, dtype, seed + call)
        out, lse = (
            hr.unshard([results[rank][call][i] for rank in range(partition.world_size)], partition, 2).cuda()
            for i in range(2)
        )
        want, want_lse = attention64(q, k, v, *((positions, positions) if causal else ()))
        assert_both_accurate(out, lse, want, want_lse, flash_errors(q, k, v, causal, want, want_lse))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
class TestAnyRanks:
    pytestmark = one_gpu

    @pytest.mark.parametrize("lens", SHARES + MORE_SHARES, ids=str)
    def test_as_accurate_as_torch_on_one(self, pools, transport, layout, lens):
        seed = torch.seed() % 2**30
        arguments = ((8, 2), 128, torch.bfloat16)
        results = pools(len(lens)).run(ring, layout, lens, transport, *arguments, "auto", seed)
        check(results, Partition(layout, lens), *arguments, seed)

    @pytest.mark.parametrize("lens", [(512, 768, 256, 130), (700, 0, 5, 640, 1, 130, 0, 300)], ids=str)
    def test_twenty_calls_of_many_ranks_do_not_meet(self, pools, transport, layout, lens):
        arguments = ((8, 8), 128, torch.bfloat16)
        results = pools(len(lens)).run(ring, layout, lens, transport, *arguments, "auto", 13, 20)
        check(results, Partition(layout, lens), *arguments, 13)

    @pytest.mark.parametrize(
        ("cached", "passing"), [(True, "kv"), (False, "kv"), (True, "q")], ids=["cached", "apart", "queries"]
    )
    @pytest.mark.parametrize(("lens", "prefix_lens"), PREFIXES, ids=str)
    def test_new_tokens_see_all_earlier_ones(self, pools, transport, layout, lens, prefix_lens, cached, passing):
        partition, seed, earlier = Partition(layout, lens), torch.seed() % 2**30, sum(prefix_lens)
        results = pools(len(lens)).run(behind_a_prefix, layout, lens, prefix_lens, transport, cached, passing, seed)
        out, lse = (hr.unshard(list(each), partition, 2).cuda() for each in zip(*results, strict=True))
        q, k, v = random_qkv(earlier + partition.seq_len, 8, 2, 128, torch.bfloat16, seed)
        positions = torch.arange(q.shape[2], device="cuda")
        want = [x[:, :, earlier:] for x in attention64(q, k, v, positions, positions)]
        assert_both_accurate(out, lse, *want, flash_errors(q, k, v, True, *want, first=earlier))


class TestTwoRanksOnce:
    pytestmark = one_gpu

    @pytest.mark.parametrize("transport", TRANSPORTS)
    def test_a_prefix_keeps_the_first_step_fused(self, gpus, transport):
        """Rank 0 then has the first peer's prefix in the same pass as its own keys, and that peer's shard apart."""
        if torch.cuda.get_device_capability() != ARCHITECTURE:
            pytest.skip("needs Hopper GPUs")
        fused = transport == "copy-engine"
        assert gpus.run(passes, "zigzag", (1024, 1024), transport, (512, 1024)) == ([2, 1] if fused else [3, 2])

    @pytest.mark.parametrize("transport", TRANSPORTS)
    @pytest.mark.parametrize("block", ["triton", "cudnn", "flash"])
    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_every_backend(self, gpus, transport, block, head_dim):
        seed = torch.seed() % 2**30
        arguments = ((32, 8), head_dim, torch.float16)
        results = gpus.run(ring, "zigzag", (700, 301), transport, *arguments, block, seed)
        check(results, Partition.zigzag((700, 301)), *arguments, seed)

    @pytest.mark.parametrize("transport", TRANSPORTS)
    def test_without_a_mask(self, gpus, transport):
        arguments = ((4, 4), 128, torch.bfloat16)
        results = gpus.run(ring, "zigzag", (700, 301), transport, *arguments, "auto", 7, 1, False)
        check(results, Partition.zigzag((700, 301)), *arguments, 7, causal=False)

    @pytest.mark.parametrize("transport", TRANSPORTS)
    @pytest.mark.parametrize("lens", [(1100, 437), (1280, 768)], ids=str)
    def test_twenty_calls_in_flight_do_not_meet(self, gpus, transport, lens):
        """An error that moves between repetitions is a race."""
        arguments = ((8, 8), 128, torch.bfloat16)
        results = gpus.run(ring, "zigzag", lens, transport, *arguments, "auto", 11, 20)
        check(results, Partition.zigzag(lens), *arguments, 11)

    @pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
    @pytest.mark.parametrize(
        ("transport", "lens", "behind"),
        [("copy-engine", (1280, 768), 1), ("copy-engine", (1270, 778), 1), ("p2p", (1280, 768), 2)],
    )
    def test_keys_of_a_peer_are_met_in_the_same_pass_as_ones_own(self, gpus, layout, transport, lens, behind):
        if torch.cuda.get_device_capability() != ARCHITECTURE:
            pytest.skip("needs Hopper GPUs")
        in_front = behind if layout == "zigzag" else 1
        assert gpus.run(passes, layout, lens, transport) == [in_front, behind]

    @pytest.mark.parametrize("transport", TRANSPORTS)
    @pytest.mark.parametrize("streams", [1, 3])
    def test_partitions_that_differ_follow_one_another(self, gpus, streams, transport):
        for left, right in zip(*gpus.run(mixed, transport, streams), strict=True):
            assert left
            assert right

    def test_after_a_call_that_ended_half_way_the_next_raises_and_a_new_group_works(self, gpus):
        for said, right in gpus.run(half_way):
            assert "ended half way" in said
            assert right

    @pytest.mark.parametrize("transport", TRANSPORTS)
    def test_a_backend_that_fails_on_one_rank_leaves_the_other_and_the_next_call_right(self, gpus, transport):
        assert gpus.run(failing, transport) == [[None, True], [True, True]]

    @pytest.mark.parametrize("transport", TRANSPORTS)
    def test_the_switch_compares_calls_of_agreed_kinds(self, gpus, transport):
        for said, right in gpus.run(all_compared, transport):
            assert said == "ranks disagree on causal: rank 0 has True, rank 1 has False"
            assert right

    def test_a_graph_that_cannot_record_a_kind_says_so_and_the_kind_can_be_called_then(self, gpus):
        for said in gpus.run(recorded_first):
            assert "cannot record the first ring_attention of its kind" in said

    @pytest.mark.parametrize("transport", TRANSPORTS)
    @pytest.mark.parametrize("lens", [(1500, 548), (1536, 512)], ids=str)
    def test_a_call_can_be_captured_in_a_graph(self, gpus, transport, lens):
        for errors in gpus.run(captured, transport, lens):
            assert max(errors) == 0


@pytest.mark.parametrize("count", of_gpus(2, 4, 8))
def test_gpus_of_one_host_use_the_copy_engine(pools, count):
    assert pools(count).run(transports) == [["copy-engine", "copy-engine", "p2p"]] * count


def recorded_first(rank, world_size):
    """The error of recording a kind of call that was not made before, and whether that call is then right."""
    mine, said = slice(192 * rank, 192 * rank + 192), ""
    q, k, v = random_qkv(384, 3, 3, 64, torch.bfloat16, 0)
    arguments = (*(x[:, :, mine] for x in (q, k, v)), Partition.contiguous((192, 192)))
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            hr.ring_attention(*arguments)
    except RuntimeError as error:
        said = str(error)
    out, lse = hr.ring_attention(*arguments)
    positions = torch.arange(384, device=q.device)
    want, want_lse = attention64(q, k, v, positions, positions)
    check = (want[:, :, mine], want_lse[:, :, mine], flash_errors(q, k, v, True, want, want_lse))
    assert_both_accurate(out, lse, *check)
    return said


def passes(rank, world_size, layout, lens, transport, prefix_lens=None):
    """How often a call runs the block."""
    partition, calls = Partition(layout, lens), []
    block = resolve("triton", torch.device("cuda", torch.cuda.current_device()))

    def counting(compute):
        def counted(*args, **kwargs):
            calls.append(args)
            return compute(*args, **kwargs)

        return counted

    q, k, v = (hr.shard(x, partition, rank, 2) for x in random_qkv(partition.seq_len, 4, 4, 128, torch.bfloat16, 5))
    prefix = prefix_lens and hr.Prefix(*random_qkv(prefix_lens[rank], 4, 4, 128, torch.bfloat16, 6)[1:], prefix_lens)
    hr.ring_attention(q, k, v, partition, prefix=prefix, block=block.wrapped(counting), transport=transport)
    return len(calls)


def transports(rank, world_size):
    group, device = torch.distributed.group.WORLD, torch.device("cuda", rank)
    return [choose_transport(name, group, device) for name in ("auto", "copy-engine", "p2p")]


def mixed(rank, world_size, transport, streams):
    """Whether calls of changing partitions agree with the same calls one by one.

    They are queued without a wait, each on one of `streams` streams, which every rank picks by itself.
    """
    calls = []
    for seed, (layout, lens) in enumerate(
        [
            ("zigzag", (64, 64)),
            ("contiguous", (500, 20)),
            ("zigzag", (0, 90)),
            ("contiguous", (1, 900)),
            ("zigzag", (2000, 48)),
        ]
    ):
        partition = Partition(layout, lens)
        whole = random_qkv(partition.seq_len, 4, 4, 64, torch.bfloat16, seed)
        calls.append((*(hr.shard(x, partition, rank, 2) for x in whole), partition))
    one_by_one = []
    for call in calls:
        one_by_one.append(hr.ring_attention(*call, transport=transport)[0])
        torch.cuda.synchronize()
    own, random = [torch.cuda.Stream() for _ in range(streams)], Random(rank)
    in_flight = []
    for call in calls * 8:
        with torch.cuda.stream(random.choice(own)):
            in_flight.append(hr.ring_attention(*call, transport=transport)[0])
    torch.cuda.synchronize()
    return [torch.equal(want, got) for want, got in zip(one_by_one * 8, in_flight, strict=True)]


def half_way(rank, world_size):
    """The error of the call after one that ended half way, and whether a call over a new group is right."""
    partition = Partition.zigzag((1280, 768))
    shards = [hr.shard(x, partition, rank, 2) for x in random_qkv(partition.seq_len, 4, 4, 128, torch.bfloat16, 3)]
    broken, new = (torch.distributed.new_group([0, 1]) for _ in range(2))
    want = hr.ring_attention(*shards, partition, broken, transport="copy-engine")

    def fails(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hr.ring_attention(*shards, partition, broken, transport="copy-engine", block=fails)
    with pytest.raises(RuntimeError) as error:
        hr.ring_attention(*shards, partition, broken, transport="copy-engine")
    got = hr.ring_attention(*shards, partition, new, transport="copy-engine")
    return str(error.value), all(map(torch.equal, want, got))


def failing(rank, world_size, transport):
    """Whether a call whose block fails on rank 0 is right, None where it raises, and whether the next one is."""
    partition = Partition.zigzag((1280, 768))
    shards = [hr.shard(x, partition, rank, 2) for x in random_qkv(partition.seq_len, 4, 4, 128, torch.bfloat16, 3)]
    want, right = hr.ring_attention(*shards, partition, transport=transport), []

    def fails(*args, **kwargs):
        raise MemoryError

    for block in ("auto" if rank else fails, "auto"):
        try:
            got = hr.ring_attention(*shards, partition, transport=transport, block=block)
            right.append(all(map(torch.equal, want, got)))
        except MemoryError:
            right.append(None)
    return right


def all_compared(rank, world_size, transport):
    """With every call compared, the error if ranks mix two kinds that were agreed on; and whether a graph is right."""
    partition = Partition.zigzag((1280, 768))
    shards = [hr.shard(x, partition, rank, 2) for x in random_qkv(partition.seq_len, 4, 4, 128, torch.bfloat16, 3)]
    want = [hr.ring_attention(*shards, partition, causal=causal, transport=transport)[0] for causal in (True, False)]
    agreement._COMPARE = "every"
    try:
        with pytest.raises(agreement.Disagreement) as error:
            hr.ring_attention(*shards, partition, causal=rank == 0, transport=transport)
        got = hr.CapturedRing(*shards, partition, transport=transport)()[0]
    finally:
        agreement._COMPARE = ""
    return str(error.value), torch.equal(got, want[0])


def captured(rank, world_size, transport, lens):
    """Largest differences between replays of a captured call and eager calls on the same inputs."""
    partition = Partition.zigzag(lens)
    inputs = [
        [hr.shard(x, partition, rank, 2) for x in random_qkv(2048, 4, 4, 128, torch.bfloat16, seed)]
        for seed in range(5)
    ]
    want = [hr.ring_attention(*each, partition, transport=transport)[0] for each in inputs]
    static = [x.clone() for x in inputs[0]]
    call = hr.CapturedRing(*static, partition, transport=transport)
    differences = []
    for each, exact in zip(inputs, want, strict=True):
        for mine, new in zip(static, each, strict=True):
            mine.copy_(new)
        call()
        differences.append((call()[0] - exact).abs().max().item())
    eager = hr.ring_attention(*inputs[0], partition, transport=transport)[0]
    return [*differences, (eager - want[0]).abs().max().item()]


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
class TestOneRank:
    pytestmark = one_gpu

    def test_needs_no_group(self, layout):
        results = ring(0, 1, layout, (1234,), "auto", (32, 8), 128, torch.bfloat16, "auto", 3)
        check([results], Partition(layout, (1234,)), (32, 8), 128, torch.bfloat16, 3)

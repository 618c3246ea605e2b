"""Both transports without a GPU: exact messages, lists of equal length on all ranks, and calls that never mix."""

from contextlib import nullcontext
from functools import partial
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from heteroring.kernels.backend import PendingKVBackend
from heteroring.ring.attention import rotate
from heteroring.ring.partition import Partition
from heteroring.ring.schedule import ring_steps
from heteroring.ring.transport import copy_engine, cuda_driver, peer_access, symmetric_buffer
from heteroring.ring.transport.copy_engine import CopyEngine
from heteroring.ring.transport.messages import messages
from heteroring.ring.transport.p2p import PointToPoint
from heteroring.ring.transport.symmetric_buffer import SymmetricBuffer
from heteroring.ring.transport.transport import AHEAD, choose_transport
from heteroring.ring.validation import check_transport
from heteroring.ring.workload import kv_bytes
from streams import Stream, fake_driver, run_in_some_order, word

PARTITIONS = [
    Partition.zigzag((9, 5)),
    Partition.contiguous((3, 8)),
    Partition.zigzag((0, 7)),
    Partition.contiguous((6, 0)),
    Partition.zigzag((4, 5, 6)),
    Partition.contiguous((2, 0, 5)),
    Partition.zigzag((7, 1, 3, 2)),
]


def posted(rank, world_size, partition, causal):
    """Operations of each step as a GPU rank would post them, and whether the right data arrived."""
    k = torch.full((1, 2, partition.block_lens[rank], 4), float(rank))
    exchange = PointToPoint(k, k + 0.5, partition, causal, torch.distributed.group.WORLD)
    exchange._in_step = True
    lists, right = [], []
    send_receive = torch.distributed.batch_isend_irecv

    def record(operations):
        lists.append([(op.op.__name__, op.group_peer, op.tensor.numel()) for op in operations])
        return send_receive(operations)

    torch.distributed.batch_isend_irecv = record
    try:
        for step in range(1, world_size):
            exchange.start(step)
            if step in messages(partition, rank, causal).receives:
                keys, values = exchange.wait(step)
                owner = (rank - step) % world_size
                right.append(bool((keys == owner).all() and (values == owner + 0.5).all()))
        exchange.close()
    finally:
        torch.distributed.batch_isend_irecv = send_receive
    return lists, right


@pytest.mark.parametrize("partition", [p for p in PARTITIONS if p.world_size == 3], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "dense"])
def test_gpu_ranks_post_one_send_and_one_receive_in_every_step(ranks, partition, causal):
    answers = ranks(3).run(posted, partition, causal)
    for rank, (lists, right) in enumerate(answers):
        assert all(right)
        assert [[name for name, _, _ in posts] for posts in lists] == [["isend", "isend", "irecv", "irecv"]] * 2
        for step, posts in enumerate(lists, 1):
            reader = (rank + step) % 3
            assert posts[:2] == [("isend", reader, elements) for _, _, elements in posts[:2]]
            assert answers[reader][0][step - 1][2:] == [("irecv", rank, elements) for _, _, elements in posts[:2]]
        received = sum(elements for posts in lists for _, _, elements in posts[2:])
        assert 4 * received == kv_bytes(partition, rank, batch=1, kv_heads=2, head_dim=4, itemsize=4, causal=causal)


class Host:
    """All ranks of a group in one process: their streams, and symmetric buffers in the CPU's memory."""

    def __init__(self, world_size, monkeypatch):
        self.rank = 0
        self.computes = [Stream() for _ in range(world_size)]
        self.comm_streams = [Stream() for _ in range(world_size)]
        memory = [torch.zeros(256 + 2 * 4096, dtype=torch.uint8) for _ in range(world_size)]
        self.flags = [each[:256] for each in memory]
        self.buffers, self.kept = [], []
        for rank in range(world_size):
            buffer = SymmetricBuffer.__new__(SymmetricBuffer)
            buffer.capacity, buffer._first, buffer._memory = 4096, 256, memory[rank]
            buffer.rank, buffer._world_size = rank, world_size
            buffer._addresses = [each.data_ptr() for each in memory]
            buffer._last = None
            self.buffers.append(buffer)
        monkeypatch.setattr(symmetric_buffer, "write_flag", fake_driver.write_flag)
        monkeypatch.setattr(symmetric_buffer, "await_flag", fake_driver.await_flag)
        monkeypatch.setattr(copy_engine, "row_copy", fake_driver.row_copy)
        comm_stream = lambda group, device: SimpleNamespace(stream=self.comm_streams[self.rank])  # noqa: E731
        monkeypatch.setattr(copy_engine, "comm_stream_of", comm_stream)
        monkeypatch.setattr(copy_engine, "buffer_of", lambda kind, group, device, nbytes: self.buffers[self.rank])
        monkeypatch.setattr(copy_engine.dist, "get_rank", lambda group: self.rank)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.computes[self.rank])
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def enqueue(host, rank, call, partition, shape, random):
    """Queue one call of one rank. Returns a list that its compute stream fills with whether each read was right."""
    host.rank = rank
    compute, seen = host.computes[rank], []
    size, value = (2, 3, partition.block_lens[rank], 2), 10.0 * call + rank
    k, v = shape(torch.full(size, value)), shape(torch.full(size, value + 0.5))
    if shape is as_they_come:  # the others are copied, here at once
        k.fill_(torch.nan)
        compute.add(lambda: k.fill_(value))
    exchange = CopyEngine(k, v, partition, True, None)
    host.kept.append(exchange)  # CUDA's allocator gives memory back in stream order, the CPU's at once
    for step in range(1, min(partition.world_size, 1 + AHEAD)):
        exchange.start(step)
    compute.add(lambda: None)
    for step in range(1, partition.world_size):
        if step in messages(partition, rank, True).receives:
            owner = (rank - step) % partition.world_size
            count = messages(partition, rank, True).receives[step].keys
            by_itself = step == 1 and random.random() < 0.5
            received = exchange.pending(1, 0) if by_itself else (*exchange.wait(step), 0, None, 6)
            keys, values, _, counter, heads = received

            def read(part, keys=keys, values=values, expected=10.0 * call + owner, count=count, heads=heads):
                right = keys.shape == (2, 3, count, 2)
                for x, want in ((keys, expected), (values, expected + 0.5)):
                    right &= bool((x.reshape(6, -1)[part * heads : (part + 1) * heads] == want).all())
                seen.append(right)

            for repeated in range(3 * 6):  # a kernel reads for a while, head by head
                part = repeated * (6 // heads) // 18
                ready = (lambda part=part, at=counter: word(at) > part) if by_itself else (lambda: True)
                compute.add(partial(read, part), ready)
            if by_itself:
                exchange.consumed(1)
        if step + AHEAD < partition.world_size:
            exchange.start(step + AHEAD)
    exchange.close()
    for x in (k, v):  # the caller may reuse them
        compute.add(lambda x=x: x.fill_(torch.nan))
    return seen


def as_they_come(x):
    return x


def tokens_first(x):
    """Strides as a projection leaves them: [B, n, H, D] in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


orders = st.builds(Random, st.integers(0, 2**32 - 1))
any_order = settings(deadline=None, phases=[Phase.reuse, Phase.generate])  # a smaller seed is no simpler order


@pytest.mark.parametrize("world_size", [2, 3, 4])
@settings(any_order, max_examples=15)
@given(random=orders, shape=st.sampled_from([as_they_come, tokens_first]))
def test_copies_of_calls_in_flight_never_meet_whatever_the_order(world_size, random, shape):
    """Every rank queues all its calls at once; then streams run in some order that their waits allow."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        host = Host(world_size, monkeypatch)
        monkeypatch.setattr(copy_engine, "PART_BYTES", random.choice([64, 1 << 20]))
        choices = [p for p in PARTITIONS if p.world_size == world_size]
        calls = [random.choice(choices) for _ in range(8)]
        seen = [
            enqueue(host, rank, call, p, shape, random) for call, p in enumerate(calls) for rank in range(world_size)
        ]
        run_in_some_order(host.computes + host.comm_streams, random)
    expected = [18 * len(messages(partition, rank, True).receives) for partition in calls for rank in range(world_size)]
    assert [len(each) for each in seen] == expected
    assert all(all(each) for each in seen)
    assert not any(flags.any() for flags in host.flags)


@settings(any_order, max_examples=10)
@given(random=orders)
def test_calls_on_several_streams_follow_one_another(random):
    """A call uses slots and flags that the call before it, on another stream, may still be using."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        host = Host(2, monkeypatch)
        streams, partition, seen = [host.computes, [Stream(), Stream()]], Partition.zigzag((9, 5)), []
        for call in range(6):
            host.computes = random.choice(streams)
            seen += [enqueue(host, rank, call, partition, as_they_come, random) for rank in range(2)]
        run_in_some_order([*streams[0], *streams[1], *host.comm_streams], random)
    assert all(all(each) for each in seen)


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_call_whose_backend_fails_sends_and_takes_all_messages_and_the_next_one_is_right(monkeypatch):
    """Its peer waits for its keys; and the peer's keys would otherwise be taken for those of the next call."""
    random, host, partition = Random(0), Host(2, monkeypatch), Partition.zigzag((9, 5))
    k, closed = torch.zeros(2, 3, 9, 2), []
    steps = {step.index: step for step in ring_steps(partition, 0, True)}
    exchange = CopyEngine(k, k, partition, True, None)
    with pytest.raises(torch.OutOfMemoryError):
        rotate(k, k, k, steps, exchange, 2, 1.0, PendingKVBackend(out_of_memory), lambda: closed.append(True))
    assert closed
    seen = [enqueue(host, 1, 0, partition, as_they_come, random)]
    seen[0].clear()  # zeros were sent
    seen += [enqueue(host, rank, 1, partition, as_they_come, random) for rank in range(2)]
    run_in_some_order([*host.computes, *host.comm_streams], random)
    assert all(all(each) for each in seen[1:])


def test_on_the_cpu_every_name_is_point_to_point():
    for name in ("auto", "p2p", "copy-engine"):
        check_transport(name)
        assert choose_transport(name, None, torch.device("cpu")) == "p2p"


def test_an_unknown_transport_is_refused():
    with pytest.raises(ValueError, match="'pigeon' is unknown: choose auto or one of p2p, copy-engine"):
        check_transport("pigeon")


class Bindings:
    """cuda.bindings.driver with the functions in use; records the last call, and returns `code`."""

    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_DEVICE="device")
    CUstreamWaitValue_flags = SimpleNamespace(CU_STREAM_WAIT_VALUE_EQ="equal")
    CUDA_MEMCPY2D = SimpleNamespace

    def __init__(self, code):
        self.code = code

    def __getattr__(self, name):
        def call(*arguments):
            self.called = name, *arguments
            return (self.code,)

        return call


def ask(name, *arguments):
    """Call the function of that name, and then its result, each with its arguments."""
    function = getattr(cuda_driver, name)
    for each in arguments:
        function = function(*each)


CALLS = {
    ("write_flag", (7, 0x1000, 3)): ("cuStreamWriteValue32", 7, 0x1000, 3, 0),
    ("await_flag", (7, 0x1000, 3)): ("cuStreamWaitValue32", 7, 0x1000, 3, "equal"),
    ("row_copy", (5, 96, 128), (7, 0x2000, 0x1000)): (
        "cuMemcpy2DAsync",
        SimpleNamespace(
            srcMemoryType="device",
            srcDevice=0x1000,
            srcPitch=128,
            dstMemoryType="device",
            dstDevice=0x2000,
            dstPitch=96,
            WidthInBytes=96,
            Height=5,
        ),
        7,
    ),
}


@pytest.mark.parametrize(("asked", "called"), CALLS.items(), ids=[name for name, *_ in CALLS])
def test_the_driver_is_called_as_its_manual_says_and_its_errors_are_raised(monkeypatch, asked, called):
    name, *arguments = asked
    fine, refusing = Bindings(0), Bindings(201)
    monkeypatch.setattr(cuda_driver, "_driver", lambda: fine)
    ask(name, *arguments)
    assert fine.called == called
    monkeypatch.setattr(cuda_driver, "_driver", lambda: refusing)
    with pytest.raises(cuda_driver.DriverError, match=f"{called[0]} failed with CUDA driver error 201"):
        ask(name, *arguments)


@pytest.mark.parametrize("installed", [True, False])
def test_without_bindings_of_the_driver_a_rank_warns_and_all_take_point_to_point(monkeypatch, installed):
    def driver():
        if not installed:
            raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(cuda_driver, "_driver", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=1))
    monkeypatch.setattr(peer_access, "_reaches", lambda *_: True)
    monkeypatch.setattr(peer_access, "_gather", lambda mine, group: [mine])
    missing = pytest.warns(UserWarning, match="needs the package cuda-bindings, which is not installed")
    for name in ("auto", "copy-engine"):
        with nullcontext() if installed else missing:
            chosen = choose_transport(name, SimpleGroup(), torch.device("cuda", 0))
        assert chosen == ("copy-engine" if installed else "p2p")


class SimpleGroup:
    """A process group that serves as a key of a dictionary only."""

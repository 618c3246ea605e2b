"""Ranks out of step: a call that a rank omits, mixes up or cannot finish is an error, never the result of another."""

import runpy
import threading

import pytest
import torch

import heteroring as hr
import verbs
from heteroring.kernels.backend import resolve
from heteroring.ring import consistency as agreement
from heteroring.ring.consistency import MOST_KINDS, Call, Disagreement
from heteroring.ring.partition import Partition
from ranks import RankError

pytestmark = pytest.mark.xdist_group("ranks")

VERBS = [*verbs.ATTENTION, *verbs.MODELS]


@pytest.fixture(params=VERBS)
def verb(request):
    if request.param in verbs.MODELS:
        pytest.importorskip("fms")
    return request.param


def one_calls_another(rank, world_size, verb, other):
    return verbs.call(rank, world_size, other if rank == world_size - 1 else verb)


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_rank_that_calls_another_verb_is_an_error_on_all(ranks, world_size, verb):
    other = "ring_decode" if verb == "ring_attention" else "ring_attention"
    for result in ranks(world_size).attempt(one_calls_another, verb, other):
        assert isinstance(result, RankError)
        assert result.kind == "Disagreement"
        assert "ranks disagree on call: rank 0 has ring_" in result.text
    verbs.assert_right(verb, ranks(world_size).run(verbs.call, verb))


def failing(at, error):
    """A Backend that raises `error` in its call `at`, from 0."""
    calls, compute = iter(range(1000)), resolve("auto", torch.device("cpu"))

    def block(*args, **keywords):
        if next(calls) == at:
            raise error
        return compute(*args, **keywords)

    return block


def fails(rank, world_size, verb, failing_rank, at):
    keywords = {} if verb == "ring_decode_step" else {"block": "auto"}
    if rank == failing_rank:
        keywords["block"] = failing(at, MemoryError("no room"))
    return verbs.call(rank, world_size, verb, **keywords)


@pytest.mark.parametrize(("world_size", "failing_rank", "at"), [(2, 0, 0), (2, 1, 1), (3, 0, 1), (3, 2, 0), (3, 2, 1)])
def test_a_backend_that_fails_on_one_rank_leaves_no_other_waiting(ranks, world_size, failing_rank, at):
    results = ranks(world_size).attempt(fails, "ring_attention", failing_rank, at)
    assert results[failing_rank].kind == "MemoryError"
    for rank, result in enumerate(results):
        if rank != failing_rank:
            verbs.assert_attended(result, "ring_attention", world_size, rank)
    verbs.assert_right("ring_attention", ranks(world_size).run(verbs.call, "ring_attention"))


@pytest.mark.parametrize(("world_size", "failing_rank"), [(2, 0), (3, 2)])
@pytest.mark.parametrize(
    ("verb", "at"),
    [("ring_decode", 0), ("ring_prefill", 1), ("ring_prefill", 3), ("ring_decode_step", 4), ("ring_generate", 2)],
)
def test_where_all_need_what_it_computes_all_of_them_raise(ranks, verb, at, world_size, failing_rank):
    if verb != "ring_decode":
        pytest.importorskip("fms")
    for rank, result in enumerate(ranks(world_size).attempt(fails, verb, failing_rank, at)):
        assert result.kind == "Disagreement"
        assert ("no room" if rank == failing_rank else f"rank {failing_rank}: no room") in result.text
    verbs.assert_right(verb, ranks(world_size).run(verbs.call, verb))


def interrupted(rank, world_size, verb):
    """The error of the call after one in which all ranks were interrupted, and the result of one over a new group."""
    broken, new = (torch.distributed.new_group(list(range(world_size))) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        verbs.call(rank, world_size, verb, group=broken, block=failing(0, KeyboardInterrupt()))
    with pytest.raises(RuntimeError) as error:
        verbs.call(rank, world_size, verb, group=broken)
    return str(error.value), verbs.call(rank, world_size, verb, group=new)


@pytest.mark.parametrize("verb", ["ring_attention", "ring_decode", "ring_prefill"], indirect=True)
def test_after_a_call_that_ended_half_way_the_next_says_so_and_a_new_group_works(ranks, verb):
    said, results = zip(*ranks(2).run(interrupted, verb), strict=True)
    inner = "ring_decode" if verb == "ring_decode" else "ring_attention"
    for each in said:
        assert f"an earlier call over this group, {inner}, ended half way" in each
        assert "make a new group" in each
    verbs.assert_right(verb, results)


THREADS = {"one": 1.0, "other": 3.0}  # name -> what its keys are multiplied by


def from_two_threads(rank, world_size, calls):
    """Results of `calls` calls of each of two threads, None for a Disagreement; each rank begins with another thread.

    Their calls are of one kind, so they differ only in the thread.
    """
    partition = Partition.zigzag(verbs.LENS[world_size])
    q, k, v = (hr.shard(x, partition, rank, 2) for x in verbs.operands("ring_attention", world_size))
    results = {name: [] for name in THREADS}

    def run(name, factor):
        for _ in range(calls):
            try:
                results[name].append(hr.ring_attention(q, k * factor, v, partition)[0])
            except Disagreement:
                results[name].append(None)

    threads = [threading.Thread(target=run, args=each, name=each[0]) for each in THREADS.items()]
    for thread in threads[:: -1 if rank else 1]:
        thread.start()
        if calls == 1:
            thread.join()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("calls", [1, 20])
def test_threads_that_share_a_group_get_their_own_answers_or_errors(ranks, calls):
    answers = ranks(2).run(from_two_threads, calls)
    for name, factor in THREADS.items():
        for pair in zip(*(answer[name] for answer in answers), strict=True):
            for rank, result in enumerate(pair):
                if result is not None:
                    verbs.assert_attended(result, "ring_attention", 2, rank, scale=factor / 8)
    if calls == 1:
        assert all(answer[name] == [None] for answer in answers for name in answer)
    verbs.assert_right("ring_attention", ranks(2).run(verbs.call, "ring_attention"))


def as_on_cuda(kind):
    """A call of `kind` that does nothing, compared as one on CUDA is: once for each kind."""
    with Call("verb", None, None) as call:
        call._device = torch.device("cuda")
        call.agree(lambda: (("kind", kind),))
        return agreement._calls[call.group]


def counted(rank, world_size):
    as_on_cuda("one")
    before = as_on_cuda("one").count
    if rank == 0:
        assert as_on_cuda("one").count == before + 1
    with pytest.raises(Disagreement) as error:
        as_on_cuda("two")
    return before, str(error.value), as_on_cuda("two").count


def test_calls_that_are_not_compared_are_counted(ranks):
    for before, said, after in ranks(2).run(counted):
        assert said == (f"ranks disagree on calls made over the group: rank 0 has {before + 1}, rank 1 has {before}")
        assert after == before + 3


def many_kinds(rank, world_size):
    for kind in range(MOST_KINDS + 50):
        as_on_cuda(kind)
        calls = as_on_cuda("often used")
    return len(calls.kinds), any(("kind", "often used") in kind for kind in calls.kinds)


def test_only_so_many_kinds_are_remembered_and_those_in_use_are_kept(ranks):
    assert ranks(2).run(many_kinds) == [(MOST_KINDS, True)] * 2


def compared(rank, world_size):
    for kind in ("one", "two"):
        as_on_cuda(kind)
    agreement._COMPARE = "every"
    try:
        for kind in ("one", "two"):
            as_on_cuda(kind)
        with pytest.raises(Disagreement) as error:
            as_on_cuda("two" if rank else "one")
    finally:
        agreement._COMPARE = ""
    return str(error.value)


def test_the_switch_compares_every_call(ranks):
    assert ranks(2).run(compared) == ["ranks disagree on kind: rank 0 has one, rank 1 has two"] * 2


def test_the_switch_has_one_value(monkeypatch):
    monkeypatch.setenv("HETERORING_COMPARE", "evry")
    with pytest.raises(ValueError, match="HETERORING_COMPARE is 'evry': it must be 'every', or not be set"):
        runpy.run_path(agreement.__file__)

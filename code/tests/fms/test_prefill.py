"""Prefill of FMS models over gloo ranks: the logits of stock FMS in one process, and no more work than that takes."""

import pytest
import torch

pytest.importorskip("fms")

import fms_models
from heteroring.fms import ring_prefill
from heteroring.ring.partition import LAYOUTS, Partition
from oracle import assert_same_logits

# A large and a small shard, and an empty one in each place that matters: at the back, in front, and with no last token.
SHARES = [(2, (30, 11)), (2, (41, 0)), (2, (0, 41)), (3, (20, 0, 17)), (3, (1, 1, 1))]


@pytest.fixture(scope="module")
def whole():
    """Logits of stock FMS for a prompt, [B, N, V]."""
    models = {}

    def logits(name, ids):
        if name not in models:
            models[name] = fms_models.stock(name)
        with torch.no_grad():
            return models[name](ids)

    return logits


def prefill(rank, world_size, name, layout, lens, batch, all_logits=False):
    model = fms_models.ring(name, layout=layout, block_lens=lens)
    return ring_prefill(model, fms_models.prompt(sum(lens), batch), all_logits=all_logits).logits


@pytest.mark.parametrize(
    ("name", "layout", "world_size", "lens"),
    [
        *(("llama3", layout, *shares) for layout in LAYOUTS for shares in SHARES),
        *((name, "zigzag", *SHARES[0]) for name in fms_models.TINY if name != "llama3"),
    ],
    ids=str,
)
def test_the_last_tokens_logits_are_those_of_one_process(ranks, whole, layout, name, world_size, lens):
    want = whole(name, fms_models.prompt(sum(lens), 2))[:, -1]
    assert want.std() > 0.1
    for logits in ranks(world_size).run(prefill, name, layout, lens, 2):
        assert_same_logits(logits, want)


@pytest.mark.parametrize(
    ("name", "layout"), [("llama3", "contiguous"), *((name, "zigzag") for name in fms_models.TINY)]
)
def test_all_logits_are_those_of_one_process_in_order(ranks, whole, layout, name):
    want = whole(name, fms_models.prompt(37, 2))
    for logits in ranks(3).run(prefill, name, layout, (20, 0, 17), 2, True):
        assert_same_logits(logits, want)


def configured(rank, world_size, name, changes):
    return ring_prefill(
        fms_models.ring(name, **changes), fms_models.prompt(37, 2), Partition.zigzag((20, 3, 14))
    ).logits


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama3", {"attn_bias": True, "mlp_bias": True}),
        ("llama3", {"fused_weights": False}),
        ("llama", {"nheads": 6, "emb_dim": 96, "kvheads": 3, "tie_heads": True}),
        ("granite", {"ntk_scaling": True}),
    ],
    ids=["bias", "unfused", "tied", "ntk"],
)
def test_other_ways_to_configure_a_model_are_as_exact(ranks, name, changes):
    with torch.no_grad():
        want = fms_models.stock(name, **changes)(fms_models.prompt(37, 2))[:, -1]
    for logits in ranks(3).run(configured, name, changes):
        assert_same_logits(logits, want)


def defaults(rank, world_size):
    model = fms_models.ring("llama3")
    logits, cache = ring_prefill(model, fms_models.prompt(41))
    return logits, cache.partition


def test_without_a_partition_the_prompt_is_split_evenly_in_zigzag(ranks, whole):
    want = whole("llama3", fms_models.prompt(41))[:, -1]
    for logits, partition in ranks(2).run(defaults):
        assert partition == Partition.zigzag((21, 20))
        assert_same_logits(logits, want)


def work(rank, world_size, lens, all_logits):
    """Rows that went through the head, the first projection and the block of this rank; messages of logits sent."""
    model = fms_models.ring("llama3")
    rows = {"head": 0, "in_proj": 0}
    model.head.register_forward_pre_hook(lambda _, x: rows.update(head=rows["head"] + x[0].shape[1]))
    first = model.base_model.layers[0].attn.in_proj
    first.register_forward_pre_hook(lambda _, x: rows.update(in_proj=rows["in_proj"] + x[0].shape[1]))
    shared = []
    broadcast = torch.distributed.broadcast

    def counting(tensor, **keywords):
        shared.append((keywords["group_src"], tuple(tensor.shape)))
        return broadcast(tensor, **keywords)

    torch.distributed.broadcast = counting
    try:
        ring_prefill(model, fms_models.prompt(sum(lens)), Partition.zigzag(lens), all_logits=all_logits)
    finally:
        torch.distributed.broadcast = broadcast
    return rows, shared


def test_only_the_owner_of_the_last_token_computes_logits_and_of_that_token_alone(ranks):
    results = ranks(3).run(work, (20, 0, 17), False)
    assert [rows for rows, _ in results] == [
        {"head": 1, "in_proj": 20},
        {"head": 0, "in_proj": 0},
        {"head": 0, "in_proj": 17},
    ]
    assert all(shared == [(0, (1, 97))] for _, shared in results)


def test_with_all_logits_each_rank_computes_those_of_its_tokens(ranks):
    results = ranks(3).run(work, (20, 0, 17), True)
    assert [rows["head"] for rows, _ in results] == [20, 0, 17]
    assert all(shared == [(0, (1, 20, 97)), (2, (1, 17, 97))] for _, shared in results)


def cached(rank, world_size, lens):
    """This rank's cache after a prefill with room for 10 more tokens."""
    model = fms_models.ring("llama3")
    cache = ring_prefill(model, fms_models.prompt(sum(lens), 2), Partition.zigzag(lens), capacity=10).cache
    used = [tuple(x[:, :, : lens[rank]] for x in layer) for layer in cache.layers]
    return used, [tuple(x.shape for x in layer) for layer in cache.layers], cache.held, cache.capacities


def test_the_cache_holds_the_keys_and_values_of_each_ranks_own_tokens(ranks):
    lens = (30, 11)
    with torch.no_grad():
        _, want = fms_models.stock("llama3")(fms_models.prompt(41, 2), use_cache=True)
    for rank, (used, shapes, held, capacities) in enumerate(ranks(2).run(cached, lens)):
        assert held == lens
        assert capacities == (30, 21)
        assert shapes == [((2, 2, capacities[rank] + 1, 16),) * 2] * 2
        positions = torch.from_numpy(Partition.zigzag(lens).positions(rank))
        for mine, layer in zip(used, want, strict=True):
            for got, exact in zip(mine, layer, strict=True):
                torch.testing.assert_close(got, exact[:, :, positions], atol=1e-4, rtol=1e-4)


def test_one_process_needs_no_group(whole):
    ids = fms_models.prompt(41, 2)
    model = fms_models.ring("granite")
    assert_same_logits(ring_prefill(model, ids).logits, whole("granite", ids)[:, -1])
    got = ring_prefill(model, ids, all_logits=True).logits
    assert_same_logits(got, whole("granite", ids))


def test_a_stock_model_needs_no_strategy(whole):
    ids = fms_models.prompt(20)
    got = ring_prefill(fms_models.stock("mistral"), ids).logits
    assert_same_logits(got, whole("mistral", ids)[:, -1])

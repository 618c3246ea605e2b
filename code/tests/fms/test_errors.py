"""Prompts, partitions, models and caches that do not fit: an error on every rank, at once, and the next call works."""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("fms")

from fms.utils.generation import pad_input_ids

import fms_models
from heteroring.fms import ring_decode_step, ring_generate, ring_prefill
from heteroring.ring.partition import Partition
from ranks import RankError

GOOD = {"length": 12, "lens": (8, 4)}


def prefill(rank, world_size, per_rank):
    """Each rank prefills with arguments of its own."""
    case = {"model": {}, "layout": "zigzag", "batch": 1, "prompt": 1, "keywords": {}, **per_rank[rank]}
    model = fms_models.ring("llama3", **case["model"])
    ids = fms_models.prompt(case["length"], case["batch"], case["prompt"])
    return ring_prefill(model, ids, Partition(case["layout"], case["lens"]), **case["keywords"]).logits.shape


def assert_on_all(results, words, kind="Disagreement"):
    for result in results:
        assert isinstance(result, RankError)
        assert result.kind == kind
        assert re.search(words, result.text)


@pytest.mark.parametrize(
    ("both", "words"),
    [
        ({"length": 1, "lens": (1, 0)}, "the prompt has 1 tokens, fewer than the 2 ranks"),
        (
            {"length": 193, "lens": (100, 93)},
            "193 tokens and 0 new ones exceed the model's max_expected_seq_len of 192",
        ),
        ({**GOOD, "keywords": {"capacity": 181}}, "12 tokens and 181 new ones exceed .* of 192"),
        ({**GOOD, "keywords": {"capacity": -1}}, "capacity is -1"),
        ({**GOOD, "keywords": {"capacity": 1.5}}, "capacity is 1.5"),
        ({**GOOD, "keywords": {"capacity": True}}, "capacity is True: there is room for 0 new tokens or more"),
        ({**GOOD, "keywords": {"capacity": np.uint8(181)}}, "12 tokens and 181 new ones exceed .* of 192"),
        ({**GOOD, "keywords": {"all_logits": "no"}}, "all_logits is 'no': it must be True or False"),
        ({"length": 12, "lens": (8, 5)}, r"block_lens \(8, 5\) sum to 13, but the prompt has 12 tokens"),
        ({"length": 12, "lens": (8, 2, 2)}, r"the partition has 3 ranks \(\(8, 2, 2\)\), the group has 2"),
        ({**GOOD, "keywords": {"block": "cuda"}}, "backend 'cuda' is unknown"),
        ({**GOOD, "keywords": {"block": None}}, "backend None is unknown"),
        ({**GOOD, "keywords": {"block": "flash"}}, "backend 'flash' computes on cuda, not on cpu"),
        ({**GOOD, "keywords": {"transport": "pigeon"}}, "transport 'pigeon' is unknown"),
        ({**GOOD, "keywords": {"decode_speeds": (1, 0)}}, "2 ranks need 2 positive numbers"),
        ({**GOOD, "keywords": {"decode_speeds": "21"}}, "decode_speeds are '21': 2 ranks need 2 positive numbers, in"),
        ({**GOOD, "keywords": {"decode_speeds": 2.0}}, r"decode_speeds are 2.0: 2 ranks need 2 positive numbers"),
    ],
    ids=[
        *("short", "long", "capacity", "negative", "fraction", "true", "numpy", "flag", "sum", "ranks"),
        *("block", "no-block", "device", "transport", "speeds", "text", "speed"),
    ],
)
def test_what_breaks_a_rule_is_an_error_on_every_rank(ranks, both, words):
    assert_on_all(ranks(2).attempt(prefill, [both, both]), words)
    assert_on_all(ranks(2).attempt(prefill, [GOOD, both]), words)
    assert ranks(2).run(prefill, [GOOD, GOOD]) == [(1, 97)] * 2


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"model": {"data_type": "bfloat16"}},
            "ranks disagree on dtype: rank 0 has torch.float32, rank 1 has torch.bf",
        ),
        ({"model": {"seed": 5}}, "ranks disagree on weights"),
        ({"model": {"rope_theta": 1e4}}, "disagree on config.rope_theta: rank 0 has 500000.0, rank 1 has 10000.0"),
        ({"model": {"norm_eps": 0.1}}, "ranks disagree on config.norm_eps"),
        ({"batch": 2}, "ranks disagree on batch: rank 0 has 1, rank 1 has 2"),
        ({"length": 13, "lens": (8, 5)}, "ranks disagree on prompt length: rank 0 has 12, rank 1 has 13"),
        ({"lens": (7, 5)}, r"ranks disagree on block_lens: rank 0 has \(8, 4\), rank 1 has \(7, 5\)"),
        ({"layout": "contiguous"}, "ranks disagree on layout"),
        ({"keywords": {"capacity": 3}}, "ranks disagree on capacity"),
        ({"keywords": {"all_logits": True}}, "ranks disagree on all_logits"),
        ({"keywords": {"decode_speeds": (1, 2)}}, "ranks disagree on decode_speeds"),
        ({"keywords": {"transport": "p2p"}}, "ranks disagree on transport"),
        ({"prompt": 9}, "ranks disagree on token ids"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_differs_between_ranks_is_an_error_on_every_rank(ranks, other, words):
    assert_on_all(ranks(2).attempt(prefill, [GOOD, GOOD | other]), words)


def other_models(rank, world_size):
    model = fms_models.ring("llama3" if rank else "mistral")
    return ring_prefill(model, fms_models.prompt(12))


def test_ranks_with_models_of_two_kinds(ranks):
    assert_on_all(
        ranks(2).attempt(other_models), "ranks disagree on architecture: rank 0 has Mistral, rank 1 has LLaMA"
    )


def of_another_kind(rank, world_size, which):
    """Rank 1 passes something that is no prompt or no partition, which would fail only when it is used."""
    arguments = {"input_ids": fms_models.prompt(12), "partition": Partition.zigzag((8, 4))}
    if rank:
        arguments[which] = {"input_ids": arguments["input_ids"].tolist(), "partition": (8, 4)}[which]
    return ring_prefill(fms_models.ring("llama3"), **arguments)


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("input_ids", r"input_ids is of type list: it must be a tensor of token ids \[B, N\]"),
        ("partition", r"the partition is \(8, 4\): it must be a Partition"),
    ],
)
def test_a_prompt_or_partition_of_another_kind_on_one_rank(ranks, which, words):
    assert_on_all(ranks(2).attempt(of_another_kind, which), words)


def unforeseen(rank, world_size):
    """Rank 1 fails in a way that no check looks for."""
    model = fms_models.ring("llama3")
    if rank:
        del model.config
    return ring_prefill(model, fms_models.prompt(12))


def test_an_error_that_nobody_foresaw_leaves_no_rank_waiting(ranks):
    assert_on_all(ranks(2).attempt(unforeseen), "has no attribute 'config'")


def strategy_lens(rank, world_size):
    return ring_prefill(fms_models.ring("llama3", block_lens=(8, 5)), fms_models.prompt(12))


def test_block_lens_of_the_strategy_that_are_not_the_prompts(ranks):
    assert_on_all(ranks(2).attempt(strategy_lens), r"block_lens \(8, 5\) sum to 13, but the prompt has 12 tokens")


def bad_tokens(rank, world_size, token):
    ids = fms_models.prompt(12)
    ids[0, 11] = token
    return ring_prefill(fms_models.ring("llama3"), ids, Partition.contiguous((8, 4)))


@pytest.mark.parametrize("token", [97, -1])
def test_a_token_id_outside_the_vocabulary_on_one_rank(ranks, token):
    """Only the rank that embeds it would notice."""
    assert_on_all(ranks(2).attempt(bad_tokens, token), f"token id {token} is outside the model's vocabulary of 97")


def decode(rank, world_size, per_rank):
    """Each rank takes a step of decode with a cache and a token of its own, after a good step of all."""
    lens, changes, capacity, tokens = per_rank[rank]
    model = fms_models.ring("llama3")
    caches = [
        ring_prefill(model, fms_models.prompt(12), Partition.zigzag(each), capacity=capacity).cache
        for each in dict.fromkeys(each[0] for each in per_rank)
    ]
    other = fms_models.ring("llama3", **changes) if changes else model
    for each in caches:
        ring_decode_step(model, torch.tensor([5]), each)
    cache = next(each for each in caches if each.partition.block_lens == lens)
    return ring_decode_step(other, torch.tensor(tokens), cache).shape


STEP = ((8, 4), None, 2, [7])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([STEP, ((6, 6), None, 2, [7])], r"ranks disagree on block_lens: rank 0 has \(8, 4\), rank 1 has \(6, 6\)"),
        ([STEP, ((8, 4), {"seed": 5}, 2, [7])], "the cache was filled by another model"),
        ([((8, 4), {"seed": 5}, 2, [7])] * 2, "the cache was filled by another model, or by this one with other"),
        ([((8, 4), {"rope_theta": 1e4}, 2, [7])] * 2, "the cache was filled by another model"),
        ([((8, 4), None, 1, [7])] * 2, "the cache is full, with 13 tokens: call ring_prefill with the capacity"),
        (
            [((8, 4), None, 2, [7, 8])] * 2,
            r"token_ids is torch.int64 \(2,\): a cache of 1 sequences takes the id of a token of each",
        ),
        ([((8, 4), None, 2, [7.0])] * 2, r"token_ids is torch.float32 \(1,\)"),
        ([STEP, ((8, 4), None, 2, [8])], "ranks disagree on token ids"),
        ([STEP, ((8, 4), None, 2, [97])], "token id 97 is outside the model's vocabulary"),
    ],
    ids=["partition", "model-of-one", "model", "configuration", "full", "batch", "float", "tokens", "vocabulary"],
)
def test_a_cache_or_token_that_does_not_fit(ranks, steps, words):
    assert_on_all(ranks(2).attempt(decode, steps), words)
    assert ranks(2).run(decode, [STEP, STEP]) == [(1, 97)] * 2


def ahead(rank, world_size):
    """Rank 0 has taken one more step of decode than rank 1 when they meet."""
    _, cache = ring_prefill(fms_models.ring("llama3"), fms_models.prompt(12), capacity=5)
    if rank == 0:
        cache.held = (6, 7)
    return ring_decode_step(fms_models.ring("llama3"), torch.tensor([5]), cache)


def test_caches_of_different_lengths(ranks):
    assert_on_all(ranks(2).attempt(ahead), r"ranks disagree on tokens held: rank 0 has \(6, 7\), rank 1 has \(6, 6\)")


def generate(rank, world_size, per_rank):
    keywords = {"max_new_tokens": 3, **per_rank[rank]}
    return ring_generate(fms_models.ring("llama3"), fms_models.prompt(12), **keywords).shape


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 181}, "12 tokens and 181 new ones exceed"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5: it must be a whole number"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be a positive, finite number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "1"}, "temperature is '1': it must be a positive, finite number"),
        ({"temperature": True}, "temperature is True: it must be"),
        ({"temperature": 10**400}, "temperature is 10+: it must be"),
        ({"do_sample": "no"}, "do_sample is 'no': it must be True or False"),
        ({"max_new_tokens": True}, "max_new_tokens is True: it must be a whole number"),
        ({"seed": 0.5}, "seed is 0.5: it must be a whole number"),
        ({"seed": 2**64}, r"seed is 18446744073709551616: it must be a whole number from 0 to 2\^64 - 1, or None"),
        ({"seed": -1}, "seed is -1: it must be a whole number from 0"),
        ({"seed": False}, "seed is False: it must be a whole number"),
        ({"eos_token_id": 97}, "eos_token_id is 97: it must be a whole number below the vocabulary's 97, or None"),
        ({"top_k": True}, "top_k is True: it must lie between 0"),
        ({"top_k": torch.tensor(True)}, r"top_k is tensor\(True\): it must lie between 0"),
        ({"eos_token_id": [4, 5]}, r"eos_token_id is \[4, 5\]: it must be a whole number"),
        ({"top_k": 98}, "top_k is 98: it must lie between 0 .all tokens. and the vocabulary's 97"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_generation_out_of_range(ranks, other, words):
    assert_on_all(ranks(2).attempt(generate, [other, other]), words)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"eos_token_id": 4}, {"do_sample": True}, {"max_new_tokens": 4}], ids=str
)
def test_generation_that_differs_between_ranks(ranks, other):
    assert_on_all(ranks(2).attempt(generate, [{}, other]), f"ranks disagree on {next(iter(other))}")


def padded(rank, world_size, verb, side, pad_id, lengths, changes):
    prompts = [torch.full((length,), 5) for length in lengths]
    ids, _ = pad_input_ids(prompts, padding_side=side, pad_token_id=pad_id)
    return verb(fms_models.ring("llama3", **changes), ids)


@pytest.mark.parametrize("verb", [ring_prefill, ring_generate])
@pytest.mark.parametrize(
    ("side", "pad_id", "lengths", "changes", "words"),
    [
        ("left", 0, (10, 12), {}, "row 0 of input_ids begins with the pad id 0 2 times, row 1 0 times: padding would"),
        ("right", 0, (12, 9, 10), {}, "row 1 of input_ids ends with the pad id 0 3 times, row 0 0 times"),
        ("left", 7, (12, 11), {"pad_id": 7}, "row 1 of input_ids begins with the pad id 7 1 times, row 0 0 times"),
    ],
    ids=["left", "right", "configured"],
)
def test_prompts_that_were_padded_to_one_length_are_refused(ranks, verb, side, pad_id, lengths, changes, words):
    assert_on_all(ranks(2).attempt(padded, verb, side, pad_id, lengths, changes), words)


@pytest.mark.parametrize(
    ("ids", "changes"),
    [
        ([[0, 3, 4], [5, 6, 0]], {}),
        ([[0, 0, 0]], {}),
        ([[0, 0, 0]] * 2, {}),
        ([[0, 0, 4], [5, 6, 7]], {"pad_id": 8}),
        ([[7, 3, 4], [7, 5, 6]], {"pad_id": 7}),
    ],
    ids=str,
)
def test_a_prompt_may_hold_the_pad_id(ids, changes):
    assert ring_prefill(fms_models.ring("llama3", **changes), torch.tensor(ids)).logits.shape == (len(ids), 97)


@pytest.mark.parametrize(
    "ids",
    [
        torch.ones(12, dtype=torch.long),
        torch.ones(1, 12),
        torch.ones(1, 12, dtype=torch.bool),
        torch.ones(1, 0, dtype=torch.long),
    ],
    ids=["1d", "float", "bool", "0"],
)
def test_what_is_not_token_ids(ids):
    with pytest.raises(ValueError, match=r"it must be a tensor of token ids \[B, N\], all of one length"):
        ring_prefill(fms_models.ring("llama3"), ids)


def test_a_model_that_is_not_fms():
    with pytest.raises(ValueError, match=r"the model is a Linear: .* llama, granite, mistral, mixtral"):
        ring_prefill(torch.nn.Linear(2, 2), fms_models.prompt(12))


def test_dropout_in_training_mode():
    model = fms_models.ring("llama3", p_dropout=0.1)
    ring_prefill(model, fms_models.prompt(12))
    model.base_model.layers[1].train()
    with pytest.raises(ValueError, match=r"training mode with dropout 0.1: call model.eval"):
        ring_prefill(model, fms_models.prompt(12))


def with_sharded_weights(rank, world_size):
    """Random shards of one seed are equal, so comparing them would show no difference."""
    return ring_prefill(fms_models.stock("llama", distributed_strategy="tp"), fms_models.prompt(12))


def test_a_model_whose_weights_are_sharded(ranks):
    assert_on_all(
        ranks(2).attempt(with_sharded_weights), "the model's strategy is TensorParallelStrategy: the ring needs"
    )

"""One small valid call of each public verb over ranks, and values to replace its arguments."""

from functools import cache

import numpy as np
import torch

import heteroring as hr
from heteroring.ring.partition import Partition
from oracle import assert_accurate, assert_same_logits, out_error, rectangle64

LENS = {1: (9,), 2: (6, 3), 3: (5, 0, 4)}
ATTENTION = ("ring_attention", "ring_decode")
MODELS = ("ring_prefill", "ring_decode_step", "ring_generate")

VALUES = {
    "None": lambda good: None,
    "numpy": lambda good: np.ones(3),
    "meta": lambda good: _tensor(good).to("meta"),
    "sparse": lambda good: _tensor(good).to_sparse(),
    "float8": lambda good: _tensor(good).to(torch.float8_e4m3fn),
    "complex": lambda good: _tensor(good) * 1j,
    "scalar": lambda good: torch.tensor(0.5),
    "list": lambda good: [],
    "string": lambda good: "x",
    "1": lambda good: 1,
    "0": lambda good: 0,
    "True": lambda good: True,
    "np.True_": lambda good: np.True_,
    "np.float32": lambda good: np.float32(0.5),
    "np.int64": lambda good: np.int64(2),
    "nan": lambda good: float("nan"),
    "huge": lambda good: 10**400,
    "object": lambda good: object,
}

ARGUMENTS = {
    "ring_attention": (
        *("q", "k", "v", "partition", "group", "causal", "scale", "prefix", "block", "transport", "passing"),
    ),
    "ring_decode": ("q", "k", "v", "group", "scale", "block"),
    "ring_prefill": (
        *("model", "input_ids", "partition", "group", "capacity", "all_logits", "decode_speeds", "chunk", "block"),
        "transport",
    ),
    "ring_decode_step": ("model", "token_ids", "cache"),
    "ring_generate": (
        *("model", "input_ids", "partition", "max_new_tokens", "group", "do_sample", "temperature", "top_k", "seed"),
        *("eos_token_id", "decode_speeds", "block", "transport"),
    ),
}


def _tensor(good):
    return good if isinstance(good, torch.Tensor) else torch.ones(2)


def operands(verb, world_size):
    """q, k and v of the whole sequence, for decode q of one token."""
    g = torch.Generator().manual_seed(world_size)
    tokens = sum(LENS[world_size])
    shapes = ((4, 1 if verb == "ring_decode" else tokens), (2, tokens), (2, tokens))
    return [torch.randn(1, heads, n, 64, generator=g) for heads, n in shapes]


def assert_attended(result, verb, world_size, rank, causal=True, scale=None):
    """Assert the accuracy rule for what ring_attention or ring_decode returned on `rank`."""
    offset = 0 if verb == "ring_attention" and causal else None
    given = (*operands(verb, world_size), None if scale is None else float(scale), offset)
    want, lse = rectangle64(*given)
    own_error = out_error(*given, want, lse.isfinite())
    if verb == "ring_attention":
        want = hr.shard(want, Partition.zigzag(LENS[world_size]), rank, 2)
    assert_accurate(result, want, own_error)


@cache
def model():
    import fms_models

    return fms_models.ring("llama3")


def call(rank, world_size, verb, changes=(), **keywords):
    """The result of `verb` with `changes`, (argument, name among VALUES) pairs, and other keywords put in."""
    partition = Partition.zigzag(LENS[world_size])
    if verb in ATTENTION:
        shards = [hr.shard(x, partition, rank, 2) if x.shape[2] > 1 else x for x in operands(verb, world_size)]
        arguments = dict(zip("qkv", shards, strict=True))
        if verb == "ring_attention":
            arguments["partition"] = partition
        function, answer = getattr(hr, verb), (lambda result: result[0] if verb == "ring_attention" else result)
    else:
        import fms_models
        import heteroring.fms

        ids = fms_models.prompt(partition.seq_len)
        arguments = {"model": model(), "input_ids": ids, "partition": partition}
        function, answer = getattr(heteroring.fms, verb), (lambda result: result)
        if verb == "ring_prefill":
            answer = lambda result: result.logits  # noqa: E731
        elif verb == "ring_generate":
            arguments["max_new_tokens"] = 2
        else:
            cache = heteroring.fms.ring_prefill(**arguments, capacity=1, block=keywords.pop("block", "auto")).cache
            arguments = {"model": model(), "token_ids": torch.tensor([5]), "cache": cache}
    for name, value in changes:
        arguments[name] = VALUES[value](arguments.get(name))
    return answer(function(**(arguments | keywords)))


@cache
def _of_one(verb, world_size):
    """What a model's verb should return, from one process without a ring."""
    import fms_models

    stock, ids = fms_models.stock("llama3"), fms_models.prompt(sum(LENS[world_size]))
    with torch.no_grad():
        if verb == "ring_prefill":
            return stock(ids)[:, -1]
        if verb == "ring_decode_step":
            return stock(torch.cat((ids, torch.tensor([[5]])), 1))[:, -1]
        for _ in range(2):
            ids = torch.cat((ids, stock(ids)[:, -1:].argmax(-1)), 1)
        return ids


def assert_right(verb, results, causal=True, scale=None):
    """The results of all ranks are those of one process."""
    for rank, result in enumerate(results):
        if isinstance(result, Exception):
            raise result
        if verb in ATTENTION:
            assert_attended(result, verb, len(results), rank, causal, scale)
        else:
            assert_same_logits(result, _of_one(verb, len(results)))

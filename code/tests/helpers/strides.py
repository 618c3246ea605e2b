"""Tensors [B, H, n, D] in all memory layouts that a caller may use, and calls of the public verbs with them."""

import torch

import heteroring as hr
from heteroring.ring.partition import Partition

HEADS, KV_HEADS, HEAD_DIM, BATCH = 4, 2, 64, 2


def _overlapping(x):
    """Rows of tokens that overlap: each begins one element after the one before."""
    batch, heads, tokens, head_dim = x.shape
    row = tokens + head_dim
    memory = torch.cat((x.flatten(), x.new_ones(batch * heads * row)))
    return memory.as_strided(x.shape, (heads * row, row, 1, 1))


KINDS = {
    "D before n": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda x: torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0],
    "one number per row": lambda x: (x[..., :1] / 8).expand_as(x),  # smaller, or scores would be 8 times as large
    "one batch": lambda x: x[:1].expand_as(x),
    "one head": lambda x: x[:, :1].expand_as(x),
    "one token": lambda x: x[:, :, :1].expand_as(x),
    "offset": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1), value=torch.nan)[:, :, 3:-1, 1:-2],
    "n before H": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "H before B": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "n first": lambda x: x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
    "overlapping": _overlapping,
}


def called(rank, world_size, verb, block, lens, dtype, device="cpu", keywords=None):
    """A call for each kind of strides: (kind, operands with it, contiguous copies of this rank's q, k and v, result).

    The result of ring_attention is (out, lse), that of ring_decode (out,).
    """
    chosen = ("q", "k", "v", "qkv")
    if block == "triton" and device == "cpu":
        chosen = chosen[-1:]  # the interpreter takes a second for what the others compute in milliseconds
    partition = Partition.zigzag(lens)
    results = []
    for kind, of in KINDS.items():
        for changed in chosen:
            g = torch.Generator().manual_seed(len(results))
            tensors = {}
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                tokens = 1 if verb == "ring_decode" and name == "q" else sum(lens)
                x = torch.randn(BATCH, heads, tokens, HEAD_DIM, generator=g).to(device, dtype)
                if verb == "ring_attention" or name != "q":
                    x = hr.shard(x, partition, rank, 2)
                tensors[name] = of(x) if name in changed else x
            operands = tensors.values()
            if verb == "ring_decode":
                result = (hr.ring_decode(*operands, block=block, **(keywords or {})),)
            else:
                result = hr.ring_attention(*operands, partition, block=block, **(keywords or {}))
            copies = [x.clone(memory_format=torch.contiguous_format).cpu() for x in operands]
            results.append((kind, changed, copies, [x.cpu() for x in result]))
    return results


def joined(answers, verb, lens):
    """The whole q, k, v and result of each call, from the ranks' answers of `called`, and its name."""
    partition = Partition.zigzag(lens)
    for parts in zip(*answers, strict=True):
        kind, changed, copies, result = parts[0]
        whole = [hr.unshard(each, partition, 2) for each in list(zip(*(part[2] for part in parts), strict=True))[-2:]]
        if verb == "ring_decode":
            assert all(torch.equal(part[3][0], result[0]) for part in parts)
            whole.insert(0, copies[0])
        else:
            whole.insert(0, hr.unshard([part[2][0] for part in parts], partition, 2))
            result = [hr.unshard(each, partition, 2) for each in zip(*(part[3] for part in parts), strict=True)]
        yield f"{changed} {kind}", whole, result

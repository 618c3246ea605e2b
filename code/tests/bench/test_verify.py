"""Verification rejects wrong results."""

import pytest
import torch

from heteroring.bench.shape import Shape
from heteroring.bench.verify import WrongResult, verify_hidden_states, verify_product, verify_rows
from heteroring.kernels.backend import resolve
from heteroring.ring.partition import Partition
from heteroring.ring.shard import shard

PARTITION = Partition.zigzag((40, 23))
RANK = 1


@pytest.fixture(params=["float32", "bfloat16"])
def case(request):
    shape = Shape(batch=2, heads=4, kv_heads=2, head_dim=16, dtype=request.param)
    q, k, v = shape.inputs(63, 0, torch.device("cpu"))
    out, lse = resolve("reference", q.device)(q, k, v, scale=shape.scale, causal_offset=0)
    return shard(out, PARTITION, RANK, dim=2), shard(lse, PARTITION, RANK, dim=2), q, k, v, shape.scale


def verify(out, lse, q, k, v, scale):
    verify_rows(out, lse, q, k, v, PARTITION, RANK, scale, "zigzag/even at 63")


def test_the_right_result_passes(case):
    verify(*case)


@pytest.mark.parametrize("row", [0, -1])
def test_a_wrong_row_is_found(case, row):
    out, lse, *rest = case
    out = out.clone()
    out[0, 3, row] *= 1.5
    with pytest.raises(WrongResult, match=r"zigzag/even at 63, rank 1, token \d+: the result is off by"):
        verify(out, lse, *rest)


@pytest.mark.parametrize("shift", [0.1, -0.1])
def test_a_wrong_lse_is_found(case, shift):
    out, lse, *rest = case
    with pytest.raises(WrongResult, match="its LSE by"):
        verify(out, lse + shift, *rest)


def test_nan_is_wrong(case):
    out, lse, *rest = case
    with pytest.raises(WrongResult):
        verify(out * torch.nan, lse, *rest)


def test_a_result_that_misses_a_shard_is_found(case):
    q, k, v, scale = case[2:]
    mine = [shard(x, PARTITION, RANK, dim=2) for x in (q, k, v)]
    local_out, local_lse = resolve("reference", q.device)(*mine, scale=scale, causal_offset=0)
    with pytest.raises(WrongResult):
        verify(local_out, local_lse, q, k, v, scale)


def test_an_empty_shard_has_nothing_to_verify():
    partition = Partition.contiguous((5, 0))
    empty = torch.empty(1, 1, 0, 4)
    x = torch.randn(1, 1, 5, 4)
    verify_rows(empty, empty[..., 0], x, x, x, partition, 1, 1.0, "contiguous/even at 5")


@pytest.fixture(params=["float32", "bfloat16"])
def layer(request):
    whole = torch.randn(2, 63, 24).to(getattr(torch, request.param))
    return shard(whole, PARTITION, RANK, dim=1).clone(), whole


def verify_layer(out, whole):
    verify_hidden_states(out, whole, PARTITION, RANK, "fms zigzag/even at 63")


def test_the_right_layer_passes(layer):
    verify_layer(*layer)


@pytest.mark.parametrize("row", [0, -1])
def test_a_wrong_row_of_a_layer_is_found(layer, row):
    out, whole = layer
    out[1, row] *= 1.5
    with pytest.raises(WrongResult, match=r"fms zigzag/even at 63, rank 1, token \d+: the result is off by"):
        verify_layer(out, whole)


def test_nan_in_a_layer_is_wrong(layer):
    out, whole = layer
    with pytest.raises(WrongResult):
        verify_layer(out * torch.nan, whole)


def test_a_layer_of_other_tokens_is_found(layer):
    out, whole = layer
    with pytest.raises(WrongResult):
        verify_layer(out.roll(1, dims=1), whole)


def test_an_empty_shard_of_a_layer_has_nothing_to_verify():
    whole = torch.randn(1, 5, 4)
    verify_hidden_states(whole[:, :0], whole, Partition.contiguous((5, 0)), 1, "fms contiguous/even at 5")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_right_product_passes_and_one_with_a_tile_left_out_does_not(dtype):
    a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (1, 2))
    out = (a.float() @ b.float()).to(dtype)
    verify_product(out, a, b, "matmul of 512")
    out[128:256, 64:128] = 7
    with pytest.raises(WrongResult, match="matmul of 512: the result is off by"):
        verify_product(out, a, b, "matmul of 512")
    with pytest.raises(WrongResult):
        verify_product(out * torch.nan, a, b, "matmul of 512")

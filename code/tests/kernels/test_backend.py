"""Backends on the CPU against fp64: any rectangle, running results, strides, and the choice of a backend by name."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from heteroring.kernels import reference
from heteroring.kernels.backend import BACKENDS, PendingKVBackend, choose, resolve
from heteroring.kernels.backend_from_core import backend_from_core
from oracle import assert_as_accurate_as_torch, attention64

CPU = torch.device("cpu")


def tensors(m, n, heads=4, kv_heads=4, head_dim=16, dtype=torch.float32, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, h, length, head_dim, generator=g).to(dtype)
        for h, length in ((heads, m), (kv_heads, n), (kv_heads, n))
    )


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("m", "n", "offset"),
    [
        (33, 33, 0),
        (33, 33, 7),
        (33, 33, -13),
        (33, 17, None),
        (17, 63, None),
        (1, 111, None),
        (63, 33, 0),
        (33, 63, 0),
        (20, 50, 30),
        (20, 50, 70),
        (50, 20, -13),
        (50, 20, -60),
        (31, 64, 7),
    ],
)
def test_any_rectangle_is_as_accurate_as_torch(name, dtype, m, n, offset):
    q, k, v = tensors(m, n, kv_heads=2, dtype=dtype)
    out, lse = resolve(name, CPU)(q, k, v, scale=0.3, causal_offset=offset)
    assert out.dtype == dtype
    assert out.shape == q.shape
    assert lse.dtype == torch.float32
    assert lse.shape == q.shape[:-1]
    assert_as_accurate_as_torch(out, lse, q, k, v, 0.3, offset)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("offset", [None, 0, 5])
@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_a_scale_that_is_not_positive_leaves_the_mask_a_mask(name, offset, scale):
    """PyTorch's kernel for the CPU also scales masked scores: minus infinity times 0, or times a negative number."""
    q, k, v = tensors(33, 33)
    result = resolve(name, CPU)(q, k, v, scale=scale, causal_offset=offset)
    assert_as_accurate_as_torch(*result, q, k, v, scale, offset)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("offset", [None, 0, 5])
def test_running_is_merged_into_what_is_there(name, offset):
    compute = resolve(name, CPU)
    q, k, v = tensors(12, 29)
    _, k0, v0 = tensors(12, 8, seed=1)
    out, lse = compute(q, k0, v0, scale=0.25)
    returned = compute(q, k, v, scale=0.25, causal_offset=offset, running=(out, lse))
    assert returned[0] is out
    assert returned[1] is lse
    both = torch.cat((k0, k), 2), torch.cat((v0, v), 2)
    assert_as_accurate_as_torch(out, lse, q, *both, 0.25, None if offset is None else 8 + offset)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize(("m", "n"), [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("offset", [None, 0])
def test_nothing_to_attend_gives_zero_and_minus_infinity(name, m, n, offset):
    q, k, v = tensors(m, n)
    out, lse = resolve(name, CPU)(q, k, v, scale=1.0, causal_offset=offset)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(lse, torch.full(q.shape[:-1], -torch.inf))


def calls_of_the_core(m, n, offset):
    """(queries, keys, causal) of each call of its core that a backend makes for m queries and n keys."""
    calls = []

    def core(q, k, v, scale, causal):
        calls.append((q.shape[2], k.shape[2], causal))
        positions = (torch.arange(q.shape[2]), torch.arange(k.shape[2])) if causal else ()
        out, lse = attention64(q, k, v, *positions, scale=scale)
        return out.float(), lse.float()

    backend_from_core(core)(*tensors(m, n), scale=0.3, causal_offset=offset)
    return calls


@pytest.mark.parametrize(
    ("m", "n", "offset"),
    [
        (33, 63, 0),
        (63, 33, 0),
        (20, 50, 30),
        (50, 20, -13),
        (31, 64, 7),
        (0, 5, 0),
        (5, 0, 0),
        (0, 5, None),
        (5, 0, None),
    ],
)
def test_a_core_meets_dense_and_square_causal_pieces_only(m, n, offset):
    """Libraries align a rectangular mask to different corners; the CPU's alignment happens to hide a wrong call."""
    calls = calls_of_the_core(m, n, offset)
    assert all(queries > 0 and keys > 0 for queries, keys, _ in calls)
    assert all(queries == keys for queries, keys, causal in calls if causal)
    assert bool(calls) == (m > 0 and n > 0)


@pytest.mark.parametrize(("m", "n", "offset"), [(33, 33, 0), (17, 63, None)])
def test_a_square_or_dense_rectangle_is_one_call_and_nothing_is_merged(monkeypatch, m, n, offset):
    monkeypatch.setattr(
        "heteroring.kernels.backend_from_core.merge_", lambda *_: pytest.fail("a whole result was merged")
    )
    assert calls_of_the_core(m, n, offset) == [(m, n, offset == 0)]


def test_strided_inputs_are_read_as_they_are():
    q, k, v = tensors(9, 21)
    spread = torch.stack((k, v), 3).transpose(1, 2).contiguous().transpose(1, 2)
    out, lse = resolve("cpu", CPU)(q, spread[:, :, :, 0], spread[:, :, :, 1], scale=0.25)
    want, want_lse = resolve("cpu", CPU)(q, k, v, scale=0.25)
    assert torch.equal(out, want)
    assert torch.equal(lse, want_lse)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that comes out of any operation."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [None, 0, 5])
@pytest.mark.parametrize("head_dim", [80, 576])
def test_few_scores_of_the_reference_exist_at_a_time(monkeypatch, head_dim, offset, dtype):
    q, k, v = tensors(317, 317, heads=2, kv_heads=1, head_dim=head_dim, dtype=dtype, batch=1)
    most = 2 * 317 * 17 + 1
    monkeypatch.setattr(reference, "MOST_SCORES", most)
    with Largest() as largest:
        out, lse = resolve("reference", CPU)(q, k, v, scale=head_dim**-0.5, causal_offset=offset)
    assert largest.elements <= max(most, q.numel())
    assert_as_accurate_as_torch(out, lse, q, k, v, offset=offset)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_auto_has_a_backend_for_heads_of_any_size_on_a_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    kernel = [(torch.float32, 64), (torch.bfloat16, 80), (torch.float16, 7), (torch.bfloat16, 256)]
    chunks = [(torch.float32, 80), (torch.float32, 512), (torch.bfloat16, 576), (torch.float64, 64)]
    assert {choose("auto", gpu, *each) for each in kernel} == {"triton"}
    assert {choose("auto", gpu, *each) for each in chunks} == {"reference"}


def test_auto_is_the_flash_kernel_on_the_cpu():
    assert choose("auto", CPU) == "cpu"
    assert choose("reference", CPU) == "reference"


def test_a_backend_says_whether_it_takes_pending_kv_also_if_it_is_wrapped():
    backend = PendingKVBackend(max, lambda q, k, v, causal_offset, pending: causal_offset == 0)
    throttled = backend.wrapped(lambda function: min)
    for each, answer in ((backend, 3), (throttled, 1)):
        assert resolve(each, CPU) is each
        assert each(1, 3) == answer
        assert [each.takes_pending(None, None, None, offset, None) for offset in (0, None)] == [True, False]
    assert backend.wrapped(lambda function: function) is backend
    unfused = PendingKVBackend(backend)
    assert not any(resolve(each, CPU).takes_pending(None, None, None, 0, None) for each in ("cpu", unfused, max))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=f"'cuda' is unknown: choose auto or one of {', '.join(BACKENDS)}"):
        resolve("cuda", CPU)

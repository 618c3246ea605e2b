"""Contiguous copies of tensors, in words of 16 bytes where they consist of such words, else by elements."""

import pytest
import torch

from heteroring.ring.transport.contiguous_copy import _in_words, contiguous_copy

VIEWS = {
    "a prefix of every head": (lambda x: x[:, :, :3], True),
    "tokens first": (lambda x: x.transpose(1, 2), True),
    "every other token": (lambda x: x[:, :, ::2], True),
    "a broadcast head": (lambda x: x[:, :1].expand(-1, 5, -1, -1), True),
    "half of each row": (lambda x: x[..., :8], True),
    "nothing": (lambda x: x[:, :, :0], True),
    "rows that are no whole words": (lambda x: x[..., :5], False),
    "rows that begin within a word": (lambda x: x[..., 1:9], False),
    "tokens last": (lambda x: x.transpose(2, 3), False),
    "everything": (lambda x: x, True),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("view", "in_words"), VIEWS.values(), ids=VIEWS)
def test_the_same_elements_contiguous(view, in_words, dtype):
    x = view(torch.randn(2, 3, 7, 16).to(dtype))
    got = contiguous_copy(x)
    assert got.is_contiguous()
    assert got.dtype == dtype
    assert torch.equal(got, x)
    assert _in_words(x) == in_words


def test_what_is_contiguous_is_not_copied():
    x = torch.randn(2, 3, 7, 16)
    assert contiguous_copy(x) is x
    assert contiguous_copy(x[:1]).data_ptr() == x.data_ptr()


def test_memory_that_begins_within_a_word():
    x = torch.randn(3 * 16 + 1)[1:].view(3, 16)
    assert not _in_words(x[:, :8])
    assert torch.equal(contiguous_copy(x[:, :8]), x[:, :8])


def test_a_number_by_itself():
    assert torch.equal(contiguous_copy(torch.tensor(3.0)), torch.tensor(3.0))

"""The attention op "ring" inside FMS's own layer, and options that it refuses because it would not be exact."""

import sys

import pytest
import torch

pytest.importorskip("fms")

from fms.modules.attention import MultiHeadAttention, get_attention_type
from fms.modules.positions import RotaryEmbedding

import fms_models
from heteroring.fms import DecodeStep, Ring
from heteroring.fms.attention import register
from heteroring.ring.partition import Partition
from heteroring.ring.shard import shard, unshard


def layer(**keywords):
    """FMS's attention layer, 64 wide, 4 heads over 2, and hidden states [2, 40, 64] of a whole prompt."""
    torch.manual_seed(0)
    rope = RotaryEmbedding(16, max_seq_len=64)
    rope.compute_freqs_cis(torch.device("cpu"), 64)
    made = MultiHeadAttention(64, 16, 16, 4, 2, position_encoder=rope, **keywords)
    made.reset_parameters()
    with torch.no_grad():
        made.in_proj.qkv_fused.weight.mul_(20)
    return made.eval(), torch.randn(2, 40, 64)


def attend(rank, world_size, layout, lens):
    attention, hidden = layer()
    partition = Partition(layout, lens)
    positions = torch.from_numpy(partition.positions(rank))[None]
    with torch.no_grad():
        mine = shard(hidden, partition, rank, 1)
        return attention(mine, position_ids=positions, attn_name="ring", ring=Ring(partition))


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_a_layer_over_ranks_is_the_layer_in_one_process(ranks, layout):
    attention, hidden = layer()
    with torch.no_grad():
        want = attention(hidden, attn_name="sdpa_causal")
    got = unshard(ranks(2).run(attend, layout, (29, 11)), Partition(layout, (29, 11)), 1)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def with_cache():
    attention, hidden = layer()
    ring = Ring(Partition.zigzag((40,)))
    with torch.no_grad():
        _, cache = attention(hidden, position_ids=torch.arange(40)[None], use_cache=True, attn_name="ring", ring=ring)
    return attention, hidden, ring, cache


def test_without_a_cache_to_write_into_the_keys_and_values_become_one():
    attention, hidden, _, cache = with_cache()
    with torch.no_grad():
        _, want = attention(hidden, position_ids=torch.arange(40)[None], use_cache=True, attn_name="sdpa_causal")
    for got, exact in zip(cache, want, strict=True):
        assert got.shape == (2, 2, 40, 16)
        torch.testing.assert_close(got, exact)


def test_a_cache_that_is_full_is_not_overrun():
    attention, hidden, ring, cache = with_cache()
    step = Ring(ring.partition, step=DecodeStep(torch.tensor([40]), torch.tensor([41])))
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError), match=r"index.* out of"):
        attention(
            hidden[:, :1], position_ids=torch.tensor([[40]]), past_key_value_state=cache, use_cache=True,
            attn_name="ring", ring=step,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "words"),
    [({"use_cache": True}, "was told to decode, and given no cache"), ({}, "cached is 40, and k has 1 keys")],
    ids=["no-cache", "unused"],
)
def test_decode_needs_its_cache(keywords, words):
    attention, hidden = layer()
    ring = Ring(Partition.zigzag((40,)), step=DecodeStep(torch.tensor([40]), torch.tensor([40])))
    with torch.no_grad(), pytest.raises(ValueError, match=words):
        attention(hidden[:, :1], position_ids=torch.tensor([[40]]), attn_name="ring", ring=ring, **keywords)


RING = Ring(Partition.zigzag((40,)))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({}, r"needs ring=heteroring.fms.Ring\(...\)"),
        ({"ring": Partition.zigzag((40,))}, r"needs ring=heteroring.fms.Ring\(...\)"),
        ({"ring": RING, "mask": torch.zeros(2, 40, 40)}, r"takes no mask: .*\(a ragged batch\)"),
        ({"ring": RING, "is_causal_mask": False}, "is causal"),
    ],
    ids=["none", "type", "mask", "dense"],
)
def test_what_would_not_be_exact_is_refused(keywords, words):
    attention, hidden = layer()
    with torch.no_grad(), pytest.raises(ValueError, match=words):
        attention(hidden, position_ids=torch.arange(40)[None], attn_name="ring", **keywords)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"ring": RING, "sliding_window": 16}, "no sliding window, sliding_window is 16"),
        ({"ring": RING, "sinks": torch.zeros(4)}, "no attention sinks"),
    ],
    ids=["window", "sinks"],
)
def test_what_fms_hands_down_with_sinks_is_refused(keywords, words):
    q, k = torch.ones(2, 40, 4, 16), torch.ones(2, 40, 2, 16)
    with pytest.raises(ValueError, match=words):
        get_attention_type(attn_name="ring")["compute_prefill"](q, k, k, 4, 2, 0.0, None, **keywords)


def test_a_layer_with_sinks_is_refused():
    attention, hidden = layer(has_sinks=True)
    with torch.no_grad(), pytest.raises(ValueError, match="no attention sinks"):
        attention(hidden, position_ids=torch.arange(40)[None], attn_name="ring", ring=RING)


def test_dropout_in_training_is_refused():
    attention, hidden = layer(p_dropout=0.2)
    call = {"position_ids": torch.arange(40)[None], "attn_name": "ring", "ring": RING}
    with torch.no_grad():
        attention(hidden, **call)
        with pytest.raises(ValueError, match=r"drops nothing out, the layer's probability is 0.2: call model.eval"):
            attention.train()(hidden, **call)


def test_gradients_are_refused():
    attention, hidden = layer()
    with pytest.raises(ValueError, match=r"forward only: call it under torch.no_grad"):
        attention(hidden, position_ids=torch.arange(40)[None], attn_name="ring", ring=RING)


def test_cross_attention_is_refused():
    q, k = torch.ones(2, 40, 4, 16), torch.ones(2, 30, 2, 16)
    with pytest.raises(ValueError, match=r"40 queries and 30 keys .* not cross-attention"):
        get_attention_type(attn_name="ring")["compute_prefill"](q, k, k, 4, 2, 0.0, None, ring=RING)


def test_a_model_called_without_ring_says_what_is_missing():
    with pytest.raises(ValueError, match=r"needs ring=heteroring.fms.Ring\(...\), as ring_prefill passes it"):
        fms_models.stock("llama3")(fms_models.prompt(5), attn_name="ring")


def test_registering_twice_changes_nothing():
    before = get_attention_type(attn_name="ring")
    register()
    assert get_attention_type(attn_name="ring") is before


def test_without_fms_the_import_says_how_to_get_it(monkeypatch):
    for name in [
        name for name in sys.modules if name == "heteroring.fms" or name.startswith(("heteroring.fms.", "fms"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fms", None)
    with pytest.raises(ValueError, match=r"needs ibm-fms .*: pip install ibm-fms"):
        import heteroring.fms  # noqa: F401

"""Wrapping of modules: every computing function is wrapped once, except the attention."""

from functools import wraps

import pytest
import torch
from torch import nn

pytest.importorskip("fms")

from fms.models.llama import LLaMA, LLaMAConfig
from fms.models.mixtral import Mixtral, MixtralConfig
from fms.modules.attention import MultiHeadAttention
from fms.modules.positions import RotaryEmbedding

from heteroring.bench.wrap_module import wrap_computing


class Recorder:
    """Wraps functions and records which ones are called, and whether one calls another."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.depth = 0

    def wrap(self, function):
        @wraps(function)
        def recorded(*args, **kwargs):
            assert self.depth == 0, f"{function.__qualname__} is called inside {self.called[-1]}"
            self.called.append(function.__qualname__)
            self.depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1

        return recorded


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def layer() -> MultiHeadAttention:
    torch.manual_seed(0)
    return MultiHeadAttention(32, 8, 8, 4, 2, position_encoder=RotaryEmbedding(8, max_seq_len=16))


def test_a_layer_computes_before_and_after_its_attention(recorder):
    wrapped, plain, x = layer(), layer(), torch.randn(2, 5, 32)
    wrap_computing(wrapped, recorder.wrap)
    torch.testing.assert_close(wrapped(x), plain(x), rtol=0, atol=0)
    assert recorder.called == ["FusedQKV.forward", "RotaryEmbedding.adjusted_qk", "Linear.forward"]


def test_a_layer_without_positions_has_nothing_to_rotate(recorder):
    plain = MultiHeadAttention(32, 8, 8, 4, 4)
    wrap_computing(plain, recorder.wrap)
    plain(torch.randn(1, 3, 32))
    assert recorder.called == ["FusedQKV.forward", "Linear.forward"]


def test_a_whole_model_is_wrapped_around_its_attention(recorder):
    model = LLaMA(LLaMAConfig(src_vocab_size=40, emb_dim=32, nheads=4, kvheads=2, nlayers=2, max_expected_seq_len=16))
    model.reset_parameters()
    model.eval()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        plain = model(ids)
        wrap_computing(model, recorder.wrap)
        torch.testing.assert_close(model(ids), plain, rtol=0, atol=0)
    norm, attention = "LayerNormParameterized.forward", ["FusedQKV.forward", "RotaryEmbedding.adjusted_qk"]
    block = [norm, *attention, "Linear.forward", norm, "GatedLinearUnit.forward"]
    assert recorder.called == ["Embedding.forward", *block, *block, norm, "LinearClassificationHead.forward"]


def test_experts_are_wrapped_as_one(recorder):
    model = Mixtral(
        MixtralConfig(src_vocab_size=40, dim=32, hidden_dim=64, nheads=4, kvheads=2, nlayers=1, max_expected_seq_len=16)
    )
    model.reset_parameters()
    wrap_computing(model.eval(), recorder.wrap)
    with torch.no_grad():
        model(torch.arange(6)[None])
    assert recorder.called.count("MOEFeedForward.forward") == 1
    assert recorder.called.count("RotaryEmbedding.adjusted_qk") == 1


def test_a_module_without_attention_is_refused_and_left_alone(recorder):
    linear = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="Linear holds no MultiHeadAttention"):
        wrap_computing(linear, recorder.wrap)
    linear(torch.ones(3))
    assert recorder.called == []

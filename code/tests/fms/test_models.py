"""Loading FMS models for the ring: whole weights on every rank, from random numbers or a checkpoint of stock FMS."""

import pytest
import torch

pytest.importorskip("fms")

from fms.distributed.strategy import DistributedStrategy
from fms.models.llama import LLaMA

import fms_models
from heteroring.fms import (
    ARCHITECTURES,
    RingAttentionStrategy,
    get_model,
    ring_decode_step,
    ring_generate,
    ring_prefill,
)
from heteroring.fms.weights import fingerprint
from heteroring.ring.partition import Partition
from oracle import assert_same_logits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder for the checkpoints of stock models, FMS's own format and Hugging Face's names."""
    return tmp_path_factory.mktemp("checkpoints")


def from_checkpoint(rank, world_size, name, path, source):
    architecture, variant, config = fms_models.TINY[name]
    torch.manual_seed(rank)  # weights that are not loaded would differ
    model = get_model(architecture, variant, str(path), source, block_lens=(30, 11), layout="zigzag", **config)
    return ring_prefill(model, fms_models.prompt(41, 2), all_logits=True).logits


@pytest.mark.parametrize("source", [None, "fms"])
@pytest.mark.parametrize("name", fms_models.TINY)
def test_a_checkpoint_of_stock_fms_gives_its_logits(ranks, checkpoint, name, source):
    stock = fms_models.stock(name, seed=7)
    path = checkpoint / f"{name}.pth"
    torch.save(stock.state_dict(), path)
    with torch.no_grad():
        want = stock(fms_models.prompt(41, 2))
    for logits in ranks(2).run(from_checkpoint, name, path, source):
        assert_same_logits(logits, want)


def hugging_face(model):
    """The state of a LLaMA of FMS under the names, and in the order of rotary dimensions, of Hugging Face."""
    names = {"base_model.embedding": "model.embed_tokens", "base_model.dec_norm": "model.norm", "head": "lm_head"}
    config, state = model.config, {}
    heads, kv_heads, width = config.nheads, config.kvheads, config.emb_dim // config.nheads
    for key, value in model.state_dict().items():
        layer = key.removeprefix("base_model.layers.").partition(".")
        target = f"model.layers.{layer[0]}."
        if key.endswith("in_proj.qkv_fused.weight"):
            parts = value.split([heads * width, kv_heads * width, kv_heads * width])
            for part, count, to in zip(parts, (heads, kv_heads, None), "qkv", strict=True):
                if count:
                    part = part.view(count, -1, 2, config.emb_dim).transpose(1, 2).reshape(part.shape)
                state[f"{target}self_attn.{to}_proj.weight"] = part.contiguous()
        elif key.endswith("ff_sub_layer.wg1_fused.weight"):
            state[f"{target}mlp.gate_proj.weight"], state[f"{target}mlp.up_proj.weight"] = (
                part.contiguous() for part in value.chunk(2)
            )
        elif ".layers." in key:
            within = {"attn.dense": "self_attn.o_proj", "ff_sub_layer.w2": "mlp.down_proj"}
            within |= {"ln": "input_layernorm", "ff_ln": "post_attention_layernorm"}
            state[f"{target}{within[layer[2].removesuffix('.weight')]}.weight"] = value
        else:
            state[f"{names[key.removesuffix('.weight')]}.weight"] = value
    return state


def test_a_checkpoint_with_the_names_of_hugging_face_is_translated_as_fms_does(ranks, checkpoint):
    stock = fms_models.stock("llama3", seed=8)
    path = checkpoint / "hf.pth"
    torch.save(hugging_face(stock), path)
    with torch.no_grad():
        want = stock(fms_models.prompt(41, 2))
    for logits in ranks(2).run(from_checkpoint, "llama3", path, "hf"):
        assert_same_logits(logits, want)


def loaded(rank, world_size):
    model = fms_models.ring("llama3")
    return [type(module).__name__ for module in model.modules()], fingerprint(model)


def test_every_rank_holds_the_same_whole_unmodified_model(ranks):
    stock = fms_models.stock("llama3")
    for modules, weights in ranks(2).run(loaded):
        assert modules == [type(module).__name__ for module in stock.modules()]
        assert weights == fingerprint(stock)


def test_the_strategy_is_one_of_fms_and_leaves_modules_alone():
    strategy = RingAttentionStrategy((30, 11), "contiguous")
    model = LLaMA(fms_models.stock("llama3").config, distributed_strategy=strategy)
    assert isinstance(strategy, DistributedStrategy)
    assert model.base_model.distributed_strategy is strategy
    assert [type(m) for m in model.modules()] == [type(m) for m in fms_models.stock("llama3").modules()]
    assert strategy.partition(41, 2) == Partition.contiguous((30, 11))
    got = fms_models.ring("llama3", block_lens=(30, 11), layout="contiguous").distributed_strategy
    assert (got.block_lens, got.layout) == (strategy.block_lens, strategy.layout)


def test_another_strategy_is_left_to_fms():
    model = fms_models.ring("llama3", distributed_strategy=None)
    assert not isinstance(model.distributed_strategy, RingAttentionStrategy)
    with pytest.raises(ValueError, match="block_lens are of the strategy 'ring', distributed_strategy is None"):
        fms_models.ring("llama3", distributed_strategy=None, block_lens=(3, 4))


@pytest.mark.parametrize(
    "name", ["rign", "Ring", "dp", RingAttentionStrategy()], ids=["misspelt", "capital", "short", "object"]
)
def test_a_strategy_that_nobody_knows_is_refused_before_weights_are_made(name):
    with pytest.raises(
        ValueError, match=r"distributed_strategy is .*: choose 'ring' or one of FMS's, None, '', 'none'"
    ):
        get_model("llama", "3-8b", distributed_strategy=name)


@pytest.mark.slow
def test_a_model_that_torch_compile_wrapped_is_refused_with_the_way_out():
    model = torch.compile(fms_models.ring("llama3"), backend="eager")
    with pytest.raises(ValueError, match=r"the model is an OptimizedModule.*: call model\.compile\(\), which"):
        ring_prefill(model, fms_models.prompt(9))


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Dynamo")
def test_a_model_compiled_in_place_is_as_exact_and_the_ring_is_not_compiled():
    """TorchDynamo would warn about the ring's code. A model compiled at two lengths serves all steps."""
    ids = fms_models.prompt(9, 2)
    plain, model = (fms_models.ring("llama3", nlayers=1) for _ in range(2))
    want = ring_generate(plain, ids, max_new_tokens=20)
    graphs = []
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    assert torch.equal(ring_generate(model, ids, max_new_tokens=6), want[:, :15])
    counts = [len(graphs)]
    for new in (12, 20):
        _, cache = ring_prefill(plain, ids, capacity=new - 1)
        for at in range(9, 9 + new - 1):
            logits = ring_decode_step(model, want[:, at], cache)
            assert torch.equal(logits.argmax(-1), want[:, at + 1])
        counts.append(len(graphs))
    assert 0 < counts[1] == counts[2]


@pytest.mark.parametrize("data_type", ["bfloat16", torch.bfloat16], ids=str)
def test_what_else_fms_takes_is_passed_on(data_type):
    model = fms_models.ring("llama3", data_type=data_type, nlayers=1)
    assert len(model.base_model.layers) == 1
    assert ring_prefill(model, fms_models.prompt(9)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (("lama", "3-8b"), "architecture 'lama': choose one of llama, granite, mistral, mixtral"),
        (
            ("gpt_oss", "20b"),
            "architecture 'gpt_oss': FMS has it, but its attention is not the ring's: choose one of llama",
        ),
        (("llama", "3-9b"), "variant '3-9b' of llama is unknown: choose one of micro, 7b, .*3-8b"),
        (("llama", None), "variant None of llama is unknown"),
    ],
    ids=["unknown", "other", "variant", "none"],
)
def test_an_unknown_model_is_refused_with_those_that_are_known(name, words):
    with pytest.raises(ValueError, match=words):
        get_model(*name)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"layout": "striped"}, "layout 'striped' is unknown: choose one of contiguous, zigzag"),
        ({"block_lens": (3, -1)}, r"block_lens\[1\] is -1"),
        ({"block_lens": ()}, "block_lens is empty"),
    ],
    ids=["layout", "negative", "empty"],
)
def test_a_strategy_that_cannot_be_is_refused_before_weights_are_made(keywords, words):
    with pytest.raises(ValueError, match=words):
        get_model("llama", "3-8b", **keywords)


def test_every_architecture_is_tested():
    assert set(ARCHITECTURES) == {architecture for architecture, _, _ in fms_models.TINY.values()}


def test_weights_are_told_apart_also_after_they_change():
    one, same, other = (fms_models.stock("llama3", seed) for seed in (0, 0, 1))
    before = fingerprint(one)
    assert before == fingerprint(same) != fingerprint(other)
    one.load_state_dict(other.state_dict())
    assert fingerprint(one) == fingerprint(other)

"""Loading FMS's language models for the ring, and checks of models that the ring can run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import fms.models
import torch
import torch.distributed as dist
from fms.distributed.strategy import DistributedStrategy, NotDistributed
from fms.models.granite import Granite
from fms.models.llama import LLaMA
from fms.models.mistral import Mistral
from fms.models.mixtral import Mixtral
from fms.modules.attention import MultiHeadAttention
from torch import nn

from heteroring.fms.strategy import RingAttentionStrategy
from heteroring.words import choices

_CLASSES = {"llama": LLaMA, "granite": Granite, "mistral": Mistral, "mixtral": Mixtral}

ARCHITECTURES = tuple(_CLASSES)
"""FMS architectures whose logits over the ring are tested against those of one process."""

_OF_FMS = (None, "", "none", "tp", "mp", "fsdp", "hsdp", "ddp")
"""FMS's names for its own strategies; FMS treats any other name as no strategy."""

_INFERRED = ("hf_pretrained", "hf_configured")


def get_model(
    architecture: str,
    variant: str | None = None,
    model_path: str | None = None,
    source: str | None = None,
    device_type: str = "cpu",
    data_type: str | torch.dtype | None = None,
    distributed_strategy: str | None = "ring",
    *,
    block_lens: Iterable[int] | None = None,
    layout: str = "zigzag",
    group: dist.ProcessGroup | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`fms.models.get_model` with one more strategy, "ring": every rank loads all weights and holds part of the prompt.

    FMS's Mistral does not apply the sliding window of its configuration, and neither does the ring.

    Args:
        architecture: One of ARCHITECTURES, or FMS's "hf_pretrained" or "hf_configured".
        variant: FMS's name of the variant.
        model_path: Where the checkpoint is. Without it the weights are random, so seed all ranks alike
            (`torch.manual_seed`).
        source: FMS's name of the checkpoint's format.
        device_type: "cpu", or "cuda" for the device that LOCAL_RANK names, else this process's current device.
        data_type: Dtype of the weights.
        distributed_strategy: "ring", or one of FMS's own strategies, for which the call is FMS's alone.
        block_lens: Tokens per rank, as for `RingAttentionStrategy`.
        layout: "zigzag" or "contiguous".
        group: The process group; None stands for all processes.
        **kwargs: Further keywords of `fms.models.get_model`.

    Returns:
        The model in eval mode with a RingAttentionStrategy, ready for `ring_prefill`.

    Raises:
        ValueError: For an architecture or variant that is unknown or not supported by the ring, naming those that are,
            and for a distributed_strategy that is neither "ring" nor one of FMS's.
    """
    if distributed_strategy not in ("ring", *_OF_FMS):
        raise ValueError(
            f"distributed_strategy is {distributed_strategy!r}: choose 'ring' or one of FMS's, "
            + ", ".join(map(repr, _OF_FMS))
        )
    if distributed_strategy != "ring":
        if block_lens is not None:
            raise ValueError(f"block_lens are of the strategy 'ring', distributed_strategy is {distributed_strategy!r}")
        kwargs |= {"distributed_strategy": distributed_strategy, "group": group}
        return fms.models.get_model(architecture, variant, model_path, source, device_type, data_type, **kwargs)
    _check_name(architecture, variant)
    strategy = RingAttentionStrategy(block_lens, layout, group)
    if device_type == "cuda" and "LOCAL_RANK" not in os.environ:
        device_type = f"cuda:{torch.cuda.current_device()}"
    # FMS shards nothing for a strategy that it does not know, so every rank loads whole weights.
    model = fms.models.get_model(architecture, variant, model_path, source, device_type, data_type, "ring", **kwargs)
    check_model(model.eval())
    for part in (model, model.base_model):
        part.distributed_strategy = strategy
    return model


def strategy_of(model: nn.Module) -> RingAttentionStrategy:
    """The model's RingAttentionStrategy, or one of an even zigzag split over all processes where it has none."""
    strategy = getattr(model, "distributed_strategy", None)
    return strategy if isinstance(strategy, RingAttentionStrategy) else RingAttentionStrategy()


def check_model(model: nn.Module) -> None:
    """Raise ValueError unless the ring computes `model` exactly, in its present state."""
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            f"the model is an {type(model).__name__}, as torch.compile(model) returns it: call model.compile(), which "
            "compiles it in place"
        )
    if not isinstance(model, tuple(_CLASSES.values())):
        raise ValueError(
            f"the model is a {type(model).__name__}: the ring runs those models of FMS that it is tested with, "
            f"{', '.join(ARCHITECTURES)}"
        )
    strategy = getattr(model, "distributed_strategy", None)
    if isinstance(strategy, DistributedStrategy) and not isinstance(strategy, RingAttentionStrategy | NotDistributed):
        raise ValueError(
            f"the model's strategy is {type(strategy).__name__}: the ring needs a model whose whole weights every rank "
            "holds on one device, as heteroring.fms.get_model makes it"
        )
    if model.config.p_dropout and any(module.training for module in model.modules()):
        raise ValueError(f"the model is in training mode with dropout {model.config.p_dropout}: call model.eval()")


def attention_layers(model: nn.Module) -> list[MultiHeadAttention]:
    """The attention of every layer, first to last."""
    return [module for module in model.base_model.layers.modules() if isinstance(module, MultiHeadAttention)]


def _check_name(architecture: str, variant: str | None) -> None:
    if architecture in _INFERRED:
        return
    if architecture not in _CLASSES:
        known = "FMS has it, but its attention is not the ring's: " if architecture in fms.models.list_models() else ""
        raise ValueError(f"architecture {architecture!r}: {known}choose {choices(architecture, ARCHITECTURES)}")
    variants = fms.models.list_variants(architecture)
    if variant not in variants:
        raise ValueError(f"variant {variant!r} of {architecture} is unknown: choose {choices(variant, variants)}")

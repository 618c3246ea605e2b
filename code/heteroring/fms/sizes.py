"""The work and the memory that prefill of an FMS model requires of a fleet, without loading its weights."""

from __future__ import annotations

from torch import nn

from heteroring.fms.models import get_model
from heteroring.planning.work import ITEMSIZE, Work

# Architectures whose MLP is one gated product for every token, as Work.language_model assumes.
_GATED = ("llama", "granite", "mistral")


def prefill_work(name: str, dtype: str = "bfloat16") -> Work:
    """The prefill of a model, for planning.

    Args:
        name: Architecture and variant, such as "llama/3-8b".
        dtype: Name of the element type.

    Returns:
        The work.

    Raises:
        ValueError: For a name that is not an architecture and a variant, for those that `get_model` refuses, for
            architectures whose memory is not known, and for an unknown dtype.
    """
    architecture, slash, variant = name.partition("/")
    if not slash:
        raise ValueError(f"model {name!r} is not an architecture and a variant, such as llama/3-8b")
    if dtype not in ITEMSIZE:
        raise ValueError(f"dtype {dtype!r} is unknown: choose one of {', '.join(ITEMSIZE)}")
    model = get_model(architecture, variant, device_type="meta")
    if architecture not in _GATED:
        raise ValueError(f"a plan does not know the memory of {architecture}: choose one of {', '.join(_GATED)}")
    config = model.config
    return Work.language_model(
        name,
        layers=config.nlayers,
        emb_dim=config.emb_dim,
        hidden_dim=model.base_model.layers[0].ff_sub_layer.w2.in_features,
        heads=config.nheads,
        kv_heads=config.kvheads or config.nheads,
        head_dim=getattr(config, "head_dim", config.emb_dim // config.nheads),
        parameters=_count(model),
        layer_parameters=_count(model.base_model.layers[0]),
        dtype=dtype,
    )


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())

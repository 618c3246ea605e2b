"""Properties of a language model by its weights and configuration: its fingerprint, dtype and device."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from weakref import WeakKeyDictionary

import torch
from torch import nn

_SAMPLES = 16

_known: WeakKeyDictionary[nn.Module, tuple[tuple, str]] = WeakKeyDictionary()


def fingerprint(model: nn.Module) -> str:
    """A digest of the configuration and of samples of every parameter, which differs between models almost surely.

    Computed again only after a parameter was replaced or written to, as PyTorch counts it, which leaves out writes to
    `.data`. On CUDA the host then waits for the device.
    """
    state = tuple(
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
        for parameter in model.parameters()
    )
    known = _known.get(model)
    if known is None or known[0] != state:
        known = _known[model] = (state, _digest(model))
    return known[1]


def configuration(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """(field, value) pairs of the model's configuration, by which ranks compare it.

    Weights do not determine the base of rotary positions, epsilons and multipliers. Values that JSON cannot hold, such
    as a function that makes linear layers, are left out, because their text may differ between ranks.
    """
    pairs = []
    for name, value in vars(model.config).items():
        with suppress(TypeError):
            pairs.append((f"config.{name}", json.dumps(value, sort_keys=True)))
    return tuple(pairs)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype in which the model computes: that of its first floating-point parameter, the embedding."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights."""
    return next(model.parameters()).device


@torch.no_grad()
def _digest(model: nn.Module) -> str:
    samples = []
    for parameter in model.parameters():
        flat = parameter.detach().flatten()
        samples.append(flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].double())
    digest = hashlib.blake2b(repr(configuration(model)).encode(), digest_size=8)
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()

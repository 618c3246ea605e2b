"""Wrapping of the functions in which a module computes, to slow or time them, but not its waits for other ranks."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def wrap_computing(module: nn.Module, wrap: Callable[[Callable], Callable]) -> None:
    """Wrap every function in which a module computes, except the attention itself.

    Of each attention layer, the projections before and after the attention and the position encoder are wrapped, once
    where layers share one; of everything else, the largest modules that hold no attention layer. The caller gives the
    attention op a backend that is wrapped in the same way: wrapping the op would also slow its waits for other ranks.
    Arithmetic between a module's children, such as residual additions, is not wrapped.

    The change lasts, and doing it twice wraps twice.

    Args:
        module: A MultiHeadAttention of the Foundation Model Stack, or a module that holds some.
        wrap: Gives the function that replaces a function.

    Raises:
        ValueError: If `module` holds no MultiHeadAttention; nothing is changed then.
    """
    if not _holds_attention(module):
        raise ValueError(f"{type(module).__name__} holds no MultiHeadAttention of the Foundation Model Stack")
    _descend(module, wrap, set())


def _descend(part: nn.Module, wrap: Callable[[Callable], Callable], seen: set[int]) -> None:
    if _is_attention(part):
        _replace(part.in_proj, "forward", wrap, seen)
        if part.position_encoder is not None:
            _replace(part.position_encoder, "adjusted_qk", wrap, seen)
        _replace(part.dense, "forward", wrap, seen)
    elif _holds_attention(part) or isinstance(
        part, nn.ModuleList | nn.ModuleDict
    ):  # a ModuleList is never called itself
        for child in part.children():
            _descend(child, wrap, seen)
    else:
        _replace(part, "forward", wrap, seen)


def _replace(owner: object, name: str, wrap: Callable[[Callable], Callable], seen: set[int]) -> None:
    if id(owner) not in seen:
        seen.add(id(owner))
        setattr(owner, name, wrap(getattr(owner, name)))


def _holds_attention(module: nn.Module) -> bool:
    return any(map(_is_attention, module.modules()))


def _is_attention(module: nn.Module) -> bool:
    from fms.modules.attention import MultiHeadAttention

    return isinstance(module, MultiHeadAttention)

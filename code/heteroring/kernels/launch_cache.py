"""Kernel launches that are prepared once per kind of operands, so that a call takes the host little time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from heteroring.kernels import tensor_map

MOST_PLANS = 4096

_UNSEEN = object()
_Plan = TypeVar("_Plan")


class Plans(dict[Hashable, object]):
    """At most MOST_PLANS cached plans, by everything that they depend on; None for operands that are not covered."""

    def kept(self, key: Hashable, make: Callable[[], _Plan]) -> _Plan:
        """The plan of `key`, which `make` creates the first time."""
        plan = self.get(key, _UNSEEN)
        if plan is _UNSEEN:
            if len(self) >= MOST_PLANS:
                self.clear()
            self[key] = plan = make()
        return plan


@dataclass(frozen=True, slots=True)
class BoundKernel:
    """A compiled kernel with all of its arguments except addresses, both in tensor descriptors and passed directly."""

    run: Callable[..., None]
    descriptors: tuple[object, ...]
    rest: tuple[object, ...]
    device: int | None

    @classmethod
    def of(
        cls, run: Callable[..., None], descriptors: Iterable[object], rest: tuple[object, ...], device: int | None
    ) -> BoundKernel:
        """A bound kernel that does not keep the descriptors' tensors alive; `device` is a CUDA index, None the CPU."""
        return cls(run, tuple(tensor_map.addressed(each, None) for each in descriptors), rest, device)

    def __call__(self, described: Iterable[Tensor], *others: object) -> None:
        """Launch the kernel on tensors like those that the descriptors were made for, then `others`, then the rest."""
        maps = map(tensor_map.addressed, self.descriptors, described)
        if self.device is None or self.device == torch.cuda.current_device():
            self.run(*maps, *others, *self.rest)
        else:
            with torch.cuda.device(self.device):
                self.run(*maps, *others, *self.rest)

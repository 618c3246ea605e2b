"""Launches of kernels that are worked out once for all operands alike, so that a call costs the host little."""

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
    """Plans by everything that they depend on, None where operands are not covered; MOST_PLANS of them at most."""

    def kept(self, key: Hashable, make: Callable[[], _Plan]) -> _Plan:
        """The plan of `key`, from `make` the first time."""
        plan = self.get(key, _UNSEEN)
        if plan is _UNSEEN:
            if len(self) >= MOST_PLANS:
                self.clear()
            self[key] = plan = make()
        return plan


@dataclass(frozen=True, slots=True)
class BoundKernel:
    """A compiled kernel with all of its arguments but addresses, those behind tensor descriptors and others."""

    run: Callable[..., None]
    descriptors: tuple[object, ...]
    rest: tuple[object, ...]
    device: int | None

    @classmethod
    def of(
        cls, run: Callable[..., None], descriptors: Iterable[object], rest: tuple[object, ...], device: int | None
    ) -> BoundKernel:
        """One that outlives the tensors that the descriptors were made for; `device` is a CUDA index, None the CPU."""
        return cls(run, tuple(tensor_map.addressed(each, None) for each in descriptors), rest, device)

    def __call__(self, described: Iterable[Tensor], *others: object) -> None:
        """Launch it on tensors like those that the descriptors were made for, then `others`, then the rest."""
        maps = map(tensor_map.addressed, self.descriptors, described)
        if self.device is None or self.device == torch.cuda.current_device():
            self.run(*maps, *others, *self.rest)
        else:
            with torch.cuda.device(self.device):
                self.run(*maps, *others, *self.rest)

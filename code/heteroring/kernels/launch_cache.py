"""Kernel launches that are prepared once per kind of operands, so that a call takes the host little time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from heteroring.kernels import tensor_map

MOST_LAUNCHES = 4096

_UNSEEN = object()
_Launch = TypeVar("_Launch")


class LaunchCache(dict[Hashable, object]):
    """Up to MOST_LAUNCHES prepared launches by all that they depend on; None for operands that are not covered."""

    def kept(self, key: Hashable, make: Callable[[], _Launch]) -> _Launch:
        """The launch of `key`, which `make` prepares the first time."""
        launch = self.get(key, _UNSEEN)
        if launch is _UNSEEN:
            if len(self) >= MOST_LAUNCHES:
                self.clear()
            self[key] = launch = make()
        return launch


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

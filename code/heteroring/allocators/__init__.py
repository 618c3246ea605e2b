"""Allocators, which decide how many tokens each rank gets: even, uneven, lut, formula and balanced.

The module can be called: `heteroring.allocate(...)` is `allocate(...)`, whichever of the package's submodule
and its function of the same name an import has bound last.
"""

import sys
from types import ModuleType

from heteroring.allocators.costs import Cost, predicted_ms
from heteroring.allocators.dispatch import ALLOCATORS, Allocation, allocate, allocation
from heteroring.allocators.fitting import fit, load_model

__all__ = ["ALLOCATORS", "Allocation", "Cost", "allocate", "allocation", "fit", "load_model", "predicted_ms"]


class _CallableModule(ModuleType):
    __call__ = staticmethod(allocate)


sys.modules[__name__].__class__ = _CallableModule

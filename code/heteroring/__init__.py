"""Heterogeneity-aware context parallelism: ring attention over unequal ranks.

The public names are imported on first use, so that `import heteroring` costs no torch import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heteroring.allocators import allocate
    from heteroring.planning.rebalance import Rebalancer
    from heteroring.ring.attention import ring_attention
    from heteroring.ring.busy import BusyTime
    from heteroring.ring.cuda_graph import CapturedRing
    from heteroring.ring.decode import ring_decode
    from heteroring.ring.partition import Partition
    from heteroring.ring.prefix import Prefix
    from heteroring.ring.shard import shard, unshard

__version__ = "0.1.0"

_HOME = {
    "Partition": "heteroring.ring.partition",
    "Prefix": "heteroring.ring.prefix",
    "shard": "heteroring.ring.shard",
    "unshard": "heteroring.ring.shard",
    "ring_attention": "heteroring.ring.attention",
    "ring_decode": "heteroring.ring.decode",
    "CapturedRing": "heteroring.ring.cuda_graph",
    "allocate": "heteroring.allocators",
    "Rebalancer": "heteroring.planning.rebalance",
    "BusyTime": "heteroring.ring.busy",
}

__all__ = [
    "BusyTime",
    "CapturedRing",
    "Partition",
    "Prefix",
    "Rebalancer",
    "__version__",
    "allocate",
    "ring_attention",
    "ring_decode",
    "shard",
    "unshard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'heteroring' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

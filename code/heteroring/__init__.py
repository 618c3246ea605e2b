"""Heterogeneity-aware context parallelism: ring attention over unequal ranks.

The public names are imported on first use, so that `import heteroring` costs no torch import.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Partition": "heteroring.ring.partition",
    "shard": "heteroring.ring.shard",
    "unshard": "heteroring.ring.shard",
    "ring_attention": "heteroring.ring.attention",
    "ring_decode": "heteroring.ring.decode",
    "CapturedRing": "heteroring.ring.cuda_graph",
    "allocate": "heteroring.allocators",
}

__all__ = ["CapturedRing", "Partition", "__version__", "allocate", "ring_attention", "ring_decode", "shard", "unshard"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'heteroring' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

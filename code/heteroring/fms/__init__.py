"""IBM's Foundation Model Stack over the ring: unmodified language models of `ibm-fms`, prompts sharded over ranks.

Importing this registers the attention op "ring" with FMS. It needs the package `ibm-fms` and raises MissingFMS, a
ValueError, without it.
"""

from heteroring.fms.not_installed import MissingFMS

try:
    from heteroring.fms.attention import DecodeStep, Ring, register
    from heteroring.fms.cache import RingCache
    from heteroring.fms.decode import ring_decode_step
    from heteroring.fms.extend import ring_extend
    from heteroring.fms.generate import ring_generate
    from heteroring.fms.models import ARCHITECTURES, get_model
    from heteroring.fms.prefill import Prefill, ring_prefill
    from heteroring.fms.strategy import RingAttentionStrategy
except ImportError as error:
    if (error.name or "").startswith("heteroring"):
        raise
    raise MissingFMS(f"heteroring.fms needs ibm-fms ({error}): pip install ibm-fms") from error

register()

__all__ = [
    "ARCHITECTURES",
    "DecodeStep",
    "MissingFMS",
    "Prefill",
    "Ring",
    "RingAttentionStrategy",
    "RingCache",
    "get_model",
    "ring_decode_step",
    "ring_extend",
    "ring_generate",
    "ring_prefill",
]

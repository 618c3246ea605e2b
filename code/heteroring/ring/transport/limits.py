"""The transports by name, the number of message buffers, and the size of parts. Torch-free: planning uses it, too."""

TRANSPORTS = ("p2p", "copy-engine")
SLOTS = 2
"""Messages for which a rank has buffers: one is read while the next one arrives."""
PART_BYTES = 8 << 20
"""Approximate size of a part of a copied message: a part has a fixed cost, which is that of copying some 2 MB."""

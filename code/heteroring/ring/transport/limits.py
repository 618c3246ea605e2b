"""The transports by name, the messages that a rank has room for, and their parts. Torch-free: planning uses it, too."""

TRANSPORTS = ("p2p", "copy-engine")
SLOTS = 2
"""Messages that a rank has room for: one is read while the next one arrives."""
PART_BYTES = 8 << 20
"""Approximate size of a part of a copied message: a part has a fixed cost, which is that of copying some 2 MB."""

"""A whole language model over the ring: time to first token, decode, a trace of one layer."""

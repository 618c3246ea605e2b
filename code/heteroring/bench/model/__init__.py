"""Benchmarks of whole language models over the ring: time to first token, decode, and a trace of one layer."""

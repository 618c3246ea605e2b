"""Microbenchmarks of single operators: attention, decode, matrix products, and the overlap of compute and transfer."""

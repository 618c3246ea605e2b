"""Kernels: backends that attend to one rectangle of queries and keys, the merge of partial results, and products."""

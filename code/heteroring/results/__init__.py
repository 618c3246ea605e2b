"""Results in files: rows, provenance, metrics and tables. Imports no torch, allocator or benchmark.

The names that rows use, of strategies, operators and throttles, are here, too.
"""

"""Measurements: jobs of profile, ring and language-model benchmarks, timed on launched ranks and written as rows.

The command `heteroring bench` is bench.ring; scripts for one kernel or operator are in microbench.
"""

"""Measurements: jobs of profile, ring and language-model benchmarks, timed on launched ranks and written as rows."""

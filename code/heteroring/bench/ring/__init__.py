"""Benchmarks of ring attention under one throttle setting: the job, its modules, and the run."""

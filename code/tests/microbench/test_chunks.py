"""The microbenchmark of chunks, on two CPU ranks."""

import pytest

from heteroring.microbench import chunks

ARGUMENTS = ["--platform", "cpu", "--throttle", "pacing", "--percentages", "100,50"]
ARGUMENTS += ["--seq-len", "150", "--chunk", "64"]
ARGUMENTS += ["--heads", "2", "--kv-heads", "1", "--head-dim", "16", "--dtype", "float32", "--repetitions", "2"]


def test_every_chunk_is_measured_behind_the_earlier_ones_and_all_together(jobs_on_pools):
    lines = list(chunks.run(ARGUMENTS))
    assert [(line.split, line.chunk, line.earlier) for line in lines] == [
        (split, chunk, earlier)
        for split in ("even", "proportional")
        for chunk, earlier in ((64, 0), (64, 64), (22, 128), (None, 0))
    ]
    for *parts, together in (lines[:4], lines[4:]):
        assert [sum(line.block_lens) for line in parts] == [64, 64, 22]
        assert min(line.bound_ms for line in parts) > 0
        # Each chunk's rate times its time is its part of the whole prompt's pairs.
        assert sum(line.rate * line.latency_ms for line in parts) == pytest.approx(together.bound_ms)
        assert f"{together.latency_ms / together.bound_ms:.3f}" in str(together)

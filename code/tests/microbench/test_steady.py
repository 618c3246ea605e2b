"""The microbenchmark of rebalancing at constant speeds, on two CPU ranks."""

from heteroring.microbench import steady


def test_both_prefills_are_timed(jobs_on_pools):
    line = steady.run(["--platform", "cpu", "--seq-len", "200", "--chunk", "64", "--repetitions", "2"])
    assert min(line.fixed_ms, line.rebalanced_ms) > 0
    assert str(line).endswith(f"{line.rebalanced_ms / line.fixed_ms:.3f} of fixed")

"""The microbenchmark of overlap, on two CPU ranks."""

from heteroring.microbench.overlap import Line, run


def test_every_split_is_measured_by_every_transport_that_there_is(jobs_on_pools):
    arguments = ["--platform", "cpu", "--throttle", "pacing", "--percentages", "100,50", "--seq-lens", "96,256"]
    arguments += ["--heads", "2", "--kv-heads", "1", "--head-dim", "16", "--dtype", "float32", "--repetitions", "2"]
    lines = list(run(arguments))
    assert [(line.seq_len, line.split, line.way) for line in lines] == [
        (seq_len, split, "p2p") for seq_len in (96, 256) for split in ("even", "proportional")
    ]
    for line in lines:
        assert sum(line.block_lens) == line.seq_len
        assert min(line.latency_ms, line.compute_ms, line.bound_ms) > 0
    assert lines[0].block_lens == (48, 48)


def test_a_line_says_what_is_exposed_and_how_near_the_bound_it_is():
    text = str(Line(65536, "proportional", (43008, 22528), "copy-engine", 40.0, 39.2, 38.0))
    assert "exposed   2.0%" in text
    assert "bound  0.950" in text

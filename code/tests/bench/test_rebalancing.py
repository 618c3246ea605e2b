"""The rebalancing benchmark: rows of every split, the table, and jobs that are refused before they start."""

import re
from dataclasses import asdict
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.testing import CliRunner

pytest.importorskip("fms")

from heteroring.bench import rebalancing
from heteroring.bench.rebalancing import RebalancingJob
from heteroring.bench.verify import WrongResult
from heteroring.cli.main import app
from heteroring.planning.rebalance import Rebalancer
from heteroring.results.model_metrics import chunk_totals
from heteroring.results.model_rows import CHUNK_SPLITS, ChunkRow
from heteroring.results.rows import read_rows


def test_every_split_is_measured_chunk_by_chunk_and_written(jobs_on_pools, monkeypatch, tmp_path):
    found, launch = [], RebalancingJob.launch

    def noted(*args, **options):
        found.extend(launch(*args, **options))
        return found

    monkeypatch.setattr(RebalancingJob, "launch", noted)
    output = tmp_path / "rebalancing.csv"
    words = [
        "demo",
        "--rebalance",
        "--repetitions",
        "1",
        "--seq-len",
        "250",
        "--chunk",
        "32",
        "--percentage",
        "20",
        "--output",
        str(output),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = read_rows(output, ChunkRow)
    assert output.with_suffix(".json").is_file()
    by_split = {split: [row for row in rows if row.split == split] for split in CHUNK_SPLITS}
    for split, chunks in by_split.items():
        assert re.search(rf"{split} .* \d \s*\d\.\d\d\s*\n", result.stdout)
        assert [row.chunk for row in chunks] == list(range(8))
        assert [row.percentages[1] for row in chunks] == [100, 100, 20, 20, 20, 100, 100, 100]
        assert [row.seq_len for row in chunks] == [32] * 7 + [26]
        for row in chunks:
            assert 0 < max(row.busy_ms) <= row.latency_ms
    assert {row.block_lens for row in by_split["contiguous/even"][:7]} == {(16, 16)}
    assert len({row.block_lens for row in by_split["zigzag/balanced"][:7]}) == 1
    known = [row.block_lens[1] for row in by_split["oracle"]]
    assert known[2] == known[4] < known[0] == known[5]
    totals = chunk_totals(pd.DataFrame(map(asdict, rows)))
    assert list(totals.index) == list(CHUNK_SPLITS)
    assert totals.of_oracle["oracle"] == 1
    assert totals.latency_ms["oracle"] == pytest.approx(sum(row.latency_ms for row in by_split["oracle"]))
    assert totals.splits["oracle"] == 2
    assert set(found[0].errors) == set(CHUNK_SPLITS)
    assert all(0 <= error < 1e-3 for error in found[0].errors.values())


def closed_loop(job, rebalanced):
    """The job's time where a rank's is (44 + tokens (1 + 4 chunk / chunks)) / speed, as measured on two CPU cores."""
    total, split = 0.0, Rebalancer((1, 1))
    for chunk in range(job.chunks):
        speeds = tuple(percentage / 100 for percentage in job.percentages_of(chunk))

        def seconds(lens, speeds=speeds, growth=1 + 4 * chunk / job.chunks):
            return [(44 + tokens * growth) / speed for tokens, speed in zip(lens, speeds, strict=True)]

        if rebalanced:
            partition = split.partition(job.chunk)
            split.observe(partition, seconds(partition.block_lens))
            total += max(seconds(partition.block_lens))
        else:
            total += min(max(seconds((job.chunk - tokens, tokens))) for tokens in range(1, job.chunk))
    return total


def test_the_demo_has_chunks_enough_to_follow_within_0_90_of_the_oracle():
    job = rebalancing.demo_job("cpu", "cpu")
    assert closed_loop(job, rebalanced=False) / closed_loop(job, rebalanced=True) >= 0.9


def test_wrong_logits_are_an_error(monkeypatch):
    found = [SimpleNamespace(errors={"oracle": 9e-4, "rebalanced": 2e-3})] * 2
    monkeypatch.setattr(RebalancingJob, "launch", lambda *_, **__: found)
    with pytest.raises(WrongResult, match=r"logits of split rebalanced differ from those of rank 0 alone by 0\.002 of"):
        rebalancing.run(rebalancing.demo_job("cpu", "cpu", prompt_len=64, chunk=8))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rebalance", "--chunk", "1"], "chunk is 1: 2 ranks need a token each"),
        (["--rebalance", "--chunk", "0"], "chunk is 0"),
        (["--rebalance", "--percentage", "0"], "percentage 0 is not an integer from 1 to 100"),
        (["--rebalance", "--seq-len", "64", "--chunk", "32"], "the last rank is slow from chunk 0 to 1 of 2"),
        (["--rebalance", "--seq-len", "0"], "prompt_len is 0"),
        (["--rebalance", "--repetitions", "0"], "repetitions is 0"),
        (["--rebalance", "--platform", "gpu"], "device kind 'gpu' needs a CUDA GPU for each rank, 2"),
        (["--rebalance", "--output", "rows.txt"], "output rows.txt does not end in .csv"),
        (["--rebalance", "--throttle", "mps"], "throttle 'mps' cannot change in a run: choose pacing, green or"),
        (["--rebalance", "--throttle", "green"], "throttle 'green' works on gpu, not on 'cpu'"),
        (["--chunk", "64"], "--chunk, --platform, --throttle, --label, --repetitions and --output go with --rebalance"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(options, says):
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 2
    assert says in result.stderr

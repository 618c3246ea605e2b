"""Two tiny jobs through the command line, from profile to tables: every cell once per repetition, with right values."""

import csv
import json
from collections import Counter
from itertools import groupby, product

import pandas as pd
import pytest

from command_line import heteroring
from heteroring.bench.ring import run as ring_run
from heteroring.bench.ring.job import RingJob, cells_of
from heteroring.bench.shape import Shape
from heteroring.results.metrics import cells
from heteroring.results.results import Results
from heteroring.results.rows import Measurement, ProfileRow, read_rows
from heteroring.results.strategy import name_of
from heteroring.ring.partition import Partition
from heteroring.ring.workload import kv_bytes

LENGTHS = (64, 128)
PERCENTAGES = (50, 100)
STRATEGIES = ("contiguous/even", "contiguous/lut", "contiguous/formula", "zigzag/even", "zigzag/balanced")
REPETITIONS = 2
SHAPE = ["--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--repetitions", str(REPETITIONS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, measuring_on_pools):
    """A platform's folder after profile, fit, bench and aggregate."""
    folder = tmp_path_factory.mktemp("data") / "cpu"
    with measuring_on_pools():
        measure(folder)
    return folder


def measure(folder):
    lengths = ",".join(map(str, LENGTHS))
    for percentage in PERCENTAGES:
        path = folder / f"profile/pct-{percentage:03d}.csv"
        heteroring(
            *("profile", "--percentage", percentage, "--sizes", "32,64", "--seq-lens", lengths),
            *(*SHAPE, "--output", path),
        )
    profiles = sorted((folder / "profile").glob("*.csv"))
    for kind, source in (("lut", "matmul"), ("formula", "matmul"), ("cost", "attention")):
        model = folder / f"models/{kind}-{source}.json"
        heteroring("fit", "--kind", kind, "--source", source, "--output", model, *profiles)
    for percentage in PERCENTAGES:
        path = folder / f"bench/pct-{percentage:03d}.csv"
        heteroring(
            *("bench", "--percentages", f"100,{percentage}", "--seq-lens", lengths),
            *("--strategies", ",".join(STRATEGIES), "--models", folder / "models"),
            *(*SHAPE, "--output", path),
        )
    written = heteroring("aggregate", "--platform-dir", folder).split()
    assert [path.rsplit("/", 1)[1] for path in written] == [
        "measurements.csv",
        "cells.csv",
        "profile.csv",
        "provenance.json",
    ]


def test_every_cell_is_there_once_per_repetition(folder):
    rows = [row for path in (folder / "bench").glob("*.csv") for row in read_rows(path, Measurement)]
    found = Counter((r.seq_len, r.percentages, r.layout, r.allocator, r.block_lens, r.repetition) for r in rows)
    assert set(found.values()) == {1}
    ring = Counter((r.seq_len, r.percentages, name_of(r.layout, r.allocator)) for r in rows if r.system == "ring")
    settings = [(100, percentage) for percentage in PERCENTAGES]
    assert ring == dict.fromkeys(product(LENGTHS, settings, STRATEGIES), REPETITIONS)
    alone = Counter((r.seq_len, r.percentages, r.block_lens) for r in rows if r.system == "alone")
    assert alone == {
        (n, setting, lens): REPETITIONS for n in LENGTHS for setting in settings for lens in ((n, 0), (0, n))
    }


def test_rows_say_what_was_measured(folder):
    for row in read_rows(folder / "bench/pct-050.csv", Measurement):
        assert (row.heads, row.kv_heads, row.head_dim, row.dtype) == (4, 2, 16, "float32")
        assert (row.platform, row.throttle, row.percentages) == ("cpu", "pacing", (100, 50))
        assert (row.block, row.module, row.causal) == ("cpu", "attention", True)
        source = {"lut": "matmul", "formula": "matmul", "balanced": "attention"}.get(row.allocator, "")
        assert row.model_source == source
        if row.system == "alone":
            assert (row.layout, row.allocator, row.transport) == ("contiguous", "alone", "none")
            assert row.bytes_moved == 0
        else:
            partition = Partition(row.layout, row.block_lens)
            shape = {"batch": 1, "kv_heads": 2, "head_dim": 16, "itemsize": 4}
            assert row.bytes_moved == sum(kv_bytes(partition, rank, **shape) for rank in range(2))
            assert row.transport == "p2p"


def test_a_rank_is_busy_when_it_has_tokens_and_no_longer_than_the_call(folder):
    for row in read_rows(folder / "bench/pct-050.csv", Measurement):
        assert max(row.busy_ms) <= row.latency_ms
        for tokens, busy in zip(row.block_lens, row.busy_ms, strict=True):
            assert (busy > 0) == (tokens > 0)


def test_profile_rows_count_the_operations_of_the_result(folder):
    rows = read_rows(folder / "profile/pct-050.csv", ProfileRow)
    found = Counter((row.kind, row.size) for row in rows)
    kinds = [("matmul", 32), ("matmul", 64), ("attention", 64), ("attention", 128), ("fold", 64), ("fold", 128)]
    assert found == dict.fromkeys(kinds, REPETITIONS)
    for row in rows:
        pairs = row.size * (128 if row.kind == "fold" else (row.size + 1) / 2)
        flops = 2 * row.size**3 if row.kind == "matmul" else 4 * 4 * 16 * pairs
        assert row.tflops * row.latency_ms * 1e9 == pytest.approx(flops, rel=1e-6)
        assert (row.percentage, row.causal) == (50, row.kind == "attention")


def test_a_record_lies_beside_each_file(folder):
    record = json.loads((folder / "bench/pct-050.json").read_text())
    assert record["percentages"] == [100, 50]
    assert record["settings"]["seq_lens"] == list(LENGTHS)
    assert len(record["devices"]) == len(record["achieved"]) == 2
    assert all(rank["achieved_percentage"] > 0 for rank in record["achieved"])
    assert json.loads((folder / "profile/pct-100.json").read_text())["percentages"] == [100]


def test_only_whole_files_are_left(folder):
    assert [path for path in folder.rglob("*") if path.name.startswith(".")] == []


def test_results_are_what_was_aggregated(folder):
    results = Results.load(folder)
    assert results.platform == "cpu"
    assert len(results.cells) == len(LENGTHS) * len(PERCENTAGES) * (len(STRATEGIES) + 2)
    assert len(results.measurements) == len(results.cells) * REPETITIONS
    assert len(results.profile) == len(PERCENTAGES) * 6
    assert set(results.fitted_models) == {"lut-matmul", "formula-matmul", "cost-attention"}
    assert results.fitted_models["lut-matmul"]["source"] == "matmul"
    assert results.provenance["percentages"] == [50, 100]
    assert results.device_label.startswith("2 paced CPU ranks (")
    assert set(results.cells["percentages"]) == {(100, 50), (100, 100)}
    assert set(map(sum, results.cells["block_lens"])) == set(LENGTHS)
    assert {len(busy) for busy in results.cells["busy_ms"]} == {2}


def test_cells_survive_the_way_to_a_file_and_back(folder):
    rows = [row for path in sorted((folder / "bench").glob("*.csv")) for row in read_rows(path, Measurement)]
    exact, loaded = cells(rows), Results.load(folder).cells
    assert list(loaded.columns) == list(exact.columns)
    for column in exact:
        if column == "busy_ms":
            continue
        if exact[column].dtype.kind == "f":
            assert loaded[column].tolist() == pytest.approx(exact[column].tolist(), rel=1e-8, nan_ok=True)
        else:
            assert loaded[column].tolist() == exact[column].tolist()


def test_aggregating_again_changes_nothing(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    stamp = (folder / "provenance.json").stat().st_mtime_ns
    heteroring("aggregate", "--platform-dir", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    assert (folder / "provenance.json").stat().st_mtime_ns == stamp


def test_tables_are_plain_csv(folder):
    with open(folder / "derived/cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["percentages"] == "100 50"
    assert pd.read_csv(folder / "derived/measurements.csv").shape[0] == len(rows) * REPETITIONS


def test_what_is_compared_is_measured_together_in_an_order_drawn_anew():
    pytest.importorskip("fms")

    def job(percentage):
        return RingJob(
            device_kind="gpu",
            platform="two",
            throttle="mps",
            percentages=(100, percentage),
            seq_lens=(512, 1024, 2048),
            strategies=("contiguous/even", "zigzag/even", "zigzag/uneven"),
            baselines=True,
            modules=("attention", "fms"),
            fms_seq_lens=(512,),
        )

    cells, _ = cells_of(job(50))
    assert len(cells) == 29
    orders = [ring_run.order(job(percentage), cells, repetition) for percentage in (50, 10) for repetition in range(5)]
    assert len(set(map(tuple, orders))) == 10
    assert orders[0] == ring_run.order(job(50), cells, 0)
    turns = set()
    for order in orders:
        assert sorted(order) == list(range(29))
        groups = [group for group, _ in groupby((cells[i].module, cells[i].partition.seq_len) for i in order)]
        assert len(groups) == 4
        turns.add(tuple(groups))
    assert len(turns) > 5
    assert len({tuple(index for index in order if index < 7) for order in orders}) > 5


def test_three_ranks_in_bfloat16(jobs_on_pools):
    job = RingJob(
        device_kind="cpu",
        platform="bench-machine",
        throttle="pacing",
        percentages=(100, 100, 50),
        seq_lens=(50,),
        strategies=("zigzag/uneven", "contiguous/even"),
        shape=Shape(heads=2, kv_heads=1, head_dim=8, dtype="bfloat16"),
        repetitions=1,
        warmup=0,
    )
    seen = []
    done = ring_run.run(job, on_progress=seen.append)
    assert [row.block_lens for row in done.rows] == [(20, 20, 10), (17, 17, 16), (50, 0, 0), (0, 50, 0), (0, 0, 50)]
    assert len(done.ranks) == 3
    assert {row.platform for row in done.rows} == {"bench-machine"}
    assert 0 < max(seen) <= ring_run.steps(job) == 10
    table = cells(done.rows).set_index("strategy")
    alone = [table.loc[f"alone/rank{rank}", "latency_ms"] for rank in range(3)]
    assert table.loc["zigzag/uneven", "bound_ms"] == pytest.approx(1 / sum(1 / t for t in alone))

"""A tiny job that measures FMS's attention layer beside the attention, from profile to tables."""

from collections import Counter
from itertools import product

import pytest
import torch

from command_line import heteroring

pytest.importorskip("fms")

from heteroring.bench.random_layer import layer_flops, random_layer
from heteroring.bench.ring import run as ring_run
from heteroring.bench.ring.job import RingJob
from heteroring.bench.shape import Shape
from heteroring.results.results import Results
from heteroring.results.rows import Measurement, ProfileRow, read_rows
from heteroring.results.strategy import name_of

LENGTHS = {"attention": (64, 128), "fms": (48, 64)}
STRATEGIES = ("contiguous/even", "contiguous/lut", "zigzag/even", "zigzag/balanced")
REPETITIONS = 2
SHAPE = ["--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--repetitions", str(REPETITIONS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, measuring_on_pools):
    """A platform's folder after profile, fit, bench and aggregate, all modules measured."""
    folder = tmp_path_factory.mktemp("data") / "cpu"
    with measuring_on_pools():
        measure(folder)
    return folder


def measure(folder):
    lengths = {module: ",".join(map(str, values)) for module, values in LENGTHS.items()}
    heteroring(
        *("profile", "--percentage", 50, "--sizes", "32,64", "--seq-lens", lengths["attention"]),
        *("--kinds", "matmul,attention,fold,layer", *SHAPE, "--output", folder / "profile/pct-050.csv"),
    )
    for kind, source in (("lut", "matmul"), ("cost", "attention"), ("cost", "layer")):
        model = folder / f"models/{kind}-{source}.json"
        heteroring("fit", "--kind", kind, "--source", source, "--output", model, folder / "profile/pct-050.csv")
    heteroring(
        *("bench", "--percentages", "100,50", "--module", "attention,fms"),
        *("--seq-lens", lengths["attention"], "--fms-seq-lens", lengths["fms"]),
        *("--strategies", ",".join(STRATEGIES), "--models", folder / "models"),
        *(*SHAPE, "--output", folder / "bench/pct-050.csv"),
    )
    heteroring("aggregate", "--platform-dir", folder)


@pytest.fixture(scope="module")
def rows(folder):
    return read_rows(folder / "bench/pct-050.csv", Measurement)


def test_every_cell_of_every_module_is_there_once_per_repetition(rows):
    found = Counter((r.module, r.seq_len, name_of(r.layout, r.allocator)) for r in rows if r.system == "ring")
    expected = [(m, n, strategy) for m in LENGTHS for n, strategy in product(LENGTHS[m], STRATEGIES)]
    assert found == dict.fromkeys(expected, REPETITIONS)
    alone = Counter((r.module, r.seq_len, r.block_lens) for r in rows if r.system == "alone")
    expected = [(m, n, lens) for m in LENGTHS for n in LENGTHS[m] for lens in ((n, 0), (0, n))]
    assert alone == dict.fromkeys(expected, REPETITIONS)


def test_balanced_uses_what_the_module_costs(rows):
    sources = {(r.module, r.model_source) for r in rows if r.allocator == "balanced"}
    assert sources == {("attention", "attention"), ("fms", "layer")}
    assert {r.model_source for r in rows if r.allocator == "lut"} == {"matmul"}


def test_a_rank_is_busy_when_it_has_tokens_and_no_longer_than_the_call(rows):
    for row in rows:
        assert max(row.busy_ms) <= row.latency_ms
        for tokens, busy in zip(row.block_lens, row.busy_ms, strict=True):
            assert (busy > 0) == (tokens > 0)


def test_the_layer_is_busy_for_longer_than_its_attention(rows):
    """Its projections and positions are throttled and counted, too: at this size they take most of its time."""
    alone = {(r.module, r.block_lens): max(r.busy_ms) for r in rows if r.system == "alone" and r.seq_len == 64}
    for lens in ((64, 0), (0, 64)):
        assert alone["fms", lens] > 1.5 * alone["attention", lens]


def test_profile_counts_the_operations_of_the_layer(folder):
    profile = [row for row in read_rows(folder / "profile/pct-050.csv", ProfileRow) if row.kind == "layer"]
    assert Counter(row.size for row in profile) == dict.fromkeys(LENGTHS["attention"], REPETITIONS)
    for row in profile:
        attention = 4 * 4 * 16 * row.size * (row.size + 1) / 2
        projections = 2 * row.size * 64 * (64 + 32 + 32 + 64)
        assert row.tflops * row.latency_ms * 1e9 == pytest.approx(attention + projections, rel=1e-6)
        assert (row.heads, row.kv_heads, row.head_dim, row.causal) == (4, 2, 16, True)


def test_cells_are_compared_with_cells_of_their_module(folder):
    cells = Results.load(folder).cells
    for module, lengths in LENGTHS.items():
        for n in lengths:
            here = cells[(cells.module == module) & (cells.seq_len == n)].set_index("strategy")
            alone = [here.loc[f"alone/rank{rank}", "latency_ms"] for rank in range(2)]
            assert here["fast_alone_ms"].tolist() == pytest.approx([min(alone)] * len(here))
            assert here.loc["zigzag/even", "speedup"] == pytest.approx(1)


@pytest.mark.parametrize("percentages", [(100, 1), (100, 100, 1)])
def test_a_rank_without_tokens_takes_part(jobs_on_pools, percentages):
    job = RingJob(
        device_kind="cpu",
        platform="cpu",
        throttle="pacing",
        percentages=percentages,
        seq_lens=(40,),
        strategies=("zigzag/uneven", "contiguous/uneven"),
        shape=Shape(batch=2, heads=2, kv_heads=1, head_dim=8),
        repetitions=1,
        modules=("fms",),
    )
    done = ring_run.run(job)
    ring = [row for row in done.rows if row.system == "ring"]
    assert [row.block_lens[-1] for row in ring] == [0, 0]
    assert all(row.busy_ms[0] > 0 for row in ring)


def test_weights_depend_on_the_seed_alone():
    shape, device, x = Shape(heads=2, kv_heads=2, head_dim=8), torch.device("cpu"), torch.randn(1, 32, 16)
    first, again, other = (random_layer(shape, 32, seed, device)(x) for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().max() > 0.1


def test_flops_of_the_published_layer():
    """4,096 wide, 32 heads: four projections of 4096 x 4096 for each token."""
    shape = Shape(heads=32, kv_heads=32, head_dim=128, dtype="bfloat16")
    assert layer_flops(shape, 1000) - shape.flops(1000) == 4 * 2 * 4096**2 * 1000
    grouped = Shape(heads=32, kv_heads=8, head_dim=128, dtype="bfloat16")
    assert layer_flops(grouped, 1000) - grouped.flops(1000) == 2 * (2 * 4096 + 2 * 1024) * 4096 * 1000

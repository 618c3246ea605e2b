"""Ring jobs: all cells are planned before any process starts, and impossible jobs are refused."""

from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest

from heteroring.allocators.fitting import fit
from heteroring.bench.ring.job import RingJob, cells_of
from heteroring.bench.ring.run import steps
from heteroring.bench.shape import Shape
from heteroring.results.rows import write_rows
from rows import profile_row
from tree import ROOT

needs_fms = pytest.mark.skipif(find_spec("fms") is None, reason="needs ibm-fms")


def job(**changes):
    values = {
        "device_kind": "cpu",
        "platform": "cpu",
        "throttle": "pacing",
        "percentages": (100, 50),
        "seq_lens": (30, 60),
        "strategies": ("contiguous/even", "zigzag/uneven"),
    }
    return RingJob(**values | changes)


def test_plan_has_every_strategy_and_every_rank_alone_at_every_length():
    cells, notes = cells_of(job())
    assert [(cell.label, cell.partition.block_lens) for cell in cells] == [
        ("contiguous/even at 30", (15, 15)),
        ("zigzag/uneven at 30", (20, 10)),
        ("rank 0 alone at 30", (30, 0)),
        ("rank 1 alone at 30", (0, 30)),
        ("contiguous/even at 60", (30, 30)),
        ("zigzag/uneven at 60", (40, 20)),
        ("rank 0 alone at 60", (60, 0)),
        ("rank 1 alone at 60", (0, 60)),
    ]
    assert notes == ()


@needs_fms
def test_every_module_is_planned_at_its_own_lengths():
    cells, _ = cells_of(job(modules=("attention", "fms"), fms_seq_lens=(60, 90), strategies=("zigzag/uneven",)))
    assert [(cell.module, cell.label, cell.partition.block_lens) for cell in cells] == [
        ("attention", "zigzag/uneven at 30", (20, 10)),
        ("attention", "rank 0 alone at 30", (30, 0)),
        ("attention", "rank 1 alone at 30", (0, 30)),
        ("attention", "zigzag/uneven at 60", (40, 20)),
        ("attention", "rank 0 alone at 60", (60, 0)),
        ("attention", "rank 1 alone at 60", (0, 60)),
        ("fms", "fms zigzag/uneven at 60", (40, 20)),
        ("fms", "fms rank 0 alone at 60", (60, 0)),
        ("fms", "fms rank 1 alone at 60", (0, 60)),
        ("fms", "fms zigzag/uneven at 90", (60, 30)),
        ("fms", "fms rank 0 alone at 90", (90, 0)),
        ("fms", "fms rank 1 alone at 90", (0, 90)),
    ]


@needs_fms
def test_a_layer_needs_heads_of_an_even_width():
    assert job(shape=Shape(head_dim=7)).shape.head_dim == 7
    with pytest.raises(ValueError, match="head_dim is 7: module 'fms' has rotary positions, which need an even one"):
        job(modules=("attention", "fms"), shape=Shape(head_dim=7))


@needs_fms
def test_a_layer_has_the_lengths_of_the_attention_unless_it_has_its_own():
    assert job(modules=("fms",)).lengths("fms") == (30, 60)
    assert job(modules=("attention", "fms"), fms_seq_lens=(8,)).lengths("attention") == (30, 60)


@needs_fms
def test_baselines_are_those_of_the_attention():
    gpu = {
        "device_kind": "gpu",
        "throttle": "mps",
        "strategies": ("zigzag/even",),
        "seq_lens": (32,),
        "baselines": True,
    }
    cells, _ = cells_of(job(**gpu, modules=("attention", "fms")))
    assert [cell.module for cell in cells if cell.system in ("context_parallel", "sdpa")] == ["attention"] * 3
    with pytest.raises(ValueError, match="baselines are measured beside module 'attention'"):
        job(**gpu, modules=("fms",))


def test_a_layer_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr("heteroring.bench.fms_requirements.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"module 'fms' needs ibm-fms, .* pip install ibm-fms"):
        job(modules=("fms",))


def test_three_ranks_are_planned_for():
    cells, _ = cells_of(job(percentages=(100, 100, 50), seq_lens=(50,)))
    assert [cell.partition.block_lens for cell in cells] == [
        (17, 17, 16),
        (20, 20, 10),
        (50, 0, 0),
        (0, 50, 0),
        (0, 0, 50),
    ]


def test_of_more_than_two_ranks_the_fastest_are_measured_by_themselves():
    models = ROOT / "data" / "h200x2" / "models"
    gpu = {"device_kind": "gpu", "throttle": "mps", "fitted_models": models, "seq_lens": (65536,), "multiple": 256}
    four = job(**gpu, percentages=(50, 100, 10, 100), strategies=("zigzag/even", "zigzag/balanced"))
    cells, _ = cells_of(four)
    few = [cell for cell in cells if cell.system == "subset"]
    assert [cell.label for cell in few] == ["zigzag/fastest2 at 65536", "zigzag/fastest3 at 65536"]
    assert [tuple(map(bool, cell.partition.block_lens)) for cell in few] == [(0, 1, 0, 1), (1, 1, 0, 1)]
    alone, _ = cells_of(job(**gpu, percentages=(50, 100, 100), strategies=("zigzag/balanced",)))
    assert few[1].partition.block_lens == (*alone[0].partition.block_lens[:2], 0, alone[0].partition.block_lens[2])
    assert steps(four) == len(cells) * (1 + four.repetitions)
    for without in (job(**gpu, strategies=("zigzag/balanced",)), job(percentages=(100, 50, 10))):
        assert {cell.system for cell in cells_of(without)[0]} == {"ring", "alone"}


def test_baselines_are_measured_at_every_length():
    cells, _ = cells_of(
        job(device_kind="gpu", throttle="mps", strategies=("zigzag/even",), seq_lens=(32, 64), baselines=True)
    )
    assert [
        (cell.label, cell.partition.block_lens) for cell in cells if cell.system in ("context_parallel", "sdpa")
    ] == [
        ("context_parallel at 32", (16, 16)),
        ("rank 0 alone by sdpa at 32", (32, 0)),
        ("rank 1 alone by sdpa at 32", (0, 32)),
        ("context_parallel at 64", (32, 32)),
        ("rank 0 alone by sdpa at 64", (64, 0)),
        ("rank 1 alone by sdpa at 64", (0, 64)),
    ]


def test_variants_of_a_strategy_are_splits_or_calls_of_their_own(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    sizes = product((64, 256), (50, 100))
    ms = {(64, 50): 1.5, (64, 100): 1.0, (256, 50): 25.0, (256, 100): 12.0}
    rows = [profile_row("attention", n, percentage=p, latency_ms=ms[n, p]) for n, p in sizes]
    write_rows(tmp_path / "profile.csv", rows)
    for kind in ("lut", "cost"):
        fit(kind, "attention", tmp_path / "profile.csv").save(models / f"{kind}-attention.json")
    names = [f"zigzag/{each}" for each in ("balanced", "balanced:+5", "balanced:-5", "balanced:unfused.p2p")]
    names += ["zigzag/lut@attention", "zigzag/lut:quarter@attention"]
    planned = job(strategies=tuple(names), seq_lens=(256,), fitted_models=models, multiple=4)
    cells, _ = cells_of(planned)
    lens = {cell.strategy: cell.partition.block_lens for cell in cells}
    assert list(lens)[: len(names)] == names
    slow = lens["zigzag/balanced"][1]
    assert slow % 4 == 0
    assert lens["zigzag/balanced:+5"] == (256 - slow - 4, slow + 4)
    assert lens["zigzag/balanced:-5"] == (256 - slow + 4, slow - 4)
    assert lens["zigzag/balanced:unfused.p2p"] == lens["zigzag/balanced"]
    assert lens["zigzag/lut:quarter@attention"] == (154, 102)  # 1.5 to 1, as at 64 tokens
    assert planned.call_variants == ("unfused", "p2p")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        pytest.param(
            {"strategies": ("zigzag/even:unfused",), "modules": ("fms",)},
            "ask for unfused: .* module 'attention' alone",
            marks=needs_fms,
        ),
        ({"strategies": ("zigzag/even:masked",)}, "backend 'masked' computes on cuda, not on cpu"),
        ({"strategies": ("zigzag/even:fused",)}, "strategy 'zigzag/even:fused' is unknown"),
        ({"strategies": ("zigzag/even:untiled",)}, "strategy 'zigzag/even:untiled' is unknown"),
        ({"strategies": ("zigzag/balanced:quarter",)}, "strategy 'zigzag/balanced:quarter' is unknown"),
        ({"strategies": ("zigzag/balanced:+5.-5",)}, "strategy 'zigzag/balanced:\\+5.-5' is unknown"),
        ({"strategies": ("zigzag/balanced:p2p.p2p",)}, "strategy 'zigzag/balanced:p2p.p2p' is unknown"),
        ({"strategies": ("zigzag/balanced:",)}, "strategy 'zigzag/balanced:' is unknown"),
    ],
)
def test_a_variant_that_could_not_be_measured_is_refused(monkeypatch, changes, complaint):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=complaint):
        job(**changes)


def test_a_length_that_context_parallel_cannot_share_out_is_refused():
    with pytest.raises(ValueError, match="seq_len 30 is not a multiple of 4"):
        cells_of(job(device_kind="gpu", throttle="mps", baselines=True))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seq_lens": ()}, "seq_lens is empty"),
        ({"seq_lens": (64, 0)}, "seq_lens holds 0: a length is 1 or more"),
        ({"seq_lens": (64, 64)}, "seq_lens holds 64 twice"),
        ({"strategies": ()}, "strategies is empty"),
        ({"strategies": ("spiral/even",)}, "strategy 'spiral/even' is unknown"),
        ({"strategies": ("zigzag/odd",)}, "strategy 'zigzag/odd' is unknown"),
        ({"strategies": ("zigzag",)}, "strategy 'zigzag' is unknown"),
        ({"strategies": ("zigzag/even", "zigzag/even")}, "strategies holds zigzag/even twice"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"backend": "abacus"}, "backend 'abacus' is unknown"),
        ({"transport": "pigeon"}, "transport 'pigeon' is unknown"),
        ({"strategies": ("zigzag/even@attention",)}, "strategy 'zigzag/even@attention' is unknown"),
        ({"strategies": ("zigzag/lut@matmul",)}, "strategy 'zigzag/lut@matmul' is unknown"),
        ({"strategies": ("zigzag/lut@",)}, "strategy 'zigzag/lut@' is unknown"),
        ({"condition": "asleep"}, "condition 'asleep' is unknown: choose one of rested, sustained, eager, captured"),
        ({"condition": "captured"}, "condition 'captured' .* needs device kind 'gpu' and module 'attention'"),
        ({"number": 0}, "job is 0: it must be 1 or more"),
        ({"baselines": True}, "device kind 'cpu' has no baselines"),
        ({"multiple": -1}, "multiple is -1"),
        ({"modules": ()}, "modules is empty"),
        ({"modules": ("mamba",)}, "module 'mamba' is unknown: choose one of attention, fms"),
        ({"modules": ("attention", "attention")}, "modules holds attention twice"),
        ({"fms_seq_lens": (64,)}, "fms_seq_lens is given, but module 'fms' is not measured"),
    ],
)
def test_a_job_refuses_what_it_could_not_measure(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        job(**changes)


@pytest.mark.parametrize(
    ("allocator", "name"),
    [
        ("lut", "lut-matmul"),
        ("formula", "formula-matmul"),
        ("lut@attention", "lut-attention"),
        ("formula@attention", "formula-attention"),
        ("balanced", "cost-attention"),
    ],
)
def test_a_missing_model_is_named(tmp_path, allocator, name):
    with pytest.raises(ValueError, match=f"allocator '{allocator.partition('@')[0]}' needs a model: .* {name}.json"):
        cells_of(job(strategies=(f"zigzag/{allocator}",)))
    with pytest.raises(ValueError, match=f"needs the model {tmp_path / name}.json, which does not exist"):
        cells_of(job(strategies=(f"zigzag/{allocator}",), fitted_models=Path(tmp_path)))


@needs_fms
def test_balanced_plans_a_layer_by_what_the_layer_costs(tmp_path):
    with pytest.raises(ValueError, match=r"cost-layer\.json, which does not exist"):
        cells_of(job(strategies=("zigzag/balanced",), modules=("fms",), fitted_models=Path(tmp_path)))


@needs_fms
@pytest.mark.parametrize("lengths", [(0,), (64, 64)])
def test_lengths_of_the_layer_are_checked(lengths):
    with pytest.raises(ValueError, match="fms_seq_lens holds"):
        job(modules=("attention", "fms"), fms_seq_lens=lengths)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"kv_heads": 0}, "kv_heads is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"head_dim": -1}, "head_dim is -1"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown"),
    ],
)
def test_a_shape_refuses_what_is_none(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Shape(**changes)

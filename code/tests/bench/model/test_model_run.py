"""Measurement of a whole model: every cell, the trace, the generated tokens; and jobs that are refused."""

from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from model_rows import event, model_row

pytest.importorskip("fms")

from heteroring.bench.base_job import JobResult
from heteroring.bench.model.job import ModelCell, ModelJob, cells_of
from heteroring.bench.model.layer_trace import LayerTrace
from heteroring.bench.model.prefill_decode import ModelBench, Repetition, Usage, compare, first_layer, made_up
from heteroring.bench.model.spec import ModelSpec
from heteroring.bench.profile.fms_operators import block_flops
from heteroring.cli.main import app
from heteroring.launch.device import Cpu
from heteroring.launch.launch import Rank
from heteroring.results.model_metrics import layer_shares, trace_table
from heteroring.results.model_rows import ModelRow, TraceRow
from heteroring.results.provenance import RankReport, read_json
from heteroring.results.rows import read_rows
from heteroring.ring.partition import Partition
from heteroring.throttle import Throttle
from tree import ROOT

TINY = {"layers": 3, "emb_dim": 64, "heads": 4, "kv_heads": 2, "vocabulary": 97, "max_seq_len": 104}
STRATEGIES = ("contiguous/even", "zigzag/uneven")


def spec(**changes) -> ModelSpec:
    return ModelSpec("llama/micro", **TINY | changes)


def job(**changes) -> ModelJob:
    values = {
        "device_kind": "cpu",
        "platform": "cpu",
        "throttle": "pacing",
        "percentages": (100, 50),
        "model": spec(),
        "seq_lens": (40, 96),
        "strategies": STRATEGIES,
        "new_tokens": 5,
    }
    return ModelJob(**values | changes)


def options(output, *more: str) -> list[str]:
    named = {f"--{name.replace('_', '-')}": str(value) for name, value in TINY.items()}
    return [
        "model",
        *(word for pair in named.items() for word in pair),
        *("--model", "llama/micro", "--percentages", "100,50", "--strategies", ",".join(STRATEGIES)),
        *("--seq-lens", "40,96", "--new-tokens", "5", "--repetitions", "2", "--output", str(output)),
        *more,
    ]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, measuring_on_pools):
    """The command's folder, rows and trace. All cells take longer than the millisecond that they may."""
    folder = tmp_path_factory.mktemp("x") / "model"
    with measuring_on_pools():
        result = CliRunner().invoke(app, options(folder / "pct-050.csv", "--cell-seconds", "0.001"))
    assert result.exit_code == 0, result.output
    rows = read_rows(folder / "pct-050.csv", ModelRow)
    return folder, rows, read_rows(folder / "trace-050.csv", TraceRow)


class TestMeasured:
    def test_every_cell_is_there(self, measured):
        _, rows, _ = measured
        prefills = {(row.layout, row.allocator, row.seq_len, row.block_lens) for row in rows if row.phase == "prefill"}
        assert prefills == {
            *(("contiguous", "even", n, (n // 2, n // 2)) for n in (40, 96)),
            *(("zigzag", "uneven", n, lens) for n, lens in ((40, (27, 13)), (96, (64, 32)))),
            *(("contiguous", "alone", n, lens) for n in (40, 96) for lens in ((n, 0), (0, n))),
        }

    def test_only_the_longest_prompt_is_decoded_and_by_one_strategy(self, measured):
        _, rows, _ = measured
        decodes = {(row.system, row.allocator, row.seq_len, row.new_tokens) for row in rows if row.phase == "decode"}
        assert decodes == {("ring", "uneven", 96, 5), ("alone", "alone", 96, 5)}

    def test_rows_name_the_model(self, measured):
        row = measured[1][0]
        assert (row.architecture, row.variant, row.layers, row.emb_dim) == ("llama", "micro", 3, 64)
        assert (row.heads, row.kv_heads, row.head_dim, row.dtype) == (4, 2, 16, "float32")
        assert row.peak_memory_bytes == (0, 0)

    def test_what_took_its_time_is_not_repeated(self, measured):
        assert {row.repetition for row in measured[1]} == {0}

    def test_the_middle_layer_is_traced_on_every_rank(self, measured):
        _, _, trace = measured
        assert {(row.strategy, row.seq_len, row.layer) for row in trace} == {("contiguous/even", 96, 1)}
        steps = {(row.rank, row.kind, row.step) for row in trace}
        own = {(rank, kind, 0) for rank in (0, 1) for kind in ("layer", "ready", "wait", "block")}
        assert steps == own | {(0, "sent", 1), (1, "wait", 1), (1, "block", 1)}  # rank 0 sees nothing behind it

    def test_events_follow_one_another_inside_the_layer(self, measured):
        shares = layer_shares(trace_table(measured[2]))
        assert (shares[["busy_ms", "waiting_ms", "exposed_ms"]].min() >= 0).all()
        for rank in (0, 1):
            [layer] = [row for row in measured[2] if row.rank == rank and row.kind == "layer"]
            events = [row for row in measured[2] if row.rank == rank and row.kind in ("block", "wait", "sent")]
            spans = sorted((row.start_ms, row.stop_ms) for row in events)
            assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(spans))
            assert layer.start_ms <= spans[0][0]
            assert spans[-1][1] <= layer.stop_ms

    def test_results_were_compared(self, measured):
        notes = read_json(measured[0] / "pct-050.json")["notes"]
        assert any("the same in 6 of 6 cells" in note for note in notes)
        assert "zigzag/uneven at 96: the first 5 of 5 ids are those of rank 0 alone" in notes


def decoded(folder, *more):
    """Rows and notes of the command that decodes alone, three sequences at a time."""
    output = folder / "pct-050.csv"
    result = CliRunner().invoke(app, options(output, "--batch", "3", "--decode-only", *more))
    assert result.exit_code == 0, result.output
    return read_rows(output, ModelRow), read_json(output.with_suffix(".json"))["notes"]


def test_decode_alone_is_measured_at_every_length_by_every_strategy(jobs_on_pools, tmp_path):
    rows, notes = decoded(tmp_path)
    assert {(row.phase, row.batch, row.captured, row.limit_ms) for row in rows} == {("decode", 3, False, 0)}
    assert {(row.system, row.allocator, row.block_lens) for row in rows} == {
        *(("ring", "even", lens) for lens in ((20, 20), (48, 48))),
        *(("ring", "uneven", lens) for lens in ((27, 13), (64, 32))),
        *(("alone", "alone", lens) for n in (40, 96) for lens in ((n, 0), (0, n))),
    }
    for strategy, n in (("contiguous/even", 40), ("zigzag/uneven", 96)):
        assert f"{strategy} at {n}: the first 5 of 5 ids are those of rank 0 alone" in notes
    assert not (tmp_path / "trace-050.csv").exists()


def test_one_rank_is_measured_beside_fms(jobs_on_pools, tmp_path):
    output = tmp_path / "pct-100.csv"
    words = ("--percentages", "100", "--strategies", "zigzag/even", "--seq-lens", "40", "--peers")
    result = CliRunner().invoke(app, options(output, *words), env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "FMS's generate on rank 0" in result.output
    measured = {(row.phase, row.system, row.block) for row in read_rows(output, ModelRow)}
    blocks = {"ring": "cpu", "alone": "cpu", "fms": "fms"}
    assert measured == {(phase, *each) for phase in ("prefill", "decode") for each in blocks.items()}
    assert "the same in 3 of 3 cells" in read_json(output.with_suffix(".json"))["notes"][0]


def made_ready(rank, world_size, compiled):
    """The modules that are compiled while a model is made ready."""
    seen = []
    one = SimpleNamespace(rank=rank, world_size=1, torch_device=torch.device("cpu"), throttle=Throttle(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "compile", lambda self: seen.append(type(self).__name__))
        ModelBench(one, job(percentages=(100,), compiled=compiled))
    return seen


@pytest.mark.parametrize(("compiled", "modules"), [(True, ["LLaMA"]), (False, [])])
def test_the_whole_model_is_compiled_where_that_is_asked_for(ranks, compiled, modules):
    assert ranks(1).run(made_ready, compiled) == [modules]


def traced_before(rank, world_size):
    """How many layers the model has whenever one is traced while cells are warmed up."""
    seen, one = [], Rank(rank, 1, Cpu(), torch.device("cpu"), Throttle(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerTrace, "of", lambda self, layer: seen.append(layer) or nullcontext())
        bench = ModelBench(one, measured := job(percentages=(100,)))
        bench.warm_up(cells_of(measured)[0])
    return [layer is bench.model.base_model.layers[0] for layer in seen]


def test_kernels_of_a_traced_layer_are_warmed_up_too(ranks):
    assert ranks(1).run(traced_before) == [[True]]


def test_made_up_kv_shows_a_shard_that_is_lost():
    """For any shard, an average over the others differs from that over all. And it does not depend on who holds it."""
    positions = torch.arange(4096)
    keys, values = (made_up(positions, 64, number) for number in (2, 3))
    assert torch.equal(values[100:200], made_up(positions[100:200], 64, 3))
    assert not torch.equal(made_up(positions, 64, 1), values)
    weights = (torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) @ keys.T / 8).softmax(1)
    whole = weights @ values
    for lost in (slice(0, 512), slice(1792, 2304), slice(3584, 4096)):
        rest = weights.clone()
        rest[:, lost] = 0
        assert ((rest / rest.sum(1, keepdim=True) @ values - whole).norm() / whole.norm()) > 0.02, lost


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "llama"}, "'llama' is not an architecture and a variant"),
        ({"name": "lama/micro"}, "architecture 'lama': choose one of llama"),
        ({"name": "llama/nano"}, "variant 'nano' of llama is unknown: choose one of micro"),
        ({"heads": 3}, "emb_dim 64 is not a multiple of heads 3"),
        ({"kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"emb_dim": 60}, "is 15 wide here"),
        ({"layers": -1}, "layers is -1"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        ModelSpec(**{"name": "llama/micro"} | TINY | changes)


def test_a_model_has_its_own_sizes_where_nothing_is_said():
    sizes = ModelSpec("llama/3-8b").sizes
    assert (sizes.layers, sizes.emb_dim, sizes.heads, sizes.kv_heads, sizes.head_dim) == (32, 4096, 32, 8, 128)
    assert ModelSpec("llama/micro", heads=2).sizes.kv_heads == 2  # FMS's 0 means as many as heads


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategies": ()}, "strategies is empty"),
        ({"strategies": ("zigzag/evn",)}, "strategy 'zigzag/evn' is unknown"),
        ({"strategies": ("zigzag/even",) * 2}, "holds zigzag/even twice"),
        ({"seq_lens": (96, 96)}, "seq_lens holds 96 twice"),
        ({"seq_lens": (1,)}, "shorter than 2 ranks"),
        ({"seq_lens": (100,)}, "max_seq_len is 104, and the longest prompt with its 5 new tokens is 105"),
        ({"new_tokens": 2}, "new_tokens is 2: it must be 0, or 3 or more"),
        ({"decode_only": True, "new_tokens": 0}, "decode_only is set, and new_tokens is 0"),
        ({"decode_only": True, "baselines": True}, "decode_only and peers exclude each other"),
        ({"cell_seconds": -1.0}, "cell_seconds is -1"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"strategies": ("zigzag/even:p2p",)}, "ask for p2p: .* not measured of models"),
        ({"backend": "flash"}, "computes on cuda, not on cpu"),
    ],
)
def test_a_job_that_cannot_be_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        job(**changes)


def test_balanced_needs_its_cost_model(tmp_path):
    with pytest.raises(ValueError, match=r"needs a model: name the folder that holds cost-block\.json"):
        cells_of(job(strategies=("zigzag/balanced",)))
    with pytest.raises(ValueError, match=r"needs the model .*cost-block\.json, which does not exist"):
        cells_of(job(strategies=("zigzag/balanced",), fitted_models=tmp_path))


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_a_model_that_is_not_named_fits_the_platform(tmp_path, monkeypatch, platform, dtype):
    """The default model on a CPU must not be Llama 3 8B, which takes 64 GB in float32 on two ranks."""
    asked = []
    monkeypatch.setattr("heteroring.bench.measure.measure", lambda stage, job, *_, **__: asked.append(job.model))
    words = ["--percentages", "100,50", "--seq-lens", "40,96", "--strategies", "zigzag/even"]
    words += ["--platform", platform, "--output", str(tmp_path / "pct-050.csv")]
    result = CliRunner().invoke(app, ["model", *words])
    assert result.exit_code == 0, result.output
    config = yaml.safe_load((ROOT / "workflow/config/default.yaml").read_text())
    configured = config["platforms"][platform]["model"]
    assert [(spec.name, spec.dtype) for spec in asked] == [(configured["name"], dtype)]
    assert configured["dtype"] == dtype
    shown = " ".join(CliRunner().invoke(app, ["model", "--help"], env={"COLUMNS": "300"}).output.split())
    assert "llama/micro on cpu; llama/3-8b on gpu" in shown


def test_the_command_refuses_in_one_line(tmp_path):
    result = CliRunner().invoke(app, options(tmp_path / "pct-050.csv", "--batch", "0"))
    assert result.exit_code == 2
    assert result.stderr == "heteroring: error: batch is 0: it must be 1 or more\n"
    assert not list(tmp_path.iterdir())


def test_a_trace_over_the_rows_is_refused(tmp_path):
    output = tmp_path / "pct-050.csv"
    result = CliRunner().invoke(app, options(output, "--trace", str(output)))
    assert result.exit_code == 2
    assert "output and trace are both" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_job_without_a_trace_leaves_none_of_an_earlier_one(jobs_on_pools, tmp_path):
    output, trace = tmp_path / "pct-050.csv", tmp_path / "trace-050.csv"
    trace.write_text("of an earlier job")
    result = CliRunner().invoke(app, options(output, "--strategies", "zigzag/uneven", "--seq-lens", "40"))
    assert result.exit_code == 0, result.output
    assert output.exists()
    assert not trace.exists()


def test_a_trace_that_cannot_be_written_leaves_the_earlier_job_as_it_was(tmp_path, monkeypatch):
    def write_rows(path, rows):
        if path.name == "trace-050.csv":
            raise OSError(f"cannot write {path}: No space left on device")
        path.write_text("new rows")

    done = JobResult([model_row()], [RankReport("EPYC", 0, {})] * 2, trace=[event()])
    monkeypatch.setattr("heteroring.bench.model.run.run", lambda job, **_: done)
    monkeypatch.setattr("heteroring.results.rows.write_rows", write_rows)
    (tmp_path / "pct-050.csv").write_text("of an earlier job")
    result = CliRunner().invoke(app, options(tmp_path / "pct-050.csv"))
    assert result.exit_code == 1
    assert result.stderr == (
        f"heteroring: error: cannot write {tmp_path}/trace-050.csv: No space left on device: "
        f"the 1 rows that were measured for {tmp_path}/pct-050.csv are lost\n"
    )
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of an earlier job"]


def test_a_random_model_is_the_same_for_a_seed():
    one, other, third = (spec().build(torch.device("cpu"), seed) for seed in (3, 3, 4))
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (one, other, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_first_layer_is_all_that_runs_and_then_the_others_are_back():
    model = spec().build(torch.device("cpu"), 0)
    layers = list(model.base_model.layers)
    with first_layer(model):
        assert list(model.base_model.layers) == layers[:1]
    assert list(model.base_model.layers) == layers


def test_a_lost_shard_is_seen_in_logits_of_random_weights():
    """LOGITS_TOLERANCE must tell rounding errors from attention that misses some of its keys."""
    from heteroring.bench.model.prefill_decode import LOGITS_TOLERANCE
    from heteroring.fms import ring_prefill
    from heteroring.kernels.sdpa import cpu

    model = spec().build(torch.device("cpu"), 0)
    ids = torch.randint(97, (1, 96), generator=torch.Generator().manual_seed(1))

    def lossy(q, k, v, **how):
        lost = k.clone(), v.clone()
        for x in lost:
            x[:, :, : k.shape[2] // 8] = x[:, :, k.shape[2] // 8 : k.shape[2] // 8 + 1]
        return cpu(q, *lost, **how)

    exact, wrong = (ring_prefill(model, ids, block=each).logits for each in ("cpu", lossy))
    check = compare(Repetition(Usage(1, 0, 0, 0), wrong, ids[:, :0], []), exact, ids[:, :0])
    assert check.error > LOGITS_TOLERANCE[torch.float32]
    same = compare(Repetition(Usage(1, 0, 0, 0), exact, ids, []), exact, ids)
    assert same == (0.0, True, 96)


def test_ids_are_the_same_as_far_as_they_are():
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    other = torch.tensor([[1, 2, 4], [4, 0, 6]])
    check = compare(Repetition(Usage(1, 1, 0, 0), logits, ids, []), logits, other)
    assert check.same_ids == 1


def test_ids_are_compared_before_those_of_rank_0_take_their_place(monkeypatch):
    """On a CPU, moving ids to the device copies nothing by itself."""
    ids = torch.tensor([[4, 5, 6]])
    bench = object.__new__(ModelBench)
    bench.rank, bench.job = SimpleNamespace(torch_device=torch.device("cpu"), rank=1), job()
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, src: tensor.fill_(4))
    cell = ModelCell("alone", "alone", Partition.contiguous((40,)), decodes=True)
    own = Repetition(Usage(1, 1, 0, 0), torch.full((1, 2), 4.0), ids, [])
    checks = bench.verify((cell,), {0: own})
    assert checks[0].same_ids == 1
    assert ids.tolist() == [[4, 5, 6]]


def test_a_block_is_profiled_beside_its_attention(jobs_on_pools, tmp_path):
    output = tmp_path / "pct-100.csv"
    words = ["profile", "--kinds", "attention,block", "--model", "llama/micro", "--seq-lens", "32", "--output", output]
    result = CliRunner().invoke(app, [*map(str, words), "--repetitions", "1"])
    assert result.exit_code == 0, result.output
    from heteroring.results.rows import ProfileRow

    rows = {row.kind: row for row in read_rows(output, ProfileRow)}
    assert (rows["block"].heads, rows["block"].kv_heads, rows["block"].head_dim) == (4, 4, 48)
    flops = {kind: row.tflops * row.latency_ms * 1e9 for kind, row in rows.items()}
    hidden = 512  # 8/3 of 192, in multiples of 256
    assert flops["block"] - flops["attention"] == pytest.approx(2 * 32 * (4 * 192 * 192 + 3 * 192 * hidden))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "kind 'block' needs a model"),
        (["--model", "llama/nano"], "variant 'nano' of llama is unknown"),
        (["--model", "granite/8b", "--head-dim", "64", "--heads", "32"], "head_dim is 64"),
    ],
)
def test_a_block_that_cannot_be_profiled_is_refused(tmp_path, more, says):
    words = ["profile", "--kinds", "block", "--seq-lens", "32", "--output", str(tmp_path / "x.csv"), *more]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert says in result.stderr


def test_of_a_models_experts_those_that_a_token_is_sent_to_are_counted():
    sizes = {"layers": 1, "emb_dim": 64, "heads": 4, "kv_heads": 2, "vocabulary": 32, "max_seq_len": 16}
    small = ModelSpec("mixtral/8x7b", **sizes)
    model, shape = small.build(torch.device("cpu"), 0), small.shape(1)
    attention = 64 * (64 + 32 + 32) + 64 * 64
    experts = 64 * 8 + 2 * 3 * 64 * 14336  # the gate over 8, and three matrices of 2 of them
    got = block_flops(model.base_model.layers[0], model.config, shape, 10)
    assert got == shape.flops(10) + 2 * 10 * (attention + experts)

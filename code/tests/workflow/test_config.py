"""The configuration is closed, agrees with its schema, and picks the platform it should."""

import copy
import os
import re

import pytest
import yaml

pytest.importorskip("snakemake")

from snakemake.utils import update_config
from workflow.preflight import platforms
from workflow.preflight.configuration import check
from workflow.preflight.outputs import check_writable
from workflow.preflight.platforms import choose, recorded_platforms, visible_gpus
from workflow.preflight.whole_models import check_models

from tree import ROOT

SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
CONFIG = ROOT / "workflow" / "config"
NOISE = ("platforms", "cpu", "bound_fraction_noise")


@pytest.fixture
def config() -> dict:
    return yaml.safe_load((CONFIG / "default.yaml").read_text())


@pytest.fixture(scope="module")
def schema() -> dict:
    return yaml.safe_load(SCHEMA.read_text())


def leaves(properties: dict, prefix: tuple = ()):
    """Every key that holds a value and not a group of keys, with its schema."""
    for name, entry in properties.items():
        if entry.get("type") == "object":
            yield from leaves(entry["properties"], (*prefix, name))
        else:
            yield (*prefix, name), entry


def groups(entry: dict, prefix: tuple = ()):
    if entry.get("type") == "object":
        yield prefix, entry
        for name, child in entry["properties"].items():
            yield from groups(child, (*prefix, name))


def paths(config: dict, prefix: tuple = ()):
    for name, value in config.items():
        if isinstance(value, dict):
            yield from paths(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def test_defaults_and_schema_name_the_same_keys(config, schema):
    assert {path for path, _ in leaves(schema["properties"])} == {path for path, _ in paths(config)}


def test_every_key_is_described(schema):
    for path, entry in leaves(schema["properties"]):
        assert entry["description"].strip(), path
        assert "type" in entry or "$ref" in entry, path


def test_every_group_is_closed(schema):
    for path, entry in groups(schema):
        assert entry["additionalProperties"] is False, path


@pytest.mark.parametrize("overlay", sorted(path.name for path in CONFIG.glob("*.yaml")))
def test_shipped_configs_are_valid(config, overlay):
    update_config(config, yaml.safe_load((CONFIG / overlay).read_text()))
    check(config, SCHEMA)


def test_overlays_have_runs_of_their_own():
    runs = {path.stem: yaml.safe_load(path.read_text())["run"] for path in CONFIG.glob("*.yaml")}
    assert runs["default"] == ""
    assert all(run == name for name, run in runs.items() if name != "default")


def changed(config: dict, path: tuple[str, ...], value) -> dict:
    """`config` with one key set, wherever it lies."""
    config = copy.deepcopy(config)
    inner = config
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("platfrom",), "cpu", "unknown key platfrom: did you mean platform?"),
        (("platforms", "cpu", "seq_lenz"), [512], "platforms.cpu.seq_lenz: did you mean platforms.cpu.seq_lens?"),
        (("platforms", "tpu"), {}, "unknown key platforms.tpu: "),
    ],
)
def test_misspelled_key_is_an_error_that_names_it(config, path, value, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        check(changed(config, path, value), SCHEMA)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("percentages",), [100, 0], "percentages.1: 0 is less"),
        (("percentages",), [100, 101], "percentages.1: 101 is greater"),
        (("percentages",), [50, 10], "percentages: [50, 10] lacks 100"),
        (("percentages",), [100, 50, 50], "percentages: [100, 50, 50] has non-unique elements"),
        (("percentages",), [100, "50"], "percentages.1: '50' is not of type 'integer'"),
        (("percentages",), [100, [100, 50, 10]], "percentages: [100, 50, 10] is of 3 ranks, and 100 of 2"),
        (("percentages",), [[100, 100, 50], [50, 100, 100]], "[50, 100, 100]] lacks [100, 100, 100]"),
        (("percentages",), [100, [100]], "percentages.1: [100] is too short"),
        (("percentages",), [100, [100, 0]], "percentages.1.1: 0 is less"),
        (("headline", "percentages"), [50, 10], "headline.percentages: [50, 10] lacks 100"),
        (("headline", "percentages"), [100, [100, 100, 100]], "headline.percentages: [100, 100, 100] is of 3 ranks"),
        (("model_percentages",), [[100, 100, 50]], "model_percentages: [100, 100, 50] is of 3 ranks, and 100 of 2"),
        (
            ("strategies",),
            ["contiguous/even", "zigzag/even", "zigzag/lutt"],
            "strategies.2: strategy 'zigzag/lutt' is unknown",
        ),
        (("strategies",), ["contiguous/even", "zigzag/balanced"], "lacks zigzag/even"),
        (
            ("strategies",),
            ["contiguous/even", "zigzag/even", "zigzag/even:p2p"],
            "zigzag/even:p2p varies how a call is made, which module fms does not",
        ),
        (
            ("strategies",),
            ["contiguous/even", "zigzag/even", "zigzag/even@attention"],
            "strategies.2: strategy 'zigzag/even@attention' is unknown",
        ),
        (
            ("model_strategies",),
            ["contiguous/even", "zigzag/balanced", "zigzag/lut"],
            "model_strategies.2: 'zigzag/lut' does not match",
        ),
        (("profiled_percentages",), [50, 10], "profiled_percentages: [50, 10] lacks 100"),
        (("platforms", "gpu", "slow_first"), [100], "platforms.gpu.slow_first.0: 100 is greater than the maximum"),
        (("platforms", "gpu", "more_strategies"), ["zigzag/even"], "more_strategies: zigzag/even is one of strategies"),
        (("platforms", "gpu", "jobs"), 0, "platforms.gpu.jobs: 0 is less than the minimum"),
        (("platforms", "cpu", "conditions"), ["captured"], "platforms.cpu.conditions.0: 'captured' is not one of"),
        (("run",), "../elsewhere", "run: '../elsewhere' does not match"),
        (("platform",), 1e5, "platform: 100000.0 is not of type 'string'"),
        (("platform",), "1e5", "platform: '1e5' does not match"),
        (("platform",), "nan", "platform: 'nan' does not match"),
        (("run",), "007", "run: '007' does not match"),
        (("run",), "1e-5", "run: '1e-5' does not match"),
        (("platform",), True, "platform: True is not of type 'string': put it in quotes"),
        (("platform",), None, "platform: None is not of type 'string': put it in quotes"),
        (("platform",), -1, "platform: '-1' does not match"),
        (("platform",), "h200x2\n", "platform: 'h200x2\\n' does not match"),
        (("platform",), "two gpus", "platform: 'two gpus' does not match"),
        (("run",), "r" * 300, "run: 'rrr"),
        (("run",), "mine\n", "run: 'mine\\n' does not match"),
        (("percentages",), [100, 50.0], "percentages.1: 50.0 is not of type 'integer'"),
        (("percentages",), ["100"], "percentages.0: '100' is not of type 'integer', 'array'; inside lists and groups"),
        (("model_percentages",), [True], "model_percentages.0: True is not of type 'integer'"),
        (("platforms", "cpu", "heads"), 2.0, "platforms.cpu.heads: 2.0 is not of type 'integer'"),
        (("platforms", "cpu", "heads"), True, "platforms.cpu.heads: True is not of type 'integer'"),
        (("platforms", "cpu", "warmup"), False, "platforms.cpu.warmup: False is not of type 'integer'"),
        (("platforms", "cpu", "repetitions"), 10**30, f"platforms.cpu.repetitions: {10**30} is greater"),
        (("platforms", "cpu", "matmul_sizes"), [10**18], f"platforms.cpu.matmul_sizes.0: {10**18} is greater"),
        (("platforms", "cpu", "model", "layers"), 1.0, "platforms.cpu.model.layers: 1.0 is not of type 'integer'"),
        (("platforms", "cpu", "model", "name"), "llama/micro\n", "model.name: 'llama/micro\\n' does not match"),
        (("platforms", "cpu", "model", "cell_seconds"), float("inf"), "cell_seconds: inf is not a finite number"),
        (NOISE, float("nan"), "platforms.cpu.bound_fraction_noise: nan is not a finite number"),
        (NOISE, 1e300, "platforms.cpu.bound_fraction_noise: 1e+300 is greater"),
        (NOISE, True, "platforms.cpu.bound_fraction_noise: True is not of type 'number'"),
        (("platforms",), None, "platforms: None is not of type 'object'"),
        (("platforms", "gpu", "seq_lens"), [4096, 4098], "platforms.gpu.seq_lens: 4098 is not a multiple of 4"),
        (("platforms", "cpu", "seq_lens"), [0], "platforms.cpu.seq_lens.0: 0 is less"),
        (("platforms", "cpu", "seq_lens"), [], "platforms.cpu.seq_lens: []"),
        (("platforms", "cpu", "throttle"), "mps", "platforms.cpu.throttle: 'mps' is not one of"),
        (("platforms", "cpu", "repetitions"), 0, "platforms.cpu.repetitions: 0 is less"),
        (("platforms", "cpu", "dtype"), "float64", "platforms.cpu.dtype: 'float64' is not one of"),
        (("platforms", "cpu", "kv_heads"), 3, "platforms.cpu.heads: 2 is not a multiple of kv_heads, 3"),
        (("platforms", "gpu", "head_dim"), 63, "platforms.gpu.head_dim: 63 is odd, and module fms has rotary"),
        (("platforms", "cpu", "model", "emb_dim"), 252, "platforms.cpu.model.emb_dim: 252 in 4 heads makes them odd"),
        (("platforms", "cpu", "model", "heads"), 0, "model.heads: 0, the model's own, does not go with emb_dim, 256"),
        (("platforms", "cpu", "model", "heads"), 6, "platforms.cpu.model.emb_dim: 256 is not a multiple of heads, 6"),
        (("platforms", "gpu", "model", "emb_dim"), 64, "platforms.gpu.model.heads: 0, the model's own, does not go"),
        (("platforms", "cpu", "model", "kv_heads"), 3, "model.heads: 4 is not a multiple of kv_heads, 3"),
        (
            ("platforms", "cpu", "model", "decode"),
            [{"batch": 1, "seq_lens": [64, 1024]}],
            "platforms.cpu.model.decode: batch 1 at 1024 tokens is measured behind the longest prompt already",
        ),
        (
            ("platforms", "cpu", "model", "decode"),
            [{"batch": 8, "seq_lens": [64]}, {"batch": 8, "seq_lens": [128]}],
            "platforms.cpu.model.decode: of the batches 8, 8 one is there twice",
        ),
        (("platforms", "gpu", "throttle"), "none", "platforms.gpu.throttle: 'none' is not one of"),
        (NOISE, -0.1, "platforms.cpu.bound_fraction_noise: -0.1 is less"),
    ],
)
def test_bad_value_is_an_error_that_names_key_and_value(config, path, value, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        check(changed(config, path, value), SCHEMA)


@pytest.mark.parametrize("key", ["run", "platform"])
def test_name_that_is_read_as_an_integer_is_a_name(config, key):
    config[key] = 4090
    check(config, SCHEMA)
    assert config[key] == "4090"


@pytest.mark.parametrize("name", ["null", "na", "true", "0", "2e", "1e5x", "nano"])
def test_words_that_resemble_values_are_names(config, name):
    check(config | {"run": name, "platform": name}, SCHEMA)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "llama/nosuch"}, "platforms.cpu.model: llama/nosuch: variant 'nosuch' of llama is unknown"),
        ({"name": "lama/micro"}, "platforms.cpu.model: lama/micro: architecture 'lama': choose one of llama"),
        ({"name": "llama/7b", "kv_heads": 3, "heads": 0, "emb_dim": 0}, "is not a multiple of kv_heads 3"),
    ],
)
def test_model_that_cannot_be_built_is_refused(config, settings, says):
    pytest.importorskip("fms")
    config["platforms"]["cpu"]["model"] |= settings
    check(config, SCHEMA)
    with pytest.raises(ValueError, match=re.escape(says)):
        check_models(config, CONFIG / "default.yaml")


def test_models_of_the_defaults_can_be_built_and_are_not_asked_about(config, monkeypatch):
    pytest.importorskip("fms")
    from heteroring.bench.model import spec as model_spec

    for platform in config["platforms"].values():
        model_spec.ModelSpec(platform["model"]["name"])
    monkeypatch.setattr(model_spec, "ModelSpec", None)
    check_models(config, CONFIG / "default.yaml")


@pytest.mark.parametrize("path", [("modules",), ("platforms", "cpu", "model", "heads")])
def test_missing_key_is_named(config, path):
    """As where --replace-workflow-config leaves the defaults out."""
    *group, name = path
    inner = config
    for key in group:
        inner = inner[key]
    del inner[name]
    with pytest.raises(ValueError, match=f"key {'.'.join(path)} is missing"):
        check(config, SCHEMA)


def test_a_name_that_is_like_a_known_one_is_told(config):
    strategies = ["contiguous/even", "zigzag/even", "zigzag/lutt"]
    with pytest.raises(
        ValueError, match=r"strategies.2: strategy 'zigzag/lutt' is unknown.*; did you mean zigzag/lut\?"
    ):
        check(config | {"strategies": strategies}, SCHEMA)
    with pytest.raises(ValueError, match=r"platform=h20x2: .*; did you mean h200x2\?"):
        choose("h20x2", 0, ("h200x2",))


def test_every_mistake_is_listed(config):
    broken = changed(changed(config, ("platfrom",), "cpu"), NOISE, "much")
    with pytest.raises(ValueError, match="platfrom") as error:
        check(broken, SCHEMA)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("requested", "gpus", "recorded", "main", "live"),
    [
        ("auto", 0, (), "cpu", "cpu"),
        ("auto", 1, (), "cpu", "cpu"),
        ("auto", 2, (), "gpu", "gpu"),
        ("auto", 0, ("h200x2",), "h200x2", "cpu"),
        ("auto", 2, ("h200x2",), "gpu", "gpu"),
        ("auto", 0, ("another",), "cpu", "cpu"),
        ("cpu", 2, ("h200x2",), "cpu", "cpu"),
        ("gpu", 4, (), "gpu", "gpu"),
        ("h200x2", 0, ("h200x2",), "h200x2", "cpu"),
        ("h200x2", 2, ("h200x2",), "h200x2", "gpu"),
    ],
)
def test_platform_choice(requested, gpus, recorded, main, live):
    chosen = choose(requested, gpus, recorded)
    assert (chosen.main, chosen.live) == (main, live)
    assert chosen.shown == tuple(dict.fromkeys((main, live)))


@pytest.mark.parametrize("gpus", [0, 1])
def test_platform_gpu_without_two_gpus_is_refused(gpus):
    with pytest.raises(ValueError, match=f"platform=gpu needs a CUDA GPU for each of 2 ranks.*{gpus}"):
        choose("gpu", gpus, ())


def test_a_ring_of_four_needs_four_gpus():
    assert choose("auto", 4, (), ranks=4).main == "gpu"
    assert choose("auto", 3, (), ranks=4).main == "cpu"
    with pytest.raises(ValueError, match="for each of 4 ranks, and this machine shows 3"):
        choose("gpu", 3, (), ranks=4)


def test_platform_that_is_not_recorded_is_refused_and_the_choices_are_listed():
    with pytest.raises(ValueError, match=r"platform=b200x2.*auto, cpu, gpu, h200x2"):
        choose("b200x2", 0, ("h200x2",))


def test_recorded_platforms_are_folders_with_provenance(tmp_path):
    for name in ("h200x2", "cpu", "gpu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text("{}")
    (tmp_path / "leftover" / "derived").mkdir(parents=True)
    assert recorded_platforms(tmp_path) == ("h200x2",)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi first on the PATH that prints the given text and exits with the given status."""

    def install(text: str, status: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


TWO = "GPU 0: NVIDIA H200 (UUID: GPU-a)\nGPU 1: NVIDIA H200 (UUID: GPU-b)\n"


def test_gpus_are_counted_without_torch(nvidia_smi):
    nvidia_smi(TWO)
    assert visible_gpus() == 2


@pytest.mark.parametrize(("visible", "count"), [("0", 1), ("1,0", 2), ("", 0), ("-1", 0), ("GPU-a", 1)])
def test_hidden_gpus_do_not_count(nvidia_smi, monkeypatch, visible, count):
    nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == count


def test_mig_slices_are_not_gpus(nvidia_smi):
    nvidia_smi("GPU 0: NVIDIA H200 (UUID: GPU-a)\n  MIG 1g.18gb Device 0: (UUID: MIG-c)\n")
    assert visible_gpus() == 1


def test_driver_that_fails_shows_no_gpu(nvidia_smi):
    nvidia_smi("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.", status=9)
    assert visible_gpus() == 0


def test_no_driver_shows_no_gpu(monkeypatch):
    monkeypatch.setattr(platforms.shutil, "which", lambda name: None)
    assert visible_gpus() == 0


def test_output_folders_that_cannot_be_written_are_refused(tmp_path):
    check_writable([tmp_path, tmp_path / "runs" / "mine" / "data"])
    (tmp_path / "runs").touch()
    complaint = f"cannot write in {tmp_path}/runs/mine/data: {tmp_path}/runs is not a folder"
    with pytest.raises(ValueError, match=re.escape(complaint)):
        check_writable([tmp_path / "figures", tmp_path / "runs" / "mine" / "data"])
    assert not (tmp_path / "figures").exists()


def test_output_folders_without_permission_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"no permission to write in {tmp_path}")):
        check_writable([tmp_path / "figures"])

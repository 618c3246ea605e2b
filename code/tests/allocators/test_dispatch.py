"""`allocate` and `allocation`: every allocator's lengths sum to the sequence, and bad arguments are refused."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heteroring.allocators import ALLOCATORS, Allocation, allocate, allocation, fit, predicted_ms
from heteroring.allocators.formula import Formula
from heteroring.allocators.lut import LookupTable
from heteroring.allocators.profile_table import ProfileTable
from heteroring.allocators.unit_costs import cost_of_speed
from heteroring.results.rows import write_rows
from heteroring.ring.partition import LAYOUTS, Partition
from rows import profile_row


def profile(source, speeds=((1.0, 4.0, 7.0, 8.0), (2.0, 5.0, 9.0, 10.0), (2.0, 6.0, 9.0, 12.0))):
    return ProfileTable(source, "cpu", {"dtype": "float32"}, (512, 1024, 4096), (10, 40, 80, 100), speeds, 12)


MODELS = {
    "lut": LookupTable.fit(profile("matmul")),
    "formula": Formula.fit(profile("matmul")),
    "balanced": LookupTable.fit(profile("attention")),
}

positive = st.floats(1e-6, 1e6)
tables = st.lists(st.lists(positive, min_size=4, max_size=4), min_size=3, max_size=3)


@pytest.mark.parametrize("name", ALLOCATORS)
@given(
    seq_len=st.integers(1, 2**21),
    percentages=st.lists(st.one_of(st.integers(1, 100), st.floats(1, 100)), min_size=1, max_size=6),
    speeds=tables,
    layout=st.sampled_from(LAYOUTS),
    causal=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_shards_are_whole_not_negative_and_fill_the_sequence(name, seq_len, percentages, speeds, layout, causal):
    kind = Formula if name == "formula" else LookupTable
    model = kind.fit(profile("attention", speeds))
    found = allocation(name, seq_len, percentages=percentages, profile=model, layout=layout, causal=causal)
    assert len(found.block_lens) == len(percentages)
    assert all(type(n) is int and n >= 0 for n in found.block_lens)
    assert sum(found.block_lens) == seq_len
    assert allocate(name, seq_len, percentages=percentages, profile=model, layout=layout, causal=causal) == (
        found.block_lens
    )
    assert found.clamped <= bool(found.notes)
    Partition(layout, found.block_lens)


@pytest.mark.parametrize("name", ["uneven", "lut", "balanced"])
def test_a_faster_rank_never_gets_fewer_tokens(name):
    percentages = (100, 80, 60, 40, 25, 10)
    lens = allocate(name, 4096, percentages=percentages, profile=MODELS.get(name))
    assert list(lens) == sorted(lens, reverse=True)


def test_by_hand():
    assert allocation("even", 10, percentages=(100, 50, 10)) == Allocation((4, 3, 3))
    assert allocation("uneven", 11, percentages=(100, 10)) == Allocation((10, 1))
    # The table holds 10 and 5 TFLOP/s at 1024.
    assert allocation("lut", 1024, percentages=(100, 40), profile=MODELS["lut"]) == Allocation(
        (683, 341), model_source="matmul", speeds=(10.0, 5.0)
    )
    balanced = allocation("balanced", 1024, percentages=(100, 40), profile=MODELS["balanced"])
    assert balanced.block_lens == (683, 341)
    assert balanced.model_source == "attention"
    assert balanced.costs == (cost_of_speed(10.0), cost_of_speed(5.0))
    # Contiguous: rank 0 does 2/3 of the causal work on the first sqrt(2/3) of the tokens.
    lens = allocate("balanced", 1024, percentages=(100, 40), profile=MODELS["balanced"], layout="contiguous")
    assert lens == (836, 188)
    dense = allocate(
        "balanced", 1024, percentages=(100, 40), profile=MODELS["balanced"], layout="contiguous", causal=False
    )
    assert dense == (683, 341)


def test_published_negative_split_is_whole_and_flagged():
    # Cells of the published L40 matmul profile (l40_matmul_mps_sweep.csv). At 65,536 tokens and 10 % its
    # formula is negative, and shares in proportion to it were 207,652 and -142,116 tokens.
    speeds = ((24.91, 38.52, 73.20), (33.95, 67.57, 157.00), (35.74, 68.06, 155.30))
    l40 = ProfileTable("matmul", "l40", {"dtype": "float16"}, (1024, 4096, 16384), (10, 20, 50), speeds, 9)
    found = allocation("formula", 65536, percentages=(50, 10), profile=Formula.fit(l40))
    assert found.clamped
    assert any("replaced by the slowest speed fitted, 24.91" in note for note in found.notes)
    assert min(found.block_lens) > 0
    assert sum(found.block_lens) == 65536
    assert min(found.speeds) == 24.91


def test_clamping_is_told_once_for_all_ranks():
    found = allocation("lut", 65536, percentages=(100, 50, 5), profile=MODELS["lut"])
    assert found.clamped
    assert found.notes == (
        "lut: length 65536 lies outside the profile (512 to 4096), read at its edge",
        "lut: percentage 5 lies outside the profile (10 to 100), read at its edge",
    )
    assert not allocation("lut", 2048, percentages=(100, 50), profile=MODELS["lut"]).clamped


def test_balanced_gives_out_whole_multiples():
    free = allocate("balanced", 4096, percentages=(100, 40), profile=MODELS["balanced"])
    whole = allocation("balanced", 4096, percentages=(100, 40), profile=MODELS["balanced"], multiple=256).block_lens
    assert sum(whole) == 4096
    assert all(n % 256 == 0 for n in whole)
    assert all(abs(a - b) < 256 for a, b in zip(free, whole, strict=True))
    odd = allocation("balanced", 4001, percentages=(100, 40), profile=MODELS["balanced"], multiple=256).block_lens
    assert sum(odd) == 4001
    assert odd[1] % 256 == 0  # the remainder goes to the fastest


def test_balanced_predicts_the_least_slowest_rank():
    percentages = (100, 60, 15)
    found = {
        name: allocation(name, 4001, percentages=percentages, profile=MODELS.get(name), layout="contiguous")
        for name in ALLOCATORS
    }
    costs = found["balanced"].costs
    slowest = {name: max(predicted_ms(Partition.contiguous(one.block_lens), costs)) for name, one in found.items()}
    assert min(slowest, key=slowest.get) == "balanced"


class TestProfile:
    def csv(self, path, *sources):
        rows = []
        for offset, source in enumerate(sources):
            table = profile(source)
            for length, speeds in zip(table.lengths, table.values, strict=True):
                for percentage, speed in zip(table.percentages, speeds, strict=True):
                    rows.append(profile_row(source, length, percentage=percentage, tflops=speed + offset))
        write_rows(path, rows)
        return path

    @pytest.mark.parametrize("name", ["lut", "formula", "balanced"])
    def test_object_json_and_csv_agree(self, tmp_path, name):
        source = MODELS[name].source
        MODELS[name].save(tmp_path / "model.json")
        csv = self.csv(tmp_path / "profile.csv", source)
        profiles = [MODELS[name], tmp_path / "model.json", str(tmp_path / "model.json"), csv, str(csv)]
        found = [allocation(name, 3000, percentages=(100, 33), profile=each) for each in profiles]
        assert found == [found[0]] * len(profiles)
        assert found[0].model_source == source

    def test_csv_with_both_operators(self, tmp_path):
        path = self.csv(tmp_path / "profile.csv", "matmul", "attention")
        assert allocation("lut", 512, percentages=(100, 40), profile=path).speeds == (8.0, 4.0)
        assert allocation("formula", 512, percentages=(100,), profile=path).model_source == "matmul"
        costs = allocation("balanced", 512, percentages=(100, 40), profile=path).costs
        assert costs == (cost_of_speed(9.0), cost_of_speed(5.0))

    def test_fit_reads_many_files(self, tmp_path):
        path = self.csv(tmp_path / "profile.csv", "matmul")
        header, *rows = path.read_text().splitlines(keepends=True)
        parts = []
        for percentage in (10, 40, 80, 100):
            parts.append(tmp_path / f"pct-{percentage:03d}.csv")
            parts[-1].write_text(header + "".join(row for row in rows if f",pacing,{percentage},0," in row))
        assert fit("lut", "matmul", parts) == fit("lut", "matmul", path)
        assert fit("lut", "matmul", parts).speeds == MODELS["lut"].speeds

    @pytest.mark.parametrize(
        ("name", "given", "message"),
        [
            ("lut", None, "allocator 'lut' needs a lut model, the path of its JSON file or of a profile CSV"),
            ("formula", None, "allocator 'formula' needs a formula model, .* none was given"),
            (
                "balanced",
                None,
                "needs a cost model or lut model fitted to the attention profile, .* none was",
            ),
            ("lut", MODELS["formula"], "needs a lut model; got a formula model fitted to the matmul profile"),
            ("formula", MODELS["lut"], "needs a formula model; got a lut model"),
            (
                "balanced",
                MODELS["lut"],
                "fitted to the attention profile; got a lut model fitted to the matmul",
            ),
            ("balanced", MODELS["formula"], "fitted to the attention profile; got a formula model"),
            ("lut", {"kind": "lut"}, "got dict"),
            ("lut", 3, "allocator 'lut' needs a lut model, the path of .* got int"),
            ("lut", "", "profile is '': it must be the path of a file"),
            ("even", "a\0.csv", r"profile is 'a\\x00.csv': it must be the path of a file"),
            ("lut", "nowhere.json", "cannot read nowhere.json: No such file"),
            ("lut", "nowhere.csv", "cannot read nowhere.csv: No such file"),
        ],
    )
    def test_unsuitable_profile_is_named(self, name, given, message):
        with pytest.raises(ValueError, match=message):
            allocate(name, 1024, percentages=(100, 50), profile=given)

    def test_csv_without_attention_cannot_balance(self, tmp_path):
        path = self.csv(tmp_path / "profile.csv", "matmul")
        with pytest.raises(ValueError, match=f"{path}: no row of kind 'attention'"):
            allocate("balanced", 1024, percentages=(100, 50), profile=path)


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_len": 0}, "seq_len is 0: it must be 1 or more"),
        ({"seq_len": -4}, "seq_len is -4: it must be 1 or more"),
        ({"seq_len": 4096.0}, "seq_len is 4096.0: it must be an integer"),
        ({"seq_len": True}, "seq_len is True: it must be an integer"),
        ({"seq_len": np.float64(64)}, "seq_len is np.float64(64.0): it must be an integer"),
        ({"seq_len": 2**53 + 1}, "seq_len is 9007199254740993: it must be 9007199254740992 or less"),
        ({"multiple": 0}, "multiple is 0: it must be 1 or more"),
        ({"multiple": 1.5}, "multiple is 1.5: it must be an integer"),
        ({"multiple": True}, "multiple is True: it must be an integer"),
        ({"multiple": "2"}, "multiple is '2': it must be an integer"),
        ({"percentages": ()}, "percentages is (): it must be a list of numbers, one per rank, in rank order"),
        ({"percentages": {100, 50}}, "{50, 100}: it must be a list of numbers, one per rank, in rank order"),
        ({"percentages": {100: 1}}, "percentages is {100: 1}: it must be a list"),
        ({"percentages": "100"}, "percentages is '100': it must be a list"),
        ({"percentages": b"dd"}, "percentages is b'dd': it must be a list"),
        ({"percentages": 100}, "percentages is 100: it must be a list"),
        ({"percentages": None}, "percentages is None: it must be a list"),
        ({"percentages": (100, True)}, "percentage of rank 1 is True: it must be a number in 1..100"),
        ({"percentages": (None, 50)}, "percentage of rank 0 is None: it must be a number in 1..100"),
        ({"percentages": (float("inf"), 50)}, "percentage of rank 0 is inf: it must be a number in 1..100"),
        ({"percentages": np.array([[100, 50]])}, "percentage of rank 0 is array([100,  50]): it must be"),
        ({"percentages": (100, 0)}, "percentage of rank 1 is 0: it must be a number in 1..100"),
        ({"percentages": (101, 50)}, "percentage of rank 0 is 101: it must be a number in 1..100"),
        ({"percentages": (100, -10)}, "percentage of rank 1 is -10"),
        ({"percentages": (100, float("nan"))}, "percentage of rank 1 is nan"),
        ({"layout": "striped"}, "layout 'striped' is unknown"),
        ({"causal": "no"}, "causal is 'no': it must be True or False"),
        ({"causal": 1}, "causal is 1: it must be True or False"),
    ],
)
def test_bad_input_is_named(name, change, message):
    arguments = {"seq_len": 64, "percentages": (100, 50), "profile": MODELS.get(name)} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        allocation(name, **arguments)


@pytest.mark.parametrize("name", ["best", None, ["even"], np.array(["even", "lut"])], ids=repr)
def test_unknown_allocator_is_named(name):
    message = f"allocator {name!r} is unknown: choose one of even, uneven, lut, formula, balanced"
    with pytest.raises(ValueError, match=re.escape(message)):
        allocate(name, 64, percentages=(100, 50))


def test_numpy_numbers_are_numbers():
    lens = allocate("uneven", np.int64(110), percentages=np.array([100, 10]))
    assert lens == (100, 10)
    assert all(type(n) is int for n in lens)


@pytest.mark.parametrize(
    "lines",
    [
        "import heteroring as hr",
        "import heteroring.allocators\nimport heteroring as hr",
        "from heteroring.allocators import fit\nimport heteroring as hr",
        "import heteroring as hr\nhr.allocate('even', 4, percentages=(1,))\nimport heteroring.allocators",
    ],
)
@pytest.mark.ranks
def test_allocate_is_callable_and_light_however_it_was_imported(lines):
    check = (
        f"{lines}\n"
        "import sys\n"
        "assert hr.allocate('uneven', 110, percentages=(100, 10)) == (100, 10)\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)

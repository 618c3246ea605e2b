"""Whole waves of tiles: the order and the times of a kernel's programs, and splits that take them into account."""

import json
from heapq import heapify, heapreplace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heteroring.allocators.dispatch import allocation
from heteroring.allocators.fitting import fit
from heteroring.allocators.unit_costs import predicted_ms
from heteroring.allocators.waves import BLOCK_M, KernelGrid, busy_us
from heteroring.files import read_json
from heteroring.kernels import launch_configs
from heteroring.ring.partition import LAYOUTS, Partition
from heteroring.ring.workload import total_pairs
from tree import ROOT

PROFILES = sorted((ROOT / "data/h200x2/profile").glob("*.csv"))


@pytest.fixture(scope="module")
def model():
    return fit("cost", "attention", PROFILES)


def programs(grid, rows, keys, causal, pending, first_query, merged):
    """The time of each program by its number, decoded as the kernel decodes it, and its pairs counted one by one."""
    # The first tile's row: before the first query, if a tile has to begin where many pending keys are first seen.
    start = -(-first_query % BLOCK_M) if pending >= 2 * rows else 0
    blocks = -(-(rows - start) // BLOCK_M)
    section = launch_configs.section(grid.heads, grid.group, keys + pending, grid.head_dim, grid.itemsize)
    first = 0
    if pending:
        first = launch_configs.first_section(section, grid.group, max(1, -(-(rows - first_query) // BLOCK_M)), grid.sms)
    second = (grid.heads - first) % section
    for program in range(blocks * grid.heads):
        inside, width = program, first
        if inside >= blocks * first:
            inside, width = inside - blocks * first, second
            if inside >= blocks * second:
                inside, width = (inside - blocks * second) % (blocks * section), section
        block = blocks - 1 - inside // width
        queries = range(start + block * BLOCK_M, min(start + (block + 1) * BLOCK_M, rows))
        assert pending < 2 * rows or len({row >= first_query for row in queries}) == 1
        seen = keys - rows + queries[-1] + 1 if causal else keys  # the last keys are the queries' own
        later = pending if queries[-1] >= first_query else 0
        tiles = len(range(0, seen, grid.block_n)) + len(range(0, later, grid.block_n))
        yield tiles + grid.edge + grid.merge * merged


@settings(max_examples=60, deadline=None)
@given(
    sms=st.integers(1, 140),
    groups=st.integers(1, 9),
    group=st.sampled_from([1, 4]),
    rows=st.integers(1, 3000),
    keys=st.integers(1, 40000),
    pending=st.one_of(st.just(0), st.integers(1, 3000)),
    causal=st.booleans(),
    merged=st.booleans(),
    data=st.data(),
)
def test_each_program_goes_to_the_sm_that_is_free_first(sms, groups, group, rows, keys, pending, causal, merged, data):
    grid = KernelGrid(sms, groups * group, group, 128, 2, 3.5, 1.25)
    first_query = data.draw(st.integers(0, rows - 1)) if pending else 0
    keys += rows * causal
    free = [0.0] * sms
    heapify(free)
    for time in programs(grid, rows, keys, causal, pending, first_query, merged):
        heapreplace(free, free[0] + time)
    found = grid.time(rows, keys, causal, pending=pending, first_query=first_query, merged=merged)
    assert found == pytest.approx(max(free))


def test_a_tile_takes_the_same_time_at_every_length_of_a_recorded_rank(model):
    """So its attention calls consist of whole waves."""
    assert model.sms == (12, 26, 38, 52, 66, 78, 92, 104, 118, 132)
    for percentage in model.percentages:
        times = [
            model.grid(length, percentage).tile_us(model.predict(length, percentage).cost, length)
            for length in (4096, 8192, 16384, 32768)
        ]
        assert max(times) / min(times) < 1.035
        assert max(times[1:]) / min(times[1:]) < 1.015


def split(model, seq_len, percentages, layout="zigzag", multiple=256):
    given = allocation("balanced", seq_len, percentages=percentages, profile=model, layout=layout, multiple=multiple)
    assert sum(given.block_lens) == seq_len
    return given.block_lens


def slowest_us(model, lens, percentages, layout="zigzag"):
    seq_len = sum(lens)
    costs = [model.predict(seq_len, each).cost for each in percentages]
    if seq_len in lens:
        return costs[lens.index(seq_len)].pair_us * total_pairs(seq_len)
    return max(busy_us(Partition(layout, lens), costs, [model.grid(seq_len, each) for each in percentages]))


def test_short_prompts_are_split_where_waves_end(model):
    # Recorded: 4352 and 3840 tokens took 0.523 ms, half for each 0.489 ms.
    assert split(model, 8192, (100, 90)) == (4096, 4096)
    # Recorded: rank 0 alone took 0.258 ms; the ring is predicted 58 us faster, and waits for some 22 us.
    assert min(split(model, 4096, (100, 40))) > 0
    assert split(model, 4096, (100, 10)) == (4096, 0)
    assert split(model, 5000, (100, 50)) == split(model, 5000, (100, 50), multiple=None)


def test_what_waves_take_over_a_prefix_is_near_what_pairs_and_rows_do(model):
    # A chunk over a long prefix has many keys to a tile, so that all tiles but those of the last wave take as long.
    for layout in LAYOUTS:
        partition, prefix_lens, percentages = Partition(layout, (5120, 3072)), (40960, 16384), (100, 60)
        costs = [model.predict(8192, each, sum(prefix_lens)).cost for each in percentages]
        grids = [model.grid(8192, each, sum(prefix_lens)) for each in percentages]
        found = busy_us(partition, costs, grids, prefix_lens)
        assert found == pytest.approx([1e3 * ms for ms in predicted_ms(partition, costs, True, prefix_lens)], rel=0.05)


def test_a_chunk_is_split_where_waves_end(model):
    prefix_lens = (20480, 12288)
    given = allocation("balanced", 4096, percentages=(100, 60), profile=model, prefix_lens=prefix_lens)
    costs = given.costs
    grids = [model.grid(4096, each, sum(prefix_lens)) for each in (100, 60)]
    times = {
        lens: max(busy_us(Partition.zigzag(lens), costs, grids, prefix_lens))
        for lens in ((first, 4096 - first) for first in range(256, 4096, 256))
    }
    assert times[given.block_lens] == min(times.values())


@settings(max_examples=25, deadline=None)
@given(
    seq_len=st.integers(512, 20000),
    slow=st.integers(10, 100),
    fast=st.integers(80, 100),
    layout=st.sampled_from(LAYOUTS),
)
def test_no_neighbour_of_a_split_is_faster_and_one_rank_has_what_is_left_over(model, seq_len, slow, fast, layout):
    percentages = (fast, slow)
    lens = split(model, seq_len, percentages, layout)
    assert sum(length % 256 > 0 for length in lens) == (seq_len % 256 > 0)
    best = slowest_us(model, lens, percentages, layout)
    for count in (-2, -1, 1, 2):
        other = lens[0] + 256 * count, lens[1] - 256 * count
        if min(*lens, *other) > 0:
            assert best <= slowest_us(model, other, percentages, layout) * (1 + 1e-9)


@pytest.mark.parametrize("percentages", [(100, 100), (100, 50), (100, 15)], ids=str)
def test_a_broken_tile_costs_no_more_than_a_whole_one(model, percentages):
    for seq_len in (12345, 12289, 9001, 16385):
        whole = -(-seq_len // 256) * 256
        times = [slowest_us(model, split(model, each, percentages), percentages) for each in (seq_len, whole)]
        assert times[0] <= 1.03 * times[1]


def test_what_is_left_over_goes_to_one_rank_without_a_count_of_sms_too(model):
    plain = fit("lut", "attention", PROFILES)
    for seq_len in (12345, 300, 255, 1):
        lens = split(plain, seq_len, (100, 50, 100))
        if seq_len >= 256:
            assert [length % 256 for length in lens].count(0) == 2


def test_sms_are_one_for_each_percentage_or_not_known(model, tmp_path):
    content = model.to_json()
    del content["sms"]  # as in files of before
    assert type(model).from_json(content).grid(8192, 50) is None
    for sms in ([132], [132] * 9 + [0], ["a"] * 10, 3):
        with pytest.raises(ValueError, match=r"sms|wrong type"):
            type(model).from_json(content | {"sms": sms})
    # Profiles without their records, or without kind `join`, say nothing of SMs.
    copy = tmp_path / "pct-100.csv"
    copy.write_text(PROFILES[-1].read_text())
    assert fit("cost", "attention", copy).sms == ()
    fit("cost", "attention", copy).save(copy.with_suffix(".json"))  # a file of another kind
    assert fit("cost", "attention", copy).sms == ()
    copy.with_suffix(".json").write_text(PROFILES[-1].with_suffix(".json").read_text())
    assert fit("cost", "attention", copy).sms == (132,)
    rows = [line for line in PROFILES[-1].open() if ",join," not in line]
    copy.write_text("".join(rows))
    record = read_json(PROFILES[-1].with_suffix(".json"))
    copy.with_suffix(".json").write_text(json.dumps(record | {"row_count": len(rows) - 1}))
    assert fit("cost", "attention", copy).sms == ()

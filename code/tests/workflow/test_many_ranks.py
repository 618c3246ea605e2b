"""A configuration of rings of three ranks: measured, aggregated, checked and drawn by the commands of the workflow."""

from itertools import product
from math import isnan

import pytest
import yaml
from typer.testing import CliRunner

from check_measurements import main as check
from commands import Commands
from heteroring.cli.main import app
from heteroring.figures import draw
from heteroring.results.metrics import choices_of_ranks
from heteroring.results.rank_percentages import in_short
from heteroring.results.results import Results
from record import read_config

RINGS = ((100, 100, 100), (100, 100, 40), (40, 100, 100), (100, 40, 40))
STRATEGIES = ["contiguous/even", "zigzag/even", "zigzag/balanced"]
LENGTHS = (96, 192)
OVERLAY = {
    "percentages": [list(ranks) for ranks in RINGS],
    "strategies": STRATEGIES,
    "headline": {"percentages": [[100, 100, 100]], "strategies": STRATEGIES},
    "modules": ["attention"],
    "model_percentages": [],
    "platforms": {
        "cpu": {"conditions": ["sustained"], "seq_lens": list(LENGTHS), "matmul_sizes": [32, 64], "repetitions": 2},
        "gpu": {"seq_lens": [96]},
    },
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "ring3.yaml"
    path.write_text(yaml.safe_dump(OVERLAY))
    return Commands(read_config(path), "cpu", ["attention"])


@pytest.fixture(scope="module")
def folder(commands, tmp_path_factory, measuring_on_pools):
    """The platform's folder, made by the commands that the rules run."""
    folder = tmp_path_factory.mktemp("data") / "cpu"
    profiles = {each: folder / f"profile/pct-{each:03d}.csv" for each in commands.profiled_percentages}
    models, bench = folder / "models", folder / "bench"
    lines = [commands.profile(*each) for each in profiles.items()]
    lines += [commands.fit(*fit, profiles.values(), models / f"{name}.json") for name, fit in commands.fits.items()]
    lines += [commands.bench(each, models, bench / f"{each.name}.csv") for each in commands.settings()]
    with measuring_on_pools():
        for line in [*lines, ("aggregate", "--platform-dir", str(folder))]:
            done = CliRunner().invoke(app, line, catch_exceptions=False)
            assert done.exit_code == 0, done.output
    return folder


def test_every_ring_is_measured_whole_and_plausible(commands, folder, tmp_path):
    assert [each.percentages for each in commands.settings()] == [*RINGS, RINGS[0]]
    assert (folder / "bench/pct-100-100-040.job-1.csv").is_file()
    derived = folder / "derived"
    check(derived / "measurements.csv", derived / "cells.csv", tmp_path / "report", commands.grid(), 10.0)
    assert "every cell there, every repetition once" in (tmp_path / "report").read_text()
    smaller = commands.grid() | {"jobs": commands.grid()["jobs"][1:]}
    with pytest.raises(SystemExit):
        check(derived / "measurements.csv", derived / "cells.csv", tmp_path / "report", smaller, 10.0)


def test_cells_are_of_all_ranks_of_fewer_and_of_each_alone(folder):
    cells = Results.load(folder).cells
    rested = cells[cells.condition == "rested"]
    names = [*STRATEGIES, "zigzag/fastest2", *(f"alone/rank{rank}" for rank in range(3))]
    for _, group in rested.groupby(["seq_len", "percentages"]):
        assert sorted(group.strategy) == sorted(names)
        few = group[group.system == "subset"].iloc[0]
        slowest = [rank for rank, percentage in enumerate(few.percentages) if percentage == min(few.percentages)]
        assert few.block_lens[slowest[-1]] == few.busy_ms[slowest[-1]] == 0
        ring = group[group.system == "ring"]
        assert ((ring.exposed > 0) & (ring.exposed < 1)).all()
        assert ring.slowdown.notna().all()
        assert not isnan(few.bound_fraction)
    assert set(rested.order) == {"equal", "slow last", "slow first", "100 40 40"}
    chosen = choices_of_ranks(rested)
    assert set(zip(chosen.percentages, chosen.seq_len, strict=True)) == set(product(RINGS, LENGTHS))
    assert set(chosen.chosen) <= {1, 2, 3}


def test_the_figure_shows_every_ring(folder):
    results = Results.load(folder)
    figure = draw("many_ranks", results)
    assert [panel.get_title() for panel in figure.axes] == ["96 tokens", "192 tokens"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["3 x 100", "2 x 100, 40", "40, 2 x 100", "100, 2 x 40"]
    cells = results.cells[(results.cells.strategy == "zigzag/balanced") & (results.cells.seq_len == LENGTHS[1])]
    cells = cells[cells.condition == "rested"]
    [line] = [line for line in figure.axes[1].lines if line.get_label() == "zigzag/balanced"]
    found = {names[int(place)]: fraction for fraction, place in zip(*line.get_data(), strict=True)}
    assert found == {in_short(cell.percentages): cell.bound_fraction for cell in cells.itertuples()}

"""Every figure on a GPU's large and a CPU's tiny grid: legible at real size, nothing cut, nothing covered."""

import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import synthetic
from heteroring import figures
from heteroring.figures.canvas import not_measured, without_note
from heteroring.figures.plots import simulated_scaling, simulated_slow_rank
from heteroring.figures.select_rows import MissingRows
from heteroring.figures.style import STRATEGIES, look
from synthetic_figures import DPI, GRIDS, NAMES, VARIED, box, drawn, panels, results, results_of, texts
from tree import ROOT

pytestmark = pytest.mark.slow

TUPLES = ("percentages", "block_lens")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_legible_whole_and_named(name, grid):
    figure = drawn(name, grid)
    assert_text_is_inside_the_page_and_of_readable_size(figure, figures.WIDTH[name])
    assert_no_text_covers_another(figure)
    assert_legends_hide_no_data(figure)
    for axes in panels(figure):
        assert axes.lines or axes.patches or axes.collections or axes.images
    assert_strategies_have_their_own_colours(figure)

    (note,) = [text for text in texts(figure) if text.get_gid() == "source-note"]
    words = " ".join(note.get_text().split())
    assert words.startswith(f"Platform {GRIDS[grid].platform}: {GRIDS[grid].device_label}. ")
    summary = (
        "in one prefill of" if name in ("layer_trace", "rebalancing_trace") else f"median of {GRIDS[grid].repetitions}"
    )
    assert ("Simulated, not measured" if name.startswith("simulated_") else summary) in words
    throttle, other = ("MPS", "paced") if grid == "gpu" else ("paced", "MPS")
    everything = " ".join(text.get_text() for text in texts(figure)).lower()
    assert throttle.lower() in everything
    assert other.lower() not in everything


def test_rings_of_eight_ranks_are_legible_in_every_setting():
    """Drawn from predictions in place of measurements."""
    predicted = pd.read_csv(ROOT / "data" / "predictions" / "h200x8.csv")
    ranks = {name: predicted[name].map(lambda text: tuple(map(int, text.split()))) for name in TUPLES}
    ms = dict.fromkeys(("latency_ms", "latency_low_ms", "latency_high_ms"), predicted.predicted_ms)
    few = predicted.strategy.str.contains("fastest").map({True: "subset", False: "ring"})
    rows = predicted.assign(
        **(ranks | ms),
        module="attention",
        condition="rested",
        bound_fraction=predicted.bound_ms / predicted.predicted_ms,
    ).assign(system=few)
    eight = replace(results("gpu"), cells=pd.concat([results("gpu").cells, rows]))
    figure = figures.draw("many_ranks", eight)
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    assert_text_is_inside_the_page_and_of_readable_size(figure, "text")
    assert_no_text_covers_another(figure)
    assert_legends_hide_no_data(figure)
    assert_strategies_have_their_own_colours(figure)
    (note,) = [text for text in texts(figure) if text.get_gid() == "source-note"]
    assert ". zigzag/balanced used the best ranks in" in " ".join(note.get_text().split())


def assert_text_is_inside_the_page_and_of_readable_size(figure, kind):
    width, height = figure.bbox.size
    assert figure.get_figwidth() == {"column": 3.5, "text": 7.16}[kind]
    assert figure.get_figheight() <= 9.0
    for text in texts(figure):
        extent = box(text, figure)
        assert -0.5 <= extent.x0 <= extent.x1 <= width + 0.5, text
        assert -0.5 <= extent.y0 <= extent.y1 <= height + 0.5, text
        assert 7 <= text.get_fontsize() <= 9, text


def assert_no_text_covers_another(figure):
    boxes = [(text, box(text, figure)) for text in texts(figure)]
    point = DPI / 72
    for (one, a), (other, b) in combinations(boxes, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        # a box includes the room for descenders, so lines set close together may share a point of it
        assert wide <= point or high <= 1.5 * point, (one, other)


def assert_legends_hide_no_data(figure):
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    for legend in legends:
        extent = box(legend, figure)
        for axes in panels(figure):
            if legend.axes is not axes:
                assert not extent.overlaps(axes.get_window_extent()), "a legend lies over another panel"
                continue
            for line in axes.get_lines():
                if line.get_transform() == axes.transData:
                    points = axes.transData.transform(np.column_stack(line.get_data()))
                    assert not any(extent.contains(*point) for point in points)


def assert_strategies_have_their_own_colours(figure):
    expected = {strategy: to_hex(look(strategy).colour) for strategy in STRATEGIES}
    for axes in panels(figure):
        for line in axes.get_lines():
            if line.get_label() in expected:
                assert to_hex(line.get_color()) == expected[line.get_label()]
        for bars in axes.containers:
            if bars.get_label() in expected:
                assert {to_hex(bar.get_facecolor()) for bar in bars} == {expected[bars.get_label()]}


def test_a_figure_of_the_paper_lacks_the_note_that_a_picture_has():
    figure = figures.draw("bound_fraction", results("tiny"))
    figure.draw_without_rendering()
    height = panels(figure)[0].get_position().height
    bare = without_note(figure)
    assert not [text for text in texts(bare) if text.get_gid() == "source-note"]
    bare.draw_without_rendering()
    assert panels(bare)[0].get_position().height > height
    assert_text_is_inside_the_page_and_of_readable_size(bare, "text")


def test_cropping_to_what_is_drawn_as_notebooks_do_keeps_the_note():
    figure = drawn("bound_fraction", "tiny")
    (note,) = [text for text in texts(figure) if text.get_gid() == "source-note"]
    assert figure.get_tightbbox().y0 * DPI <= box(note, figure).y0 + 1


def test_saving_twice_gives_the_same_bytes(tmp_path):
    name = "regression_surface"
    paths = [tmp_path / f"{place}.{suffix}" for suffix in ("pdf", "png") for place in "ab"]
    figures.save(name, results("tiny"), paths[0], paths[2])
    figures.save(name, results("tiny"), paths[1], paths[3])
    pdf, same_pdf, png, same_png = (path.read_bytes() for path in paths)
    assert pdf == same_pdf
    assert png == same_png
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    width, height = (int.from_bytes(png[place : place + 4], "big") for place in (16, 20))
    assert (width, height) == tuple(int(200 * size) for size in drawn(name, "tiny").get_size_inches())
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_unknown_figure_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"unknown figure 'speedup_heat': one of strategy_eval, .*rank_timeline"):
        figures.draw("speedup_heat", results("tiny"))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no path"),
        (["good.pdf", "bad.jpg"], "bad.jpg: the suffix must be .pdf or .png"),
        (["folder.pdf"], "cannot write .*folder.pdf"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(paths, message, tmp_path):
    (tmp_path / "folder.pdf").mkdir()
    with pytest.raises(ValueError, match=message):
        figures.save("matmul_mps_bars", results("tiny"), *(tmp_path / path for path in paths))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pdf"]


def without(grid: str, **tables):
    """The grid's results with some tables replaced by what a function makes of them."""
    whole = results(grid)
    return replace(whole, **{name: change(getattr(whole, name)) for name, change in tables.items()})


def empty(table):
    return table.iloc[:0]


SLOW_LAST = {"cells": lambda cells: cells[cells.order != "slow first"]}


@pytest.mark.parametrize(
    ("name", "tables", "message"),
    [
        ("bound_fraction", {"cells": empty}, "no measurement of system ring"),
        ("strategy_eval", {"cells": lambda cells: cells[cells.system == "alone"]}, "no measurement of system ring"),
        ("speedup_heatmap", {"cells": lambda c: c[c.allocator != "uneven"]}, "no measurement of allocator uneven"),
        ("speedup_over_even", {"cells": lambda c: c[c.allocator == "even"]}, "only allocator even was measured"),
        ("bound_fraction", {"cells": lambda c: c.assign(bound_fraction=np.nan)}, "each rank alone"),
        ("efficiency_vs_heterogeneity", {"cells": lambda c: c.assign(efficiency=np.nan)}, "every rank at 100 %"),
        ("matmul_mps_bars", {"profile": lambda p: p[p.kind == "attention"]}, "no profile of kind matmul"),
        ("matmul_mps_bars", {"profile": lambda p: p[p.percentage == 100]}, "no matmul profile below 100 %"),
        ("matmul_mps_efficiency", {"profile": lambda p: p.assign(relative_speed=np.nan)}, "profile at 100 %"),
        ("performance_scaling_vs_percentage", {"profile": empty}, "no profile of kind matmul; no profile of kind att"),
        ("regression_surface", {"fitted_models": lambda models: {}}, "no fitted formula"),
    ],
)
def test_missing_rows_are_named(name, tables, message):
    with pytest.raises(MissingRows, match=f"figure {name} of platform cpu: .*{message}"):
        figures.draw(name, without("tiny", **tables))


def test_of_all_figures_those_whose_rows_are_missing_say_so_and_the_others_are_drawn(tmp_path, monkeypatch):
    names = ("matmul_mps_bars", "matmul_mps_scaling", "rank_order")
    monkeypatch.setattr(figures, "NAMES", names)
    without_bars = without("tiny", profile=lambda profile: profile[profile.percentage == 100])
    [reason] = figures.save_all(without_bars, tmp_path / "new")
    assert reason.startswith("figure matmul_mps_bars of platform cpu: no matmul profile below 100 %")
    figure = not_measured("matmul_mps_bars", without_bars, reason)
    assert " ".join(figure.texts[0].get_text().split()) == reason
    assert_text_is_inside_the_page_and_of_readable_size(figure, "column")
    assert_no_text_covers_another(figure)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "pdf")
    }


@pytest.mark.parametrize(
    ("name", "tables", "words"),
    [
        ("module_comparison", {"cells": lambda c: c[c.module != "fms"]}, "The FMS attention layer was not measured"),
        ("model_ttft", {"model": lambda _: pd.DataFrame()}, "No language model was measured"),
        ("model_ttft", {"model": lambda m: m[m.phase == "decode"]}, "No language model was measured"),
        ("layer_trace", {"trace": lambda _: pd.DataFrame()}, "No layer was traced"),
        ("many_ranks", {}, "No ring of more than two ranks was measured"),
        ("bound_fraction_first", SLOW_LAST, "No ring was measured with the slow rank first"),
        ("strategy_eval_first", SLOW_LAST, "No rings of equal ranks and of a slow first one were measured"),
        ("rebalancing_trace", {"chunks": lambda _: pd.DataFrame()}, "No prefill was rebalanced"),
    ],
)
def test_what_a_platform_need_not_have_is_said_to_be_missing(name, tables, words):
    figure = figures.draw(name, without("tiny", **tables))
    assert panels(figure) == []
    said, note = (" ".join(text.get_text().split()) for text in texts(figure))
    assert said == f"{words} on platform cpu."
    assert note == "Platform cpu: 2 paced CPU ranks (AMD EPYC 9B45)."


def test_a_cell_that_occurs_twice_is_refused():
    twice = without("tiny", cells=lambda cells: cells.assign(percentage=50))
    with pytest.raises(ValueError, match="more than one row for the cell strategy contiguous/even, seq_len 128"):
        figures.draw("latency_scaling", twice)


NEEDS_FULL_SPEED = {
    *("strategy_eval", "efficiency_vs_heterogeneity", "matmul_mps_efficiency", "matmul_mps_bars"),
    "performance_scaling_vs_percentage",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"strategies": ("zigzag/even", "zigzag/uneven"), "percentages": (7, 33, 100)}, ()),
        (
            {
                "strategies": ("contiguous/even", "contiguous/uneven"),
                "percentages": (50,),
                "lengths": (1000,),
                "matmul_sizes": (64,),
            },
            NEEDS_FULL_SPEED,
        ),
    ],
    ids=["zigzag", "one throttled contiguous cell"],
)
def test_a_partial_grid_is_drawn_or_refused_for_a_reason(name, change, refused, monkeypatch):
    for module in (simulated_scaling, simulated_slow_rank):
        monkeypatch.setattr(module, "RANKS", (2, 4))  # a thousand are simulated for whole grids
    monkeypatch.setattr(simulated_scaling, "AT_RANKS", 4)
    partial = results_of(replace(synthetic.TINY, **change))
    if name in refused:
        with pytest.raises(MissingRows, match="100 %"):
            figures.draw(name, partial)
    else:
        figure = figures.draw(name, partial)
        figure.set_layout_engine("none")  # takes most of the time, and is looked at on whole grids
        figure.draw_without_rendering()
        # No grid of a few plain strategies has the rows of VARIED, nor one without 100 % those of the other.
        assert panels(figure) or name in VARIED or (refused and name == "strategy_eval_first")


@pytest.mark.ranks
def test_importing_the_names_imports_no_plotting():
    code = (
        "import sys, heteroring.figures as f; assert len(f.NAMES) == len(f.WIDTH) == 31;"
        "print([m for m in ('matplotlib', 'pandas', 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

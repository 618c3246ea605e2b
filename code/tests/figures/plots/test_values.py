"""Figures show the values of the tables: bars, lines and numbers against the data frames and against theory."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

import synthetic
import synthetic_model
from heteroring import figures
from heteroring.figures.plots.regression_surface import fitted_tflops
from heteroring.figures.style import STRATEGIES, look
from heteroring.results.results import Results, headline
from synthetic_figures import GRIDS, NAMES, drawn, line, panel, panels, plotted, results, results_of, shown, texts

pytestmark = pytest.mark.slow
grids = pytest.mark.parametrize("grid", GRIDS)
STRATEGY_OF = {to_hex(look(strategy).colour): strategy for strategy in STRATEGIES}


def title_of(seq_len: int) -> str:
    return f"{seq_len:,} tokens"


def ring(grid: str):
    cells = results(grid).cells
    return cells[(cells.system == "ring") & (cells.module == "attention") & (cells.order != "slow first")]


def contrast(one, other) -> float:
    """WCAG 2.1 contrast ratio of two colours."""

    def luminance(colour) -> float:
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@grids
def test_slowdown_bars_end_at_the_slowdown(grid):
    figure = plotted("strategy_eval", grid)
    cells = ring(grid).set_index(["seq_len", "strategy", "percentage"])
    percentages = GRIDS[grid].percentages
    seen = {}
    for seq_len in GRIDS[grid].lengths:
        axes = panel(figure, title_of(seq_len))
        for bar in axes.patches:
            percentage = percentages[round(bar.get_x() + bar.get_width() / 2)]
            seen[seq_len, STRATEGY_OF[to_hex(bar.get_facecolor())], percentage] = bar.get_y() + bar.get_height()
            assert bar.get_y() == 1.0
        assert any(set(unit.get_ydata()) == {1.0} for unit in axes.lines)
    reference = {n: cells.loc[n, "contiguous/even", 100].latency_ms for n in GRIDS[grid].lengths}
    assert seen == {key: pytest.approx(row.latency_ms / reference[key[0]]) for key, row in cells.iterrows()}


@grids
def test_the_lowest_latency_is_marked(grid):
    figure = plotted("strategy_eval", grid)
    for seq_len in GRIDS[grid].lengths:
        axes = panel(figure, title_of(seq_len))
        marks = [mark.get_xdata()[0] for mark in axes.lines if mark.get_marker() == "v"]
        bars = {bar.get_x() + bar.get_width() / 2: STRATEGY_OF[to_hex(bar.get_facecolor())] for bar in axes.patches}
        marked = {GRIDS[grid].percentages[round(x)]: bars[min(bars, key=lambda place: abs(place - x))] for x in marks}
        at = ring(grid)[ring(grid).seq_len == seq_len]
        assert marked == at.loc[at.groupby("percentage").latency_ms.idxmin()].set_index("percentage").strategy.to_dict()


def test_where_a_layout_has_one_split_only_none_of_its_strategies_is_marked():
    results = results_of(synthetic.TINY)
    cells = results.cells
    equal = (cells.percentage == 100) & (cells.layout == "zigzag")
    cells.loc[equal, "block_lens"] = pd.Series([(64, 64)] * equal.sum(), index=cells.index[equal])
    axes = panel(figures.draw("strategy_eval", results), title_of(128))
    marks = [round(mark.get_xdata()[0]) for mark in axes.lines if mark.get_marker() == "v"]
    assert [synthetic.TINY.percentages[place] for place in marks] == [50]


def test_the_lowest_panel_of_each_column_names_its_percentages():
    grid = replace(synthetic.TINY, lengths=(128, 256, 512))
    figure = figures.draw("strategy_eval", results_of(grid))
    labelled = {
        axes.get_title(loc="left"): [label.get_text() for label in axes.get_xticklabels() if label.get_visible()]
        for axes in panels(figure)
    }
    assert labelled == {"128 tokens": [], "256 tokens": ["50", "100"], "512 tokens": ["50", "100"]}


@grids
def test_every_heatmap_cell_shows_its_speedup_legibly(grid):
    figure = plotted("speedup_heatmap", grid)
    rows = ring(grid)[ring(grid).allocator == "uneven"]
    assert len(panels(figure)) == 2
    for axes, layout in zip(panels(figure), ("contiguous", "zigzag"), strict=True):
        table = rows[rows.layout == layout].pivot(index="seq_len", columns="percentage", values="speedup")
        numbers = [text for text in axes.texts if text.get_text()]
        assert len(numbers) == table.size == len(GRIDS[grid].lengths) * len(GRIDS[grid].percentages)
        (image,) = axes.images
        for number in numbers:
            column, row = number.get_position()
            speedup = table.iloc[row, column]
            assert number.get_text() == f"{speedup:.2f}"
            shade = image.cmap(image.norm(image.get_array()[row, column]))
            assert image.get_array()[row, column] == pytest.approx(np.log2(speedup))
            assert contrast(number.get_color(), shade) >= 4.5
        assert [label.get_text() for label in axes.get_xticklabels()] == [f"{p}" for p in table.columns]


def test_every_shade_gets_readable_text():
    from heteroring.figures.plots.speedup_heatmap import text_colour

    for grey in np.linspace(0, 1, 101):
        for shade in ((grey, grey, grey), (grey, 0.2, 0.6), (0.9, grey, 0.1)):
            assert contrast(text_colour(shade), shade) >= 4.5


@grids
def test_extreme_bars_are_the_latencies_at_the_lowest_percentage(grid):
    figure = plotted("extreme_heterogeneity", grid)
    lowest = min(GRIDS[grid].percentages)
    names = [label.get_text() for label in panels(figure)[0].get_yticklabels()]
    cells = headline(results(grid).cells)
    for seq_len in GRIDS[grid].lengths:
        axes = panel(figure, title_of(seq_len))
        at = cells[(cells.seq_len == seq_len) & (cells.percentage == lowest) & (cells.module == "attention")]
        latency = at[at.system == "ring"].set_index("strategy").latency_ms.to_dict()
        if GRIDS[grid].baselines:
            latency["torch context_parallel"] = at[at.system == "context_parallel"].latency_ms.item()
        shown = {names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axes.patches}
        assert shown == latency
        assert [float(text.get_text()) for text in axes.texts] == pytest.approx(list(latency.values()), rel=5.1e-3)
        assert line(axes, "capacity bound").get_xdata()[0] == pytest.approx(at.bound_ms.median())


@grids
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("efficiency_vs_heterogeneity", "efficiency"),
        ("latency_vs_heterogeneity", "latency_ms"),
        ("speedup_over_even", "speedup"),
        ("bound_fraction", "bound_fraction"),
    ],
)
def test_lines_against_percentage_follow_the_cells(name, metric, grid):
    figure = plotted(name, grid)
    rows = ring(grid)
    few = ("contiguous/even", "contiguous/uneven", "zigzag/even", "zigzag/balanced")
    strategies = [s for s in GRIDS[grid].strategies if name != "speedup_over_even" or s.allocator != "even"]
    strategies = [s for s in strategies if name != "bound_fraction" or s in few]
    assert len(panels(figure)) == len(GRIDS[grid].lengths)
    for seq_len in GRIDS[grid].lengths:
        axes = panel(figure, title_of(seq_len))
        for strategy in strategies:
            of = rows[(rows.strategy == strategy) & (rows.seq_len == seq_len)].sort_values("percentage")
            shown = line(axes, strategy)
            assert list(shown.get_xdata()) == list(of.percentage)
            assert list(shown.get_ydata()) == list(of[metric])
            low, high = axes.get_ylim()
            assert low < of[metric].min()
            assert of[metric].max() < high


@grids
def test_the_bound_is_below_every_latency_line_and_the_ideal_slope_is_two(grid):
    for axes in panels(plotted("latency_scaling", grid)):
        ideal = next(shown for shown in axes.lines if shown.get_linestyle() == ":")
        x, y = ideal.get_data()
        assert np.allclose(np.diff(np.log(y)) / np.diff(np.log(x)), 2.0)
        for strategy in GRIDS[grid].strategies:
            assert list(line(axes, strategy).get_xdata()) == list(GRIDS[grid].lengths)
            assert line(axes, strategy).get_ydata()[-1] > 0.97 * y[-1]
        assert axes.get_xscale() == axes.get_yscale() == "log"


@grids
def test_latency_scaling_shows_the_lowest_and_the_highest_percentage(grid):
    rows = ring(grid)
    shown = panels(plotted("latency_scaling", grid))
    for axes, percentage in ((shown[0], min(GRIDS[grid].percentages)), (shown[-1], 100)):
        of = rows[(rows.strategy == "zigzag/uneven") & (rows.percentage == percentage)].sort_values("seq_len")
        assert list(line(axes, "zigzag/uneven").get_ydata()) == list(of.latency_ms)


def test_token_shares_and_their_ideals():
    grid = replace(synthetic.GPU, noise=0.0, step_ms=0.0, lengths=(8192, 65536))
    figure = figures.draw("token_distribution", results_of(grid))
    above, below = panels(figure)[1], panels(figure)[3]
    percentages = np.array(grid.percentages)
    assert list(line(below, "nominal share").get_ydata()) == pytest.approx(100 * percentages / (100 + percentages))
    speed = np.array([grid.attention_speed(p) for p in percentages])
    work = speed / (1 + speed)
    assert list(line(below, "ideal share (measured speed)").get_ydata()) == pytest.approx(100 * work)
    ideal = line(above, "ideal share (measured speed)").get_ydata() / 100
    # the contiguous throttled rank holds the last `ideal` of the tokens and with them this part of the causal work
    assert list(1 - (1 - ideal) ** 2) == pytest.approx(work)
    assert list(line(above, "contiguous/even").get_ydata()) == [50.0] * len(percentages)
    balanced = line(below, "zigzag/balanced").get_ydata()
    assert list(balanced) == pytest.approx(100 * work, abs=100 / 65536)
    assert list(line(below, "prediction flagged").get_xdata()) == [10]


@grids
def test_matmul_lines_follow_the_profile(grid):
    profile = results(grid).profile
    profile = profile[profile.kind == "matmul"]
    factor = 1000 if grid != "gpu" else 1
    expected = {
        "matmul_mps_latency": profile.latency_ms,
        "matmul_mps_scaling": profile.tflops * factor,
        "matmul_mps_efficiency": 100 * profile.relative_speed / profile.percentage,
    }
    for name, values in expected.items():
        (axes,) = panels(plotted(name, grid))
        for size in GRIDS[grid].matmul_sizes:
            of = profile.assign(value=values)[profile["size"] == size].sort_values("percentage")
            assert list(line(axes, f"n = {size:,}").get_ydata()) == pytest.approx(list(of.value))
    (axes,) = panels(plotted("matmul_mps_scaling", grid))
    assert ("GFLOP/s" if factor == 1000 else "TFLOP/s") in axes.get_ylabel()
    (axes,) = panels(plotted("matmul_latency_vs_size", grid))
    full = profile[profile.percentage == 100].sort_values("size")
    assert list(line(axes, "100 %").get_xdata()) == list(GRIDS[grid].matmul_sizes)
    assert list(line(axes, "100 %").get_ydata()) == list(full.latency_ms)


@grids
def test_matmul_bars_are_slowdowns_with_their_ideal(grid):
    (axes,) = panels(plotted("matmul_mps_bars", grid))
    profile = results(grid).profile
    profile = profile[(profile.kind == "matmul") & (profile.percentage < 100)].sort_values(["percentage", "size"])
    ends = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert ends == pytest.approx(list(1 / profile.relative_speed))
    ideal = [segment[0, 1] for dashes in axes.collections for segment in dashes.get_segments()]
    assert ideal == pytest.approx(list(100 / profile.percentage))


@grids
def test_achieved_speed_stands_beside_the_diagonal(grid):
    shown = panels(plotted("performance_scaling_vs_percentage", grid))
    profile = results(grid).profile
    labels = {"matmul": "n = {:,}", "attention": "{:,} tokens"}
    for kind, above, below in zip(("matmul", "attention"), shown[:2], shown[2:], strict=True):
        assert above.get_title() == kind
        assert [list(end) for end in above.lines[0].get_data()] == [[0, 100], [0, 100]]
        for size in sorted(set(profile[profile.kind == kind]["size"])):
            label = labels[kind].format(size)
            of = profile[(profile.kind == kind) & (profile["size"] == size)].sort_values("percentage")
            achieved = 100 * of.relative_speed
            assert list(line(above, label).get_ydata()) == pytest.approx(list(achieved))
            assert list(line(below, label).get_ydata()) == pytest.approx(list(achieved - of.percentage))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"regression_surface"}))
def test_noise_leaves_nothing_outside_the_view(name):
    figure = figures.draw(name, results_of(replace(synthetic.CPU, noise=0.5, lengths=(512, 4096))))
    for axes in panels(figure):
        (left, right), (bottom, top) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        marked = [each for each in axes.get_lines() if each.get_marker() != "None"]
        for x, y in (point for each in marked for point in each.get_xydata()):
            assert left <= x <= right, axes.get_title()
            assert bottom <= y <= top, axes.get_title()


def test_surface_is_the_models_polynomial():
    model = results("gpu").fitted_models["formula-matmul"]
    profile = results("gpu").profile
    rows = profile[profile.kind == "matmul"]
    features = np.column_stack([np.log10(rows["size"]), rows.percentage])
    polynomial = PolynomialFeatures(degree=2).fit(features)
    regression = LinearRegression(fit_intercept=False).fit(polynomial.transform(features), rows.tflops)
    places = np.array([[3000, 15], [1024, 100], [20000, 77]])
    expected = regression.predict(polynomial.transform(np.column_stack([np.log10(places[:, 0]), places[:, 1]])))
    assert list(fitted_tflops(model, places[:, 0], places[:, 1])) == pytest.approx(list(expected))


@grids
def test_regression_shows_points_and_the_models_r2(grid):
    figure = plotted("regression_surface", grid)
    profile = results(grid).profile
    for kind, axes in zip(("matmul", "attention"), panels(figure), strict=True):
        model = results(grid).fitted_models[f"formula-{kind}"]
        assert f"{kind}: $R^2$ = {model['r2']:.3f}" in axes.get_title()
        points = axes.collections[-1]
        rows = profile[profile.kind == kind].sort_values(["size", "percentage"])
        assert points.get_offsets().tolist() == rows[["size", "percentage"]].to_numpy().tolist()
        factor = 1 if rows.tflops.max() >= 1 else 1000
        assert list(points.get_array()) == pytest.approx(list(factor * rows.tflops))


def test_where_the_formula_is_not_positive_the_surface_is_hatched():
    whole = results_of(synthetic.CPU)
    model = dict(whole.fitted_models["formula-matmul"])
    model["coefficients"] = model["coefficients"] | {"intercept": model["coefficients"]["intercept"] - 0.02}
    figure = figures.draw("regression_surface", replace(whole, fitted_models={"formula-matmul": model}))
    assert any("Hatched: the formula is not positive." in text.get_text() for text in texts(figure))


@grids
def test_rank_timeline_adds_up_to_the_latency(grid):
    figure = plotted("rank_timeline", grid)
    rows = ring(grid)
    rows = rows[rows.seq_len == max(GRIDS[grid].lengths)]
    names = [label.get_text() for label in panels(figure)[0].get_yticklabels()]
    assert [name for name in names if "rank 0" in name] == [
        f"{strategy}  rank 0" for strategy in ("contiguous/even", "contiguous/uneven", "zigzag/even", "zigzag/balanced")
    ]
    axes = panels(figure)[0]
    for strategy in ("contiguous/even", "zigzag/balanced"):
        row = rows[(rows.strategy == strategy) & (rows.percentage == min(GRIDS[grid].percentages))].iloc[0]
        first = names.index(f"{strategy}  rank 0")
        for rank, busy in enumerate(row.busy_ms):
            place = axes.get_yticks()[first + rank]
            bars = [bar for bar in axes.patches if bar.get_y() < place < bar.get_y() + bar.get_height()]
            computing, waiting = sorted(bars, key=lambda bar: bar.get_x())
            assert (computing.get_x(), computing.get_width()) == (0, busy / row.bound_ms)
            assert to_hex(computing.get_facecolor()) == to_hex(look(strategy).colour)
            assert waiting.get_x() == pytest.approx(busy / row.bound_ms)
            end = waiting.get_x() + waiting.get_width()
            assert end == pytest.approx(max(row.latency_ms, busy) / row.bound_ms)


def test_rank_order_shows_latency_over_bound_beside_what_pairs_predict():
    """In panels contiguous and zigzag; a filled mark has the slow rank last. Without the other order it is a note."""
    strategies = tuple(each for each in STRATEGIES if each.allocator in ("even", "balanced", "lut"))
    grid = replace(synthetic.GPU, lengths=(65536,), percentages=(30, 100), slow_first=(30,), strategies=strategies)
    grid = replace(grid, modules=("attention",), model=False, noise=0.0)
    results = results_of(grid)
    figure = figures.draw("rank_order", results)
    assert [axes.get_title() for axes in panels(figure)] == ["contiguous", "zigzag"]
    marks = {line.get_label(): line for axes in panels(figure) for line in axes.lines if "," in line.get_label()}
    assert set(marks) == {
        f"{each}, slow {end}" for each in strategies if each.allocator != "lut" for end in ("last", "first")
    }
    cells = results.cells[results.cells.system == "ring"].set_index(["strategy", "order"])
    for name, mark in marks.items():
        row = cells.loc[tuple(name.split(", "))]
        assert list(mark.get_xdata()) == [30, 100]
        assert mark.get_ydata()[0] == pytest.approx(row.latency_ms / row.bound_ms)
        assert (mark.get_markerfacecolor() == "white") == name.endswith("first")
    speed = grid.attention_speed(30)
    for end, expected in (("last", 3 / (4 * speed)), ("first", max(1 / (4 * speed), 3 / 4))):
        mark = marks[f"contiguous/even, slow {end}"]
        assert mark.get_ydata()[0] == pytest.approx(expected * (1 + speed), rel=1e-2)
    other = replace(results, cells=results.cells[results.cells.order != "slow first"])
    assert "No ring was measured with the slow rank first" in texts(figures.draw("rank_order", other))[0].get_text()


def test_ablation_reaches_from_one_step_to_the_next():
    figure = plotted("ablation", "gpu")
    assert [axes.get_title() for axes in panels(figure)] == [f"slow rank at {percentage} %" for percentage in (10, 50)]
    cells = shown("ablation", "gpu").cells
    cells = cells[(cells.system == "ring") & (cells.module == "attention") & (cells.percentage == 10)]
    axes = panel(figure, "slow rank at 10 %")
    steps = ["contiguous/even:unfused", "contiguous/balanced:untiled.unfused", "zigzag/balanced:untiled.unfused"]
    steps += ["zigzag/balanced:unfused", "zigzag/balanced"]
    place = [*range(7), *range(7)]
    assert [round(bar.get_y() + bar.get_height() / 2) for bar in axes.patches] == place
    assert [round(text.get_position()[1]) for text in axes.texts] == place
    for index, length in enumerate((4096, 65536)):
        own = cells[cells.seq_len == length].set_index(["strategy", "order"])
        bars, said = ([*found][7 * index : 7 * index + 7] for found in (axes.patches, axes.texts))
        before = 1 / own.bound_fraction["contiguous/even:unfused", "slow last"]
        assert (bars[0].get_x(), bars[0].get_width()) == pytest.approx((1, before - 1))
        assert said[0].get_text() == f"{before:.2f}"
        for bar, text, name in zip(bars[1:6], said[1:6], steps, strict=True):
            after = 1 / own.bound_fraction[name, "slow first"]
            assert (bar.get_x(), bar.get_width()) == pytest.approx((before, after - before))
            left_out = "*" if 0 in own.block_lens[name, "slow first"] else ""
            assert text.get_text() == rf"{before / after:.2f}$\times${left_out}"
            before = after
        assert (bars[6].get_x(), bars[6].get_width()) == pytest.approx((1, before - 1))
        assert said[6].get_text() == f"{before:.2f}"
    assert "changed at a time" in texts(figures.draw("ablation", results("gpu")))[0].get_text()
    whole = shown("ablation", "gpu")
    part = replace(whole, cells=whole.cells[whole.cells.strategy != "contiguous/even:unfused"])
    assert len(panel(figures.draw("ablation", part), "slow rank at 10 %").patches) == 2 * 5  # four steps, and the end


def test_regret_has_a_mark_for_each_setting_and_the_median_of_each_allocator():
    figure = plotted("regret", "gpu")
    cells = shown("regret", "gpu").cells
    cells = cells[(cells.system == "ring") & (cells.module == "attention") & (cells.order != "equal")]
    own = cells[cells.strategy == "zigzag/balanced"]
    axes = panel(figure, "zigzag")
    place = [label.get_text() for label in axes.get_xticklabels()].index("balanced")
    lines = [line for line in axes.get_lines() if round(np.mean(line.get_xdata())) == place]
    marks = sorted(y for line in lines if line.get_marker() == "o" for y in line.get_ydata())
    assert marks == pytest.approx(sorted(np.maximum(100 * own.regret, 0.1)))
    [middle] = [line for line in lines if line.get_marker() != "o"]
    assert list(middle.get_ydata()) == pytest.approx([np.median(marks)] * 2)
    assert np.median(marks) < 2  # balanced by the speeds that are true here
    assert "No splits around" in texts(figures.draw("regret", results("gpu")))[0].get_text()


def test_figures_of_a_slow_first_rank_show_its_cells():
    grid = replace(synthetic.GPU, slow_first=(10, 50), modules=("attention",), model=False)
    results = results_of(grid)
    first = results.cells[(results.cells.system == "ring") & results.cells.order.isin(["slow first", "equal"])]
    axes = panel(figures.draw("bound_fraction_first", results), "65,536 tokens")
    rows = first[(first.seq_len == 65536) & (first.strategy == "zigzag/even")].sort_values("percentage")
    assert list(line(axes, "zigzag/even").get_xdata()) == [10, 50, 100]
    assert list(line(axes, "zigzag/even").get_ydata()) == list(rows.bound_fraction)
    assert "throttled first rank" in " ".join(text.get_text() for text in axes.figure.texts)
    axes = panel(figures.draw("strategy_eval_first", results), "65,536 tokens")
    rows = first[first.seq_len == 65536]
    [equal] = rows[(rows.percentage == 100) & (rows.strategy == "contiguous/even")].latency_ms
    ends = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert sorted(ends) == pytest.approx(sorted(rows.latency_ms / equal))


def test_a_footer_has_the_range_of_the_repetitions_drawn():
    results = results_of(synthetic.TINY)
    fewer = results.cells.assign(repetitions=np.where(results.cells.order == "slow first", 2, 4))
    for name, words in (
        ("rank_order", "median of 2 to 4."),
        ("bound_fraction", "median of 4."),
        ("bound_fraction_first", "median of 2 to 4."),
    ):
        [note] = [
            text for text in figures.draw(name, replace(results, cells=fewer)).texts if text.get_gid() == "source-note"
        ]
        assert words in " ".join(note.get_text().split())


def test_numbers_of_four_digits_have_a_comma():
    axes, _ = panels(plotted("simulated_scaling", "gpu"))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "16", "64", "256", "1,024"]
    axes, *_ = panels(drawn("rebalancing_trace", "gpu"))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert any("," in label for label in labels)
    assert all("," in label for label in labels if len(label) > 3)


def test_bound_fractions_have_their_names_at_the_ends_of_their_lines():
    axes = panel(plotted("bound_fraction", "gpu"), "65,536 tokens")
    names = {text.get_text(): text for text in axes.texts}
    assert sorted(names) == ["contiguous/even", "contiguous/uneven", "zigzag/balanced", "zigzag/even"]
    leads = [each for each in axes.get_children() if getattr(each, "get_label", str)() == "_lead"]
    for name, text in names.items():
        shown = line(axes, name)
        [lead] = [each for each in leads if each.get_color() == shown.get_color()]
        end = axes.transAxes.inverted().transform(axes.transData.transform((100, shown.get_ydata()[-1])))
        assert (lead.get_xdata()[0], lead.get_ydata()[0]) == pytest.approx(tuple(end))
        assert lead.get_ydata()[-1] == text.get_position()[1]
        assert text.get_color() == shown.get_color()


def test_bound_fractions_near_the_bound_are_drawn_apart():
    axes = panel(plotted("bound_fraction", "gpu"), "65,536 tokens")
    heights = axes.transData.transform([(50, each) for each in (0.0, 0.4, 0.8, 0.9, 1.0)])[:, 1]
    assert heights[4] - heights[3] > heights[1] - heights[0]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])


def test_the_tables_that_figures_read_agree_with_an_independent_computation(tmp_path):
    synthetic.write_platform(tmp_path, synthetic.TINY)
    read, expected = Results.load(tmp_path), synthetic.synthetic_results(synthetic.TINY)
    keys_of = {
        "cells": synthetic.CELL_KEYS,
        "profile": ["kind", "size", "percentage"],
        "model": synthetic_model.KEYS,
        "trace": ["strategy", "percentage", "rank", "kind", "step"],
        "chunks": ["split", "chunk"],
    }
    for name, keys in keys_of.items():
        table, other = (
            getattr(source, name).fillna({"model_source": ""}).sort_values(keys, ignore_index=True)
            for source in (read, expected)
        )
        assert set(table.columns) == set(other.columns)
        pd.testing.assert_frame_equal(table, other[list(table.columns)], rtol=1e-7, check_dtype=False)
    assert read.device_label == expected.device_label
    assert read.fitted_models == expected.fitted_models

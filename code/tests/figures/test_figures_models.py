"""The figures of the whole layer and of whole models show what their tables say."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.colors import to_hex

import synthetic_model
from heteroring import figures
from heteroring.figures.plots.layer_trace import EXPOSED, WAITING
from heteroring.figures.style import STRATEGIES, look
from heteroring.results.model_metrics import break_even_tokens
from synthetic_figures import GRIDS, line, panels, plotted, results

pytestmark = pytest.mark.slow
grids = pytest.mark.parametrize("grid", GRIDS)
STRATEGY_OF = {to_hex(look(strategy).colour): strategy for strategy in STRATEGIES}


@grids
def test_both_modules_are_drawn_at_the_longest_length_on_one_axis(grid):
    figure = plotted("module_comparison", grid)
    cells = results(grid).cells
    cells = cells[(cells.system == "ring") & (cells.order != "slow first")]
    cells = cells[cells.seq_len == max(GRIDS[grid].lengths)]
    shown = panels(figure)
    columns = [(metric, module) for metric in ("speedup", "bound_fraction") for module in ("attention", "fms")]
    titles = {"attention": "Attention only", "fms": "FMS attention layer"}
    for axes, (metric, module) in zip(shown, columns, strict=True):
        assert axes.get_title() == titles[module]
        for strategy in GRIDS[grid].strategies:
            of = cells[(cells.module == module) & (cells.strategy == strategy)].sort_values("percentage")
            if metric == "speedup" and strategy.endswith("/even"):
                assert strategy not in [each.get_label() for each in axes.lines]
                continue
            assert list(line(axes, strategy).get_xdata()) == list(of.percentage)
            assert list(line(axes, strategy).get_ydata()) == list(of[metric])
    assert shown[0].get_ylim() == shown[1].get_ylim()
    assert shown[2].get_ylim() == shown[3].get_ylim()


@grids
def test_time_to_first_token_bars_carry_their_values_and_the_bound(grid):
    figure = plotted("model_ttft", grid)
    model = results(grid).model
    prefill = model[(model.phase == "prefill") & (model.system == "ring")]
    factor = 1e-3 if prefill.latency_ms.max() >= 1000 else 1.0
    chosen = synthetic_model.percentages(GRIDS[grid])
    places = [(n, p) for n in GRIDS[grid].lengths[-2:] for p in chosen]
    for axes, (seq_len, percentage) in zip(panels(figure), places, strict=True):
        at = prefill[(prefill.seq_len == seq_len) & (prefill.percentage == percentage)]
        expected = (factor * at.set_index("strategy").latency_ms).to_dict()
        assert {STRATEGY_OF[to_hex(bar.get_facecolor())]: bar.get_width() for bar in axes.patches} == expected
        assert [float(text.get_text()) for text in axes.texts] == pytest.approx(list(expected.values()), rel=5.1e-3)
        for label, column in (("capacity bound", "bound_ms"), ("fast rank alone", "fast_alone_ms")):
            assert line(axes, label).get_xdata()[0] == pytest.approx(factor * at[column].iloc[0])


def test_decode_is_marked_where_the_ring_wins_and_breaks_even_where_the_memory_model_says():
    """On the GPU's grid, whose tokens take what is read and a constant."""
    grid = GRIDS["gpu"]
    model = results("gpu").model
    decode = model[model.phase == "decode"].set_index(["percentage", "batch", "seq_len", "strategy"]).latency_ms
    for axes, percentage in zip(panels(plotted("decode_break_even", "gpu")), (10, 50, 100), strict=True):
        cells = [(percentage, batch, n) for batch, n in ((1, 65536), (8, 32768), (8, 65536))]
        gain = {
            cell: min(decode[*cell, f"alone/rank{rank}"] for rank in (0, 1)) / decode[*cell, "zigzag/balanced"]
            for cell in cells
        }
        won = {tuple(point) for each in axes.lines if each.get_label() == "ring faster" for point in each.get_xydata()}
        assert won == {(n, batch) for (_, batch, n), times in gain.items() if times > 1}
        shown = {text.xy: float(text.get_text()) for text in axes.texts}
        assert shown == {(n, batch): pytest.approx(gain[_, batch, n], abs=0.006) for _, batch, n in cells}
    equal = panels(plotted("decode_break_even", "gpu"))[-1]
    # Two equal ranks save half of what is read of the KV, and take longer by 0.4 of what the longest KV takes.
    (length, batch), _ = line(equal, "predicted break-even").get_xydata()
    assert length * batch == pytest.approx(0.8 * max(grid.lengths), rel=0.1)


def test_break_even_needs_limits_and_may_be_never_or_always():
    gains = pd.DataFrame({"tokens": [10, 20], "alone_limit_ms": [3.0, 5.0], "limit_ms": [2.0, 3.0]})
    gains = gains.assign(alone_ms=gains.alone_limit_ms + 1, latency_ms=gains.limit_ms + 2.5)
    assert break_even_tokens(gains) == pytest.approx(15)  # saves a tenth of the tokens, and takes 1.5 longer
    assert break_even_tokens(gains.assign(latency_ms=gains.limit_ms)) == 0
    assert break_even_tokens(gains.assign(limit_ms=[2.0, 4.5])) == math.inf
    assert math.isnan(break_even_tokens(gains.assign(limit_ms=[2.0, math.nan])))


def bars_at(axes, place: float) -> list[tuple[float, float, str]]:
    """(start, stop, colour) of the bars whose middle is at `place`."""
    found = [bar for bar in axes.patches if bar.get_y() + bar.get_height() / 2 == pytest.approx(place)]
    return [(bar.get_x(), bar.get_x() + bar.get_width(), to_hex(bar.get_facecolor())) for bar in found]


def test_a_traced_wait_is_parted_where_the_sender_was_ready():
    """Rank 1 begins at 10 ms and waits from 16 to 20; rank 0 has its KV at 17: 1 ms of waiting, then 3 of transfer."""
    events = [
        *((0, "layer", 0, 5, 19), (0, "ready", 0, 17, 17), (0, "block", 0, 6, 18)),
        *((1, "layer", 0, 10, 30), (1, "ready", 0, 12, 12), (1, "block", 0, 12, 16)),
        *((1, "wait", 1, 16, 20), (1, "block", 1, 20, 26)),
    ]
    trace = pd.DataFrame(events, columns=["rank", "kind", "step", "start_ms", "stop_ms"])
    trace = trace.assign(
        platform="cpu", strategy="zigzag/balanced", seq_len=256, percentage=50, layer=2, order="slow last"
    )
    trace["percentages"] = [(100, 50)] * len(trace)
    (axes,) = panels(figures.draw("layer_trace", replace(results("tiny"), trace=trace)))
    red = to_hex(look("zigzag/balanced").colour)
    waiting, exposed = (to_hex(style["facecolor"]) for style in (WAITING, EXPOSED))
    fast, slow = (bars_at(axes, place) for place in axes.get_yticks())
    assert (1, 13, red) in fast
    assert {(0, 14), (14, 20)} <= {bar[:2] for bar in fast}, "the layer, and how much longer the slowest rank takes"
    assert [bar for bar in slow if bar[2] == red] == [(2, 6, red), (10, 16, red)]
    assert [bar for bar in slow if bar[2] == waiting] == [(6, 7, waiting)]
    assert [bar for bar in slow if bar[2] == exposed] == [(7, 10, exposed)]


def test_a_trace_of_the_one_rank_that_holds_tokens_is_drawn():
    """Rank 1 has all of them; on a CPU it waits from 2 to 3 ms for the other to come and agree."""
    events = [(1, "layer", 1, 9), (1, "ready", 3, 3), (1, "wait", 2, 3), (1, "block", 3, 7)]
    trace = pd.DataFrame(events, columns=["rank", "kind", "start_ms", "stop_ms"])
    trace = trace.assign(platform="cpu", strategy="zigzag/balanced", seq_len=256, percentage=50, layer=2, step=0)
    trace["order"], trace["percentages"] = "slow last", [(100, 50)] * len(trace)
    (axes,) = panels(figures.draw("layer_trace", replace(results("tiny"), trace=trace)))
    bars = bars_at(axes, axes.get_yticks()[0])
    assert (1, 2, to_hex(WAITING["facecolor"])) in bars
    assert (2, 6, to_hex(look("zigzag/balanced").colour)) in bars


def test_a_rebalanced_prefill_is_drawn_chunk_by_chunk():
    rows = results("gpu").chunks
    shares, static, rebalanced = panels(plotted("rebalancing_trace", "gpu"))
    for drawn in shares.get_lines():
        held = rows[rows.split == drawn.get_label()].sort_values("chunk").block_lens
        assert list(drawn.get_ydata()) == [lens[-1] for lens in held]
    for axes, split in ((static, "zigzag/balanced"), (rebalanced, "rebalanced")):
        chunks = rows[rows.split == split].sort_values("chunk")
        assert len(axes.containers) == 4  # busy and waiting, of two ranks
        for rank in range(2):
            busy, waiting = axes.containers[2 * rank : 2 * rank + 2]
            assert [bar.get_height() for bar in busy] == [each[rank] for each in chunks.busy_ms]
            tops = [bar.get_y() + bar.get_height() for bar in waiting]
            assert tops == pytest.approx([max(each) for each in chunks.busy_ms])

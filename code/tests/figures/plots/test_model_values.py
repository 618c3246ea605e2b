"""The figures of the whole layer and of whole models show the values of their tables."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.colors import to_hex

import synthetic_model
from heteroring import figures
from heteroring.figures.plots.layer_trace import EXPOSED, WAITING
from heteroring.figures.style import STRATEGIES, look
from heteroring.results.model_metrics import decode_gains
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
            if metric == "speedup" and strategy.allocator == "even":
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


def test_decode_is_drawn_by_the_tokens_cached_of_all_sequences_and_beside_the_better_rank():
    model = results("gpu").model
    decode = model[model.phase == "decode"].set_index(["percentage", "batch", "seq_len", "strategy"]).latency_ms
    expected = {}
    for percentage, batch, n in {each[:3] for each in decode.index}:
        alone = min(decode[percentage, batch, n, f"alone/rank{rank}"] for rank in (0, 1))
        expected[percentage, batch, batch * n] = alone / decode[percentage, batch, n, "zigzag/balanced"]
    (axes,) = panels(plotted("decode_break_even", "gpu"))
    colours = {
        each.get_color(): int(each.get_label().removesuffix(" %")) for each in axes.lines if "%" in each.get_label()
    }
    batches = {"o": 1, "s": 8}
    shown = {
        (colours[each.get_color()], batches[each.get_marker()], int(tokens)): gain
        for each in axes.lines
        if each.get_marker() in batches
        for tokens, gain in each.get_xydata()
    }
    assert shown == pytest.approx(expected)
    assert min(expected.values()) < 1 < max(expected.values())
    low, high = axes.get_ylim()
    assert low < min(expected.values())
    assert max(expected.values()) < high
    one = replace(results("gpu"), model=model[(model.batch == 1) | (model.percentage == 100)])
    (axes,) = panels(figures.draw("decode_break_even", one))
    assert [each.get_marker() for each in axes.lines if "%" in each.get_label()] == ["o", "o", "s"]


def test_decode_is_compared_among_captured_steps_where_there_are_any():
    cells = pd.DataFrame(
        [
            {"captured": captured, "strategy": strategy, "latency_ms": ms}
            for captured, times in ((False, (30.0, 40.0)), (True, (9.0, 6.0)))
            for strategy, ms in zip(("alone/rank0", "zigzag/balanced"), times, strict=True)
        ]
    ).assign(phase="decode", compiled=False, batch=8, seq_len=64, percentages="100 100", limit_ms=math.nan)
    cells["system"] = cells.strategy.map({"alone/rank0": "alone", "zigzag/balanced": "ring"})
    assert list(decode_gains(cells, "zigzag/balanced")[["gain", "tokens"]].itertuples(index=False)) == [(1.5, 512)]
    eager = cells[~cells.captured]
    assert list(decode_gains(eager, "zigzag/balanced").gain) == [0.75]
    compiled = eager.assign(compiled=True, captured=True, latency_ms=1.0)
    assert list(decode_gains(pd.concat([eager, compiled]), "zigzag/balanced").gain) == [0.75]


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
    """Rank 1 has all of them; on a CPU it waits from 2 to 3 ms for the other to compare the call."""
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

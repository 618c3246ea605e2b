"""The catalog of figures: width, one line of description, and the module that draws each. Imports no matplotlib."""

from dataclasses import dataclass

from heteroring.words import choices


@dataclass(frozen=True)
class Entry:
    """`width`: "column" (3.5 in) or "text" (7.16 in) of an IEEE page. `shows`: one line for a reader.

    `optional`: the text of the figure if a platform has not measured the rows, where that is allowed.
    """

    module: str
    width: str
    shows: str
    optional: str = ""


CATALOG = {
    "strategy_eval": Entry(
        "strategy_eval",
        "text",
        "Latency of every strategy over even contiguous shards on two full ranks, the fastest marked.",
    ),
    "strategy_eval_first": Entry(
        "strategy_eval",
        "text",
        "Latency of every strategy over even contiguous shards on two full ranks, with the slow rank first.",
        optional="No rings of equal ranks and of a slow first one were measured",
    ),
    "speedup_heatmap": Entry("speedup_heatmap", "text", "Speedup of uneven over even shards in each cell of the grid."),
    "extreme_heterogeneity": Entry(
        "extreme_heterogeneity", "text", "Latency at the lowest percentage, against the bound."
    ),
    "efficiency_vs_heterogeneity": Entry("heterogeneity", "text", "Efficiency as one rank is throttled."),
    "latency_vs_heterogeneity": Entry("heterogeneity", "text", "Latency as one rank is throttled."),
    "latency_scaling": Entry("latency_scaling", "text", "Latency against sequence length, with the ideal slope."),
    "speedup_over_even": Entry("heterogeneity", "text", "Speedup over even shards of the same layout."),
    "token_distribution": Entry(
        "token_distribution", "text", "The throttled rank's share of the tokens, by allocator."
    ),
    "matmul_latency_vs_size": Entry("matmul", "column", "Matmul latency against matrix size."),
    "matmul_mps_latency": Entry("matmul", "column", "Matmul latency as the device is throttled."),
    "matmul_mps_scaling": Entry("matmul", "column", "Matmul throughput as the device is throttled."),
    "matmul_mps_efficiency": Entry("matmul", "column", "Matmul speed reached per nominal share of the device."),
    "matmul_mps_bars": Entry("matmul_bars", "column", "Matmul slowdown against the ideal, by size."),
    "performance_scaling_vs_percentage": Entry(
        "performance_scaling", "column", "Nominal percentage against the speed achieved, matmul and attention."
    ),
    "regression_surface": Entry("regression_surface", "text", "The fitted formula and the points it was fitted to."),
    "bound_fraction": Entry(
        "heterogeneity", "text", "Capacity bound over latency, of five strategies; stretched near the bound."
    ),
    "bound_fraction_first": Entry(
        "heterogeneity",
        "text",
        "Capacity bound over latency, of five strategies, with the slow rank first; stretched near the bound.",
        optional="No ring was measured with the slow rank first",
    ),
    "rank_order": Entry(
        "rank_order",
        "text",
        "Latency over the bound with the slow rank at the front of the sequence and at its back.",
        optional="No ring was measured with the slow rank first",
    ),
    "many_ranks": Entry(
        "many_ranks",
        "text",
        "Bound fraction of rings of more than two ranks, in every setting of their percentages.",
        optional="No ring of more than two ranks was measured",
    ),
    "ablation": Entry(
        "ablation",
        "column",
        "Speedup by order, shares, layout, whole tiles and the fused first step, added one after another.",
        optional="No ring was measured with one thing changed at a time",
    ),
    "regret": Entry(
        "regret",
        "text",
        "Extra time of each allocator's split over the best split of its layout.",
        optional="No splits around the balanced ones were measured",
    ),
    "rank_timeline": Entry(
        "rank_timeline", "text", "Busy and waiting time of each rank over the capacity bound, even against balanced."
    ),
    "module_comparison": Entry(
        "module_comparison",
        "text",
        "The attention call against the whole FMS attention layer.",
        optional="The FMS attention layer was not measured",
    ),
    "model_ttft": Entry(
        "model_ttft",
        "text",
        "Time to first token of a whole language model, against the bound.",
        optional="No language model was measured",
    ),
    "decode_break_even": Entry(
        "decode_break_even",
        "column",
        "How much faster a model decodes over the ring than on one rank, by tokens cached, sequences and percentage.",
        optional="No decode was measured",
    ),
    "layer_trace": Entry(
        "layer_trace",
        "text",
        "One layer of the model on each rank: busy, waiting, exposed transfer.",
        optional="No layer was traced",
    ),
    "rebalancing_trace": Entry(
        "rebalancing_trace",
        "text",
        "A chunked prefill while a rank slows down and recovers: its tokens, busy and waiting time of each rank.",
        optional="No prefill was rebalanced",
    ),
    "simulation_error": Entry(
        "simulation_error",
        "text",
        "Simulated over measured latency in every cell of the grid.",
        optional="The cost of further ring steps was not profiled",
    ),
    "simulated_scaling": Entry(
        "simulated_scaling",
        "text",
        "Simulated: bound fraction of mixed ranks, by their number and by length.",
        optional="The cost of further ring steps was not profiled",
    ),
    "simulated_slow_rank": Entry(
        "simulated_slow_rank",
        "text",
        "Simulated: cost of one slow rank, by the number of ranks, at the front and at the back.",
        optional="The cost of further ring steps was not profiled",
    ),
}

NAMES = tuple(CATALOG)
WIDTH = {name: entry.width for name, entry in CATALOG.items()}
WIDTH_INCHES = {"column": 3.5, "text": 7.16}


def entry(name: str) -> Entry:
    """The catalog's entry for `name`; ValueError naming all figures if there is none."""
    if name not in CATALOG:
        raise ValueError(f"unknown figure {name!r}: {choices(name, NAMES)}")
    return CATALOG[name]

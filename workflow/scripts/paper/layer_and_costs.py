"""Numbers of the paper about the cost of ring steps, FMS's attention layer, and language models.

A platform need not have measured these. Each group has a flag, HasCost, HasLayer, HasWhole or HasTrace, that is 1 or 0,
and the paper's text is guarded by it. Without measurements the flag is all that is defined, but for what the text says
in their place.
"""

from collections.abc import Mapping
from statistics import median

from heteroring.allocators.balanced import RING_MARGIN, RING_WAIT_US, balanced
from heteroring.allocators.cost_model import CostModel
from heteroring.allocators.costs import predicted_ms
from heteroring.launch.rest import LONGEST_REST_MS
from heteroring.results.kinds import FOLD_KEYS
from heteroring.results.model_metrics import layer_shares
from heteroring.results.results import Results
from heteroring.results.strategy import fitted_name
from heteroring.ring.partition import LAYOUTS, Partition
from paper.cells import BALANCED, CONTIGUOUS, EVEN, UNEVEN, Cell, Cells, place, strategy
from paper.published_study import Study
from paper.tex import count, listed, percent, rounded, share, spanning, tabular, versus
from paper.whole_model import model_name, trace, whole

NOT_RERUN = "We have no measurements of the released code on these devices."


def constants() -> dict[str, str]:
    """What the text says of the method that the allocator and the benchmark know."""
    return {
        "ModelLongestRest": rf"{rounded(LONGEST_REST_MS, 2)}\,ms",
        "ModelRingMargin": rf"{rounded(100 * RING_MARGIN, 1)}\,\%",
        "ModelRingWait": rf"{rounded(RING_WAIT_US, 2)}\,\textmu s",
        "ModelFoldKeys": count(FOLD_KEYS),
    }


def visits(results: Results) -> dict[str, str]:
    """What a query row costs that is visited again, out of the cost model of attention."""
    model = results.models.get(fitted_name("cost", "attention"), {})
    if not any(map(any, model.get("revisit_us", ()))):
        return {"HasCost": "0"}
    lengths, percentages = model["lengths"], model["percentages"]
    fast, slow = percentages.index(max(percentages)), percentages.index(min(percentages))

    def part(index: int, price: str = "revisit_us") -> str:
        """Of rank 1's time in an even zigzag split on two full ranks: it visits all of its rows once more."""
        revisits = model[price][index][fast] * lengths[index] / 2
        return share(revisits / (1e3 * model["attention_ms"][index][fast] / 2 + revisits))

    def nanoseconds(percentage: int) -> str:
        return rf"{rounded(1e3 * model['revisit_us'][-1][percentage])}\,ns"

    def join_price(index: int) -> str:
        price = 1e3 * model["join_us"][index][fast]
        return (rf"{rounded(price)}\,ns" if price else "nothing that we could measure") + f" at {count(lengths[index])}"

    each_length = (0, len(lengths) - 1) if len(lengths) > 1 else (0,)

    if any(model["join_us"][index][fast] for index in each_length):
        costs = (
            f"{listed(map(join_price, each_length))} tokens, and the shares fall to {part(0, 'join_us')} and "
            f"{part(-1, 'join_us')}"
        )
    else:
        costs = f"nothing that we could measure at {listed(count(lengths[index]) for index in each_length)} tokens"
    joined = (
        "Joined with the visit to the rank's own keys, as the kernel measured here does it in the ring's first step, "
        f"the same row costs {costs}. {join_unsaved(model)}"
    )
    return {
        "HasCost": "1",
        "CostRow": nanoseconds(fast),
        "CostRowSlow": nanoseconds(slow),
        "CostJoinSentence": "The kernel measured here makes each visit a pass of its own."
        if model["join_us"] == model["revisit_us"]
        else joined,
        "CostSlowPercentage": str(round(percentages[slow])),
        "CostShortLength": count(lengths[0]),
        "CostShortShare": part(0),
        "CostLongLength": count(lengths[-1]),
        "CostLongShare": part(-1),
    }


def join_unsaved(model: Mapping) -> str:
    """Where the profile found that a joined visit costs no less than one of its own; empty if nowhere."""
    unsaved: dict[int, list[float]] = {}
    for length, prices, alone in zip(model["lengths"], model["join_us"], model["revisit_us"], strict=True):
        for percentage, joined, visit in zip(model["percentages"], prices, alone, strict=True):
            if joined >= visit > 0:
                unsaved.setdefault(length, []).append(percentage)
    if not unsaved:
        return ""
    places = listed(
        f"{count(length)} tokens and {listed(str(round(p)) for p in percentages)}\\,\\%"
        for length, percentages in unsaved.items()
    )
    return f"At {places} the profile found no saving."


def unmeasured(results: Results, cells: Cells, source: str) -> str:
    """What the cost model of `source` expects of the best contiguous split, which the sweep does not have."""
    content = results.models.get(fitted_name("cost", source))
    if content is None:
        return ""
    length, low = cells.extreme
    ranks = len(cells(BALANCED, cells.extreme, "block_lens"))
    model = CostModel.from_json(content)
    costs = [model.predict(length, percentage).cost for percentage in (*[100] * (ranks - 1), low)]
    contiguous, zigzag = (
        rounded(max(predicted_ms(Partition(layout, balanced(length, costs, layout)), costs))) for layout in LAYOUTS
    )
    return (
        f"The cost model of Section~\\ref{{sec:visits}} puts the best contiguous split at {contiguous}\\,ms there, and "
        f"the best zigzag split at {zigzag}\\,ms."
    )


def layer(results: Results, study: Study) -> dict[str, str]:
    """FMS's attention layer beside the call alone, and beside the published whole-layer measurements."""
    cells, call = Cells(results, module="fms"), Cells(results)
    if not cells.throttled:
        return {"HasLayer": "0", "LayerCodeSentence": beside_released_code(results, call, study)}
    cell = cells.extreme
    fractions = cells.over_grid(BALANCED, "bound_fraction")
    numbers = {
        "HasLayer": "1",
        "LayerLongLength": count(cell[0]),
        "LayerLowPercentage": str(cell[1]),
        "LayerBoundMs": rounded(cells(BALANCED, cell, "bound_ms")),
        "LayerAloneMs": rounded(cells(BALANCED, cell, "fast_alone_ms")),
        "LayerUnevenSpeedup": rounded(cells(UNEVEN, cell, "speedup")),
        "LayerCallUnevenFraction": rounded(call(UNEVEN, cell, "bound_fraction")),
        "LayerCallBalancedFraction": rounded(call(BALANCED, cell, "bound_fraction")),
        "LayerBalancedVersusEven": versus(cells(BALANCED, cell), cells(EVEN, cell)),
        "LayerBalancedVersusUneven": versus(cells(BALANCED, cell), cells(UNEVEN, cell)),
        "LayerBalancedMedianFraction": rounded(median(fractions)),
        "LayerBalancedWorstFraction": rounded(min(fractions)),
        "LayerBalancedWorstPlace": place(cells.throttled[fractions.index(min(fractions))]),
        "LayerCellCount": count(len(cells.throttled)),
        "LayerCallShare": rounded(call.alone("alone/rank0", cells.equal) / cells.alone("alone/rank0", cells.equal)),
        "LayerCodeSentence": released_code(results, cells, study),
        "LayerContiguousSentence": unmeasured(results, cells, "layer"),
        "LayerTable": layer_table(cells, study),
    }
    for key, name in {"Even": EVEN, "Uneven": UNEVEN, "Balanced": BALANCED}.items():
        numbers[f"Layer{key}Ms"] = rounded(cells(name, cell))
        numbers[f"Layer{key}Fraction"] = rounded(cells(name, cell, "bound_fraction"))
    return numbers


def layer_table(cells: Cells, study: Study) -> str:
    """Slowdown against two unthrottled ranks with even contiguous shards, published and here, at the longest prompt."""
    longest = cells.lengths[-1]
    reference = cells(EVEN, cells.equal)

    def published(split: str, percentage: int) -> str:
        cell = study.lengths[-1], percentage
        if cell not in study.latency[split]:
            return "--"
        return rounded(study.latency[split][cell] / study.latency["reference_homogeneous"][cell])

    rows = [
        (
            percent(p),
            published("even", p),
            published("uneven", p),
            *(rounded(cells(name, (longest, p)) / reference) for name in (EVEN, UNEVEN, BALANCED)),
        )
        for p in cells.percentages[::-1]
        if p < 100
    ]
    head = [
        ("", spanning(2, "published"), spanning(3, "here")),
        ("", spanning(2, "contiguous"), spanning(2, "contiguous"), "zigzag"),
        ("slow rank", *map(strategy, ("even", "uneven", "even", "uneven", "balanced"))),
    ]
    return tabular("@{}lrrrrr@{}", head, rows)


def released_code(results: Results, cells: Cells, study: Study) -> str:
    """The published code against ours where both ran on the same devices."""
    theirs = _rerun(results, cells.extreme, study)
    if not theirs:
        return NOT_RERUN
    ours, best = cells(BALANCED, cells.extreme), min(theirs, key=theirs.get)
    sentence = f"{_quoted(theirs)}; the balanced zigzag layer is {versus(ours, theirs[best])} the best of these"
    if (same := f"contiguous/{best}") not in CONTIGUOUS:
        return f"{sentence}."
    split = cells(same, cells.extreme)
    return (
        f"{sentence}. Of this, the implementation accounts for a factor of {rounded(theirs[best] / split)}, at the "
        f"same strategy, and layout and allocator for {rounded(split / ours)}."
    )


def beside_released_code(results: Results, call: Cells, study: Study) -> str:
    """The published layer beside what was measured here instead: the call, and a whole block where one was traced."""
    theirs = _rerun(results, call.extreme, study) if call else {}
    if not theirs:
        return NOT_RERUN
    beside = f"There, the balanced zigzag split's attention call takes {rounded(call(BALANCED, call.extreme))}\\,ms"
    if not results.trace.empty:
        length, low = call.extreme
        rows = layer_shares(results.trace)
        rows = rows[(rows.strategy == BALANCED) & (rows.seq_len == length) & (rows.percentage == low)]
        if not rows.empty:
            model = results.model.iloc[0]
            fewer = " but fewer heads of KV" if model.kv_heads < model.heads else ""
            beside += (
                f", and a whole block of {model_name(model)}, which has a feed-forward layer{fewer}, "
                f"{rounded(rows.layer_ms.max())}\\,ms in the traced prefill below"
            )
    return f"{_quoted(theirs)}. {beside}."


def _rerun(results: Results, cell: Cell, study: Study) -> dict[str, float]:
    """Milliseconds of the released code's layer by split, on two of the same devices, in `cell`."""
    devices = set(results.provenance["devices"])
    return {split: ms for (device, split, *at), ms in study.rerun.items() if {device} == devices and at == [*cell]}


def _quoted(theirs: dict[str, float]) -> str:
    quoted = listed(f"{rounded(ms)}\\,ms with {strategy(split)} shards" for split, ms in theirs.items())
    return f"The study's released code, run on two of the same devices under the same limit, takes {quoted}"


def what_was_measured(layer: bool, whole: bool) -> str:
    """What the section on layers and models does, for a sentence that begins with it."""
    if layer and whole:
        return "goes on to a whole attention layer, as in the study, and to a whole model"
    if whole:
        return "goes on to a whole model; the attention layer by itself, as in the study, was not measured here"
    if layer:
        return "goes on to a whole attention layer, as in the study; whole models were not measured here"
    return "says what was not measured here"


def beyond_the_call(results: Results, study: Study) -> dict[str, str]:
    """Everything of one platform, by unprefixed name."""
    numbers = {**visits(results), **layer(results, study), **whole(results), **trace(results)}
    measured = what_was_measured(numbers["HasLayer"] == "1", numbers["HasWhole"] == "1")
    contiguous = unmeasured(results, Cells(results), "attention")
    return {**numbers, "BeyondTheCall": measured, "ContiguousSentence": contiguous}

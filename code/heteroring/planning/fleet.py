"""A fleet: ranks with a measured profile or data-sheet figures, their memory, and the links between their nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heteroring.allocators.cost_model import CostModel
from heteroring.allocators.fitting import fit, load_model
from heteroring.allocators.unit_costs import Cost
from heteroring.files import read_text
from heteroring.planning.network import Link, Network
from heteroring.planning.work import Work


@dataclass(frozen=True)
class DataSheet:
    """`tflops`: a data sheet's dense peak; `attention` and `products`: the fractions of it assumed to be reached."""

    tflops: float
    attention: float
    products: float


@dataclass(frozen=True)
class RankSpec:
    """One rank: a device called `name` with `memory_gb` (10^9 bytes) to use, in a node.

    `cost_model` is that measured on the device, read at `percentage`; where there is none, `data_sheet` is set.
    """

    name: str
    node: str
    memory_gb: float
    cost_model: CostModel | None
    percentage: float
    profile: str
    data_sheet: DataSheet | None


@dataclass(frozen=True)
class Fleet:
    """Ranks in rank order, and their network."""

    ranks: tuple[RankSpec, ...]
    network: Network

    def attention(self) -> Work:
        """The attention call that was profiled. Raises ValueError if there is no profile, or several calls were."""
        shapes = {rank.profile: _shape(rank.cost_model) for rank in self.ranks if rank.cost_model is not None}
        if not shapes:
            raise ValueError("no rank has a measured profile, which says what attention is planned: name a --model")
        (first, shape), *others = shapes.items()
        for path, other in others:
            if other != shape:
                raise ValueError(f"profile {path} is of {_said(other)}, profile {first} of {_said(shape)}")
        return Work.attention(**shape)

    def costs(self, work: Work, seq_len: int, earlier: int = 0) -> tuple[tuple[Cost, ...], tuple[str, ...]]:
        """Each rank's cost of one layer, and notes on what it is based on.

        Args:
            work: What is computed.
            seq_len: New tokens.
            earlier: Tokens before them, which they all see.

        Returns:
            (costs, notes): microseconds of each kind of work by rank, and remarks such as those on data sheets.

        Raises:
            ValueError: If a profile is of another shape than the work's, or of attention alone where the work is a
                language model.
        """
        costs: dict[tuple[object, ...], tuple[Cost, tuple[str, ...]]] = {}
        answer, notes = [], []
        for rank in self.ranks:
            key = (rank.profile, rank.percentage, rank.data_sheet, rank.name)
            if key not in costs:
                costs[key] = _cost(rank, work, seq_len, earlier)
            cost, said = costs[key]
            answer.append(cost)
            notes += said
        return tuple(answer), tuple(dict.fromkeys(notes))


def _cost(rank: RankSpec, work: Work, seq_len: int, earlier: int) -> tuple[Cost, tuple[str, ...]]:
    if rank.data_sheet is not None:
        sheet = rank.data_sheet
        pair_us = work.pair_flops / (1e6 * sheet.tflops * sheet.attention)
        token_us = work.product_flops / (1e6 * sheet.tflops * sheet.products)
        note = (
            f"{rank.name}: from a data sheet, not measured: of {sheet.tflops:g} TFLOP/s, {sheet.attention:.0%} assumed "
            f"in attention, {sheet.products:.0%} in products, and nothing for further ring steps"
        )
        return Cost(pair_us, token_us), (note,)
    shape = {name: getattr(work, name) for name in ("heads", "kv_heads", "head_dim", "dtype")}
    if _shape(rank.cost_model) != shape:
        raise ValueError(
            f"profile {rank.profile} is of {_said(_shape(rank.cost_model))}, {work.name} has {_said(shape)}"
        )
    if work.product_flops and rank.cost_model.source != "block":
        raise ValueError(
            f"profile {rank.profile} is fitted to kind {rank.cost_model.source}: a plan for {work.name} needs "
            f"kind block (heteroring profile --kinds attention,block,fold --model {work.name})"
        )
    prediction = rank.cost_model.predict(seq_len, rank.percentage, earlier)
    cost = prediction.cost if work.product_flops else prediction.cost._replace(token_us=0.0)
    return cost, tuple(f"{rank.name}: {note}" for note in prediction.notes)


def _shape(cost_model: CostModel) -> dict[str, Any]:
    setup = cost_model.setup
    return {name: int(setup[name]) for name in ("heads", "kv_heads", "head_dim")} | {"dtype": setup["dtype"]}


def _said(shape: Mapping[str, Any]) -> str:
    return f"{shape['heads']}:{shape['kv_heads']} heads of {shape['head_dim']} in {shape['dtype']}"


def read_fleet(path: str | os.PathLike[str]) -> Fleet:
    """The fleet of a YAML file (docs/planning.md describes it); paths in it are relative to the file.

    Raises ValueError, naming the file, the place in it and the rule, for whatever is unknown, missing or impossible.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, of which PyYAML takes the last value."""

        def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
            node, known = super().compose_mapping_node(anchor), set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in known:
                    raise yaml.YAMLError(f"key {key.value!r} is given again in line {key.start_mark.line + 1}")
                known.add(key.value)
            return node

    path = Path(path)
    try:
        content = yaml.load(read_text(path), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return _fleet(content, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _fleet(content: Any, folder: Path) -> Fleet:
    top = _section(content, "the file", {"ranks", "network"}, {"ranks", "network"})
    if not isinstance(top["ranks"], list) or not top["ranks"]:
        raise ValueError("ranks is not a list of one or more kinds of ranks")
    models: dict[tuple[str, str], CostModel] = {}
    ranks = [rank for i, entry in enumerate(top["ranks"]) for rank in _ranks(entry, f"ranks[{i}]", folder, models)]
    nodes = tuple(rank.node for rank in ranks)
    network = Network(nodes, _links(top["network"], sorted(set(nodes))))
    if gap := network.missing():
        first, second = gap
        raise ValueError(
            f"network links no two ranks of node {first}: give `within`"
            if first == second
            else f"network does not link nodes {first} and {second}: give `between`, or a link of these nodes"
        )
    return Fleet(tuple(ranks), network)


def _ranks(entry: Any, place: str, folder: Path, models: dict[tuple[str, str], CostModel]) -> list[RankSpec]:
    known = {"name", "count", "node", "nodes", "memory_gb", "profile", "percentage", "kind", "datasheet"}
    given = _section(entry, place, {"name", "memory_gb"}, known)
    name, node = _text(given["name"], f"{place}.name"), _text(given.get("node", "node"), f"{place}.node")
    count, copies = (_count(given.get(key, 1), f"{place}.{key}") for key in ("count", "nodes"))
    memory_gb = _number(given["memory_gb"], f"{place}.memory_gb")
    if ("profile" in given) == ("datasheet" in given):
        raise ValueError(f"{place} ({name}) needs a `profile` that was measured, or a `datasheet`: one of the two")
    sheet = model = None
    if "datasheet" in given:
        figures = _section(given["datasheet"], f"{place}.datasheet", {"tflops", "attention", "products"})
        sheet = DataSheet(
            *(_number(figures[key], f"{place}.datasheet.{key}") for key in ("tflops", "attention", "products"))
        )
        if max(sheet.attention, sheet.products) > 1:
            raise ValueError(f"{place}.datasheet: attention and products are parts of the peak, from 0 to 1")
        for key in ("percentage", "kind"):
            if key in given:
                raise ValueError(f"{place}.{key} is of a profile; a data sheet has none")
    else:
        key = _text(given["profile"], f"{place}.profile"), _text(given.get("kind", ""), f"{place}.kind", empty=True)
        if key not in models:
            models[key] = _model(folder / key[0], key[1])
        model = models[key]
    percentage = _number(given.get("percentage", 100), f"{place}.percentage")
    if not 1 <= percentage <= 100:
        raise ValueError(f"{place}.percentage is {percentage:g}: it must be from 1 to 100")
    names = [node] if copies == 1 else [f"{node}-{copy}" for copy in range(copies)]
    return [
        RankSpec(name, each, memory_gb, model, percentage, str(given.get("profile", "")), sheet)
        for each in names
        for _ in range(count)
    ]


def _model(path: Path, kind: str) -> CostModel:
    if path.suffix == ".csv":
        return fit("cost", kind or "attention", path)
    model = load_model(path)
    if not isinstance(model, CostModel):
        raise ValueError(f"{path} is a {model.kind} model: a plan needs a cost model (heteroring fit --kind cost)")
    if kind and kind != model.source:
        raise ValueError(f"{path} is a cost model of {model.source}, not of {kind}")
    return model


def _links(content: Any, nodes: list[str]) -> dict[tuple[str, str], Link]:
    given = _section(content, "network", set(), {"within", "between", "links"})
    links = {}
    for i, first in enumerate(nodes):
        for second in nodes[i:]:
            default = "within" if first == second else "between"
            if default in given:
                links[first, second] = _link(given[default], f"network.{default}")
    listed = given.get("links", [])
    if not isinstance(listed, list):
        raise ValueError("network.links is not a list of links")
    for i, entry in enumerate(listed):
        place = f"network.links[{i}]"
        pair = _section(entry, place, {"nodes", "gb_per_s", "latency_us"})["nodes"]
        if not (isinstance(pair, list) and len(pair) == 2 and all(node in nodes for node in pair)):
            raise ValueError(f"{place}.nodes is {pair!r}: it must be two nodes that ranks are in ({', '.join(nodes)})")
        first, second = sorted(pair)
        links[first, second] = _link({key: entry[key] for key in entry if key != "nodes"}, place)
    return links


def _link(entry: Any, place: str) -> Link:
    given = _section(entry, place, {"gb_per_s", "latency_us"})
    return Link(
        *(_number(given[key], f"{place}.{key}", zero=key == "latency_us") for key in ("gb_per_s", "latency_us"))
    )


def _section(entry: Any, place: str, needed: set[str], known: set[str] | None = None) -> dict[str, Any]:
    """`entry` as a mapping with all keys `needed` and none besides `known`."""
    known = needed if known is None else known
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is {entry!r}: it must hold {', '.join(sorted(known))}")
    for key in entry:
        if key not in known:
            raise ValueError(f"{place} has an unknown key {key!r}: known are {', '.join(sorted(known))}")
    for key in sorted(needed):
        if key not in entry:
            raise ValueError(f"{place} lacks {key}")
    return entry


def _text(value: Any, place: str, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty) or not value.isprintable():
        raise ValueError(f"{place} is {value!r}: it must be a text")
    return value


def _count(value: Any, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100_000:
        raise ValueError(f"{place} is {value!r}: it must be an integer from 1 to 100000")
    return value


def _number(value: Any, place: str, zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < 1e12 or (zero and value == 0)):
        raise ValueError(f"{place} is {value!r}: it must be a number {'from 0' if zero else 'above 0'}")
    return float(value)

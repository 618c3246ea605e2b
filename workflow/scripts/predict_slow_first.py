"""Simulated latencies of rings with the slow rank first, for a platform whose record has it last.

    python workflow/scripts/predict_slow_first.py data/h200x2 data/predictions/h200x2_slow_first.csv

reads the fitted models of the platform's folder, made from profiles of one rank, and nothing that a ring took.
"""

import csv
import sys
from itertools import product
from pathlib import Path

from heteroring.allocators import allocation, load_model
from heteroring.files import atomic_path, read_json
from heteroring.planning.recorded import Recorded
from heteroring.results.strategy import FITTED, STRATEGIES, Strategy
from heteroring.ring.partition import Partition

COLUMNS = ("seq_len", "percentages", "strategy", "block_lens", "predicted_ms")


def predictions(models: Path, strategies: tuple[Strategy, ...] = STRATEGIES) -> list[dict[str, object]]:
    """A row for each length and percentage of the profile and each strategy; `models` is the folder of the models."""
    platform = Recorded.of(read_json(models / "cost-attention.json"), gpu=True)
    fitted = {name: load_model(models / f"{name}-matmul.json") for name in FITTED} | {"balanced": platform.model}
    rows = []
    for seq_len, percentage, strategy in product(platform.model.lengths, platform.model.percentages[:-1], strategies):
        percentages = (int(percentage), 100)
        split = allocation(
            strategy.allocator,
            seq_len,
            percentages=percentages,
            profile=fitted.get(strategy.allocator),
            layout=strategy.layout,
            multiple=platform.multiple,
        )
        found = platform.simulate(Partition(strategy.layout, split.block_lens), percentages)
        lens = " ".join(map(str, split.block_lens))
        values = (seq_len, " ".join(map(str, percentages)), strategy, lens, f"{found.latency_us / 1e3:.6g}")
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write(folder: Path, path: Path) -> None:
    """Write the predictions of the platform in `folder` as a CSV."""
    rows = predictions(folder / "models")
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))

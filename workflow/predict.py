"""Simulate the rings that a configuration measures, before a machine with so many GPUs is available.

    python workflow/predict.py data/h200x2 workflow/config/ring4.yaml data/predictions/h200x4.csv

reads only the profiles of one rank in a platform's folder, and no times of rings.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from commands import Commands
from heteroring.allocators import fit
from heteroring.bench.ring.job import RingJob, cells_of
from heteroring.files import atomic_path, read_json
from heteroring.planning.recorded_platform import RecordedPlatform
from heteroring.results.strategy import fitted_name
from heteroring.ring.bounds import capacity_bound
from record import read_config

COLUMNS = ("seq_len", "percentages", "strategy", "block_lens", "predicted_ms", "bound_ms")


def predictions(profiles: Sequence[Path], config: dict) -> Iterator[dict[str, object]]:
    """A row for each ring and length of the gpu platform of `config` and each split that is measured there.

    Splits are those that the machine would use if its ranks were as fast as in `profiles`. bound_ms is the capacity
    bound, from simulations of each rank alone.
    """
    commands, settings = Commands(config, "gpu", ["attention"]), config["platforms"]["gpu"]
    with TemporaryDirectory() as folder:
        for name, model in commands.fits.items():
            fit(*model, profiles).save(Path(folder, f"{name}.json"))
        platform = RecordedPlatform.of(read_json(Path(folder, f"{fitted_name('cost', 'attention')}.json")), gpu=True)
        for setting in commands.settings():
            if (setting.condition, setting.job) != ("rested", 1):
                continue
            job = RingJob(
                device_kind="gpu",
                platform="gpu",
                throttle=settings["throttle"],
                percentages=setting.percentages,
                seq_lens=tuple(settings["seq_lens"]),
                strategies=setting.strategies,
                fitted_models=Path(folder),
            )
            cells, _ = cells_of(job)
            times = [platform.simulate(cell.partition, job.percentages).latency_us / 1e3 for cell in cells]
            alone: dict[int, list[float]] = {seq_len: [] for seq_len in job.seq_lens}
            for cell, ms in zip(cells, times, strict=True):
                if cell.system == "alone":
                    alone[cell.partition.seq_len].append(ms)
            for cell, ms in zip(cells, times, strict=True):
                if cell.in_ring:
                    seq_len, lens = cell.partition.seq_len, cell.partition.block_lens
                    percentages, split = (" ".join(map(str, each)) for each in (job.percentages, lens))
                    numbers = (f"{each:.6g}" for each in (ms, capacity_bound(alone[seq_len])))
                    yield dict(zip(COLUMNS, (seq_len, percentages, cell.strategy, split, *numbers), strict=True))


def write(folder: Path, config: Path, path: Path) -> None:
    """Write the predictions for `config` from the profiles of the platform in `folder` as a CSV."""
    rows = list(predictions(sorted((folder / "profile").glob("*.csv")), read_config(config)))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))

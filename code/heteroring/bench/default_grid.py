"""The default grids of `heteroring bench`, `profile` and `model` on each device kind, cpu and gpu."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Sequence lengths, heads, element type and whole model; they are those of workflow/config/default.yaml."""

    seq_lens: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    model: str


GRIDS = {
    "cpu": Grid((512, 1024, 2048, 4096), 2, 2, 64, "float32", "llama/micro"),
    "gpu": Grid((4096, 8192, 16384, 32768, 65536), 32, 32, 128, "bfloat16", "llama/3-8b"),
}


def grid_of(device_kind: str) -> Grid:
    """The grid of `device_kind`, or the CPU's where there is no such kind: the job then refuses the name."""
    return GRIDS.get(device_kind, GRIDS["cpu"])


def default_strategies(models: object) -> tuple[str, ...]:
    """All strategies that are possible: those that need a fitted model only if `models` is given."""
    from heteroring.results.strategy import STRATEGIES  # imports NumPy, which `--help` does not need

    return tuple(each for each in STRATEGIES if models is not None or each.fitted_model("") is None)

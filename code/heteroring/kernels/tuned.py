"""Launch configurations measured to be the fastest, by architecture, head size and kind of rectangle.

The table is data, and nothing is measured at import. `python -m heteroring.kernels.bench_block --tune`
measures the candidates on the GPU it runs on and prints the rows to put here.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("dense", "causal")


@dataclass(frozen=True)
class Config:
    """A launch of the portable kernel: tile of block_m queries and block_n keys, warps, pipeline stages."""

    block_m: int
    block_n: int
    warps: int
    stages: int


# (compute capability, head size rounded up to a power of two, kind); 16-bit operands.
TUNED: dict[tuple[tuple[int, int], int, str], Config] = {
    ((9, 0), 64, "dense"): Config(128, 128, 8, 3),
    ((9, 0), 64, "causal"): Config(128, 64, 8, 3),
    ((9, 0), 128, "dense"): Config(128, 128, 8, 3),
    ((9, 0), 128, "causal"): Config(128, 64, 8, 3),
    ((9, 0), 256, "dense"): Config(128, 64, 8, 2),
    ((9, 0), 256, "causal"): Config(128, 64, 8, 2),
}

# Fits the shared memory of every GPU since compute capability 8.0 (99 KB a block on 8.6 and 8.9).
PORTABLE: dict[int, Config] = {
    64: Config(128, 64, 4, 3),
    128: Config(128, 64, 8, 2),
    256: Config(64, 32, 8, 2),
}

# 32-bit operands take twice the shared memory, and exact products use no matrix unit: small tiles.
SINGLE: dict[int, Config] = {
    64: Config(64, 32, 4, 2),
    128: Config(32, 32, 4, 2),
    256: Config(16, 32, 4, 1),
}

INTERPRETED = Config(32, 32, 4, 1)


def padded(head_dim: int) -> int:
    """Head size of the tile that holds `head_dim`: the next power of two, at least 64."""
    return max(64, 1 << (head_dim - 1).bit_length())


def lookup(capability: tuple[int, int] | None, head_dim: int, kind: str, itemsize: int) -> Config:
    """Configuration for one launch.

    `capability` is the device's compute capability, None in Triton's interpreter; `kind` is one of KINDS and
    `itemsize` the bytes of one operand element. Architectures nobody measured get the portable configuration.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, but must be one of {', '.join(KINDS)}")
    if capability is None:
        return INTERPRETED
    tile = padded(head_dim)
    if itemsize > 2:
        return SINGLE[tile]
    return TUNED.get((capability, tile, kind), PORTABLE[tile])

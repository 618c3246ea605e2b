"""Launch configurations measured to be the fastest, by architecture, head size and kind of rectangle.

The tables are data, and nothing is measured at import. `python -m heteroring.microbench.attention --tune` measures the
candidates for attention on the GPU it runs on, `python -m heteroring.microbench.matmul --tune` those for matrix
products; both print times, the fastest of which belong here.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("dense", "causal")


@dataclass(frozen=True)
class Config:
    """A launch of the portable kernel: a tile of block_m queries and block_n keys, warps, pipeline stages."""

    block_m: int
    block_n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class HopperConfig:
    """A launch of the Hopper kernel: keys per tile, pipeline stages of K and V tiles, where the queries are kept."""

    block_n: int
    stages: int
    q_in_registers: bool


@dataclass(frozen=True)
class MatmulConfig:
    """A launch of the matrix product: its tile, tile rows that run side by side, warps, pipeline stages.

    With columns_first, the columns of the right operand go along M of the matrix units, which is at least 64.
    """

    block_m: int
    block_n: int
    block_k: int
    group: int
    warps: int
    stages: int
    columns_first: bool = False

    def tiles(self, rows: int, columns: int) -> int:
        """Number of tiles in a product of `rows` rows and `columns` columns."""
        return -(-rows // self.block_m) * -(-columns // self.block_n)


HOPPER_BLOCK_M = 128  # queries of a tile of the Hopper kernel
MASKED_OVER_FULL = 1.9  # its time for a tile of keys with a mask over that of one without

# By head size rounded up to a power of two; compute capability 9.0, 16-bit operands. One for both kinds of rectangle,
# because a fused first step has both in one launch; with heads of 64, more stages make one kind 3 % faster and the
# other slower.
HOPPER: dict[int, HopperConfig] = {
    64: HopperConfig(128, 2, True),
    128: HopperConfig(128, 2, False),
    256: HopperConfig(64, 2, False),
}

# (compute capability, head size rounded up to a power of two, kind); 16-bit operands.
TUNED: dict[tuple[tuple[int, int], int, str], Config] = {
    ((9, 0), 128, "dense"): Config(128, 128, 8, 3),
    ((9, 0), 128, "causal"): Config(128, 64, 8, 3),
}

# Fits the shared memory of every GPU since compute capability 8.0 (99 KB per thread block on 8.6 and 8.9).
PORTABLE: dict[int, Config] = {
    64: Config(128, 64, 4, 3),
    128: Config(128, 64, 8, 2),
    256: Config(64, 32, 8, 2),
}

# Small tiles, because 32-bit operands take twice the shared memory and exact products use no matrix units.
SINGLE: dict[int, Config] = {
    64: Config(64, 32, 4, 2),
    128: Config(32, 32, 4, 2),
    256: Config(16, 32, 4, 1),
}

# Most bytes of keys and values of heads that run side by side; with more, they would evict one another from L2.
L2_BYTES = 32 << 20

INTERPRETED = Config(32, 32, 4, 1)

# Matrix products, compute capability 9.0, 16-bit operands. Flat and thin ones are bound by reading the right operand.
MATMUL_WIDE = MatmulConfig(128, 256, 64, 8, 8, 3)
MATMUL_NARROW = MatmulConfig(128, 128, 64, 8, 8, 4)
NARROW_OVER_WIDE = 0.54  # time of a narrow tile over that of a wide one
MATMUL_FLAT = MatmulConfig(64, 64, 128, 1, 4, 6)
MATMUL_THIN = MatmulConfig(16, 64, 256, 1, 4, 4, columns_first=True)
MATMUL_INTERPRETED = MatmulConfig(16, 32, 16, 2, 4, 1)


def padded(head_dim: int) -> int:
    """Head size of the tile that holds `head_dim`: the next power of two, at least 64."""
    return max(64, 1 << (head_dim - 1).bit_length())


def lookup(capability: tuple[int, int] | None, head_dim: int, kind: str, itemsize: int) -> Config:
    """Configuration of one launch of the portable kernel.

    Args:
        capability: The device's compute capability; None in Triton's interpreter.
        head_dim: Elements of a head.
        kind: One of KINDS.
        itemsize: Bytes of an operand's element.

    Returns:
        The measured configuration, or the portable one for architectures that were not measured.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, but must be one of {', '.join(KINDS)}")
    if capability is None:
        return INTERPRETED
    tile = padded(head_dim)
    if itemsize > 2:
        return SINGLE[tile]
    return TUNED.get((capability, tile, kind), PORTABLE[tile])


def section(heads: int, group: int, keys: int, head_dim: int, itemsize: int) -> int:
    """Query heads of the batch to run side by side: whole groups that share KV, as many as L2 has room for.

    Args:
        heads: Query heads of the batch.
        group: Query heads that share a KV head.
        keys: Keys of a head.
        head_dim: Elements of a head.
        itemsize: Bytes of an element.

    Returns:
        The number of heads.
    """
    return min(heads, group * max(1, L2_BYTES // (2 * keys * head_dim * itemsize)))


def first_section(section: int, group: int, tiles: int, sms: int) -> int:
    """Query heads to run first, where tiles wait for keys that arrive head by head.

    As few whole groups as give every SM a tile, because each further head delays the first tiles.

    Args:
        section: Most heads, those that run together later.
        group: Query heads that share a KV head.
        tiles: Tiles of each head that wait.
        sms: SMs of the device.

    Returns:
        The number of heads.
    """
    return min(section, group * -(-sms // (group * tiles)))


def sections(heads: int, first: int, section: int) -> list[int]:
    """Query heads of each section in turn: `first`, then the remainder, so that all others are of `section`."""
    second = (heads - first) % section
    return [width for width in (first, second) if width] + (heads - first - second) // section * [section]


def lead(rows: int, pending: int, first_query: int) -> int:
    """Rows before the first query at which tiles of the Hopper kernel begin, so that one begins at `first_query`.

    A tile in which only some queries see the pending keys computes all of these with a mask. Shifting the tiles avoids
    that, but masks one more tile of own keys for each of them, and may add a tile: together that costs as much as up to
    MASKED_OVER_FULL keys per query.

    Args:
        rows: Queries.
        pending: Pending keys.
        first_query: The first query that sees them.

    Returns:
        The number of rows, 0 where fewer pending keys than that come to each query.
    """
    return -first_query % HOPPER_BLOCK_M if pending >= MASKED_OVER_FULL * rows else 0


def matmul(rows: int, columns: int, sms: int | None) -> MatmulConfig:
    """Configuration of a matrix product.

    Products of up to 64 rows are bound by reading the right operand, so one tile holds all rows. Above, a wave takes
    the same time however few tiles it has, so the tile size whose waves take least in all is chosen.

    Args:
        rows: Rows of the product.
        columns: Columns of the product.
        sms: SMs of the device; None in Triton's interpreter.

    Returns:
        The configuration.
    """
    if sms is None:
        return MATMUL_INTERPRETED
    for config in (MATMUL_THIN, MATMUL_FLAT):
        if rows <= config.block_m:
            return config
    waves = {config: -(-config.tiles(rows, columns) // sms) for config in (MATMUL_WIDE, MATMUL_NARROW)}
    return MATMUL_NARROW if waves[MATMUL_NARROW] * NARROW_OVER_WIDE < waves[MATMUL_WIDE] else MATMUL_WIDE

"""Verification of measured results: sampled rows are compared with a reference."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from heteroring.kernels.reference import attention
from heteroring.ring.partition import Partition

SAMPLES = 8

# Error of a row relative to its own size. Leaving out or repeating a shard costs 0.1 and more.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


class WrongResult(RuntimeError):
    """A measured call returned a wrong result."""


def verify_rows(
    out: torch.Tensor,
    lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    partition: Partition,
    rank: int,
    scale: float,
    label: str,
) -> None:
    """Compare SAMPLES rows of this rank's causal attention, its first and last among them, with fp64.

    Args:
        out: This rank's output [B, Hq, n_r, D].
        lse: This rank's LSE [B, Hq, n_r] in natural log; None to compare the output alone.
        q: Queries of the whole sequence [B, Hq, N, D].
        k: Keys of the whole sequence [B, Hkv, N, D].
        v: Values of the whole sequence [B, Hkv, N, D].
        partition: Which tokens each rank holds.
        rank: This rank.
        scale: Factor on the scores.
        label: What is compared, for the error message.

    Raises:
        WrongResult: If the relative error of a row exceeds TOLERANCE.
    """
    tolerance = TOLERANCE[out.dtype]
    keys, values = k.double(), v.double()
    for row, at in _sampled(partition, rank):
        seen = slice(0, at + 1)
        exact, exact_lse = attention(q[:, :, at : at + 1].double(), keys[:, :, seen], values[:, :, seen], scale=scale)
        error = (out[:, :, row : row + 1] - exact).norm() / exact.norm()
        lse_error = 0.0 if lse is None else (lse[:, :, row : row + 1] - exact_lse).abs().max()
        if not (error <= tolerance and lse_error <= tolerance):
            raise WrongResult(
                f"{label}, rank {rank}, token {at}: the result is off by {error:.2g} of its size and its LSE by "
                f"{lse_error:.2g}, more than {tolerance:g}"
            )


def verify_hidden_states(out: torch.Tensor, whole: torch.Tensor, partition: Partition, rank: int, label: str) -> None:
    """Compare SAMPLES rows of this rank's hidden states, its first and last among them, with those of one process.

    Args:
        out: This rank's hidden states [B, n_r, E].
        whole: Those of the whole prompt [B, N, E] in the same dtype, computed by one process without a ring.
        partition: Which tokens each rank holds.
        rank: This rank.
        label: What is compared, for the error message.

    Raises:
        WrongResult: If the relative error of a row exceeds TOLERANCE.
    """
    tolerance = TOLERANCE[out.dtype]
    for row, at in _sampled(partition, rank):
        expected = whole[:, at].double()
        error = (out[:, row] - expected).norm() / expected.norm()
        if not error <= tolerance:
            raise WrongResult(
                f"{label}, rank {rank}, token {at}: the result is off by {error:.2g} of its size, "
                f"more than {tolerance:g}"
            )


def verify_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, label: str) -> None:
    """Compare a matrix product with its operands, by their products with a random vector.

    (R. Freivalds, Probabilistic machines can use less running time, IFIP Congress 1977.)

    Args:
        out: The product [M, N].
        a: The left operand [M, K].
        b: The right operand [K, N].
        label: What is compared, for the error message.

    Raises:
        WrongResult: If an element of the difference exceeds TOLERANCE times the root mean square.
    """
    tolerance = TOLERANCE[out.dtype]
    generator = torch.Generator(out.device).manual_seed(0)
    vector = torch.randn(out.shape[1], generator=generator, dtype=torch.float64, device=out.device)
    exact = a.double() @ (b.double() @ vector)
    error = (out.double() @ vector - exact).abs().max() / exact.square().mean().sqrt()
    if not error <= tolerance:
        raise WrongResult(f"{label}: the result is off by {error:.2g} of its size, more than {tolerance:g}")


def _sampled(partition: Partition, rank: int) -> Iterator[tuple[int, int]]:
    """(row of the rank's shard, position in the prompt) of SAMPLES tokens of `rank`, fewer if it has not as many."""
    positions = partition.positions(rank)
    if len(positions):
        for row in sorted({round(i * (len(positions) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)}):
            yield row, int(positions[row])

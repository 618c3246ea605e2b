"""A prefill in chunks: a call for each, whose prefix is what the chunks before it left on each rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import add
from typing import NamedTuple

from heteroring.allocators.apportion import apportion, chunks_of
from heteroring.ring.partition import Partition


class Chunk(NamedTuple):
    """One call: the new tokens' partition, and the earlier tokens that each rank holds; () where there are none."""

    partition: Partition
    prefix_lens: tuple[int, ...]


def chunks_over(partition: Partition, chunk: int | None, prefix_lens: Sequence[int] = ()) -> list[Chunk]:
    """The calls of a prefill in chunks, as `ring_prefill` makes them.

    Args:
        partition: Partition of the whole prompt.
        chunk: Tokens of a chunk; None for one call.
        prefix_lens: Earlier tokens by rank, before the first chunk; () for none.

    Returns:
        The calls, in order.
    """
    held, found = tuple(prefix_lens), []
    for part in chunks_of(partition, chunk):
        found.append(Chunk(part, held))
        held = behind(held, part.block_lens, part.seq_len)
    return found


def middle(seq_len: int, chunk: int | None) -> tuple[int, int]:
    """The chunk in the middle of a prompt.

    Args:
        seq_len: Tokens of the prompt.
        chunk: Tokens of a chunk; None for the whole prompt.

    Returns:
        Tokens of that chunk, and tokens of the prompt before it.

    Raises:
        ValueError: For a chunk of less than a token.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}: a chunk has 1 token or more")
    if chunk is None or chunk >= seq_len:
        return seq_len, 0
    return chunk, seq_len // chunk // 2 * chunk


def split_over(
    split: Callable[[tuple[int, ...]], tuple[int, ...]], ahead: int, prefix_lens: tuple[int, ...]
) -> tuple[int, ...]:
    """The split of one chunk behind earlier chunks that are split alike.

    In zigzag, where work is linear in tokens, the same split suits every chunk; the one in the middle has the prefix of
    an average one.

    Args:
        split: Gives a chunk's tokens by rank, from the earlier tokens by rank.
        ahead: Tokens of the chunks before this one.
        prefix_lens: Earlier tokens by rank, before the first chunk; () for none.

    Returns:
        The chunk's tokens by rank.
    """
    lens = split(prefix_lens)
    return split(behind(prefix_lens, lens, ahead)) if ahead else lens


def behind(prefix_lens: tuple[int, ...], share: tuple[int, ...], ahead: int) -> tuple[int, ...]:
    """Earlier tokens of each rank: `prefix_lens`, and `ahead` more tokens in the proportions of `share`."""
    if not ahead:
        return prefix_lens
    return tuple(map(add, prefix_lens or (0,) * len(share), apportion(share, ahead)))

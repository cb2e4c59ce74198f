"""Packed sequences: a prefix and items in one row of tokens. Plain NumPy.

The sequence is `query d item1 item2 ...`. A delimiter `d` stands once, as the prefix's last token:
further ones before each item, as the historic form has them, would be tokens that no score reads.
An item's positions continue the prefix's, so each is scored as if it alone followed the prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from itemwise.ops.packed.base import PackedArrays, PackedShape
from itemwise.types import Int32Array, TokenLists, Tokens

MIN_TOKENS = 256  # shortest packed sequence; shorter ones are padded
# Tokens of a packed sequence unless the settings say otherwise: what its activations take grows
# with its length, and beyond it the query's share of the work is small.
DEFAULT_MAX_TOKENS = 16384


def bucket_tokens(num_tokens: int) -> int:
    """The padded length of a sequence: the next of 256, 512, 1024, 1536, 2048, 3072, 4096, ...

    From 1024 on no more than a third of a sequence is padding, and there are two lengths, each
    with a compiled program, for each doubling.
    """
    bucket = MIN_TOKENS
    while bucket < num_tokens:
        half = bucket + bucket // 2
        if bucket >= 1024 and half >= num_tokens:
            return half
        bucket *= 2
    return bucket


def packed_shape(
    num_tokens: int, num_items: int, row_multiple: int, granule_tokens: int
) -> PackedShape:
    """The smallest shape that takes so many tokens and items.

    A shape has a row for every eight tokens, which items of eight tokens and more never exceed.

    Args:
        num_tokens: of the prefix and all items.
        num_items: items.
        row_multiple: what `max_rows` must be a multiple of.
        granule_tokens: tokens of a granule.
    """
    tokens = bucket_tokens(num_tokens)
    while (rows := -(-tokens // (8 * row_multiple)) * row_multiple) < num_items:
        tokens = bucket_tokens(tokens + 1)
    return PackedShape(tokens, rows, granule_tokens)


def chunks(
    prefix: int, items: Sequence[int], max_tokens: int, row_multiple: int, chunk_size: int = 0
) -> Iterator[range]:
    """Cuts a request's items into packed sequences; each has the whole prefix before it.

    Args:
        prefix: tokens of the prefix.
        items: tokens of each item.
        max_tokens: most tokens of a sequence; one with a single item may exceed it.
        row_multiple: as in `packed_shape`.
        chunk_size: most items of a sequence, 0 for no bound.

    Yields:
        Ranges of item numbers.
    """
    most = packed_shape(max_tokens, 0, row_multiple, 1).max_rows
    if chunk_size:
        most = min(most, chunk_size)
    start, used = 0, prefix
    for number, length in enumerate(items):
        if number > start and (number - start == most or used + length > max_tokens):
            yield range(start, number)
            start, used = number, prefix
        used += length
    yield range(start, len(items))


def pack(prefix: Tokens, items: Sequence[Tokens], shape: PackedShape) -> PackedArrays:
    """The packed sequence. An empty item is scored at the prefix's last token.

    Raises:
        ValueError: the tokens or the items are more than `shape` takes.
    """
    items = TokenLists.of(items)
    lengths = items.lengths.astype(np.int32)
    ends = len(prefix) + np.cumsum(lengths, dtype=np.int32)
    total = len(prefix) + len(items.tokens)
    if total > shape.tokens or len(items) > shape.max_rows:
        raise ValueError(
            f"`items` are {len(items)} with {total} tokens and prefix, expected at most "
            f"{shape.max_rows} with {shape.tokens}"
        )
    tokens, positions = (np.zeros(shape.tokens, np.int32) for _ in range(2))
    tokens[: len(prefix)] = prefix
    tokens[len(prefix) : total] = items.tokens
    places = np.arange(total, dtype=np.int32)
    positions[:total] = places
    positions[len(prefix) : total] -= np.repeat(ends - lengths - len(prefix), lengths)
    granules = -(-lengths // shape.granule_tokens)
    index = _counts_up(granules)
    starts = ends - lengths
    granule_start = np.repeat(starts, granules) + index * shape.granule_tokens
    return PackedArrays(
        tokens=tokens,
        positions=positions,
        row_starts=_padded(starts[lengths > 0], shape.max_rows, shape.tokens),
        prefix_end=np.asarray(len(prefix), np.int32),
        granule_start=_padded(granule_start, shape.max_granules),
        granule_index=_padded(index, shape.max_granules),
        num_granules=np.asarray(len(index), np.int32),
        score_tokens=_padded(np.where(lengths > 0, ends - 1, len(prefix) - 1), shape.max_rows),
        num_scored=np.asarray(len(items), np.int32),
        num_places=np.asarray(total, np.int32),
    )


def _counts_up(counts: Int32Array) -> Int32Array:
    """0, 1, ... up to each count, one after the other."""
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    return (np.arange(len(firsts)) - firsts).astype(np.int32)


def _padded(values: Int32Array, size: int, fill: int = 0) -> Int32Array:
    out = np.full(size, fill, np.int32)
    out[: len(values)] = values
    return out

"""Packed sequences: lengths, chunks and layouts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.engine.packed_sequence import bucket_tokens, chunks, pack, packed_shape

lengths = st.lists(st.integers(0, 70), min_size=1, max_size=40)


def test_padded_lengths() -> None:
    found = sorted({bucket_tokens(n) for n in range(1, 16385)})
    assert found == [256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384]


@given(num_tokens=st.integers(1, 60000))
def test_padded_length_fits_and_wastes_little(num_tokens: int) -> None:
    bucket = bucket_tokens(num_tokens)
    assert bucket >= num_tokens
    if num_tokens > 1024:
        assert num_tokens * 3 >= bucket * 2


@given(
    num_tokens=st.integers(1, 5000),
    num_items=st.integers(0, 600),
    rows=st.sampled_from([24, 128, 512]),
)
def test_shape_takes_what_it_is_for(num_tokens: int, num_items: int, rows: int) -> None:
    shape = packed_shape(num_tokens, num_items, rows, 32)
    assert shape.tokens >= num_tokens
    assert shape.max_rows >= num_items
    assert shape.max_rows % rows == 0
    assert bucket_tokens(shape.tokens) == shape.tokens


@given(
    prefix=st.integers(1, 300),
    items=lengths,
    max_tokens=st.integers(1, 600),
    chunk_size=st.integers(0, 12),
)
def test_chunks_cover_all_items_in_order_within_bounds(
    prefix: int, items: list[int], max_tokens: int, chunk_size: int
) -> None:
    found = list(chunks(prefix, items, max_tokens, 24, chunk_size))
    assert [i for part in found for i in part] == list(range(len(items)))
    most = packed_shape(max_tokens, 0, 24, 1).max_rows
    for part in found:
        tokens = prefix + sum(items[i] for i in part)
        assert len(part) == 1 or tokens <= max_tokens
        assert 1 <= len(part) <= min(most, chunk_size or most)
    if not chunk_size:
        for part in found[:-1]:  # no sequence ends early
            next_tokens = prefix + sum(items[i] for i in part) + items[part.stop]
            assert next_tokens > max_tokens or len(part) == most


@given(prefix=st.integers(1, 300), items=lengths)
def test_layout(prefix: int, items: list[int]) -> None:
    rng = np.random.default_rng(0)
    query = tuple(rng.integers(1, 99, prefix).tolist())
    rows = [tuple(rng.integers(1, 99, n).tolist()) for n in items]
    shape = packed_shape(prefix + sum(items), len(items), 8, 32)
    batch = pack(query, rows, shape)
    used = int(batch.num_places)
    assert used == prefix + sum(items)
    assert tuple(batch.tokens[:used]) == sum(rows, query)
    assert not batch.tokens[used:].any()
    assert list(batch.positions[:prefix]) == list(range(prefix))
    place, granules, starts = prefix, [], []
    for number, row in enumerate(rows):
        positions = batch.positions[place : place + len(row)]
        assert list(positions) == list(range(prefix, prefix + len(row)))
        assert batch.score_tokens[number] == (place + len(row) if row else prefix) - 1
        granules += [(place + i, i // 32) for i in range(0, len(row), 32)]
        starts += [place] if row else []
        place += len(row)
    count = int(batch.num_granules)
    pairs = zip(batch.granule_start[:count], batch.granule_index[:count], strict=True)
    assert [(int(start), int(index)) for start, index in pairs] == granules
    assert list(batch.row_starts[: len(starts)]) == starts
    assert (batch.row_starts[len(starts) :] == shape.tokens).all()
    for name in ("granule_start", "granule_index", "score_tokens", "row_starts", "tokens"):
        assert getattr(batch, name).dtype == np.int32


def test_too_much_is_refused() -> None:
    shape = packed_shape(10, 1, 8, 32)
    with pytest.raises(ValueError, match="expected at most"):
        pack((1,), [(2,) * 300], shape)
    with pytest.raises(ValueError, match="expected at most"):
        pack((1,), [()] * (shape.max_rows + 1), shape)

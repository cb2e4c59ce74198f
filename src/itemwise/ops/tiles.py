"""Tile sizes of the TPU kernels, in one table.

Chosen so that a tile's scores and sums stay within a few MiB of VMEM whatever the model, and its
products fill the 256 x 256 matrix unit of a v6e. They were compiled for each shape in the table of
`docs/tpu.md`, not timed: no TPU was at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

VMEM_BYTES = 100 << 20  # of the 128 MiB of v5e and v6e; the compiler keeps the rest


@dataclass(frozen=True)
class PackedTiles:
    """Readers and keys of a tile of packed attention.

    Attributes:
        readers: tokens of a tile of queries; a power of two. All query heads of a key/value head
            are in it.
        keys: tokens of a tile of keys.
    """

    readers: int
    keys: int


# By query heads of a key/value head: rows of a tile are readers * heads.
PACKED_TILES = {1: PackedTiles(512, 512), 2: PackedTiles(512, 512), 4: PackedTiles(256, 512)}
PACKED_TILES_LARGE_GROUP = PackedTiles(128, 512)  # more heads than that


def packed_tiles(group: int, num_tokens: int) -> PackedTiles:
    """Tiles for a group size and a length; no tile is longer than the sequence."""
    tiles = PACKED_TILES.get(group, PACKED_TILES_LARGE_GROUP)
    return PackedTiles(min(tiles.readers, num_tokens), min(tiles.keys, num_tokens))

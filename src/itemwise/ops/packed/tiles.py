"""Tile sizes of the kernels for packed sequences, in one table.

Those for TPUs are chosen so that a tile's scores and sums stay within a few MiB of VMEM whatever
the model, and its products fill the 256 x 256 matrix unit of a v6e. Those for GPUs are such that
sums and scores stay in the registers of eight warps. They were compiled for the shapes in
`docs/tpu.md` and `docs/gpu.md`, not timed: there was neither device.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PackedTiles:
    """Readers and keys of a tile of packed attention.

    Attributes:
        readers: tokens of a tile of queries; a power of two. On TPU all query heads of a
            key/value head are in it, on GPU one is.
        keys: tokens of a tile of keys.
    """

    readers: int
    keys: int


# By query heads of a key/value head: rows of a tile are readers * heads.
PACKED_TILES = {1: PackedTiles(512, 512), 2: PackedTiles(512, 512), 4: PackedTiles(256, 512)}
PACKED_TILES_LARGE_GROUP = PackedTiles(128, 512)  # more heads than that
GPU_PACKED_TILES = PackedTiles(128, 64)


def packed_tiles(group: int, num_tokens: int) -> PackedTiles:
    """Tiles for a group size and a length; no tile is longer than the sequence."""
    tiles = PACKED_TILES.get(group, PACKED_TILES_LARGE_GROUP)
    return PackedTiles(min(tiles.readers, num_tokens), min(tiles.keys, num_tokens))

"""The cost of a workload on a chip: arithmetic, memory traffic, and the minimum time for them.

Arithmetic on shapes. It counts what the programs compute, including padding and masked parts of
tiles, and what any program must move: weights, activations, keys and values. A real run takes
longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import numpy as np

from itemwise.engine.packed_sequence import packed_shape
from itemwise.engine.step_packer import Context, RowPlan, StepPacker
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.ops.packed.base import PackedShape
from itemwise.ops.packed.tiles import packed_tiles
from itemwise.ops.step.arrays import StepShape

VALUE_BYTES = 2  # bfloat16
SCORE_BYTES = 4  # float32, of attention scores


@dataclass(frozen=True)
class Chip:
    """A TPU chip, with the manufacturer's figures.

    Attributes:
        name: its generation.
        hbm_bytes: memory.
        flops_per_s: bfloat16 multiplications and additions.
        bytes_per_s: between memory and cores.
    """

    name: str
    hbm_bytes: int
    flops_per_s: float
    bytes_per_s: float


# Source: "System architecture" of Cloud TPU's documentation, per chip.
CHIPS = {
    "v5e": Chip("v5e", 16 << 30, 197e12, 819e9),
    "v5p": Chip("v5p", 95 << 30, 459e12, 2765e9),
    "v6e": Chip("v6e", 32 << 30, 918e12, 1640e9),
}


@dataclass(frozen=True)
class Workload:
    """One request of equal items; by default the contract workload."""

    query_tokens: int = 2000
    num_items: int = 500
    item_tokens: int = 20

    @property
    def tokens(self) -> int:
        """Tokens of the request, the query counted once."""
        return self.query_tokens + self.num_items * self.item_tokens


@dataclass(frozen=True)
class Work:
    """The cost of a workload on each chip.

    Attributes:
        runs: how often the program runs.
        flops: multiplications and additions of all runs.
        attention_flops: the part of attention.
        bytes: moved between memory and cores.
        seconds: the minimum time, for arithmetic or for memory traffic.
        tokens_per_s: tokens of the request in that time.
        items_per_s: items in that time.
    """

    runs: int
    flops: float
    attention_flops: float
    bytes: float
    seconds: float
    tokens_per_s: float
    items_per_s: float


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as `v6e:2x2`.

    Raises:
        ConfigError: the chip is unknown.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ConfigError(
            f"`topology` is {topology!r}, expected a chip ({', '.join(CHIPS)}) and "
            "a shape, such as v6e:2x2"
        )
    return CHIPS[name]


def packed_shape_of(workload: Workload, shape: StepShape) -> PackedShape:
    """The packed sequence that the workload fills."""
    rows, granule = shape.max_scored_rows, shape.granule_tokens
    return packed_shape(workload.tokens, workload.num_items, rows, granule)


def work_of(
    form: str, model: ModelConfig, shape: StepShape, workload: Workload, chip: Chip, tp: int
) -> Work:
    """The work of a form (`packed dense`, `packed segment`, `exact step`) on each of `tp` chips."""
    if form == "exact step":
        runs, pairs = _exact_pairs(shape, workload)
        tokens = runs * shape.tokens
    else:
        packed = packed_shape_of(workload, shape)
        runs, tokens = 1, packed.tokens
        pairs = tokens**2 if form == "packed dense" else _segment_pairs(model, packed, workload)
    layer_weights = sum(
        math.prod(spec.shape) for spec in jax.tree.leaves(describe_weights(model)["layers"])
    )
    heads = model.num_heads
    attention = 4 * pairs * heads * model.head_dim * model.num_layers
    flops = (2 * tokens * layer_weights + attention) / tp
    kv_heads = max(model.num_kv_heads, tp)
    widths = 6 * model.hidden_size * tp  # the residual, normalised and added to, on every chip
    widths += 4 * heads * model.head_dim + 4 * kv_heads * model.head_dim + 5 * model.mlp_size
    moved = runs * layer_weights + tokens * widths * model.num_layers
    scores = 3 * pairs * heads * model.num_layers * SCORE_BYTES if form == "packed dense" else 0
    num_bytes = (VALUE_BYTES * moved + scores) / tp
    seconds = max(flops / chip.flops_per_s, num_bytes / chip.bytes_per_s)
    rates = workload.tokens / seconds, workload.num_items / seconds
    return Work(runs, flops, attention / tp, num_bytes, seconds, *rates)


def _segment_pairs(model: ModelConfig, packed: PackedShape, workload: Workload) -> int:
    """Pairs of reader and key in all tiles that the kernel computes."""
    tiles = packed_tiles(model.num_heads // model.num_kv_heads, packed.tokens)
    total = 0
    for first in range(0, workload.tokens, tiles.readers):
        end = min(first + tiles.readers, workload.tokens)
        prefix_tiles = -(-min(end, workload.query_tokens) // tiles.keys)
        place = max(first - workload.query_tokens, 0)
        start = workload.query_tokens + place // workload.item_tokens * workload.item_tokens
        own_first = max(start // tiles.keys, prefix_tiles)
        total += prefix_tiles + max(-(-end // tiles.keys) - own_first, 0)
    return total * tiles.readers * tiles.keys


def _exact_pairs(shape: StepShape, workload: Workload) -> tuple[int, int]:
    """Steps, and pairs of reader and key in all blocks and granules that they compute."""
    page, query = shape.page_tokens, workload.query_tokens
    pages = -(-query // page)
    lens = (page,) * (pages - 1) + (query - page * (pages - 1),)
    rows = [
        RowPlan(range(lens[i]), 0, Context((1,) * i, lens[:i]), write_page=1) for i in range(pages)
    ]
    context = Context((1,) * pages, lens)
    for score in range(workload.num_items):
        left = workload.item_tokens
        own = context
        while left > page:
            rows.append(RowPlan(range(page), 0, own, write_page=1))
            own, left = Context((*own.pages, 1), (*own.lens, page)), left - page
        rows.append(RowPlan(range(left), 0, own, score_id=score))
    packer, steps, pairs = StepPacker(shape), 0, 0

    def take() -> None:
        nonlocal steps, pairs
        arrays = packer.take().arrays
        num_pages = (arrays.context_lens > 0).sum(1)
        blocks = int(np.ceil(num_pages / shape.block_pages).sum()) * shape.block_pages * page
        products = int(np.sum(arrays.granule_index[: arrays.num_granules] + 1))
        steps += 1
        pairs += blocks * page + products * shape.granule_tokens**2

    for row in rows:
        if not packer.fits(row):
            take()
        packer.add(row)
    take()
    return steps, pairs

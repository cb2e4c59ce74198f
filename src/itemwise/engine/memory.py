"""How much memory the pages get."""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
import sys
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from itemwise.config import EngineConfig, Quantization
from itemwise.engine.platform import Memory, Platform
from itemwise.engine.weights import is_layer_matrix
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.models.sharding import AXIS, partition, stored_kv_heads, stored_shape
from itemwise.types import DTypes

GIB = 1 << 30
logger = logging.getLogger("itemwise.engine")
# The host's memory is not the engine's alone: by default pages take an eighth of it, and no more
# than so many tokens. An accelerator's memory is: weights and pages take most of it.
HOST_SHARE, HOST_MAX_TOKENS = 1 / 8, 65536
# On a host, what is neither weights nor pages: a share of what is available, within bounds.
# Compiling takes the most of it: 0.4 GiB for the demo model, 1.0 GiB for qwen3-0.6b.
OWN_SHARE, MIN_OWN_BYTES, MAX_OWN_BYTES = 1 / 4, GIB // 2, GIB * 3 // 2
ACCELERATOR_SHARE = 0.8


@dataclass(frozen=True)
class PagePlan:
    """Sizes of the page pool and of the weights.

    Attributes:
        num_pages: pages of the pool, the null page included.
        page_bytes: bytes of one page over all layers, on each device.
        weight_bytes: bytes of all weights, on each device.
        taken_at_start: whether the pool takes its memory at once, so that it does not grow later;
            else page by page, as pages are written.
    """

    num_pages: int
    page_bytes: int
    weight_bytes: int
    taken_at_start: bool = True


def plan_pages(
    config: EngineConfig,
    model: ModelConfig,
    dtypes: DTypes,
    platform: Platform,
    memory: Memory,
    tp: int = 1,
) -> PagePlan:
    """How many pages fit beside the weights, on each of `tp` devices.

    On a host no more than fit into the memory that is available now.

    Raises:
        ConfigError: weights and pages do not fit the device's memory, or not even a page does.
    """
    page_tokens = config.page_tokens
    layer_heads = model.num_layers * stored_kv_heads(model, tp) // tp
    page_bytes = 2 * layer_heads * page_tokens * model.head_dim * dtypes.activations.itemsize
    weight_bytes = weights_bytes(model, dtypes.weights, tp, config.quantization)
    if config.kv_cache_bytes is not None:
        budget = config.kv_cache_bytes
    elif config.mem_fraction_static is not None:
        budget = int(memory.total * config.mem_fraction_static) - weight_bytes
    elif platform.memory == "host":
        budget = min(int(memory.total * HOST_SHARE), HOST_MAX_TOKENS // page_tokens * page_bytes)
    else:
        budget = int(memory.total * ACCELERATOR_SHARE) - weight_bytes
    num_pages = budget // page_bytes
    if num_pages < 2:
        raise ConfigError(
            f"pages get {max(budget, 0)} bytes beside weights of {weight_bytes} bytes, expected at "
            f"least {2 * page_bytes} for two pages of {page_tokens} tokens; raise "
            "--kv-cache-bytes or --mem-fraction-static"
        )
    if weight_bytes + num_pages * page_bytes > memory.total:
        raise ConfigError(
            f"weights of {weight_bytes / GIB:.1f} GiB and pages of "
            f"{num_pages * page_bytes / GIB:.1f} GiB exceed the device's "
            f"{memory.total / GIB:.1f} GiB; lower --kv-cache-bytes or take a smaller model"
        )
    plan = PagePlan(num_pages, page_bytes, weight_bytes)
    if platform.memory == "host":
        # All devices of a host have the same memory.
        plan = _within_available(plan, memory.available // tp)
        small = tp * plan.num_pages * page_bytes <= memory.total * HOST_SHARE
        return replace(plan, taken_at_start=small)
    return plan


def _within_available(plan: PagePlan, available: int) -> PagePlan:
    """The plan with as many pages as the host has memory for, which is logged if it cuts them.

    Raises:
        ConfigError: there is no memory for the weights and two pages.
    """
    own = own_bytes(available)
    most = (available - own - plan.weight_bytes) // plan.page_bytes
    if plan.num_pages <= most:
        return plan
    most = _rounded_down(most)
    if most < 2:
        needed = plan.weight_bytes + own + 2 * plan.page_bytes
        raise ConfigError(
            f"the model needs {needed / GIB:.2f} GiB of memory, of which {own / GIB:.2f} are for "
            f"the program itself, but {available / GIB:.2f} GiB are available; raise the limit of "
            "memory, end other programs, or take a smaller model"
        )
    logger.warning(
        "Pages for cached queries get %.1f GiB and not %.1f GiB: of the %.1f GiB of memory that "
        "are available, weights take %.1f and the program itself up to %.1f.",
        most * plan.page_bytes / GIB,
        plan.num_pages * plan.page_bytes / GIB,
        available / GIB,
        plan.weight_bytes / GIB,
        own / GIB,
    )
    return replace(plan, num_pages=most)


def own_bytes(available: int) -> int:
    """Memory of a host that is kept for all that is neither weights nor pages."""
    return min(max(int(available * OWN_SHARE), MIN_OWN_BYTES), MAX_OWN_BYTES)


def _rounded_down(count: int) -> int:
    """To three significant bits.

    Programs are made for a number of pages, and what is available differs a little at each start.
    """
    grain = 1 << max(0, count.bit_length() - 3)
    return max(0, count // grain * grain)


def release_zeros(array: jax.Array) -> None:
    """Gives the memory of an array of zeros on a host back to the system, until it is written.

    Linux hands it out again as zeros, piece by piece. The array does not change.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for shard in array.addressable_shards:
        start = shard.data.unsafe_buffer_pointer()
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + shard.data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def weights_bytes(
    model: ModelConfig, dtype: np.dtype[Any], tp: int = 1, quantization: Quantization = "none"
) -> int:
    """Bytes of the weights on each of `tp` devices."""
    total = 0
    for spec in jax.tree.leaves(describe_weights(model)):
        size = math.prod(stored_shape(spec, model, tp)) * dtype.itemsize
        if quantization == "int8" and is_layer_matrix(spec):
            size = math.prod(spec.shape) + spec.shape[0] * np.dtype(np.float32).itemsize
        total += size // tp if AXIS in partition(spec) else size
    return total

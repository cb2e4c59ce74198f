"""How much memory the pages get."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from itemwise.config import EngineConfig, Quantization
from itemwise.engine.platform import Platform
from itemwise.engine.weights import is_layer_matrix
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.models.sharding import AXIS, partition, stored_kv_heads, stored_shape
from itemwise.types import DTypes

GIB = 1 << 30
# The host's memory is not the engine's alone: by default pages take an eighth of it, and no more
# than so many tokens. An accelerator's memory is: weights and pages take most of it.
HOST_SHARE, HOST_MAX_TOKENS = 1 / 8, 65536
ACCELERATOR_SHARE = 0.8


@dataclass(frozen=True)
class PagePlan:
    """Sizes of the page pool and of the weights.

    Attributes:
        num_pages: pages of the pool, the null page included.
        page_bytes: bytes of one page over all layers, on each device.
        weight_bytes: bytes of all weights, on each device.
    """

    num_pages: int
    page_bytes: int
    weight_bytes: int


def plan_pages(
    config: EngineConfig,
    model: ModelConfig,
    dtypes: DTypes,
    platform: Platform,
    total_bytes: int,
    tp: int = 1,
) -> PagePlan:
    """How many pages fit beside the weights, on each of `tp` devices of `total_bytes`.

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
        budget = int(total_bytes * config.mem_fraction_static) - weight_bytes
    elif platform.memory == "host":
        budget = min(int(total_bytes * HOST_SHARE), HOST_MAX_TOKENS // page_tokens * page_bytes)
    else:
        budget = int(total_bytes * ACCELERATOR_SHARE) - weight_bytes
    num_pages = budget // page_bytes
    if num_pages < 2:
        raise ConfigError(
            f"pages get {max(budget, 0)} bytes beside weights of {weight_bytes} bytes, expected at "
            f"least {2 * page_bytes} for two pages of {page_tokens} tokens; raise "
            "--kv-cache-bytes or --mem-fraction-static"
        )
    if weight_bytes + num_pages * page_bytes > total_bytes:
        raise ConfigError(
            f"weights of {weight_bytes / GIB:.1f} GiB and pages of "
            f"{num_pages * page_bytes / GIB:.1f} GiB exceed the device's "
            f"{total_bytes / GIB:.1f} GiB; lower --kv-cache-bytes or take a smaller model"
        )
    return PagePlan(num_pages, page_bytes, weight_bytes)


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

"""How much memory the pages get."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from itemwise.config import EngineConfig, Quantization
from itemwise.engine.weights import is_layer_matrix
from itemwise.errors import ConfigError
from itemwise.machine import memory_bytes
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.models.sharding import AXIS, partition, stored_kv_heads, stored_shape
from itemwise.ops.step.arrays import StepShape
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
    shape: StepShape,
    device: jax.Device,
    tp: int = 1,
) -> PagePlan:
    """How many pages fit beside the weights, on each of `tp` devices like `device`.

    Raises:
        ConfigError: weights and pages do not fit the device's memory, or not even a page does.
    """
    total, is_host = device_memory_bytes(device), device.platform == "cpu"
    return plan_pages_in(config, model, dtypes, shape, total, tp, is_host=is_host)


def plan_pages_in(
    config: EngineConfig,
    model: ModelConfig,
    dtypes: DTypes,
    shape: StepShape,
    total: int,
    tp: int = 1,
    *,
    is_host: bool = False,
) -> PagePlan:
    """As `plan_pages`, on devices of `total` bytes; `is_host`: the memory is the host's."""
    layer_heads = model.num_layers * stored_kv_heads(model, tp) // tp
    page_bytes = 2 * layer_heads * shape.page_tokens * model.head_dim * dtypes.activations.itemsize
    weight_bytes = weights_bytes(model, dtypes.weights, tp, config.quantization)
    if config.kv_cache_bytes is not None:
        budget = config.kv_cache_bytes
    elif config.mem_fraction_static is not None:
        budget = int(total * config.mem_fraction_static) - weight_bytes
    elif is_host:
        budget = min(int(total * HOST_SHARE), HOST_MAX_TOKENS // shape.page_tokens * page_bytes)
    else:
        budget = int(total * ACCELERATOR_SHARE) - weight_bytes
    num_pages = budget // page_bytes
    if num_pages < 2:
        raise ConfigError(
            f"pages get {max(budget, 0)} bytes beside weights of {weight_bytes} bytes, expected at "
            f"least {2 * page_bytes} for two pages of {shape.page_tokens} tokens; raise "
            "--kv-cache-bytes or --mem-fraction-static"
        )
    if weight_bytes + num_pages * page_bytes > total:
        raise ConfigError(
            f"weights of {weight_bytes / GIB:.1f} GiB and pages of "
            f"{num_pages * page_bytes / GIB:.1f} GiB exceed the device's {total / GIB:.1f} GiB; "
            "lower --kv-cache-bytes or take a smaller model"
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


def device_memory_bytes(device: jax.Device) -> int:
    """Memory of the device: the accelerator's own, or the host's."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return memory_bytes()

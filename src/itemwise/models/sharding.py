"""Tensor parallelism: how weights and pages lie on the devices that share a model.

Heads, the inside of the MLP and the vocabulary are cut into as many parts as there are devices, by
the names in `WeightSpec.axes` (Shoeybi et al., 2019, "Megatron-LM"). Where there are more devices
than key/value heads, each head lies on several devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.types import WeightSpec

AXIS = "tp"
SHARDED = ("heads", "kv_heads", "mlp", "vocab")  # names of axes that are cut
PAGES = PartitionSpec(None, AXIS)  # of a pool [P, K, R, H]


def make_mesh(model: ModelConfig, devices: Sequence[jax.Device]) -> Mesh | None:
    """The mesh of all `devices`, or None for a single one.

    Raises:
        ConfigError: the model cannot be cut into so many parts.
    """
    check_parts(model, len(devices))
    return None if len(devices) == 1 else Mesh(np.asarray(devices), (AXIS,))


def check_parts(model: ModelConfig, tp: int) -> None:
    """Returns if a model can be cut into so many parts.

    Raises:
        ConfigError: it cannot.
    """
    sizes = {"num_attention_heads": model.num_heads, "vocab_size": model.vocab_size}
    sizes["intermediate_size"] = model.mlp_size
    problems = [f"`{name}` {size}" for name, size in sizes.items() if size % tp]
    if model.num_kv_heads % tp and tp % model.num_kv_heads:
        problems.append(f"`num_key_value_heads` {model.num_kv_heads}, nor is it a divisor")
    if problems:
        raise ConfigError(f"`tp_size` is {tp}, expected a divisor of " + ", ".join(problems))


def mesh_size(mesh: Mesh | None) -> int:
    """Devices that share the model."""
    return 1 if mesh is None else mesh.size


def stored_kv_heads(model: ModelConfig, tp: int) -> int:
    """Key/value heads over all devices, copies counted."""
    return max(model.num_kv_heads, tp)


def partition(spec: WeightSpec) -> PartitionSpec:
    """How a weight is cut; norms, and biases of summed projections, lie whole on each device."""
    return PartitionSpec(*(AXIS if axis in SHARDED else None for axis in spec.axes))


def stored_shape(spec: WeightSpec, model: ModelConfig, tp: int) -> tuple[int, ...]:
    """Shape of a weight over all devices, copies of key/value heads included."""
    copies = stored_kv_heads(model, tp) // model.num_kv_heads
    return tuple(
        size * copies if axis == "kv_heads" else size
        for size, axis in zip(spec.shape, spec.axes, strict=True)
    )


def place(
    array: NDArray[Any], spec: WeightSpec, model: ModelConfig, mesh: Mesh | None
) -> jax.Array:
    """A checkpoint's tensor on its devices; on the default device without a mesh."""
    if mesh is None:
        put: jax.Array = jax.device_put(array, jax.devices()[0])
        return put
    copies = stored_kv_heads(model, mesh.size) // model.num_kv_heads
    if copies > 1 and spec.axes[0] == "kv_heads":
        heads = array.reshape(model.num_kv_heads, model.head_dim, *array.shape[1:])
        array = np.repeat(heads, copies, axis=0).reshape(-1, *array.shape[1:])
    placed: jax.Array = jax.device_put(array, NamedSharding(mesh, partition(spec)))
    return placed

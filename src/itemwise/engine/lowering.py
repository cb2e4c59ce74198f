"""The programs as XLA sees them: what to compile, for which devices. The only caller of `jax.jit`.

Weights may be arrays, or shapes with shardings: to compile, no weight need exist.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from itemwise.engine.packed_sequence import pack
from itemwise.engine.platform import Platform
from itemwise.engine.step_packer import StepPacker
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import (
    LSE_ROWS,
    DecoderOptions,
    Pool,
    Weights,
    describe_weights,
    forward,
    forward_packed,
    label_logits,
    output_weights,
    vocab_logsumexp,
)
from itemwise.models.sharding import (
    AXIS,
    PAGES,
    mesh_size,
    partition,
    stored_kv_heads,
    stored_shape,
)
from itemwise.ops.packed.base import PackedArrays, PackedShape
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, to_storage
from itemwise.types import DTypes, Int32Array, Kernel, Mask, WeightSpec

WHOLE = PartitionSpec()  # the same on each device
LABEL_COLUMNS = 8  # labels that one call reads; longer lists take several calls


@dataclass(frozen=True)
class ProgramSpec:
    """What a model's programs are made for.

    Attributes:
        model: the model.
        shape: sizes of the step; of the largest, where there are several.
        num_pages: P, pages of the pool.
        dtypes: types of weights and activations.
        platform: of the devices.
        kernel: the attention kernel, None for XLA's attention.
        mesh: the devices that share the model, or None for a single one.
        device: the single one; None for the default device.
    """

    model: ModelConfig
    shape: StepShape
    num_pages: int
    dtypes: DTypes
    platform: Platform
    kernel: Kernel | None = None
    mesh: Mesh | None = None
    device: jax.Device | None = None


class Lowering:
    """Lowers the programs of a model."""

    def __init__(self, spec: ProgramSpec) -> None:
        self._spec = spec
        self._options = DecoderOptions(
            spec.model,
            spec.dtypes.activations,
            axis=None if spec.mesh is None else AXIS,
            kernel=spec.kernel,
            dot_sums=spec.platform.dot_sums,
            # Only beside a kernel: with XLA's attention, results stay in float32.
            round_products=spec.platform.round_products and spec.kernel is not None,
        )

    @property
    def _output_axis(self) -> str | None:
        """The axis over which the output matrix is cut; a classification head lies whole."""
        return None if self._spec.model.num_labels else self._options.axis

    def pages(self) -> Any:
        """The pool as shapes, in storage form."""
        spec, model = self._spec, self._spec.model
        heads = stored_kv_heads(model, mesh_size(spec.mesh))
        size = (spec.num_pages, heads, spec.shape.page_tokens, model.head_dim)
        stored = jax.eval_shape(to_storage, jax.ShapeDtypeStruct(size, spec.dtypes.activations))
        array = jax.ShapeDtypeStruct(size, stored.dtype, sharding=self._sharding(PAGES))
        return (Pages._make((array, array)),) * model.num_layers

    def weights(self) -> Weights:
        """The weights as shapes, in the order and under the names of `describe_weights`."""
        tp = mesh_size(self._spec.mesh)

        def one(spec: WeightSpec) -> jax.ShapeDtypeStruct:
            size = stored_shape(spec, self._spec.model, tp)
            return jax.ShapeDtypeStruct(
                size, self._spec.dtypes.weights, sharding=self._sharding(partition(spec))
            )

        shapes: Weights = jax.tree.map(one, describe_weights(self._spec.model))
        return shapes

    def _sharding(self, spec: PartitionSpec) -> Sharding | None:
        if self._spec.mesh is not None:
            return NamedSharding(self._spec.mesh, spec)
        return None if self._spec.device is None else SingleDeviceSharding(self._spec.device)

    def _whole(self, *arguments: Any) -> Any:
        """Arguments that lie whole on each device, as shapes."""
        sharding = self._sharding(WHOLE)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments
        )

    def lower_step(self, weights: Weights, shape: StepShape | None = None) -> jax.stages.Lowered:
        """The exact step, of its own shape or a smaller one.

        Takes pages, which it may overwrite, and the joined `StepArrays` of a step. Gives as many
        hidden states as the largest step.
        """
        shape = shape or self._spec.shape
        padding = self._spec.shape.max_scored_rows - shape.max_scored_rows
        like = StepPacker(shape).take().arrays

        def step(weights: Weights, pages: Pool, joined: jax.Array) -> tuple[Pool, jax.Array]:
            pages, hidden = forward(weights, pages, split(joined, like), shape, self._options)
            return pages, jnp.pad(hidden, ((0, padding), (0, 0))) if padding else hidden

        arguments = (weights, self.pages(), *self._whole(join(like)))
        return self._lower(step, (PAGES, WHOLE), (PAGES, WHOLE), arguments, donate=(1,))

    def lower_packed(self, weights: Weights, shape: PackedShape, mask: Mask) -> jax.stages.Lowered:
        """A packed sequence; gives the scored hidden states in parts as large as a step's."""
        rows = self._spec.shape.max_scored_rows
        like = pack((0,), [], shape)

        def packed(weights: Weights, joined: jax.Array) -> tuple[jax.Array, ...]:
            hidden = forward_packed(weights, split(joined, like), shape, mask, self._options)
            return tuple(hidden[i : i + rows] for i in range(0, shape.max_rows, rows))

        arguments = (weights, *self._whole(join(like)))
        return self._lower(packed, (WHOLE,), WHOLE, arguments)

    def lower_labels(self, weights: Weights) -> jax.stages.Lowered:
        """Label logits of the step's scored rows, from the weights of the output alone."""
        labels = jax.ShapeDtypeStruct((self._spec.shape.max_scored_rows, LABEL_COLUMNS), jnp.int32)
        read = functools.partial(label_logits, axis=self._output_axis)
        arguments = (output_weights(weights), *self._whole(self._hidden(), labels))
        return self._lower(read, (WHOLE, WHOLE), WHOLE, arguments)

    def lower_vocab(self, weights: Weights) -> jax.stages.Lowered:
        """Log-sum-exp over the vocabulary of some of the step's scored rows, likewise."""
        scales = jax.ShapeDtypeStruct((LSE_ROWS,), jnp.float32)
        first = jax.ShapeDtypeStruct((), jnp.int32)
        read = functools.partial(vocab_logsumexp, axis=self._output_axis)
        arguments = (output_weights(weights), *self._whole(self._hidden(), scales, first))
        return self._lower(read, (WHOLE,) * 3, WHOLE, arguments)

    def _hidden(self) -> jax.ShapeDtypeStruct:
        size = (self._spec.shape.max_scored_rows, self._spec.model.hidden_size)
        return jax.ShapeDtypeStruct(size, self._spec.dtypes.activations)

    def _lower(
        self,
        function: Callable[..., Any],
        inputs: tuple[PartitionSpec, ...],
        outputs: PartitionSpec | tuple[PartitionSpec, ...],
        arguments: tuple[Any, ...],
        donate: tuple[int, ...] = (),
    ) -> jax.stages.Lowered:
        """Lowers a function of weights and `inputs`; on a mesh each device runs it on its part."""
        if self._spec.mesh is not None:
            described = describe_weights(self._spec.model)
            weights = jax.tree.map(partition, {name: described[name] for name in arguments[0]})
            function = jax.shard_map(
                function,
                mesh=self._spec.mesh,
                in_specs=(weights, *inputs),
                out_specs=outputs,
                check_vma=False,  # sums over devices make results equal, which it cannot see
            )
        lowered: jax.stages.Lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        return lowered


def join(arrays: StepArrays | PackedArrays) -> Int32Array:
    """The arrays of a step as one: a single transfer to the device."""
    return np.concatenate([array.ravel() for array in arrays])


def split(joined: jax.Array, like: Any) -> Any:
    """The inverse of `join`, inside a program, for arrays of the shapes of `like`."""
    parts = jnp.split(joined, np.cumsum([array.size for array in like])[:-1])
    return like._make(part.reshape(array.shape) for part, array in zip(parts, like, strict=True))

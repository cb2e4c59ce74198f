"""The compiled programs and the device memory they run on. The only caller of `jax.jit`.

Some are compiled once before the first request: steps of one size or of a few, the reading of label
logits, and the log-sum-exp over the vocabulary. One more is compiled for each padded length of
packed sequences, when it is first met. All are called as compiled objects, which cannot compile
again.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from itemwise.engine.compile_cache import compile_whole, compiling_into
from itemwise.engine.packed_sequence import pack
from itemwise.engine.step_packer import StepBatch, StepPacker
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import (
    DecoderOptions,
    Pool,
    Weights,
    describe_weights,
    forward,
    forward_packed,
    label_logits,
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
from itemwise.types import DTypes, Float32Array, Int32Array, Kernel, Mask, WeightSpec

WHOLE = PartitionSpec()  # the same on each device
# By JAX's kind of device. On NVIDIA GPUs the kernels of matrix products are chosen by shape alone,
# by cuBLAS: choosing by timing could choose others, with other bits, at another start. Weights are
# not laid side by side to multiply them at once: that would copy them in every step.
COMPILER_OPTIONS: dict[str, dict[str, bool | int | str]] = {
    "gpu": {
        "xla_gpu_autotune_level": 0,
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_exclude_nondeterministic_ops": True,
        "xla_gpu_dot_merger_threshold_mb": 0,
    }
}
LABEL_COLUMNS = 8  # labels that one call reads; longer lists take several calls


class CompileCounter:
    """Counts programs that XLA compiles in this process, whoever asks for them."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1


@functools.cache
def compile_counter() -> CompileCounter:
    """The process's counter; it counts from the first call on."""
    return CompileCounter()


def compiled_for(
    lowered: jax.stages.Lowered, platform: str, cache: Path | None = None
) -> jax.stages.Compiled:
    """Compiles a program with the options of JAX's kind of device; `cache` is the one in use."""
    return compile_whole(lowered, COMPILER_OPTIONS.get(platform), cache)


class ProgramSet:
    """The programs of a model as XLA sees them: what to compile, for which devices.

    Weights may be arrays, or shapes with shardings: to compile, no weight need exist.

    Args:
        model: the model.
        shape: sizes of the step; of the largest, where there are several.
        num_pages: P, pages of the pool.
        dtypes: types of weights and activations.
        mesh: the devices that share the model, or None for a single one.
        device: the single one; None for the default device.
        kernel: the kind of attention, None for XLA's.
        dot_sums: whether steps of different size shall have the same bits on CPU.
    """

    def __init__(
        self,
        model: ModelConfig,
        shape: StepShape,
        num_pages: int,
        dtypes: DTypes,
        mesh: Mesh | None = None,
        kernel: Kernel | None = None,
        device: jax.Device | None = None,
        dot_sums: bool = False,
    ) -> None:
        self._model = model
        self._device = device
        self._shape = shape
        self._num_pages = num_pages
        self._dtypes = dtypes
        self._mesh = mesh
        self._options = DecoderOptions(
            model, dtypes.activations, None if mesh is None else AXIS, kernel, dot_sums
        )

    def pages(self) -> Any:
        """The pool as shapes, in storage form."""
        model, heads = self._model, stored_kv_heads(self._model, mesh_size(self._mesh))
        size = (self._num_pages, heads, self._shape.page_tokens, model.head_dim)
        stored = jax.eval_shape(to_storage, jax.ShapeDtypeStruct(size, self._dtypes.activations))
        array = jax.ShapeDtypeStruct(size, stored.dtype, sharding=self._sharding(PAGES))
        return (Pages._make((array, array)),) * model.num_layers

    def weights(self) -> Weights:
        """The weights as shapes, in the order and under the names of `describe_weights`."""
        tp = mesh_size(self._mesh)

        def one(spec: WeightSpec) -> jax.ShapeDtypeStruct:
            size = stored_shape(spec, self._model, tp)
            return jax.ShapeDtypeStruct(
                size, self._dtypes.weights, sharding=self._sharding(partition(spec))
            )

        shapes: Weights = jax.tree.map(one, describe_weights(self._model))
        return shapes

    def _sharding(self, spec: PartitionSpec) -> Sharding | None:
        if self._mesh is not None:
            return NamedSharding(self._mesh, spec)
        return None if self._device is None else SingleDeviceSharding(self._device)

    def _whole(self, *arguments: Any) -> Any:
        """Arguments that lie whole on each device, as shapes."""
        sharding = self._sharding(WHOLE)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments
        )

    def lower_step(self, weights: Weights, shape: StepShape | None = None) -> jax.stages.Lowered:
        """The exact step, of its own shape or a smaller one.

        Takes pages, which it may overwrite, and a `StepBatch`. Gives as many hidden states as the
        largest step.
        """
        shape = shape or self._shape
        padding = self._shape.max_scored_rows - shape.max_scored_rows
        like = StepPacker(shape).take().arrays

        def step(weights: Weights, pages: Pool, joined: jax.Array) -> tuple[Pool, jax.Array]:
            pages, hidden = forward(weights, pages, _split(joined, like), shape, self._options)
            return pages, jnp.pad(hidden, ((0, padding), (0, 0))) if padding else hidden

        arguments = (weights, self.pages(), *self._whole(_join(like)))
        return self._lower(step, (PAGES, WHOLE), (PAGES, WHOLE), arguments, donate=(1,))

    def lower_packed(self, weights: Weights, shape: PackedShape, mask: Mask) -> jax.stages.Lowered:
        """A packed sequence; gives the scored hidden states in parts as large as a step's."""
        rows = self._shape.max_scored_rows
        like = pack((0,), [], shape)

        def packed(weights: Weights, joined: jax.Array) -> tuple[jax.Array, ...]:
            hidden = forward_packed(weights, _split(joined, like), shape, mask, self._options)
            return tuple(hidden[i : i + rows] for i in range(0, shape.max_rows, rows))

        arguments = (weights, *self._whole(_join(like)))
        return self._lower(packed, (WHOLE,), WHOLE, arguments)

    def lower_labels(self, weights: Weights) -> jax.stages.Lowered:
        """Label logits of the step's scored rows."""
        labels = jax.ShapeDtypeStruct((self._shape.max_scored_rows, LABEL_COLUMNS), jnp.int32)
        read = functools.partial(label_logits, axis=self._options.axis)
        arguments = (weights, *self._whole(self._hidden(), labels))
        return self._lower(read, (WHOLE, WHOLE), WHOLE, arguments)

    def lower_vocab(self, weights: Weights) -> jax.stages.Lowered:
        """Log-sum-exp over the vocabulary of the step's scored rows."""
        scales = jax.ShapeDtypeStruct((self._shape.max_scored_rows,), jnp.float32)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        read = functools.partial(vocab_logsumexp, axis=self._options.axis)
        arguments = (weights, *self._whole(self._hidden(), scales, count))
        return self._lower(read, (WHOLE,) * 3, WHOLE, arguments)

    def _hidden(self) -> jax.ShapeDtypeStruct:
        size = (self._shape.max_scored_rows, self._model.hidden_size)
        return jax.ShapeDtypeStruct(size, self._dtypes.activations)

    def _lower(
        self,
        function: Callable[..., Any],
        inputs: tuple[PartitionSpec, ...],
        outputs: PartitionSpec | tuple[PartitionSpec, ...],
        arguments: tuple[Any, ...],
        donate: tuple[int, ...] = (),
    ) -> jax.stages.Lowered:
        """Lowers a function of weights and `inputs`; on a mesh each device runs it on its part."""
        if self._mesh is not None:
            weights = jax.tree.map(partition, describe_weights(self._model))
            function = jax.shard_map(
                function,
                mesh=self._mesh,
                in_specs=(weights, *inputs),
                out_specs=outputs,
                check_vma=False,  # sums over devices make results equal, which it cannot see
            )
        lowered: jax.stages.Lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        return lowered


class Programs:
    """The programs compiled, with weights and page pool.

    Smaller steps than the largest are compiled only if `use_small_steps`, called with the
    fingerprint, says so.

    Attributes:
        shapes: sizes of the steps that were compiled, ascending.
        num_pages: P, pages of the pool, the null page included.
        fingerprint: a digest of the steps of all sizes as XLA is given them.
        packed_compile_s: seconds that each packed program took to compile, by length and mask.
    """

    def __init__(
        self,
        model: ModelConfig,
        shapes: Sequence[StepShape],
        weights: Weights,
        num_pages: int,
        dtypes: DTypes,
        mesh: Mesh | None = None,
        kernel: Kernel | None = None,
        dot_sums: bool = False,
        use_small_steps: Callable[[str], bool] = lambda _: True,
        cache: Path | None = None,
    ) -> None:
        self.num_pages = num_pages
        self.fingerprint = ""
        self.packed_compile_s: dict[tuple[int, Mask], float] = {}
        self._weights = weights
        self._platform = jax.devices()[0].platform
        self._programs = ProgramSet(
            model, shapes[-1], num_pages, dtypes, mesh, kernel, dot_sums=dot_sums
        )
        self._cache = cache
        with compiling_into(cache):
            self._pages = self._new_pages()
        with compiling_into(cache, strict=True):
            self._steps, self._labels, self._vocab = self._compile(shapes, use_small_steps)
        self.shapes = tuple(self._steps)
        self._packed: dict[tuple[int, Mask], jax.stages.Compiled] = {}

    def _compile(
        self, shapes: Sequence[StepShape], use_small_steps: Callable[[str], bool]
    ) -> tuple[dict[StepShape, jax.stages.Compiled], jax.stages.Compiled, jax.stages.Compiled]:
        """Steps, reading of labels and log-sum-exp, compiled side by side."""
        programs, weights, digest = self._programs, self._weights, hashlib.sha256()
        with ThreadPoolExecutor() as pool:

            def compiling(lowered: jax.stages.Lowered) -> Future[jax.stages.Compiled]:
                return pool.submit(compiled_for, lowered, self._platform, self._cache)

            def lower(shape: StepShape) -> jax.stages.Lowered:
                lowered = programs.lower_step(weights, shape)
                digest.update(lowered.as_text().encode())
                return lowered

            *small, largest = shapes
            steps = {largest: compiling(lower(largest))}  # the one that takes longest first
            lowered = {shape: lower(shape) for shape in reversed(small)}
            self.fingerprint = digest.hexdigest()
            if use_small_steps(self.fingerprint):
                steps |= {shape: compiling(one) for shape, one in lowered.items()}
            labels = compiling(programs.lower_labels(weights))
            vocab = compiling(programs.lower_vocab(weights))
            compiled = {shape: steps[shape].result() for shape in shapes if shape in steps}
            return compiled, labels.result(), vocab.result()

    @property
    def shape(self) -> StepShape:
        """Sizes of the largest step."""
        return self.shapes[-1]

    def drop_small_steps(self) -> None:
        """Keeps the largest step alone."""
        self.shapes = self.shapes[-1:]
        self._steps = {self.shape: self._steps[self.shape]}

    def _new_pages(self) -> Pool:
        pages: Pool = jax.tree.map(
            lambda page: jnp.zeros(page.shape, page.dtype, device=page.sharding),
            self._programs.pages(),
        )
        return pages

    def reset_pages(self) -> None:
        """Empties the pool; also after a failed step, which may have given its memory away."""
        for array in jax.tree.leaves(self._pages):
            array.delete()
        self._pages = self._new_pages()

    def packed(self, arrays: PackedArrays, shape: PackedShape, mask: Mask) -> tuple[jax.Array, ...]:
        """Runs a packed sequence; returns the scored hidden states in parts [I, D] of the step's.

        The first sequence of a length compiles its program, which takes seconds to minutes; each
        further one finds it.
        """
        name = (shape.tokens, mask)
        if name not in self._packed:
            start = time.perf_counter()
            lowered = self._programs.lower_packed(self._weights, shape, mask)
            with compiling_into(self._cache, strict=True):
                self._packed[name] = compiled_for(lowered, self._platform, self._cache)
            self.packed_compile_s[name] = time.perf_counter() - start
        hidden: tuple[jax.Array, ...] = self._packed[name](self._weights, _join(arrays))
        return hidden

    def step(self, batch: StepBatch) -> jax.Array:
        """Runs a step; returns the scored hidden states [I, D], which may still be computing."""
        hidden: jax.Array
        step = self._steps[batch.shape]
        self._pages, hidden = step(self._weights, self._pages, _join(batch.arrays))
        return hidden

    def label_logits(self, hidden: jax.Array, labels: list[tuple[int, ...]]) -> list[jax.Array]:
        """Logits of each scored row's labels, in arrays [I, LABEL_COLUMNS] side by side."""
        width = max(map(len, labels))
        columns = -(-width // LABEL_COLUMNS) * LABEL_COLUMNS
        table: Int32Array = np.zeros((self.shape.max_scored_rows, columns), np.int32)
        for row, ids in enumerate(labels):
            table[row, : len(ids)] = ids
        return [
            self._labels(
                self._weights, hidden, np.ascontiguousarray(table[:, i : i + LABEL_COLUMNS])
            )
            for i in range(0, columns, LABEL_COLUMNS)
        ]

    def vocab_logsumexp(self, hidden: jax.Array, inverse_temperatures: list[float]) -> jax.Array:
        """Log-sum-exp over the vocabulary of each scored row's scaled logits, float32 [I]."""
        scales: Float32Array = np.zeros(self.shape.max_scored_rows, np.float32)
        scales[: len(inverse_temperatures)] = inverse_temperatures
        count = np.asarray(len(inverse_temperatures), np.int32)
        result: jax.Array = self._vocab(self._weights, hidden, scales, count)
        return result


def _join(arrays: StepArrays | PackedArrays) -> Int32Array:
    """The arrays of a step as one: a single transfer to the device."""
    return np.concatenate([array.ravel() for array in arrays])


def _split(joined: jax.Array, like: Any) -> Any:
    """The inverse of `_join`, inside a program, for arrays of the shapes of `like`."""
    parts = jnp.split(joined, np.cumsum([array.size for array in like])[:-1])
    return like._make(part.reshape(array.shape) for part, array in zip(parts, like, strict=True))

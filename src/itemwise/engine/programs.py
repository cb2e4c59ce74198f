"""The compiled programs and the device memory they run on.

Some are compiled once before the first request: steps of one size or of a few, the reading of label
logits, and the log-sum-exp over the vocabulary. One more is compiled for each padded length of
packed sequences, at its first use. All are called as compiled objects, which cannot compile again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from itemwise.engine.compile_cache import compile_whole, compiling_into
from itemwise.engine.label_reads import label_units
from itemwise.engine.lowering import LABEL_COLUMNS, Lowering, ProgramSpec, join
from itemwise.engine.memory import release_zeros
from itemwise.engine.step_packer import StepBatch
from itemwise.models.decoder import LSE_ROWS, Pool, Weights, output_weights
from itemwise.ops.packed.base import PackedArrays, PackedShape
from itemwise.ops.step.arrays import StepShape
from itemwise.types import Float32Array, Int32Array, Mask


class Programs:
    """The programs compiled, with weights and page pool.

    Args:
        spec: what they are made for.
        shapes: sizes of the steps, ascending; the last is that of `spec`.
        weights: on their devices.
        use_small_step: called with the fingerprint and the tokens of a step smaller than the
            largest; whether to compile it.
        cache: folder that keeps compiled programs, or None.
        pages_at_start: whether the pool takes all its memory at once; else as pages are written.

    Attributes:
        shapes: sizes of the steps that were compiled, ascending.
        num_pages: P, pages of the pool, the null page included.
        fingerprint: a digest of the steps of all sizes as XLA is given them.
        packed_compile_s: seconds that each packed program took to compile, by length and mask.
    """

    def __init__(
        self,
        spec: ProgramSpec,
        shapes: Sequence[StepShape],
        weights: Weights,
        use_small_step: Callable[[str, int], bool] = lambda *_: True,
        cache: Path | None = None,
        pages_at_start: bool = True,
    ) -> None:
        self.num_pages = spec.num_pages
        self.fingerprint = ""
        self.packed_compile_s: dict[tuple[int, Mask], float] = {}
        self._weights, self._output = weights, output_weights(weights)
        self._options = spec.platform.compiler_options
        self._lowering = Lowering(spec)
        self._cache = cache
        self._pages_at_start = pages_at_start
        with compiling_into(cache):
            self._pages = self._new_pages()
        with compiling_into(cache, strict=True):
            self._steps, self._labels, self._vocab = self._compile(shapes, use_small_step)
        self.shapes = tuple(self._steps)
        self._packed: dict[tuple[int, Mask], jax.stages.Compiled] = {}

    def _compile(
        self, shapes: Sequence[StepShape], use_small_step: Callable[[str, int], bool]
    ) -> tuple[dict[StepShape, jax.stages.Compiled], jax.stages.Compiled, jax.stages.Compiled]:
        """Steps, reading of labels and log-sum-exp, compiled side by side."""
        lowering, weights, digest = self._lowering, self._weights, hashlib.sha256()
        with ThreadPoolExecutor() as pool:

            def compiling(lowered: jax.stages.Lowered) -> Future[jax.stages.Compiled]:
                return pool.submit(compile_whole, lowered, self._options, self._cache)

            def lower(shape: StepShape) -> jax.stages.Lowered:
                lowered = lowering.lower_step(weights, shape)
                digest.update(lowered.as_text().encode())
                return lowered

            *small, largest = shapes
            steps = {largest: compiling(lower(largest))}  # the one that takes longest first
            lowered = {shape: lower(shape) for shape in reversed(small)}
            self.fingerprint = digest.hexdigest()
            for shape, one in lowered.items():
                if use_small_step(self.fingerprint, shape.tokens):
                    steps[shape] = compiling(one)
            labels = compiling(lowering.lower_labels(weights))
            vocab = compiling(lowering.lower_vocab(weights))
            compiled = {shape: steps[shape].result() for shape in shapes if shape in steps}
            return compiled, labels.result(), vocab.result()

    @property
    def shape(self) -> StepShape:
        """Sizes of the largest step."""
        return self.shapes[-1]

    def drop_steps(self, tokens: Collection[int]) -> None:
        """Leaves out steps of some sizes; never all."""
        self._steps = {s: step for s, step in self._steps.items() if s.tokens not in tokens}
        self.shapes = tuple(self._steps)

    def _new_pages(self) -> Pool:
        def zeros(page: jax.ShapeDtypeStruct) -> jax.Array:
            array = jnp.zeros(page.shape, page.dtype, device=page.sharding).block_until_ready()
            if not self._pages_at_start:
                release_zeros(array)
            return array

        pages: Pool = jax.tree.map(zeros, self._lowering.pages())
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
            lowered = self._lowering.lower_packed(self._weights, shape, mask)
            with compiling_into(self._cache, strict=True):
                self._packed[name] = compile_whole(lowered, self._options, self._cache)
            self.packed_compile_s[name] = time.perf_counter() - start
        hidden: tuple[jax.Array, ...] = self._packed[name](self._weights, join(arrays))
        return hidden

    def step(self, batch: StepBatch) -> jax.Array:
        """Runs a step; returns the scored hidden states [I, D], which may still be computing."""
        hidden: jax.Array
        step = self._steps[batch.shape]
        self._pages, hidden = step(self._weights, self._pages, join(batch.arrays))
        return hidden

    def label_logits(self, hidden: jax.Array, labels: list[tuple[int, ...]]) -> list[jax.Array]:
        """Logits of the rows' labels, unit after unit (`label_reads.py`), [I, columns] each."""
        places = self.shape.max_scored_rows
        rows, table = label_units(labels, LABEL_COLUMNS)
        one_unit_each = len(rows) == len(labels)
        host = None if one_unit_each else np.asarray(hidden)  # waits for the step
        parts = []
        for start in range(0, len(rows), places):
            here = slice(start, start + places)
            states = hidden
            if host is not None:
                spread = np.zeros_like(host)
                spread[: len(rows[here])] = host[rows[here]]
                states = jax.device_put(spread, hidden.sharding)
            ids: Int32Array = np.zeros((places, LABEL_COLUMNS), np.int32)
            ids[: len(rows[here])] = table[here]
            parts.append(self._labels(self._output, states, ids))
        return parts

    def vocab_logsumexp(
        self, hidden: jax.Array, inverse_temperatures: list[float]
    ) -> list[jax.Array]:
        """Log-sum-exp over the vocabulary of each scored row's scaled logits, LSE_ROWS in a part.

        One program, sent once for each part: a loop over them on the device would wait for the
        host to learn their number.
        """
        parts = []
        for start in range(0, len(inverse_temperatures), LSE_ROWS):
            scales: Float32Array = np.zeros(LSE_ROWS, np.float32)
            here = inverse_temperatures[start : start + LSE_ROWS]
            scales[: len(here)] = here
            first = np.asarray(start, np.int32)
            parts.append(self._vocab(self._output, hidden, scales, first))
        return parts

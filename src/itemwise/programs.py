"""The compiled programs and the device memory they run on. The only caller of `jax.jit`.

Three programs, each compiled once for one shape before the first request: the step, the reading of
label logits, and the log-sum-exp over the vocabulary. They are called as compiled objects, which
cannot compile again.
"""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from itemwise.config import ModelConfig
from itemwise.models.decoder import (
    Pages,
    PageWrites,
    Weights,
    forward,
    label_logits,
    vocab_logsumexp,
)
from itemwise.ops.attention import StepLayout, to_storage
from itemwise.packing import StepPacker
from itemwise.types import Float32Array, Int32Array, StepBatch, StepShape

logger = logging.getLogger("itemwise.engine")
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


def use_compilation_cache(folder: Path | None) -> None:
    """Keeps compiled programs in a folder across processes, or nowhere."""
    if folder is None:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_Made = TypeVar("_Made")
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([\w.-]+)'")


def with_whole_cache(make: Callable[[], _Made]) -> _Made:
    """Calls `make`, which compiles; makes anew what the compilation cache could not give.

    JAX neither writes entries at once nor writes over them, so one that a killed process left half
    written would cost its compile at every start.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    damaged = set()
    for warning in caught:
        found = _DAMAGED.search(str(warning.message))
        if found:
            damaged.add(found[1])
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    folder: str | None = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not damaged or folder is None:
        return made
    for path in Path(folder).iterdir():
        if any(path.name.startswith(f"{name}-") for name in damaged):
            path.unlink(missing_ok=True)
    logger.warning("damaged entries of the compilation cache made anew: %s", sorted(damaged))
    return make()


class Programs:
    """The step on one device: weights, page pool and the compiled programs.

    Attributes:
        shape: sizes of the step.
        num_pages: P, pages of the pool, the null page included.
    """

    def __init__(
        self,
        model: ModelConfig,
        shape: StepShape,
        weights: Weights,
        num_pages: int,
        dtype: jnp.dtype,
    ) -> None:
        self.shape = shape
        self.num_pages = num_pages
        self._model = model
        self._weights = weights
        self._dtype = dtype
        self._pages = self._new_pages()
        self._step, self._labels, self._vocab = with_whole_cache(self._compile)

    def _new_pages(self) -> Pages:
        model = self._model
        size = (self.num_pages, model.num_kv_heads, self.shape.lane_tokens, model.head_dim)
        stored = jax.eval_shape(to_storage, jax.ShapeDtypeStruct(size, self._dtype))
        layers = range(model.num_layers)
        return Pages(
            tuple(jnp.zeros(size, stored.dtype) for _ in layers),
            tuple(jnp.zeros(size, stored.dtype) for _ in layers),
        )

    def reset_pages(self) -> None:
        """Empties the pool; also after a failed step, which may have given its memory away."""
        for array in jax.tree.leaves(self._pages):
            array.delete()
        self._pages = self._new_pages()

    def _compile(self) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
        shape, model = self.shape, self._model
        step = functools.partial(forward, config=model, shape=shape)
        empty_step = _step_arguments(StepPacker(shape).take())
        hidden = jax.ShapeDtypeStruct((shape.max_rows, model.hidden_size), self._dtype)
        scales = jax.ShapeDtypeStruct((shape.max_rows,), jnp.float32)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        labels = jax.ShapeDtypeStruct((shape.max_rows, LABEL_COLUMNS), jnp.int32)
        weights = self._weights
        return (
            jax.jit(step, donate_argnums=1).lower(weights, self._pages, *empty_step).compile(),
            jax.jit(label_logits).lower(weights, hidden, labels).compile(),
            jax.jit(vocab_logsumexp).lower(weights, hidden, scales, count).compile(),
        )

    def step(self, batch: StepBatch) -> jax.Array:
        """Runs a step; returns the scored hidden states [I, D], which may still be computing."""
        hidden: jax.Array
        self._pages, hidden = self._step(self._weights, self._pages, *_step_arguments(batch))
        return hidden

    def label_logits(self, hidden: jax.Array, labels: list[tuple[int, ...]]) -> list[jax.Array]:
        """Logits of each scored row's labels, in arrays [I, LABEL_COLUMNS] side by side."""
        width = max(map(len, labels))
        columns = -(-width // LABEL_COLUMNS) * LABEL_COLUMNS
        table: Int32Array = np.zeros((self.shape.max_rows, columns), np.int32)
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
        scales: Float32Array = np.zeros(self.shape.max_rows, np.float32)
        scales[: len(inverse_temperatures)] = inverse_temperatures
        count = np.asarray(len(inverse_temperatures), np.int32)
        result: jax.Array = self._vocab(self._weights, hidden, scales, count)
        return result


def _step_arguments(batch: StepBatch) -> tuple[Any, ...]:
    """The batch in the order in which `forward` takes it."""
    layout = StepLayout(*(getattr(batch, name) for name in StepLayout._fields))
    writes: tuple[Any, ...] = (batch.write_lanes, batch.write_pages, batch.num_writes)
    return batch.tokens, batch.positions, PageWrites(*writes), batch.score_tokens, layout

"""The parts of a decoder layer. Sums run in float32, results return to the activations' type."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Float32, Int32

from itemwise.models.config import ModelConfig
from itemwise.ops.linear.api import linear
from itemwise.ops.softmax import dot_sum

FLOAT32 = jnp.dtype(jnp.float32)


class Numerics(NamedTuple):
    """How a model's norms and products run.

    Attributes:
        eps: added to the mean square in norms.
        dtype: type of activations: of norms' results, and of what enters a matrix product.
        dot_sums: whether norms sum by `dot_sum`.
        rounded: whether products that are not summed up further are rounded to `dtype` at once.
            They are summed in float32 all the same. On CPU that is several times slower; on GPU
            it halves what is written and read.
    """

    eps: float
    dtype: jnp.dtype
    dot_sums: bool = False
    rounded: bool = False

    @property
    def result(self) -> jnp.dtype:
        """Type of products that are not summed up further."""
        return self.dtype if self.rounded else FLOAT32


def rms_norm(x: Float[Array, "*rows D"], gain: Float[Array, " D"], numerics: Numerics) -> Array:
    """Root-mean-square norm (Zhang and Sennrich, 2019).

    Rounded to its type before the gain is applied, as in transformers.
    """
    wide = x.astype(jnp.float32)
    squares = wide * wide
    if numerics.dot_sums:
        total = dot_sum(squares.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], 1)
    else:
        total = squares.sum(-1, keepdims=True)
    normed: Array = (wide * lax.rsqrt(total / x.shape[-1] + numerics.eps)).astype(numerics.dtype)
    return normed * jnp.expand_dims(gain.astype(numerics.dtype), range(x.ndim - 1))


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Rotary frequencies, float32 [H/2], stretched as the checkpoint's `rope_type` says.

    Rounded on the way as transformers does: a frequency that is one unit in the last place off
    turns the token at position 2000 by 1e-4.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    freq = np.float32(1) / (config.rope_theta ** exponent.astype(np.float64)).astype(np.float32)
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        freq = freq / scaling.factor
    elif scaling.kind == "llama3":
        # Long waves are stretched by `factor`, short ones stay, those between are blended.
        wavelength = 2 * np.pi / freq
        ratio = scaling.original_max_position_embeddings / wavelength
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        smooth = np.clip((ratio - low) / (high - low), 0.0, 1.0)
        freq = (1 - smooth) * freq / scaling.factor + smooth * freq
    return np.asarray(freq, np.float32)


def rope_table(positions: Int32[Array, " T"], config: ModelConfig) -> tuple[Array, Array]:
    """Cosines and sines of every position, each float32 [T, 1, H/2]."""
    frequencies = rope_frequencies(config)[None, None]
    angles = positions[:, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rope(x: Float[Array, "T heads H"], table: tuple[Array, Array]) -> Array:
    """Rotary position embedding (Su et al., 2021), halves rotated as in Hugging Face models."""
    cos, sin = table
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def mlp(
    x: Float[Array, "T D"],
    layer: dict[str, Any],
    num_rows: Int32[Array, ""],
    axis: str | None,
    numerics: Numerics,
) -> Float32[Array, "T D"]:
    """Gated MLP (Shazeer, 2020, "GLU Variants"): `down(silu(gate(x)) * up(x))`."""
    gate, up = (linear(x, layer[name], num_rows, numerics.result) for name in ("gate", "up"))
    inner = (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(x.dtype)
    return linear(inner, layer["down"], num_rows, axis=axis)

"""The parts of a decoder layer. Sums run in float32, results return to the activations' type."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Float32, Int32, Shaped

from itemwise.models.config import ModelConfig
from itemwise.ops.linear.cpu import Panels, linear_cpu
from itemwise.ops.softmax import dot_sum, product

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


def linear(
    x: Float[Array, "T inner"],
    w: dict[str, Array],
    name: str,
    num_rows: Int32[Array, ""],
    result: jnp.dtype = FLOAT32,
) -> Float[Array, "T outer"]:
    """`x @ weight.T`, scaled and with its bias where it has one, summed in float32.

    The weight lies as checkpoints store it, or in panels for C++, which computes `num_rows` rows.
    A weight without scale may have another type of result than float32.
    """
    y = unbiased(x, w, name, num_rows, result)
    bias = w.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(y.dtype)


def unbiased(
    x: Float[Array, "T inner"],
    w: dict[str, Any],
    name: str,
    num_rows: Int32[Array, ""],
    result: jnp.dtype = FLOAT32,
) -> Float[Array, "T outer"]:
    """`linear` without the bias."""
    weight, scale = w[name], w.get(f"{name}_scale")
    if isinstance(weight, Panels):
        y = linear_cpu(x, weight, num_rows)
    else:
        y = matmul(x, weight, result if scale is None else FLOAT32)
    return y if scale is None else y * scale


def matmul(
    x: Float[Array, "T inner"], weight: Shaped[Array, "outer inner"], result: jnp.dtype = FLOAT32
) -> Float[Array, "T outer"]:
    """`x @ weight.T` by XLA, summed in float32."""
    if weight.dtype != x.dtype and x.dtype == jnp.float32:
        weight = _widened(weight, x)
    return product("ti,oi->to", x, weight, result)


def _widened(
    weight: Shaped[Array, "outer inner"], x: Float32[Array, "T inner"]
) -> Float32[Array, "outer inner"]:
    """A bfloat16 or int8 matrix in float32, made when `x` is there and not before.

    XLA would else widen the matrices of all layers first, and hold them all.
    """
    # Bits that no arithmetic gives, which XLA cannot know.
    never = (lax.bitcast_convert_type(x[0, 0], jnp.int32) == -1).astype(jnp.uint32)
    if weight.dtype == jnp.int8:
        return (weight | never.astype(jnp.int8)).astype(jnp.float32)
    bits = lax.bitcast_convert_type(weight, jnp.uint16).astype(jnp.uint32) << 16
    wide: Array = lax.bitcast_convert_type(bits | never, jnp.float32)
    return wide


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
    return normed * gain.astype(numerics.dtype)


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
    angles = positions[:, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rope(x: Float[Array, "T heads H"], table: tuple[Array, Array]) -> Array:
    """Rotary position embedding (Su et al., 2021), halves rotated as in Hugging Face models."""
    cos, sin = table
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def summed_linear(
    x: Float[Array, "T inner"],
    w: dict[str, Array],
    name: str,
    num_rows: Int32[Array, ""],
    axis: str | None,
) -> Float32[Array, "T outer"]:
    """`linear`, whose inner axis is sharded over the mesh axis `axis`, or whole if that is None."""
    if axis is None:
        return linear(x, w, name, num_rows)
    y: Array = lax.psum(unbiased(x, w, name, num_rows), axis)
    bias = w.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(jnp.float32)


def mlp(
    x: Float[Array, "T D"],
    w: dict[str, Array],
    num_rows: Int32[Array, ""],
    axis: str | None,
    numerics: Numerics,
) -> Float32[Array, "T D"]:
    """Gated MLP (Shazeer, 2020, "GLU Variants"): `down(silu(gate(x)) * up(x))`."""
    gate, up = (linear(x, w, name, num_rows, numerics.result) for name in ("gate", "up"))
    inner = (jax.nn.silu(gate.astype(jnp.float32)) * up).astype(x.dtype)
    return summed_linear(inner, w, "down", num_rows, axis)

"""One decoder for Qwen3, Qwen2/2.5 and Llama 3; the config tells them apart.

Each weight is described once, in `describe_weights`: its name in the checkpoint, its shape and what
its axes count. Reading, checking and drawing random weights all go by that description.

The forward pass works on a whole step of fixed shape. Layers are unrolled, not scanned: a scan
slices stacked weights, which XLA copies in every layer of every step. They are traced once all the
same, as a function that is called for each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32, Int32

from itemwise.models.config import ModelConfig
from itemwise.models.layers import Numerics, mlp, rms_norm, rope, rope_table
from itemwise.ops.api import packed_attention, step_attention
from itemwise.ops.linear.api import linear
from itemwise.ops.linear.base import Linear
from itemwise.ops.linear.xla import matmul
from itemwise.ops.packed.base import PackedArrays, PackedShape
from itemwise.ops.softmax import LOWEST, product
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, from_storage, to_storage
from itemwise.types import Kernel, Mask, WeightSpec

Weights = dict[str, Any]
Pool = tuple[Pages, ...]  # the pages of each layer, each updated in place
PagesT = TypeVar("PagesT")
# Output rows that `vocab_logsumexp` takes at a time: bounds its memory whatever the request.
LSE_ROWS, LSE_VOCAB = 32, 8192


@runtime_checkable
class Inputs(Protocol):
    """The arrays that both forward passes share; see `StepArrays`."""

    @property
    def tokens(self) -> Int32[Array, " T"]:
        """Token ids."""
        ...

    @property
    def positions(self) -> Int32[Array, " T"]:
        """Positions in their sequences."""
        ...

    @property
    def score_tokens(self) -> Int32[Array, " I"]:
        """Token places that are scored."""
        ...

    @property
    def num_places(self) -> Int32[Array, ""]:
        """Token places in use; others need not be computed."""
        ...

    @property
    def num_scored(self) -> Int32[Array, ""]:
        """Scored rows in use; others need not be computed."""
        ...


@dataclass(frozen=True)
class DecoderOptions:
    """What is fixed of a model's programs, whatever the size of a step.

    Attributes:
        config: the model.
        dtype: type of activations.
        axis: the mesh axis over which heads, MLP and vocabulary are sharded, or None: each device
            then has its own heads, and sums over devices follow the two projections.
        kernel: the kind of attention, None for XLA's.
        dot_sums: whether norms sum by `dot_sum`, so that steps of all sizes share bits on CPU.
        round_products: see `Numerics.rounded`.
    """

    config: ModelConfig
    dtype: jnp.dtype
    axis: str | None = None
    kernel: Kernel | None = None
    dot_sums: bool = False
    round_products: bool = False

    @property
    def numerics(self) -> Numerics:
        """How norms and products run."""
        return Numerics(self.config.norm_eps, self.dtype, self.dot_sums, self.round_products)


def describe_weights(config: ModelConfig) -> Weights:
    """The tree of `WeightSpec` that `forward` expects arrays for.

    Layers are a list of dicts, their matrices with biases in a `Linear`. Biases, q/k norms and the
    output matrix are there only where the config has them.
    """
    # Scaled so that a random model's logits spread by about 3: sharp enough for errors to show.
    embed = WeightSpec(
        "model.embed_tokens.weight",
        (config.vocab_size, config.hidden_size),
        ("vocab", "model"),
        scale=3 * config.hidden_size**-0.5,
    )
    weights: Weights = {
        "embed": embed,
        "layers": [_describe_layer(config, i) for i in range(config.num_layers)],
        "norm": WeightSpec("model.norm.weight", (config.hidden_size,), ("model",), "gain", 1.0),
    }
    if config.num_labels:
        # Scaled so that logits spread by about 1, as a reranker's do.
        shape = (config.num_labels, config.hidden_size)
        axes = ("label", "model")
        scale = config.hidden_size**-0.5
        weights["head"] = WeightSpec("score.weight", shape, axes, scale=scale)
    elif not config.tied:
        weights["head"] = replace(embed, name="lm_head.weight")
    return weights


def _describe_layer(config: ModelConfig, index: int) -> dict[str, Any]:
    model, inner = config.hidden_size, config.mlp_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, Any] = {}

    def matrix(key: str, name: str, out: int, into: int, axes: tuple[str, str], bias: bool) -> None:
        # Scaled so that a random model's activations neither vanish nor explode with its width.
        path = f"model.layers.{index}.{name}"
        weight = WeightSpec(f"{path}.weight", (out, into), axes, "normal", into**-0.5)
        added = WeightSpec(f"{path}.bias", (out,), axes[:1], "bias", 0.5) if bias else None
        layer[key] = Linear(weight, added)

    def gain(key: str, name: str, size: int, axis: str, scale: float = 1.0) -> None:
        path = f"model.layers.{index}.{name}.weight"
        layer[key] = WeightSpec(path, (size,), (axis,), "gain", scale)

    gain("attn_norm", "input_layernorm", model, "model")
    matrix("q", "self_attn.q_proj", q, model, ("heads", "model"), config.qkv_bias)
    matrix("k", "self_attn.k_proj", kv, model, ("kv_heads", "model"), config.qkv_bias)
    matrix("v", "self_attn.v_proj", kv, model, ("kv_heads", "model"), config.qkv_bias)
    matrix("out", "self_attn.o_proj", model, q, ("model", "heads"), config.out_bias)
    if config.qk_norm:
        # Gains above one make attention sharp, so that a wrong mask or position shows.
        gain("q_norm", "self_attn.q_norm", config.head_dim, "head", 1.5)
        gain("k_norm", "self_attn.k_norm", config.head_dim, "head", 1.5)
    gain("mlp_norm", "post_attention_layernorm", model, "model")
    matrix("gate", "mlp.gate_proj", inner, model, ("mlp", "model"), config.mlp_bias)
    matrix("up", "mlp.up_proj", inner, model, ("mlp", "model"), config.mlp_bias)
    matrix("down", "mlp.down_proj", model, inner, ("model", "mlp"), config.mlp_bias)
    return layer


def forward(
    weights: Weights,
    pages: Pool,
    arrays: StepArrays,
    shape: StepShape,
    options: DecoderOptions,
) -> tuple[Pool, Float[Array, "I D"]]:
    """Runs one step. Returns the pages with new keys and values, and the scored hidden states.

    Keys and values are written before they are read, so a lane may read a page that another lane
    of the same step writes. Hidden states come after the final norm, in the order of
    `score_tokens`.
    """
    num_pages = pages[0].k.shape[0]
    attend_layer = step_attention(arrays, shape, num_pages, options.kernel, options.dot_sums)
    return _decode(weights, arrays, pages, attend_layer, options)


def forward_packed(
    weights: Weights,
    arrays: PackedArrays,
    shape: PackedShape,
    mask: Mask,
    options: DecoderOptions,
) -> Float[Array, "I D"]:
    """Runs one packed sequence. Returns the hidden states of `score_tokens`, in their order."""
    attend = packed_attention(arrays, shape, mask, options.kernel)

    def attend_layer(
        q: Array, k: Array, v: Array, pages: None, scored_only: bool
    ) -> tuple[Array, None]:
        return attend(q, k, v), pages

    # Bits depend on a sequence's length as it is.
    options = replace(options, dot_sums=False)
    no_pages = (None,) * options.config.num_layers
    _, hidden = _decode(weights, arrays, no_pages, attend_layer, options)
    return hidden


def _decode(
    weights: Weights,
    arrays: Inputs,
    pages: tuple[PagesT, ...],
    attend_layer: Callable[[Array, Array, Array, PagesT, bool], tuple[Array, PagesT]],
    options: DecoderOptions,
) -> tuple[tuple[PagesT, ...], Float[Array, "I D"]]:
    """All layers. In the last, only scored tokens pass the output projection and the MLP.

    `attend_layer` is as `LayerAttention`, with whatever a layer keeps in place of pages.

    What the layers add up stays in float32: rounding every sum to bfloat16 is most of a deep
    model's error.
    """
    config, numerics, axis = options.config, options.numerics, options.axis
    x = _embed(weights["embed"], arrays.tokens, axis).astype(jnp.float32)
    table = rope_table(arrays.positions, config)

    # Traced once and inlined by XLA for each layer: tracing them all takes longer than loading the
    # compiled program.
    @functools.partial(jax.jit, static_argnames="scored_only")
    def run_layer(
        x: Array, layer: dict[str, Any], pages: PagesT, scored_only: bool
    ) -> tuple[Array, PagesT]:
        normed = rms_norm(x, layer["attn_norm"], numerics)
        q, k, v = _project(normed, layer, table, options, arrays.num_places)
        seen, pages = attend_layer(q, k, v, pages, scored_only)
        seen, num_rows = seen.reshape(x.shape[0], -1), arrays.num_places
        if scored_only:
            x, seen = x[arrays.score_tokens], seen[arrays.score_tokens]
            num_rows = arrays.num_scored
        x = x + linear(seen, layer["out"], num_rows, axis=axis)
        normed = rms_norm(x, layer["mlp_norm"], numerics)
        return x + mlp(normed, layer, num_rows, axis, numerics), pages

    written, last = [], config.num_layers - 1
    for i, (layer, before) in enumerate(zip(weights["layers"], pages, strict=True)):
        x, after = run_layer(x, layer, before, scored_only=i == last)
        written.append(after)
    return tuple(written), rms_norm(x, weights["norm"], numerics)


def _embed(
    matrix: Float[Array, "V D"], tokens: Int32[Array, "*places"], axis: str | None
) -> Float[Array, "*places D"]:
    """Rows of a matrix whose first axis may be sharded: one device has each, others add zero."""
    if axis is None:
        return matrix[tokens]
    local = tokens - lax.axis_index(axis) * matrix.shape[0]
    mine = (local >= 0) & (local < matrix.shape[0])
    rows = jnp.where(mine[..., None], matrix[jnp.where(mine, local, 0)], 0)
    found: Array = lax.psum(rows, axis)
    return found


def _project(
    x: Float[Array, "T D"],
    layer: dict[str, Any],
    table: tuple[Array, Array],
    options: DecoderOptions,
    num_rows: Int32[Array, ""],
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
    """Queries, keys and values of a layer, normalised and rotated."""
    config, numerics = options.config, options.numerics

    def heads(name: str) -> Array:
        y = linear(x, layer[name], num_rows, numerics.result).astype(x.dtype)
        return y.reshape(x.shape[0], -1, config.head_dim)

    q, k, v = heads("q"), heads("k"), heads("v")
    if config.qk_norm:
        q, k = rms_norm(q, layer["q_norm"], numerics), rms_norm(k, layer["k_norm"], numerics)
    return rope(q, table), rope(k, table), v


def output_weights(weights: Weights) -> Weights:
    """Those of the weights that logits are read with, as arrays, shapes or descriptions.

    One matrix: a classifier's head, or the vocabulary's.
    """
    name = "head" if "head" in weights else "embed"
    return {name: weights[name]}


def output_matrix(weights: Weights) -> Float[Array, "V D"]:
    """The matrix that turns hidden states into logits."""
    matrix: Array
    (matrix,) = output_weights(weights).values()
    return matrix


def label_logits(
    weights: Weights,
    hidden: Float[Array, "I D"],
    labels: Int32[Array, "I labels"],
    axis: str | None = None,
) -> Float32[Array, "I labels"]:
    """Logits of each row's labels; reads those rows of the output matrix and no others."""
    rows = _embed(output_matrix(weights), labels, axis)
    return product("id,ild->il", hidden, rows)


def vocab_logsumexp(
    weights: Weights,
    hidden: Float[Array, "I D"],
    inverse_temperature: Float32[Array, " rows"],
    first: Int32[Array, ""],
    axis: str | None = None,
) -> Float32[Array, " rows"]:
    """Log-sum-exp of the scaled logits over the vocabulary, of `rows` rows from `first` on.

    They meet a block of the vocabulary at a time, so their logits are never all in memory. How many
    blocks there are is known when the program is compiled: a device that runs the loop does not
    wait for the host.
    """
    # As bits, since XLA on CPU slices bfloat16 by way of all of the matrix in float32.
    dtype = output_matrix(weights).dtype
    matrix = to_storage(output_matrix(weights))
    block, rows = min(LSE_VOCAB, matrix.shape[0]), inverse_temperature.shape[0]
    x = lax.dynamic_slice_in_dim(jnp.pad(hidden, ((0, rows), (0, 0))), first, rows)

    def some_vocab(b: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        # The last block is moved back to end with the vocabulary; what it repeats is masked.
        start = jnp.minimum(b * block, matrix.shape[0] - block)
        part = from_storage(lax.dynamic_slice_in_dim(matrix, start, block), dtype)
        logits = matmul(x, part) * inverse_temperature[:, None]
        logits = jnp.where(start + jnp.arange(block) >= b * block, logits, -jnp.inf)
        top = jnp.maximum(sums[0], logits.max(-1))
        total = sums[1] * jnp.exp(sums[0] - top) + jnp.exp(logits - top[:, None]).sum(-1)
        return top, total

    none = (jnp.full(rows, LOWEST, jnp.float32), jnp.zeros(rows, jnp.float32))
    top, total = lax.fori_loop(0, -(-matrix.shape[0] // block), some_vocab, none)
    if axis is not None:  # each device has summed over its part of the vocabulary
        highest = lax.pmax(top, axis)
        total, top = lax.psum(total * jnp.exp(top - highest), axis), highest
    out: Array = top + jnp.log(total)
    return out

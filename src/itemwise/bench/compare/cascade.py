"""A hand-written cascade in PyTorch: the fastest way that a PyTorch user could build.

The query runs once. Items run side by side; each layer attends to the query's keys for all items in
one fused call, to each item's own in another, and merges the two by their log-sum-exps. Supports
the model families of Itemwise, with a transformers model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear, rms_norm, silu

from itemwise.bench.compare.batching import batches, pad

TOKENS_PER_FORWARD = 16384 if torch.cuda.is_available() else 2048


class Cascade:
    """Hidden states of items after one query.

    Args:
        model: a transformers causal language model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.model
        self._config = model.config
        self._head_dim: int = model.model.layers[0].self_attn.head_dim

    def hidden(self, query: Sequence[int], items: Sequence[Sequence[int]]) -> Any:
        """Hidden states [items, D] of the items' last tokens; no item may be empty."""
        prefix: list[tuple[Any, Any]] = []
        places = torch.arange(len(query))
        self._forward(torch.tensor([list(query)]), places, prefix, keep=True)
        found: dict[int, Any] = {}
        for chosen in batches(items, TOKENS_PER_FORWARD):
            tokens, last = pad([items[i] for i in chosen])
            positions = len(query) + torch.arange(tokens.shape[1])
            out = self._forward(tokens, positions, prefix, last=last)
            found.update(zip(chosen, out, strict=True))
        return torch.stack([found[i] for i in range(len(items))])

    def _forward(
        self,
        tokens: Any,
        positions: Any,
        prefix: list[tuple[Any, Any]],
        *,
        keep: bool = False,
        last: Any = None,
    ) -> Any:
        """All layers over rows [B, T]. With `keep`, fills `prefix` with keys and values per layer.

        Otherwise returns the hidden states [B, D] at `last`; after the last layer's attention it
        computes no others.
        """
        model = self._model
        x = model.embed_tokens(tokens)
        cos, sin = model.rotary_emb(x, positions[None])
        layers = model.layers
        for i, layer in enumerate(layers):
            y = self._norm(x, layer.input_layernorm)
            q, k, v = self._project(layer.self_attn, y, cos, sin)
            if keep:
                prefix.append((k, v))
                if i == len(layers) - 1:
                    return None
                seen, _ = self._attend(q, k, v, causal=True)
            else:
                seen = self._merged(q, k, v, *prefix[i])
            seen = seen.transpose(1, 2).reshape(*tokens.shape, -1)
            if last is not None and i == len(layers) - 1:
                rows = torch.arange(len(tokens))
                x, seen = x[rows, last], seen[rows, last]
            x = x + layer.self_attn.o_proj(seen)
            y = self._norm(x, layer.post_attention_layernorm)
            mlp = layer.mlp
            x = x + mlp.down_proj(silu(mlp.gate_proj(y)).mul_(mlp.up_proj(y)))
        return self._norm(x, model.norm)

    def _norm(self, x: Any, norm: Any) -> Any:
        return rms_norm(x, (x.shape[-1],), norm.weight, self._config.rms_norm_eps)

    def _project(self, attention: Any, x: Any, cos: Any, sin: Any) -> tuple[Any, Any, Any]:
        """Queries [B,N,T,H], keys and values [B,K,T,H], normalised and rotated."""

        def heads(projection: Any, norm: Any = None, rotate: bool = True) -> Any:
            y = linear(x, projection.weight, projection.bias)
            y = y.view(*x.shape[:2], -1, self._head_dim)
            if norm is not None:
                y = self._norm(y, norm)
            y = y.transpose(1, 2)
            if not rotate:
                return y
            a, b = y.chunk(2, -1)
            return y * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]

        q_norm, k_norm = (getattr(attention, f"{name}_norm", None) for name in "qk")
        q, k = heads(attention.q_proj, q_norm), heads(attention.k_proj, k_norm)
        return q, k, heads(attention.v_proj, rotate=False)

    def _attend(self, q: Any, k: Any, v: Any, causal: bool) -> tuple[Any, Any]:
        """Attention output [B,N,T,H] and log-sum-exp [B,N,T] of scaled scores."""
        group = q.shape[1] // k.shape[1]
        if group > 1:
            k, v = (a.repeat_interleave(group, 1) for a in (k, v))
        out, lse = flash_attention(q, k, v, causal)
        return out, lse

    def _merged(self, q: Any, k: Any, v: Any, prefix_k: Any, prefix_v: Any) -> Any:
        """Attention to the prefix and, causally, to the row itself, [B,N,T,H]."""
        own, own_lse = self._attend(q, k, v, causal=True)
        rows, heads, length, head_dim = q.shape
        kv_heads = k.shape[1]
        # The query heads of a kv head and all rows side by side: one long product per kv head.
        wide = q.view(rows, kv_heads, -1, length, head_dim).permute(1, 2, 0, 3, 4)
        group = wide.shape[1]
        wide = wide.reshape(1, kv_heads, -1, head_dim)
        seen, lse = self._attend(wide, prefix_k, prefix_v, causal=False)
        seen = seen.view(kv_heads, group, rows, length, head_dim).permute(2, 0, 1, 3, 4)
        lse = lse.view(kv_heads, group, rows, length).permute(2, 0, 1, 3)
        share = torch.sigmoid(own_lse - lse.reshape(own_lse.shape))[..., None].to(q.dtype)
        return torch.lerp(seen.reshape(own.shape), own, share)


def flash_attention(q: Any, k: Any, v: Any, causal: bool) -> tuple[Any, Any]:
    """PyTorch's fused attention [B,N,T,H], with the log-sum-exp [B,N,T] of scaled scores."""
    aten = torch.ops.aten
    if q.is_cuda:
        found = aten._scaled_dot_product_flash_attention(q, k, v, is_causal=causal)
    else:
        found = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=causal)
    return found[0], found[1]

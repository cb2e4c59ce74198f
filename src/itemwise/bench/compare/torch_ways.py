"""The ways to score that PyTorch users have today, each with its best settings.

They run on an NVIDIA GPU if there is one, in the faster of bfloat16 and float32. Like Itemwise,
they read only the labels' rows of the output matrix. Only the process that measures a way loads
this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from itemwise.bench.compare.batching import batches, pad, runs
from itemwise.bench.compare.cascade import Cascade
from itemwise.bench.compare.workloads import BenchRequest
from itemwise.bench.peak import forget_peak, peak_rss_bytes
from itemwise.bench.probe import best_seconds, probe_of
from itemwise.types import Float32Array
from itemwise.validation.reference import PackedTorch, TorchDType, load_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COPY_BYTES = 1 << 28
# Tokens of a forward: of rows padded to one length, and of items packed into a sequence, which
# would waste more work on masked pairs if longer. EXPANDED_TOKENS limits the copies of the query in
# memory.
FORWARD_TOKENS, PACKED_TOKENS, EXPANDED_TOKENS = (
    (65536, 8192, 256000) if DEVICE == "cuda" else (4096, 1280, 32000)
)
TYPES: tuple[TorchDType, ...] = ("bfloat16", "float32")
Tokens = Sequence[int]
Items = Sequence[Tokens]


class TorchWay:
    """A way of PyTorch, with a model of its own.

    Attributes:
        dtype: type of weights and activations.
        repeats_query: whether it computes the query for each item.
        few_tokens: tokens that suffice to measure its speed, if so.
        details: speeds of both types, and threads.
    """

    few_tokens = 2 * FORWARD_TOKENS

    def __init__(self, name: str, folder: Path) -> None:
        self._hidden, self.repeats_query = HIDDEN[name]
        speeds = {dtype: _gflops(dtype) for dtype in TYPES}
        best = max(TYPES, key=lambda dtype: speeds[dtype])
        self.dtype: str = best
        self.details: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
            "probe_gflops": speeds,
            "threads": torch.get_num_threads(),
        }
        self._model = load_torch(folder, best).to(DEVICE)
        if DEVICE != "cpu":  # only now: `from_pretrained` would need another library for it
            torch.set_default_device(DEVICE)

    def score(self, requests: Sequence[BenchRequest]) -> Float32Array:
        """See `Way.score`."""
        with torch.inference_mode():
            found = []
            for one in requests:
                rows = self._model.lm_head.weight[list(one.labels)].float()
                hidden = self._hidden(self._model, one.query, one.items).float()
                found.append((hidden @ rows.T).softmax(-1))
            scores: Float32Array = torch.cat(found).cpu().numpy()
        return scores

    def probe(self) -> dict[str, float]:
        """See `Way.probe`."""
        found = {f"torch {dtype} GFLOP/s": _gflops(dtype) for dtype in TYPES}
        source = torch.ones(COPY_BYTES, dtype=torch.uint8)
        target = torch.empty_like(source)
        # Read once and written once.
        copied = best_seconds(lambda: _done(target.copy_(source)))
        found["copy GB/s"] = 2 * COPY_BYTES / copied / 1e9
        return found

    def forget_peak(self) -> None:
        """See `Way.forget_peak`."""
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()

    def peak_bytes(self) -> int:
        """See `Way.peak_bytes`."""
        if DEVICE == "cpu":
            return peak_rss_bytes()
        torch.cuda.empty_cache()  # so that others have the memory in their turns
        return int(torch.cuda.max_memory_allocated())


# Each returns the hidden states [items, D] after the last token of each item.


def serial(model: Any, query: Tokens, items: Items) -> Any:
    """One full forward per item."""
    return torch.cat(
        [model.model(torch.tensor([[*query, *item]]), use_cache=False)[0][:, -1] for item in items]
    )


def padded(model: Any, query: Tokens, items: Items) -> Any:
    """Full sequences side by side in a batch, padded on the right."""
    found: dict[int, Any] = {}
    for chosen in batches([[*query, *item] for item in items], FORWARD_TOKENS):
        tokens, last = pad([[*query, *items[i]] for i in chosen])
        out = model.model(tokens, use_cache=False)[0]
        found.update(zip(chosen, out[torch.arange(len(chosen)), last], strict=True))
    return torch.stack([found[i] for i in range(len(items))])


def expanded(model: Any, query: Tokens, items: Items) -> Any:
    """The query's keys and values, computed once and repeated over a batch of items."""
    cache = DynamicCache(config=model.config)
    model.model(torch.tensor([list(query)]), past_key_values=cache, use_cache=True)
    # As many copies as EXPANDED_TOKENS allows, in batches of equal size.
    most = max(1, min(64, EXPANDED_TOKENS // len(query)))
    width = math.ceil(len(items) / math.ceil(len(items) / most))
    cache.batch_repeat_interleave(width)
    order = sorted(range(len(items)), key=lambda i: len(items[i]))
    found: dict[int, Any] = {}
    for first in range(0, len(items), width):
        chosen = order[first : first + width]
        # The last batch is filled up, so that it fits the cache.
        tokens, last = pad([items[i] for i in [*chosen, *chosen[-1:] * (width - len(chosen))]])
        positions = torch.arange(len(query), len(query) + tokens.shape[1])[None]
        out = model.model(tokens, past_key_values=cache, use_cache=True, position_ids=positions)[0]
        cache.crop(-tokens.shape[1])
        rows = out[torch.arange(width), last][: len(chosen)]
        found.update(zip(chosen, rows, strict=True))
    return torch.stack([found[i] for i in range(len(items))])


def packed(model: Any, query: Tokens, items: Items) -> Any:
    """Items side by side under a 4-D mask, after the query's cached keys and values."""
    one = PackedTorch(model, query)
    return torch.cat([one.hidden(batch) for batch in runs(items, PACKED_TOKENS)])


def flex(model: Any, query: Tokens, items: Items) -> Any:
    """As `packed`, with compiled FlexAttention and a block mask instead of the 4-D mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    model.set_attn_implementation("flex_attention")
    cache = DynamicCache(config=model.config)
    prefix = len(query)

    def causal(_batch: Any, _head: Any, reader: Any, place: Any) -> Any:
        return place <= reader

    mask = create_block_mask(causal, None, None, prefix, prefix, device=DEVICE)
    ids = torch.tensor([list(query)])
    model.model(ids, past_key_values=cache, use_cache=True, attention_mask=mask)
    found = []
    for batch in runs(items, PACKED_TOKENS):
        lengths = torch.tensor([len(item) for item in batch])
        last = lengths.cumsum(0) - 1
        item_of = torch.repeat_interleave(torch.arange(len(batch)), lengths)
        num_tokens = len(item_of)

        def sees(_batch: Any, _head: Any, reader: Any, place: Any, item_of: Any = item_of) -> Any:
            own = torch.clamp(place - prefix, 0)
            same = (item_of[own] == item_of[reader]) & (own <= reader)
            return (place < prefix) | same

        total = prefix + num_tokens
        mask = create_block_mask(sees, None, None, num_tokens, total, device=DEVICE)
        first = (last - lengths + 1)[item_of]
        out = model.model(
            torch.tensor([[token for item in batch for token in item]]),
            past_key_values=cache,
            use_cache=True,
            attention_mask=mask,
            position_ids=(prefix + torch.arange(num_tokens) - first)[None],
        )[0]
        cache.crop(-num_tokens)
        found.append(out[0, last])
    return torch.cat(found)


def cascade(model: Any, query: Tokens, items: Items) -> Any:
    """Written by hand: fused attention over the query and over each item, merged."""
    return Cascade(model).hidden(query, items)


Hidden = Callable[[Any, Tokens, Items], Any]
# True if it computes the query for each item: then a few items suffice to measure items/s.
HIDDEN: dict[str, tuple[Hidden, bool]] = {
    "torch-serial": (serial, True),
    "torch-padded": (padded, True),
    "torch-expanded": (expanded, False),
    "torch-packed": (packed, False),
    "torch-flex": (flex, False),
    "torch-cascade": (cascade, False),
}


def _gflops(dtype: str) -> float:
    size = probe_of(DEVICE)
    x = torch.ones(size.rows, size.inner, dtype=getattr(torch, dtype), device=DEVICE)
    weight = torch.ones(size.outer, size.inner, dtype=x.dtype, device=DEVICE)
    return size.gflops(lambda: _done(torch.nn.functional.linear(x, weight)))


def _done(result: Any) -> None:
    """Waits until a GPU has finished its work."""
    if result.is_cuda:
        torch.cuda.synchronize()

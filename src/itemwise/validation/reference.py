"""Scores of PyTorch and transformers: the reference for scores and the speed to beat.

`torch_scores` is the definition: one full forward per item, nothing shared. `PackedTorch` is the
fastest method of transformers itself: it computes the query's keys and values once and puts many
items through one forward under a mask. torch is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from itemwise.types import Float32Array

TorchDType = Literal["bfloat16", "float32"]


class TorchLogits(NamedTuple):
    """Values at the last token of each item, in float32 whatever the model's type.

    Attributes:
        labels: [items, labels], logits of the labels.
        logsumexp: [items], log-sum-exp of the logits over the vocabulary.
        spread: [items], standard deviation of the logits over the vocabulary.
    """

    labels: Float32Array
    logsumexp: Float32Array
    spread: Float32Array

    @property
    def logprobs(self) -> Float32Array:
        """Log-probabilities of the labels over the vocabulary, [items, labels]."""
        return self.labels - self.logsumexp[:, None]


def load_torch(folder: Path, dtype: TorchDType) -> Any:
    """The checkpoint as a transformers model on the CPU, ready to evaluate.

    Reads only safetensors, and runs no code of the checkpoint.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model.eval()


def torch_label_logits(
    model: Any,
    query_ids: Sequence[int],
    items_ids: Sequence[Sequence[int]],
    labels: Sequence[int],
    *,
    item_shift: int = 0,
) -> TorchLogits:
    """Logits after `query + item`, one full forward per item.

    Args:
        model: from `load_torch`.
        query_ids: token ids all items share.
        items_ids: token ids of each item; an empty one is read at the query's end.
        labels: token ids whose logits are read.
        item_shift: added to the items' positions, to show the effect of a wrong position.
    """
    import torch

    rows = []
    with torch.inference_mode():
        for item in items_ids:
            tokens = torch.tensor([[*query_ids, *item]])
            positions = torch.arange(tokens.shape[1])[None]
            positions[:, len(query_ids) :] += item_shift
            # Without a mask, transformers treats a gap in the positions as the start of another
            # sequence, which would not see the query.
            mask = torch.ones_like(tokens) if item_shift else None
            out = model(
                tokens,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=1,
            )
            rows.append(out.logits[0, -1].float())
        return _read(torch.stack(rows), labels)


def torch_scores(
    model: Any,
    query_ids: Sequence[int],
    items_ids: Sequence[Sequence[int]],
    labels: Sequence[int],
    *,
    apply_softmax: bool = False,
) -> Float32Array:
    """Scores [items, labels] as `Scorer.score` defines them, one full forward per item."""
    return to_scores(torch_label_logits(model, query_ids, items_ids, labels), apply_softmax)


def to_scores(logits: TorchLogits, apply_softmax: bool) -> Float32Array:
    """Softmax over the labels, or probabilities over the vocabulary; in float64, then rounded."""
    wide = logits.labels.astype(np.float64)
    if apply_softmax:
        weights = np.exp(wide - wide.max(axis=1, keepdims=True))
        scores = weights / weights.sum(axis=1, keepdims=True)
    else:
        scores = np.exp(wide - logits.logsumexp[:, None])
    return np.asarray(scores, np.float32)


def _read(logits: Any, labels: Sequence[int]) -> TorchLogits:
    """Reads torch logits [items, V]."""
    found = logits[:, list(labels)], logits.logsumexp(-1), logits.std(-1)
    return TorchLogits(*(one.cpu().numpy() for one in found))


class _Chunk(NamedTuple):
    """Items side by side in one sequence. Torch tensors.

    Attributes:
        tokens: [1, T].
        positions: [1, T].
        mask: [1, 1, T, prefix + T], 0 where a token is seen, the lowest number where not.
        last: [items], the index of each item's last token.
    """

    tokens: Any
    positions: Any
    mask: Any
    last: Any


class PackedTorch:
    """One query, computed once; its items packed into forwards under a 4-D mask.

    Args:
        model: from `load_torch`.
        query_ids: token ids all items share.
        chunk_size: items per forward.
    """

    def __init__(self, model: Any, query_ids: Sequence[int], chunk_size: int = 64) -> None:
        import torch
        from transformers import DynamicCache

        self._model = model
        self._query = tuple(query_ids)
        self._chunk_size = chunk_size
        self._cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model.model(torch.tensor([self._query]), past_key_values=self._cache, use_cache=True)

    def scores(
        self,
        items_ids: Sequence[Sequence[int]],
        labels: Sequence[int],
        *,
        apply_softmax: bool = False,
    ) -> Float32Array:
        """Scores [items, labels]. Label-only scores read no other row of the output matrix."""
        return np.concatenate(
            [
                self._chunk_scores(items_ids[i : i + self._chunk_size], labels, apply_softmax)
                for i in range(0, len(items_ids), self._chunk_size)
            ]
        )

    def _chunk_scores(
        self, items: Sequence[Sequence[int]], labels: Sequence[int], apply_softmax: bool
    ) -> Float32Array:
        import torch

        with torch.inference_mode():
            hidden = self.hidden(items)
            if not apply_softmax:
                return to_scores(_read(self._model.lm_head(hidden).float(), labels), False)
            rows = self._model.lm_head.weight[list(labels)]
            logits = (hidden @ rows.T).float().numpy()
            nothing = np.zeros(len(items), np.float32)
            return to_scores(TorchLogits(logits, nothing, nothing), True)

    def hidden(self, items: Sequence[Sequence[int]]) -> Any:
        """Hidden states [items, D] of the items' last tokens, all in one forward."""
        chunk = self._pack(items)
        out = self._model.model(
            chunk.tokens,
            attention_mask=chunk.mask,
            position_ids=chunk.positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        # Keeps only the query again.
        self._cache.crop(len(self._query) - self._cache.get_seq_length())
        return out.last_hidden_state[0, chunk.last]

    def _pack(self, items: Sequence[Sequence[int]]) -> _Chunk:
        import torch

        rows = list(self._rows(items))
        lengths = torch.tensor([len(row) for row, _ in rows])
        starts = torch.tensor([start for _, start in rows])
        row_of = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        place = torch.arange(len(row_of))
        first = lengths.cumsum(0) - lengths
        own = (row_of[:, None] == row_of) & (place[:, None] >= place)
        query = torch.arange(len(self._query)) < starts[row_of, None]
        dtype = self._model.dtype
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype)
        mask = torch.where(torch.cat([query, own], 1), torch.zeros((), dtype=dtype), hidden)
        return _Chunk(
            tokens=torch.tensor([[token for row, _ in rows for token in row]]),
            positions=(starts[row_of] + place - first[row_of])[None],
            mask=mask[None, None],
            last=lengths.cumsum(0) - 1,
        )

    def _rows(self, items: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], int]]:
        """Tokens and first position of each item; an empty one repeats the query's last token."""
        for item in items:
            yield (item, len(self._query)) if item else (self._query[-1:], len(self._query) - 1)

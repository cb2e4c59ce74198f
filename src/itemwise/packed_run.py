"""Scores a request with the `packed` algorithm: one sequence after the other, nothing cached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from itemwise.config import EngineConfig
from itemwise.packed import Tokens, chunks, pack, packed_shape
from itemwise.programs import Programs
from itemwise.run import Progress, probabilities
from itemwise.types import Float32Array, Mask, ScoreRequest, ScoreResult


def mask_of(config: EngineConfig) -> Mask:
    """The mask that the settings ask for; `auto` is `segment`, which wins everywhere."""
    setting: Literal["auto", "dense", "segment"] = config.multi_item_mask_impl
    return "segment" if setting == "auto" else setting


class PackedRun:
    """Scores one request. Made for one call.

    Attributes:
        num_steps: sequences run.
        num_tokens: tokens computed, padding left out.
    """

    def __init__(
        self,
        programs: Programs,
        config: EngineConfig,
        max_tokens: int,
        request: ScoreRequest,
        on_progress: Progress | None = None,
    ) -> None:
        self._programs = programs
        self._config = config
        self._max_tokens = max_tokens
        self._request = request
        self._on_progress = on_progress
        self.num_steps = self.num_tokens = 0

    def score(self) -> ScoreResult:
        """Runs everything."""
        request, delimiter = self._request, self._config.multi_item_scoring_delimiter
        prefix = request.query if delimiter is None else (*request.query, delimiter)
        logits: list[Float32Array] = []
        logsumexps: list[Float32Array] = []
        for chosen in self._chunks(prefix):
            for table, sums in self._sequence(prefix, chosen):
                logits += list(table[: len(sums)])
                logsumexps.append(sums)
            if self._on_progress:
                self._on_progress("items", chosen.stop, len(request.items))
        logits = [row[: len(ids)] for row, ids in zip(logits, request.labels, strict=True)]
        scores = probabilities(request, logits, np.concatenate(logsumexps))
        return ScoreResult(scores, len(prefix) + sum(map(len, request.items)))

    def _chunks(self, prefix: Tokens) -> Iterator[range]:
        chunk_size = self._request.chunk_size
        if chunk_size is None:
            chunk_size = self._config.multi_item_scoring_chunk_size
        lengths = [len(item) for item in self._request.items]
        rows = self._programs.shape.max_rows
        return chunks(len(prefix), lengths, self._max_tokens, rows, chunk_size)

    def _sequence(self, prefix: Tokens, chosen: range) -> Iterator[tuple[Float32Array, ...]]:
        """Runs a sequence; yields label logits and log-sum-exps, some rows at a time."""
        programs, request = self._programs, self._request
        rows, granule = programs.shape.max_rows, programs.shape.granule_tokens
        items = request.items[chosen.start : chosen.stop]
        num_tokens = len(prefix) + sum(map(len, items))
        shape = packed_shape(num_tokens, len(items), rows, granule)
        hidden = programs.packed(pack(prefix, items, shape), shape, mask_of(self._config))
        self.num_steps += 1
        self.num_tokens += num_tokens
        for part, start in zip(hidden, range(chosen.start, chosen.stop, rows), strict=False):
            labels = request.labels[start : min(start + rows, chosen.stop)]
            sums = np.zeros(len(labels), np.float32)
            if not request.apply_softmax:
                scales = [1 / request.temperature] * len(labels)
                sums = np.asarray(programs.vocab_logsumexp(part, scales))[: len(labels)]
            logits = programs.label_logits(part, list(labels))
            table = np.concatenate([np.asarray(columns) for columns in logits], axis=1)
            yield table, sums

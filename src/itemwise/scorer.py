"""`Scorer`: the public, synchronous way to score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from itemwise import checkpoint
from itemwise.config import EngineConfig
from itemwise.engine import Engine
from itemwise.request import RequestLimits, check_request
from itemwise.run import Progress
from itemwise.tokenization import Tokenizer
from itemwise.types import ScoreRequest, ScoreResult


class Scorer:
    """Scores items against a query with one model.

        scorer = Scorer.from_pretrained("Qwen/Qwen3-0.6B")
        result = scorer.score("cheap flights", ["...", "..."], labels=[" yes", " no"])
        result.scores  # float32 [items, labels]

    One thread at a time may score; a server puts a queue in front.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._limits = RequestLimits(
            vocab_size=engine.model_config.vocab_size,
            max_seq_len=engine.max_seq_len,
            max_items=engine.config.max_multi_item_count,
            delimiter=engine.config.multi_item_scoring_delimiter,
        )

    @classmethod
    def from_pretrained(
        cls, model: str, *, on_progress: Progress | None = None, **engine: Any
    ) -> Scorer:
        """A scorer for a checkpoint: compiled, self-checked, ready.

        Args:
            model: a local folder or a Hugging Face Hub id.
            on_progress: told about long work, as (what, done, total).
            **engine: fields of `EngineConfig`.

        Raises:
            CheckpointError: the checkpoint cannot be read or is of an unsupported kind.
            ConfigError: a setting is wrong, or does not fit the machine.
            SelfCheckError: scores depend on their company on this device.
        """
        config = EngineConfig(**engine)
        folder = checkpoint.locate(model)
        tokenizer = Tokenizer.from_folder(folder)
        return cls(Engine(folder, config, on_progress), tokenizer)

    def score(
        self,
        query: str | Sequence[int],
        items: Sequence[str] | Sequence[Sequence[int]],
        *,
        labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        label_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        apply_softmax: bool = False,
        item_first: bool = False,
        temperature: float = 1.0,
        on_progress: Progress | None = None,
    ) -> ScoreResult:
        """Scores of every item: the next-token distribution over the labels after `query + item`.

        Args:
            query: text, or token ids.
            items: texts, or lists of token ids; an empty one is scored at the query's end.
            labels: texts of one token each, for all items or per item.
            label_token_ids: token ids in their place.
            apply_softmax: softmax over the labels; else probabilities over the vocabulary.
            item_first: score `item + query`; nothing is shared then.
            temperature: divides the logits, above zero.
            on_progress: told about the items scored so far, as (what, done, total).

        Raises:
            RequestError: the request is wrong; its `code` and `param` say where.
        """
        fields: dict[str, Any] = {
            "query": query,
            "items": items,
            "apply_softmax": apply_softmax,
            "item_first": item_first,
            "temperature": temperature,
        }
        if labels is not None:
            fields["labels"] = labels
        if label_token_ids is not None:
            fields["label_token_ids"] = label_token_ids
        return self.engine.score([self.prepare(**fields)], on_progress)[0]

    def prepare(self, **fields: Any) -> ScoreRequest:
        """Checks and tokenises the fields of a request, as they come from JSON or Python.

        Raises:
            RequestError: the request is wrong; its `code` and `param` say where.
        """
        return check_request(fields, self._limits, self.tokenizer)

    def run(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Scores prepared requests together, in shared steps."""
        return self.engine.score(requests)

    def info(self) -> dict[str, Any]:
        """What runs, as JSON values: model, settings, device, self-check and counters."""
        return self.engine.info()

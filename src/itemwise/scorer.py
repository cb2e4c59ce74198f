"""`Scorer`: the public, synchronous way to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from itemwise.checkpoint.locate import locate
from itemwise.config import DEMO_MODEL, EngineConfig
from itemwise.engine.engine import Engine
from itemwise.errors import CheckpointError, RequestError
from itemwise.progress import ProgressFn, silent
from itemwise.request.calls import Call, Prepared, PromptTools, ScoreCall
from itemwise.request.check import REQUEST_FIELDS, RequestLimits
from itemwise.request.template import PromptTemplate
from itemwise.request.tokenizer import TOKENIZER_FILE, Tokenizer
from itemwise.types import RankedItem, ScoreRequest, ScoreResult

T = TypeVar("T")


class Scorer:
    """Scores items against a query with one model.

        scorer = Scorer.from_pretrained("Qwen/Qwen3-0.6B")  # without a name: the demo model
        result = scorer.score("cheap flights", ["...", "..."], labels=[" yes", " no"])
        result.scores  # float32 [items, labels]

    Only one thread at a time may score; the server puts a queue in front.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        template: PromptTemplate | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = template
        limits = RequestLimits(
            vocab_size=engine.model_config.vocab_size,
            num_head_labels=engine.model_config.num_labels,
            max_seq_len=engine.max_seq_len,
            max_items=engine.config.max_multi_item_count,
            delimiter=engine.config.multi_item_scoring_delimiter,
        )
        self._tools = PromptTools(limits, tokenizer, template)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEMO_MODEL,
        *,
        prompt_template: str | Path | None = None,
        tokenizer_path: str | None = None,
        revision: str | None = None,
        download_dir: str | None = None,
        on_progress: ProgressFn = silent,
        **engine: Any,
    ) -> Scorer:
        """A scorer for a checkpoint: compiled, self-checked, ready.

        Args:
            model: a local folder or a Hugging Face Hub id; by default the demo model that
                is included in the package, a small one that judges whether a title matches a
                search query.
            prompt_template: file with a template, to use instead of the checkpoint's own
                `prompt_template.json`.
            tokenizer_path: a folder or a Hub id whose tokenizer is used instead of the
                checkpoint's own.
            revision: branch, tag or commit of the model on the Hub.
            download_dir: where models from the Hub are kept; by default the Hub's own cache.
            on_progress: called during long work with (what, done, total).
            **engine: fields of `EngineConfig`.

        Raises:
            CheckpointError: the checkpoint cannot be read or is of an unsupported kind.
            ConfigError: a setting is wrong, or does not fit the machine.
            SelfCheckError: scores change with batch composition on this device, or are not finite.
        """
        config = EngineConfig(**engine)
        folder = locate(str(model), revision=revision, download_dir=download_dir)
        if tokenizer_path is None:
            tokenizer = Tokenizer.from_folder(folder)
        else:
            tokenizer = _tokenizer_of(tokenizer_path, download_dir)
        if prompt_template is None:
            template = PromptTemplate.from_folder(folder)
        else:
            template = PromptTemplate.from_file(Path(prompt_template))
        return cls(Engine(folder, config, on_progress), tokenizer, template)

    def score(
        self,
        query: str | Sequence[int],
        items: Sequence[str] | Sequence[Sequence[int]],
        *,
        labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        label_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        apply_softmax: bool = False,
        apply_template: bool = False,
        item_first: bool = False,
        temperature: float = 1.0,
        on_progress: ProgressFn = silent,
    ) -> ScoreResult:
        """Scores of every item: the next-token distribution over the labels after `query + item`.

        Args:
            query: text, or token ids.
            items: texts, or lists of token ids; an empty one is scored at the query's end.
            labels: texts of one token each, for all items or per item.
            label_token_ids: the labels as token ids instead.
            apply_softmax: softmax over the labels; otherwise probabilities over the vocabulary.
            apply_template: put query and items, as text, into the checkpoint's prompt template;
                its labels are used if none are given.
            item_first: score `item + query`; then items share nothing.
            temperature: divides the logits, above zero.
            on_progress: called with (what, done, total) as items are scored.

        Raises:
            RequestError: the request is invalid; its `code` and `param` say where.
            NotFiniteError: the model gives NaN or infinity for an item.
        """
        fields: dict[str, Any] = {
            "query": query,
            "items": items,
            "apply_softmax": apply_softmax,
            "apply_template": apply_template,
            "item_first": item_first,
            "temperature": temperature,
        }
        if labels is not None:
            fields["labels"] = labels
        if label_token_ids is not None:
            fields["label_token_ids"] = label_token_ids
        return self.run_call(ScoreCall(fields), on_progress)

    def rank(
        self,
        query: str,
        items: Sequence[str],
        top_n: int | None = None,
        *,
        on_progress: ProgressFn = silent,
    ) -> list[RankedItem]:
        """The items, best first, by the probability of the template's first label.

        Applies the checkpoint's prompt template and the softmax over its labels. Items with equal
        scores keep their order.

        Args:
            query: text.
            items: texts.
            top_n: how many to return; None for all.
            on_progress: called with (what, done, total) as items are scored.

        Raises:
            RequestError: the request is invalid (`invalid_top_n`, ...), or the checkpoint has no
                template (`no_template`).
        """
        if top_n is not None and (isinstance(top_n, bool) or top_n < 1):
            raise RequestError("invalid_top_n", f"`top_n` is {top_n}, expected 1 or more", "top_n")
        items = list(items)
        result = self.score(
            query, items, apply_softmax=True, apply_template=True, on_progress=on_progress
        )
        scores = np.asarray(result.scores)[:, 0]
        order = np.argsort(-scores, kind="stable")[:top_n]
        return [RankedItem(int(i), items[i], float(scores[i])) for i in order]

    def prepare(self, fields: Mapping[str, Any] | None = None, /, **named: Any) -> ScoreRequest:
        """A checked and tokenised request, from the fields of a JSON body or from keywords.

        Args:
            fields: values by name; unknown names are ignored.
            **named: further values, which take precedence.

        Raises:
            RequestError: the request is invalid; its `code` and `param` say where.
            TypeError: a keyword is not a request field.
        """
        if unknown := named.keys() - set(REQUEST_FIELDS):
            raise TypeError(
                f"`{min(unknown)}` is not a request field, expected one of "
                f"{', '.join(REQUEST_FIELDS)}"
            )
        fields = {**(fields or {}), **named}
        return self.prepare_call(ScoreCall(fields)).request

    def prepare_call(self, call: Call[T], /) -> Prepared[T]:
        """A checked and tokenised call, as the server's dialects make them.

        Raises:
            RequestError: the call is invalid; its `code` and `param` say where.
        """
        return call.prepare(self._tools)

    def run_call(self, call: Call[T], on_progress: ProgressFn = silent) -> T:
        """The result of a call; raises what `prepare_call` and its `finish` raise."""
        prepared = self.prepare_call(call)
        return prepared.finish(self.engine.score([prepared.request], on_progress)[0])

    def run(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Scores prepared requests together, in shared steps."""
        return self.engine.score(requests)

    def info(self) -> dict[str, Any]:
        """What runs, as JSON values: model, settings, device, self-check and counters."""
        return self.engine.info()


def _tokenizer_of(model: str, download_dir: str | None) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(locate(model, download_dir=download_dir, weights=False))
    if tokenizer is None:
        raise CheckpointError(
            f"`{model}` has no {TOKENIZER_FILE}, expected the folder or the Hub id of a tokenizer"
        )
    return tokenizer

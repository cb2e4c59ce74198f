"""What callers ask for, in the terms that every door shares: HTTP, Python, files, commands.

A call becomes a `ScoreRequest`, which the engine scores; then `finish` makes the result of the call
from that of the request. All doors make the same calls, so they give the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from itemwise.errors import NotFiniteError, RequestError
from itemwise.request.check import check_request
from itemwise.request.leniency import without_query
from itemwise.request.read_out import softmax_of_labels
from itemwise.request.token_texts import prompt_tokens
from itemwise.request.tools import PromptTools
from itemwise.types import ScoreRequest, ScoreResult

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared(Generic[T]):
    """A call that is ready to be scored.

    Attributes:
        request: what the engine scores.
        finish: makes the result of the call from that of the request.
        items: name of the caller's field with the items, for messages.
        labels: name of that with the labels.
    """

    request: ScoreRequest
    finish: Callable[[ScoreResult], T]
    items: str = "items"
    labels: str = "labels"


class Call(Protocol[T]):
    """A checked body, not yet tokenised."""

    def prepare(self, tools: PromptTools) -> Prepared[T]:
        """The request that the call is; from any thread.

        Raises:
            RequestError: the call is invalid.
        """
        ...


@dataclass(frozen=True)
class ScoreCall:
    """The scores of labels after each item.

    Attributes:
        fields: values by the names in `REQUEST_FIELDS`; other names are ignored. With `truncate`,
            items are cut at their end to fit the model and `max_tokens_per_item`.
        may_lack_query: whether items may begin the sequence if there is no query.
        with_logprobs: whether the result has `logprobs`.
        with_tokens: whether the result has `tokens`.
    """

    fields: Mapping[str, Any]
    may_lack_query: bool = False
    with_logprobs: bool = False
    with_tokens: bool = False

    def prepare(self, tools: PromptTools) -> Prepared[ScoreResult]:
        """See `Call.prepare`."""
        fields = self.fields
        by_id = fields.get("label_token_ids") is not None
        if self.may_lack_query and not fields.get("query"):
            fields = without_query(fields)
        request, cut = check_request(
            fields,
            tools.limits,
            tools.tokenizer,
            tools.template,
            may_lack_query=self.may_lack_query,
        )
        tokens = prompt_tokens(request, tools) if self.with_tokens else None
        scored = request
        if self.with_logprobs:
            if not request.apply_softmax and request.temperature != 1:
                raise RequestError(
                    "invalid_temperature",
                    f"`temperature` is {request.temperature:g}, expected 1 where log-probabilities "
                    "are asked for without `apply_softmax`: they have no temperature",
                    "temperature",
                )
            # Over the vocabulary and at temperature 1; `scores` are made of the same logits.
            scored = dataclasses.replace(request, apply_softmax=False, temperature=1.0)

        def finish(result: ScoreResult) -> ScoreResult:
            result = finite(result)
            if self.with_logprobs:
                result = _with_logprobs(result, request)
            return dataclasses.replace(result, cut_items=cut, tokens=tokens)

        return Prepared(scored, finish, labels="label_token_ids" if by_id else "labels")


def _with_logprobs(result: ScoreResult, asked: ScoreRequest) -> ScoreResult:
    """The result with log-probabilities, and with the scores that were asked for."""
    assert result.logits is not None
    assert result.logsumexps is not None
    same = not isinstance(result.logits, list)
    logsumexps = result.logsumexps.astype(np.float64)
    rows = [
        (row.astype(np.float64) - logsumexp).astype(np.float32)
        for row, logsumexp in zip(result.logits, logsumexps, strict=True)
    ]
    scores: Any = result.scores
    if asked.apply_softmax:
        scores = [softmax_of_labels(row[None], asked.temperature)[0] for row in result.logits]
        scores = np.stack(scores) if same else scores
    return dataclasses.replace(result, scores=scores, logprobs=np.stack(rows) if same else rows)


def finite(result: ScoreResult, name: str = "items") -> ScoreResult:
    """The result, if every score is a number.

    Args:
        result: of a request.
        name: what the caller calls items.

    Raises:
        NotFiniteError: a score is NaN or infinite; the message names the item.
    """
    for rows in (result.scores, result.logits):
        if rows is None or (not isinstance(rows, list) and np.isfinite(rows).all()):
            continue
        for item, row in enumerate(rows):
            if not np.isfinite(row).all():
                raise NotFiniteError(
                    f"the model gives no number for `{name}[{item}]` (NaN or infinity): its "
                    "arithmetic overflows on this text; leave it out, or use `--dtype float32`"
                )
    return result

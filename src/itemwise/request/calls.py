"""What callers ask for, in the terms that every door shares: HTTP, Python, files, commands.

A call becomes a `ScoreRequest`, which the engine scores; then `finish` makes the result of the call
from that of the request. All doors make the same calls, so they give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from itemwise.errors import NotFiniteError
from itemwise.request.check import RequestLimits, TextTokenizer, check_request
from itemwise.request.template import PromptTemplate
from itemwise.types import ScoreRequest, ScoreResult

T = TypeVar("T")


@dataclass(frozen=True)
class PromptTools:
    """What a checkpoint brings to turn raw fields and texts into a request.

    Attributes:
        limits: that a request must keep.
        tokenizer: for text; None if the checkpoint has none.
        template: its prompt template; None if it has none.
    """

    limits: RequestLimits
    tokenizer: TextTokenizer | None = None
    template: PromptTemplate | None = None


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
        fields: values by the names in `REQUEST_FIELDS`; other names are ignored.
    """

    fields: Mapping[str, Any]

    def prepare(self, tools: PromptTools) -> Prepared[ScoreResult]:
        """See `Call.prepare`."""
        request = check_request(self.fields, tools.limits, tools.tokenizer, tools.template)
        by_id = self.fields.get("label_token_ids") is not None
        return Prepared(request, finite, labels="label_token_ids" if by_id else "labels")


def finite(result: ScoreResult) -> ScoreResult:
    """The result, if every score is a number.

    Raises:
        NotFiniteError: a score is NaN or infinite; the message names the item.
    """
    if not isinstance(result.scores, list) and np.isfinite(result.scores).all():
        return result
    for item, row in enumerate(result.scores):
        if not np.isfinite(row).all():
            raise NotFiniteError(
                f"the model gives no number for `items[{item}]` (NaN or infinity): its arithmetic "
                "overflows on this text; leave the item out, or use `--dtype float32`"
            )
    return result

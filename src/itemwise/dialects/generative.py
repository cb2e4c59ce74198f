"""vLLM's `POST /generative_scoring`: the probability of the first label after each item.

Source: vLLM's protocol of its generative scoring endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from itemwise.dialects.base import Dialect, Exchange
from itemwise.dialects.pairs import PairsAnswer, score_list
from itemwise.dialects.score import read_call
from itemwise.types import ScoreResult


class GenerativeBody(BaseModel):
    """Body of `POST /generative_scoring`; other fields of `POST /v1/score` work, too."""

    model: Any = Field(None, description="Name of the model; optional.")
    query: str | list[int] = Field(description="What all items share: text, or token ids.")
    items: list[str] | list[list[int]] = Field(description="Candidates, like the query.")
    label_token_ids: list[int] = Field(description="The score is the first one's probability.")
    apply_softmax: bool = Field(
        True, description="Softmax over the labels; otherwise a probability over the vocabulary."
    )
    item_first: bool = Field(False, description="Score `item + query`.")


def _read(body: Mapping[str, Any]) -> Exchange[ScoreResult]:
    softmax = body.get("apply_softmax")
    fields = {**body, "apply_softmax": True if softmax is None else softmax}

    def answer(result: ScoreResult, model: str) -> dict[str, Any]:
        first = [float(str(row[0])) for row in result.scores]  # in the digits of a float32
        return score_list(first, result.prompt_tokens, model, result.cut_items)

    return Exchange(read_call(fields), answer, body.get("model"))


DIALECT = Dialect(
    paths=("/generative_scoring",),
    summary="The probability of the first label after each item, as vLLM has it.",
    body=GenerativeBody,
    answers=PairsAnswer,
    read=_read,
)

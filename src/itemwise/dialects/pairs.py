"""vLLM's `POST /score` and `/v1/score` of pooling models: how well pairs of texts match.

Source: vLLM's documentation of its Score API.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from itemwise.dialects.base import Dialect, Exchange, parse
from itemwise.request.ranking import RankCall, Ranking

FIRST = ("text_1", "queries", "data_1")
SECOND = ("text_2", "documents", "items", "data_2")


class PairsBody(BaseModel):
    """Body of a score request with `text_1` and `text_2`. Fields not named are ignored."""

    model: Any = Field(None, description="Name of the model; optional.")
    text_1: str | list[str] = Field(
        validation_alias=AliasChoices(*FIRST),
        description="One query, or one for each document. Also `queries` and `data_1`.",
    )
    text_2: str | list[str] = Field(
        validation_alias=AliasChoices(*SECOND),
        description="One document or several. Also `documents`, `items` and `data_2`.",
    )
    instruction: str | None = Field(None, description="What counts as a match.")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, strict=True, description="Tokens at which a prompt is cut."
    )
    truncate: bool | None = Field(
        None, description="false refuses documents that are too long instead of cutting them."
    )
    activation: bool | None = Field(
        None,
        validation_alias=AliasChoices("use_activation", "activation"),
        description="false gives logits or log-odds in place of numbers between 0 and 1. Also "
        "`use_activation`.",
    )
    priority: int = Field(0, strict=True, description="A lower number always runs first.")


class PairScore(BaseModel):
    """How well a pair matches."""

    index: int
    object: Literal["score"]
    score: float
    truncated: bool | None = Field(
        None, description="true if the item was too long and only its beginning was read."
    )


class PairsUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class PairsAnswer(BaseModel):
    """Scores in the order of the request."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PairScore]
    usage: PairsUsage


def score_list(
    scores: list[float], num_tokens: int, model: str, cut: Collection[int]
) -> dict[str, Any]:
    """A body as `PairsAnswer`; `cut` are the places of what was too long."""
    data: list[dict[str, Any]] = [
        {"index": i, "object": "score", "score": score} for i, score in enumerate(scores)
    ]
    for index in cut:
        data[index]["truncated"] = True
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {
            "prompt_tokens": num_tokens,
            "total_tokens": num_tokens,
            "completion_tokens": 0,
        },
    }


def _read(body: Mapping[str, Any]) -> Exchange[Ranking]:
    fields = parse(PairsBody, body)
    queries, documents = fields.text_1, fields.text_2
    if isinstance(documents, str):
        documents = [documents]
    if isinstance(queries, list) and len(queries) == 1:
        queries = queries[0]
    limit = fields.truncate_prompt_tokens
    names = [next(name for name in choice if name in body) for choice in (FIRST, SECOND)]
    call = RankCall(
        queries,
        documents,
        fields.instruction,
        max_prompt_tokens=limit if limit and limit > 0 else None,
        truncate=fields.truncate is not False,
        priority=fields.priority,
        names=(names[0], names[1]),
    )

    def answer(ranking: Ranking, model: str) -> dict[str, Any]:
        scores = ranking.margins if fields.activation is False else ranking.scores
        cut = [index for index, cut in enumerate(ranking.cut) if cut]
        return score_list(scores.tolist(), ranking.prompt_tokens, model, cut)

    return Exchange(call, answer, fields.model)


DIALECT = Dialect(
    paths=("/score", "/v1/score"),
    summary="How well pairs of texts match, as vLLM has it.",
    body=PairsBody,
    answers=PairsAnswer,
    read=_read,
    takes=lambda body: any(name in body for name in FIRST),
)

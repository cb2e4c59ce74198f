"""Rerank as text-embeddings-inference (TEI) has it: `texts` in, a bare list out.

Source: the OpenAPI document of huggingface/text-embeddings-inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, RootModel

from itemwise.dialects.base import Dialect, Exchange, Fault, parse
from itemwise.dialects.rerank import PATHS
from itemwise.request.ranking import RankCall, Ranking


class TeiBody(BaseModel):
    """Body of a rerank request with `texts`. Fields not named are ignored."""

    model: Any = Field(None, description="Name of the model; optional.")
    query: str
    texts: list[str] = Field(description="At least one.")
    raw_scores: bool | None = Field(
        None, description="Logits or log-odds in place of numbers between 0 and 1."
    )
    return_text: bool | None = Field(None, description="Give texts back with scores.")
    truncate: bool | None = Field(
        None, description="false refuses texts that are too long instead of cutting them."
    )
    instruction: str | None = Field(None, description="What counts as a match.")


class TeiRank(BaseModel):
    """A text and how well it matches."""

    index: int
    score: float
    text: str | None = Field(None, description="With `return_text`.")
    truncated: bool | None = Field(
        None, description="true if the text was too long and only its beginning was read."
    )


class TeiAnswer(RootModel[list[TeiRank]]):
    """Answer to `texts`: every one, best first."""


class TeiError(BaseModel):
    """Body of an error."""

    error: str
    error_type: str
    message: str
    detail: str


def _read(body: Mapping[str, Any]) -> Exchange[Ranking]:
    fields = parse(TeiBody, body)
    call = RankCall(
        fields.query,
        fields.texts,
        fields.instruction,
        truncate=fields.truncate is not False,
        names=("query", "texts"),
    )

    def answer(ranking: Ranking, _: str) -> list[dict[str, Any]]:
        scores = ranking.margins if fields.raw_scores else ranking.scores
        return [
            {
                "index": index,
                "score": float(scores[index]),
                **({"text": fields.texts[index]} if fields.return_text else {}),
                **({"truncated": True} if ranking.cut[index] else {}),
            }
            for index in ranking.order()
        ]

    return Exchange(call, answer, fields.model)


def _error(fault: Fault) -> dict[str, Any]:
    return {
        "error": fault.message,
        "error_type": fault.code,
        "message": fault.message,
        "detail": fault.message,
    }


DIALECT = Dialect(
    paths=PATHS,
    summary="Ranks `texts` by how well they match a query, as text-embeddings-inference does.",
    body=TeiBody,
    answers=TeiAnswer,
    read=_read,
    takes=lambda body: "texts" in body and "documents" not in body,
    error=_error,
    errors=TeiError,
)

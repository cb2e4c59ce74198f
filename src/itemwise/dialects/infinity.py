"""Rerank as infinity has it: like the others, but documents come back as bare texts.

On a path of its own, since the bodies of its clients are those of vLLM's, which read an object.
Sources: the packages infinity-client 0.0.78 and litellm (`infinity/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from itemwise.dialects.base import Dialect, Exchange
from itemwise.dialects.rerank import RerankBody, RerankError, RerankUsage, error, read
from itemwise.request.ranking import Ranking


class InfinityResult(BaseModel):
    """A document and how well it matches."""

    index: int
    relevance_score: float
    document: str | None = Field(None, description="With `return_documents`.")
    truncated: bool | None = None


class InfinityAnswer(BaseModel):
    """Answer of `POST /infinity/rerank`, best first."""

    id: str
    object: Literal["rerank"]
    model: str
    results: list[InfinityResult]
    data: list[InfinityResult]
    meta: dict[str, Any]
    usage: RerankUsage


def _read(body: Mapping[str, Any]) -> Exchange[Ranking]:
    return read(body, document_of=str)


DIALECT = Dialect(
    paths=("/infinity/rerank",),
    summary="Ranks documents by how well they match a query, as infinity does.",
    body=RerankBody,
    answers=InfinityAnswer,
    read=_read,
    error=error,
    errors=RerankError,
)

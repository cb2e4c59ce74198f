"""Rerank as Cohere, Jina, Voyage, infinity, vLLM and SGLang have it, in one envelope.

Sources: the packages cohere 7.3.1, litellm, jina-haystack, voyageai 0.5.0 and infinity-client
0.0.78; vLLM's and SGLang's documentation of `/rerank`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from itemwise.dialects.base import Dialect, Exchange, Fault, common_error, parse
from itemwise.errors import RequestError
from itemwise.request.ranking import RankCall, Ranking

PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")


class RerankBody(BaseModel):
    """Body of `POST /rerank`, `/v1/rerank` and `/v2/rerank`. Fields not named are ignored."""

    model: Any = Field(None, description="Name of the model; optional.")
    query: str = Field(description="What is searched for.")
    documents: list[str | dict[str, Any]] = Field(
        description="Texts, or objects with a `text`; at least one."
    )
    top_n: int | None = Field(
        None,
        ge=1,
        strict=True,
        validation_alias=AliasChoices("top_n", "top_k"),
        description="How many results to return, all by default. Also `top_k`.",
    )
    return_documents: bool | None = Field(None, description="Give documents back with results.")
    instruction: str | None = Field(
        None,
        validation_alias=AliasChoices("instruction", "instruct"),
        description="What counts as a match, if the model's prompt has a place for it. Also "
        "`instruct`.",
    )
    max_tokens_per_doc: int | None = Field(
        None, ge=1, strict=True, description="Tokens at which a document is cut."
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        strict=True,
        description="Tokens at which a prompt is cut, inside its document; -1 for the model's "
        "limit.",
    )
    truncate: bool | None = Field(
        None,
        validation_alias=AliasChoices("truncate", "truncation"),
        description="false refuses documents that are too long instead of cutting them. Also "
        "`truncation`.",
    )
    raw_scores: bool | None = Field(
        None, description="Logits or log-odds in place of numbers between 0 and 1."
    )
    priority: int = Field(0, strict=True, description="A lower number always runs first.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds after which to give up.")


class Document(BaseModel):
    """A document that is given back."""

    text: str


class RerankResult(BaseModel):
    """A document and how well it matches."""

    index: int = Field(description="Its place in the request.")
    relevance_score: float
    document: Document | None = Field(None, description="With `return_documents`.")
    truncated: bool | None = Field(
        None, description="true if the document was too long and only its beginning was read."
    )


class RerankUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(BaseModel):
    """Answer of `POST /rerank`, best first."""

    id: str
    object: Literal["rerank"]
    model: str
    results: list[RerankResult]
    data: list[RerankResult] = Field(description="The same as `results`.")
    meta: dict[str, Any]
    usage: RerankUsage


def as_object(text: str) -> Any:
    """A document as most clients read it."""
    return {"text": text}


def read(
    body: Mapping[str, Any], document_of: Callable[[str], Any] = as_object
) -> Exchange[Ranking]:
    """What a body asks for; `document_of` writes a document that is given back."""
    fields = parse(RerankBody, body)
    documents = [_text(document, i) for i, document in enumerate(fields.documents)]
    limit = fields.truncate_prompt_tokens
    call = RankCall(
        fields.query,
        documents,
        fields.instruction,
        max_document_tokens=fields.max_tokens_per_doc,
        max_prompt_tokens=limit if limit and limit > 0 else None,
        truncate=fields.truncate is not False,
        priority=fields.priority,
        timeout_s=fields.timeout_s,
    )

    def answer(ranking: Ranking, model: str) -> dict[str, Any]:
        given = [document_of(text) for text in documents] if fields.return_documents else None
        return _answer(ranking, model, fields, given)

    return Exchange(call, answer, fields.model)


def _text(document: str | dict[str, Any], index: int) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if isinstance(text, str):
        return text
    raise RequestError(
        "invalid_items_type",
        f"`documents[{index}]` is an object without a `text`, expected text; other kinds of "
        "documents are not supported",
        "documents",
    )


def _answer(
    ranking: Ranking, model: str, fields: RerankBody, documents: list[Any] | None
) -> dict[str, Any]:
    scores = ranking.margins if fields.raw_scores else ranking.scores
    results: list[dict[str, Any]] = []
    for index in ranking.order(fields.top_n):
        result: dict[str, Any] = {"index": index, "relevance_score": float(scores[index])}
        if documents is not None:
            result["document"] = documents[index]
        if ranking.cut[index]:
            result["truncated"] = True
        results.append(result)
    meta: dict[str, Any] = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    if num_cut := sum(ranking.cut):
        meta["warnings"] = [f"{num_cut} documents were too long and only their beginning was read"]
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "rerank",
        "model": model,
        "results": results,
        "data": results,
        "meta": meta,
        "usage": {"prompt_tokens": ranking.prompt_tokens, "total_tokens": ranking.prompt_tokens},
    }


class RerankError(BaseModel):
    """Body of an error: `message` (Cohere), `detail` (Jina, infinity) and `error` (OpenAI)."""

    object: Literal["error"]
    message: str
    type: str
    param: str | None
    code: int
    error: dict[str, Any]
    detail: Any


def error(fault: Fault) -> dict[str, Any]:
    """An error that clients of all these servers read."""
    detail: Any = fault.message
    if fault.status == 422:  # as FastAPI has them, which infinity's client parses
        detail = [{"loc": ["body"], "msg": fault.message, "type": fault.code}]
    return {**common_error(fault), "detail": detail}


DIALECT = Dialect(
    paths=PATHS,
    summary="Ranks documents by how well they match a query.",
    body=RerankBody,
    answers=RerankAnswer,
    read=read,
    error=error,
    errors=RerankError,
)

"""Bodies of requests and responses, as OpenAPI documents them at `/docs`.

Request bodies are parsed by hand, for speed and better errors; `request/check.py` checks them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ScoreBody(BaseModel):
    """Body of `POST /v1/score`. Fields not named here are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": [1957, 1437, 25975, 25],
                    "items": [[358, 2948, 419, 1985, 13], [1096, 374, 17478, 323, 38123, 13]],
                    "label_token_ids": [9834, 902],
                    "apply_softmax": True,
                }
            ]
        }
    )

    model: str | None = Field(None, description="Name of the model; optional.")
    query: str | list[int] = Field(
        description="What all items share: text, or token ids. Text gets the special tokens "
        "that start the model's sequences."
    )
    items: list[str] | list[list[int]] = Field(
        description="Candidates: texts if the query is text, otherwise lists of token ids. An "
        "empty item is scored at the end of the query."
    )
    label_token_ids: list[int] | list[list[int]] | None = Field(
        None,
        description="Token ids to score after each item: one list for all items, or a list per "
        "item.",
    )
    labels: list[str] | list[list[str]] | None = Field(
        None, description="Texts of one token each, instead of `label_token_ids`."
    )
    apply_softmax: bool = Field(
        False, description="Softmax over the labels; otherwise probabilities over the vocabulary."
    )
    apply_template: bool = Field(
        False,
        description="Put query and items, as text, into the model's prompt template; its labels "
        "are used if none are given.",
    )
    item_first: bool = Field(
        False, description="Score `item + query`; slower, because items then share nothing."
    )
    temperature: float = Field(1.0, gt=0, description="Divides the logits.")
    chunk_size: int | None = Field(
        None,
        ge=0,
        description="Maximum number of items in a packed sequence, instead of the server's "
        "setting; 0 means no limit. The other algorithms ignore it.",
    )
    priority: int = Field(
        0,
        description="Requests with a lower number always run first. It never changes a score.",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="Seconds from queueing after which the request fails with 504; the server "
        "has its own maximum.",
    )


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int = Field(description="Tokens of the request; the shared prefix counts once.")
    total_tokens: int
    completion_tokens: int = Field(0, description="Always 0: nothing is generated.")


class ScoreResponse(BaseModel):
    """Answer of `POST /v1/score`."""

    id: str
    object: Literal["scoring"]
    created: int = Field(description="Unix time in seconds.")
    model: str
    scores: list[list[float]] = Field(
        description="For each item, in request order, the score of each label."
    )
    usage: Usage


class ErrorDetail(BaseModel):
    """The error format of OpenAI's API."""

    message: str = Field(description="What was received, what was expected, and what to do.")
    type: str
    param: str | None = Field(description="The request field at fault.")
    code: str = Field(description="Stable name of the error.")


class ErrorBody(BaseModel):
    """Body of every error: the same facts at the top level and in `error`."""

    object: Literal["error"]
    message: str
    type: str
    param: str | None
    code: int = Field(description="The HTTP status.")
    error: ErrorDetail


class Health(BaseModel):
    """Answer of `GET /health` when the server can score."""

    status: Literal["ok"]


class ModelCard(BaseModel):
    """A model, in the format of OpenAI's API."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class ServerInfo(BaseModel):
    """Answer of `GET /server_info`."""

    version: str
    state: str = Field(description="loading, ready, failed or draining.")
    server: dict[str, Any] = Field(description="Settings of the server, without the API key.")
    scheduler: dict[str, int] | None = Field(description="Counts of requests, once loaded.")
    engine: dict[str, Any] | None = Field(
        description="The model, device, settings and counters, once loaded."
    )

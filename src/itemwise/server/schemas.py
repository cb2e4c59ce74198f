"""Bodies of requests and responses, as OpenAPI documents them at `/docs`.

Request bodies are parsed by hand, for speed and for errors that say more; `request.py` checks them.
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

    model: str | None = Field(None, description="Name of the model; may be left out.")
    query: str | list[int] = Field(
        description="What all items share: text, or token ids. Text gets the special tokens that "
        "the model's sequences start with."
    )
    items: list[str] | list[list[int]] = Field(
        description="Candidates: texts if the query is text, else lists of token ids. An item may "
        "be empty; it is scored at the end of the query."
    )
    label_token_ids: list[int] | list[list[int]] | None = Field(
        None,
        description="Token ids whose probability after each item is asked for: one list for all "
        "items, or a list per item.",
    )
    labels: list[str] | list[list[str]] | None = Field(
        None, description="Texts of one token each, in place of `label_token_ids`."
    )
    apply_softmax: bool = Field(
        False, description="Softmax over the labels; else probabilities over the vocabulary."
    )
    apply_template: bool = Field(
        False,
        description="Put query and items, as text, into the model's prompt template; its labels "
        "are used where none are given.",
    )
    item_first: bool = Field(
        False, description="Score `item + query`; nothing is shared then, so it is slower."
    )
    temperature: float = Field(1.0, gt=0, description="Divides the logits.")
    chunk_size: int | None = Field(
        None,
        ge=0,
        description="Most items of a packed sequence, in place of the server's setting; 0 for no "
        "bound. Without effect on the other algorithms.",
    )
    priority: int = Field(
        0,
        description="Of requests that wait for each other, those of a lower number run first, "
        "always. Changes when, never what.",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="Seconds after which the request is given up (504), from when it was queued; "
        "the server has a bound of its own.",
    )


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int = Field(description="Tokens of the request, the shared prefix counted once.")
    total_tokens: int
    completion_tokens: int = Field(0, description="Always 0: nothing is generated.")


class ScoreResponse(BaseModel):
    """Answer of `POST /v1/score`."""

    id: str
    object: Literal["scoring"]
    created: int = Field(description="Unix time in seconds.")
    model: str
    scores: list[list[float]] = Field(
        description="Per item, in the order of the request, the score of each of its labels."
    )
    usage: Usage


class ErrorDetail(BaseModel):
    """The form of OpenAI's API."""

    message: str = Field(description="What was expected, what came, and what to do.")
    type: str
    param: str | None = Field(description="The request field at fault.")
    code: str = Field(description="Stable name of the fault.")


class ErrorBody(BaseModel):
    """Every error: the same facts at the top level and in `error`."""

    object: Literal["error"]
    message: str
    type: str
    param: str | None
    code: int = Field(description="The HTTP status.")
    error: ErrorDetail


class Health(BaseModel):
    """Answer of `GET /health` once scores can be had."""

    status: Literal["ok"]


class ModelCard(BaseModel):
    """A model, in the form of OpenAI's API."""

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
    scheduler: dict[str, int] | None = Field(description="Requests counted, once loaded.")
    engine: dict[str, Any] | None = Field(description="What runs and how, once loaded.")

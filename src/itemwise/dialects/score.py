"""SGLang's `POST /v1/score`: the probabilities of labels after each item.

Bodies can be long lists of token ids, so `request/check.py` checks them, for speed and better
errors; `ScoreBody` documents them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from itemwise.dialects.base import Dialect, Exchange
from itemwise.errors import RequestError
from itemwise.request.calls import ScoreCall
from itemwise.types import ScoreResult


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
    query: str | list[int] | None = Field(
        None,
        description="What all items share: text, or token ids. Text gets the tokens "
        "that begin the model's sequences. Without a query, items begin the sequence.",
    )
    items: str | list[str] | list[list[int]] = Field(
        description="Candidates: texts if the query is text, otherwise lists of token ids. An "
        "empty item is scored at the end of the query. A text is one item."
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
    tokenize: Literal["whole", "parts"] | None = Field(
        None,
        description="Tokenise query and item as one text, or each by itself; by default as the "
        "server is set, whole if it is not.",
    )
    special_tokens: Literal["auto", "text", "control"] | None = Field(
        None,
        description="Whether control tokens that texts spell stay text or are control tokens. "
        "auto: text with `apply_template`, else control tokens.",
    )
    temperature: float = Field(1.0, gt=0, description="Divides the logits.")
    truncate: bool | None = Field(
        None,
        description="Cut items that are too long, at their end, instead of refusing the request; "
        "by default as the server is set, false if it is not.",
    )
    max_tokens_per_item: int | None = Field(
        None, ge=1, description="With `truncate`, tokens at which an item is cut."
    )
    return_token_logprobs: bool = Field(
        False,
        description="Also give the labels' log-probabilities over the vocabulary, at temperature "
        "1, as `token_logprobs`.",
    )
    return_tokens: bool = Field(
        False,
        description="Also give every token of the prompts with its text, those that all items "
        "share apart, as `tokens`; of at most 32,768 tokens.",
    )
    chunk_size: int | None = Field(
        None,
        ge=0,
        description="Maximum number of items in a packed sequence, instead of the server's "
        "setting; 0 means no limit. The other algorithms ignore it.",
    )
    priority: int = Field(
        0,
        description="Requests with a lower number run first. It never changes a score.",
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


class TokenList(BaseModel):
    """Tokens in order."""

    ids: list[int]
    texts: list[str] = Field(description="What each stands for; empty without a tokenizer.")


class PromptTokenLists(BaseModel):
    """The prompts as the model reads them."""

    shared: TokenList = Field(description="What all prompts begin with.")
    items: list[TokenList] = Field(description="What follows it in each.")


class ScoreResponse(BaseModel):
    """Answer of `POST /v1/score`."""

    id: str
    object: Literal["scoring"]
    created: int = Field(description="Unix time in seconds.")
    model: str
    scores: list[list[float]] = Field(
        description="For each item, in request order, the score of each label."
    )
    token_logprobs: list[list[float]] | None = Field(
        None, description="With `return_token_logprobs`, in the form of `scores`."
    )
    truncated_items: list[int] | None = Field(
        None, description="Items of which only the beginning was read, if there are any."
    )
    tokens: PromptTokenLists | None = Field(None, description="With `return_tokens`.")
    usage: Usage


# Fields of SGLang's requests that would change the answer and are not served.
REFUSED = {
    "score_extraction_token": "scores are read at the end of each item",
    "embed_override_token_id": "embeddings cannot be replaced",
    "query_embed_overrides": "embeddings cannot be replaced",
    "item_embed_overrides": "embeddings cannot be replaced",
    "return_pooled_hidden_states": "hidden states are not returned",
    "return_hidden_states": "hidden states are not returned",
    "lora_path": "adapters are not supported",
}


def read_call(body: Mapping[str, Any]) -> ScoreCall | None:
    """The call that a body is; None if it has no items."""
    for name, reason in REFUSED.items():
        if body.get(name) not in (None, False, [], ""):
            raise RequestError(
                "unsupported_field", f"`{name}` is not supported: {reason}; leave it out", name
            )
    items = body.get("items")
    logprobs, tokens = (_flag(body, f"return_{each}") for each in ("token_logprobs", "tokens"))
    if items == []:
        return None
    if isinstance(items, str):
        body = {**body, "items": [items]}
    return ScoreCall(body, may_lack_query=True, with_logprobs=logprobs, with_tokens=tokens)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    wanted = body.get(name)
    if wanted is not None and not isinstance(wanted, bool):
        raise RequestError("invalid_request", f"`{name}` is not true or false", name)
    return bool(wanted)


def _read(body: Mapping[str, Any]) -> Exchange[ScoreResult]:
    return Exchange(read_call(body), _answer, body.get("model"))


def _answer(result: ScoreResult, model: str) -> dict[str, Any]:
    scores = result.scores
    body = {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "scoring",
        "created": int(time.time()),
        "model": model,
        "scores": scores if isinstance(scores, list) else np.ascontiguousarray(scores),
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "total_tokens": result.prompt_tokens,
            "completion_tokens": 0,
        },
    }
    if result.logprobs is not None:
        body["token_logprobs"] = result.logprobs
    if result.tokens is not None:
        items = [item._asdict() for item in result.tokens.items]
        body["tokens"] = {"shared": result.tokens.shared._asdict(), "items": items}
    if result.cut_items:
        body["truncated_items"] = result.cut_items
    return body


DIALECT = Dialect(
    paths=("/v1/score", "/score"),
    summary="Scores every item: the next-token probabilities of the labels after `query + item`.",
    body=ScoreBody,
    answers=ScoreResponse,
    read=_read,
)

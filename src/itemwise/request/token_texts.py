"""The prompts of a request as the model reads them: every token with its text."""

from __future__ import annotations

from collections.abc import Iterable

from itemwise.errors import RequestError
from itemwise.request.tools import PromptTools
from itemwise.types import PromptTokens, ScoreRequest, TokenTexts

MAX_TOKENS = 32_768  # that an answer lists


def prompt_tokens(request: ScoreRequest, tools: PromptTools) -> PromptTokens:
    """The tokens of a request; their texts are empty if the model has no tokenizer.

    Raises:
        RequestError: they are too many to list (`too_many_tokens`).
    """
    query, items = len(request.query), len(request.items)
    total = query * (items if request.item_first else 1) + len(request.items.tokens)
    if total > MAX_TOKENS:
        raise RequestError(
            "too_many_tokens",
            f"the request has {total} tokens, and an answer lists at most {MAX_TOKENS}; send fewer "
            "items, or leave out `return_tokens`",
            "return_tokens",
        )
    return _listed(request, tools)


def _listed(request: ScoreRequest, tools: PromptTools) -> PromptTokens:
    delimiter = [] if tools.limits.delimiter is None else [tools.limits.delimiter]
    query = request.query.tolist()
    items = [item.tolist() for item in request.items]
    if request.item_first:
        query, items = [], [[*item, *delimiter, *query] for item in items]
    else:
        query = [*query, *delimiter]
    texts = _texts({*query, *(token for item in items for token in item)}, tools)

    def named(ids: list[int]) -> TokenTexts:
        return TokenTexts(ids, [texts[token] for token in ids])

    return PromptTokens(named(query), [named(item) for item in items])


def _texts(ids: Iterable[int], tools: PromptTools) -> dict[int, str]:
    known = list(ids)
    texts = [""] * len(known) if tools.tokenizer is None else tools.tokenizer.texts_of(known)
    return dict(zip(known, texts, strict=True))

"""Rankings: how well documents match a query, as the model's profile asks and reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from itemwise.errors import RequestError
from itemwise.request.calls import Prepared, finite
from itemwise.request.leniency import cut_text
from itemwise.request.profiles import Profile
from itemwise.request.prompts import (
    EncodedPrompts,
    Names,
    encode_parts,
    encode_prompts,
    num_bytes,
)
from itemwise.request.read_out import Float64Array
from itemwise.request.tools import PromptTools
from itemwise.types import ScoreRequest, ScoreResult


@dataclass(frozen=True)
class Ranking:
    """How well each document matches, in the documents' order.

    Attributes:
        margins: float64 [documents], what rankings sort by; does not saturate.
        scores: float64 [documents], what clients see.
        cut: for each document, whether only its beginning was read.
        prompt_tokens: tokens of all prompts, the shared prefix counted once.
    """

    margins: Float64Array
    scores: Float64Array
    cut: Sequence[bool]
    prompt_tokens: int

    def order(self, top_n: int | None = None) -> list[int]:
        """The documents' places, best first; equal ones keep their order."""
        order: list[int] = np.argsort(-self.margins, kind="stable")[:top_n].tolist()
        return order


@dataclass(frozen=True)
class RankCall:
    """How well documents match a query.

    Attributes:
        query: what is searched for; or one for each document.
        documents: texts, at least one.
        instruction: what counts as a match; None for the profile's own words.
        max_document_tokens: beyond which a document is cut; None for no limit of its own.
        max_prompt_tokens: most tokens of a prompt, inside the model's limit; None for that.
        truncate: cut documents that are too long, at their end; else they are refused.
        priority: see `ScoreRequest`.
        timeout_s: see `ScoreRequest`.
        names: what the caller calls query and documents, for messages.
    """

    query: str | Sequence[str]
    documents: Sequence[str]
    instruction: str | None = None
    max_document_tokens: int | None = None
    max_prompt_tokens: int | None = None
    truncate: bool = True
    priority: int = 0
    timeout_s: float | None = None
    names: tuple[str, str] = ("query", "documents")

    def prepare(self, tools: PromptTools) -> Prepared[Ranking]:
        """See `Call.prepare`."""
        profile = self._profile(tools)
        self._check(tools)
        prompts, cut = self._encode(profile, tools)
        request = ScoreRequest(
            prompts.query,
            prompts.items,
            (profile.label_ids,) * len(prompts.items),
            apply_softmax=True,
            priority=self.priority,
            timeout_s=self.timeout_s,
        )

        def finish(result: ScoreResult) -> Ranking:
            logits = finite(result, self.names[1]).logits
            assert logits is not None
            margins = profile.read_out.margins(logits)
            scores = profile.read_out.scores(margins)
            return Ranking(margins, scores, cut, result.prompt_tokens)

        return Prepared(request, finish, items=self.names[1])

    def _profile(self, tools: PromptTools) -> Profile:
        if isinstance(tools.profile, Profile):
            return tools.profile
        raise RequestError("no_profile", f"the model cannot rank: {tools.profile}")

    def _check(self, tools: PromptTools) -> None:
        query, documents = self.names
        most = tools.limits.max_items
        if not self.documents:
            raise RequestError(
                "empty_items", f"`{documents}` is empty, expected at least one text", documents
            )
        if most is not None and len(self.documents) > most:
            raise RequestError(
                "too_many_items",
                f"`{documents}` has {len(self.documents)} texts, at most {most} are allowed; send "
                "several requests",
                documents,
            )
        several = isinstance(self.query, list | tuple)
        queries: Sequence[object] = self.query if several else [self.query]
        if several and len(queries) != len(self.documents):
            raise RequestError(
                "invalid_query_type",
                f"`{query}` has {len(queries)} texts for {len(self.documents)} in `{documents}`, "
                "expected one text, or one for each document",
                query,
            )
        for index, text in enumerate(queries):
            where = f"{query}[{index}]" if several else query
            _check_text(text, "invalid_query_type", where)
        for index, text in enumerate(self.documents):
            _check_text(text, "invalid_items_type", f"{documents}[{index}]")

    def _encode(self, profile: Profile, tools: PromptTools) -> tuple[EncodedPrompts, list[bool]]:
        """The prompts in tokens, and which documents were cut."""
        tokenizer = tools.tokenizer
        assert tokenizer is not None
        documents: Sequence[str] = self.documents
        if (most := self.max_document_tokens) is not None:
            documents = [cut_text(text, most, tokenizer) for text in documents]
        queries = [self.query] if isinstance(self.query, str) else self.query
        asked = [profile.query_segments(query, self.instruction) for query in queries]
        # With several queries, what all prompts share is the template's text before them.
        num_shared = len(asked[0]) if len(set(queries)) == 1 else int(asked[0][0].special)
        heads = [each[num_shared:] for each in asked]
        items = [
            (*heads[index % len(heads)], *profile.item_segments(document))
            for index, document in enumerate(documents)
        ]
        limits = tools.limits
        most = min(self.max_prompt_tokens or limits.max_seq_len, limits.max_seq_len)
        # Nothing merges across a delimiter.
        encode = encode_prompts if limits.delimiter is None else encode_parts
        prompts = encode(
            tokenizer,
            asked[0][:num_shared],
            items,
            max_tokens=most - (limits.delimiter is not None),
            cut=max(i for i, segment in enumerate(items[0]) if not segment.special),
            names=Names(*self.names),
        )
        pairs = zip(self.documents, documents, prompts.cut, strict=True)
        was_cut = [len(kept) < len(text) or cut for text, kept, cut in pairs]
        if not self.truncate and True in was_cut:
            name = self.names[1]
            raise RequestError(
                "sequence_too_long",
                f"`{name}[{was_cut.index(True)}]` is longer than the model or the request allows; "
                "shorten it, or let it be cut (`truncate`)",
                name,
            )
        return prompts, was_cut


def _check_text(text: object, code: str, name: str) -> None:
    """Returns if it is a Unicode text; Python's callers pass anything."""
    if not isinstance(text, str):
        raise RequestError(
            code,
            f"`{name}` has the type {type(text).__name__}, expected text",
            name.partition("[")[0],
        )
    num_bytes(text, code, name)

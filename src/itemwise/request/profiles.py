"""Reranker profiles: how a checkpoint wants to be asked whether a document matches, and be read.

Built-in ones are found by the checkpoint. A `prompt_template.json` in its folder, or the file that
`--prompt-template` names, comes first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from itemwise.errors import CheckpointError, RequestError
from itemwise.request.chat import ChatTemplate
from itemwise.request.prompts import Segment
from itemwise.request.read_out import ReadOut
from itemwise.request.template import PromptTemplate
from itemwise.request.tokenizer import Tokenizer

_PLACEHOLDER = re.compile(r"(\{instruction\}|\{query\}|\{item\})")
_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)


@dataclass(frozen=True)
class Profile:
    """How a checkpoint is asked and read.

    Attributes:
        name: of the profile.
        why: how it was chosen.
        query: text before the document, with `{query}` and perhaps `{instruction}`.
        item: text of the document, with `{item}`, and what follows it.
        labels: texts of one token each. Empty for a classification head.
        read_out: how a score comes of the labels' logits.
        label_ids: token ids of the labels, or labels of the head.
        instruction: what `{instruction}` stands for if a call says nothing else.
        instruction_form: how an instruction that is not empty is written.
        strip: whether query and document lose white space around them.
    """

    name: str
    why: str
    query: str
    item: str
    labels: tuple[str, ...]
    read_out: ReadOut = ReadOut()
    label_ids: tuple[int, ...] = ()
    instruction: str = ""
    instruction_form: str = "{instruction}"
    strip: bool = False

    def query_segments(self, query: str, instruction: str | None = None) -> tuple[Segment, ...]:
        """The prompt up to the document.

        Raises:
            RequestError: there is an instruction, and the prompt has no place for it.
        """
        if instruction and "{instruction}" not in self.query:
            raise RequestError(
                "no_instruction",
                f"the prompt of this model (profile {self.name}) has no place for an instruction; "
                "leave it out, or write it into the query",
                "instruction",
            )
        instruction = self.instruction if instruction is None else instruction
        if instruction:
            instruction = self.instruction_form.replace("{instruction}", instruction)
        shared = self.query + self.item.partition("{item}")[0]
        return self._segments(shared, {"{instruction}": instruction, "{query}": query})

    def item_segments(self, document: str) -> tuple[Segment, ...]:
        """The document and what follows it."""
        _, place, after = self.item.partition("{item}")
        return self._segments(place + after, {"{item}": document})

    def _segments(self, template: str, texts: Mapping[str, str]) -> tuple[Segment, ...]:
        parts = []
        for part in _PLACEHOLDER.split(template):
            if part in texts:
                text = texts[part]
                parts.append(Segment(text.strip() if self.strip else text))
            elif part:
                parts.append(Segment(part, special=True))
        return tuple(parts)

    def info(self) -> dict[str, Any]:
        """JSON values for `/v1/models` and `/server_info`."""
        return {
            "name": self.name,
            "why": self.why,
            "labels": list(self.labels) or list(self.label_ids),
            "read_out": self.read_out.kind,
            "scale": self.read_out.scale,
            "activation": self.read_out.activation,
        }


class Checkpoint(NamedTuple):
    """What a profile is chosen by.

    Attributes:
        names: names that the model goes by, in lower case, the first ones first.
        architecture: class of transformers, such as `Qwen3ForCausalLM`.
        num_head_labels: labels of its classification head; None if it has none.
        chat: its chat template; None if it has none.
    """

    names: tuple[str, ...]
    architecture: str
    num_head_labels: int | None = None
    chat: ChatTemplate | None = None

    def is_named(self, *words: str) -> str | None:
        """The first name that contains one of the words."""
        return next((n for n in self.names if any(word in n for word in words)), None)


def find_profile(
    model: str,
    folder: Path,
    num_head_labels: int | None,
    tokenizer: Tokenizer | None,
    template: PromptTemplate | None,
) -> Profile | str:
    """The profile of a model folder; or the reason why it cannot rank.

    Args:
        model: path or Hub id that the user gave.
        folder: where the model lies.
        num_head_labels: labels of its classification head; None if it has none.
        tokenizer: its tokenizer.
        template: its prompt template, which comes first.
    """
    if tokenizer is None:
        return "it has no tokenizer.json"
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    lowered = names_of(model, folder, raw)
    architecture = (raw.get("architectures") or [""])[0]
    try:
        chat = ChatTemplate.from_folder(folder)
        found = _candidates(Checkpoint(lowered, architecture, num_head_labels, chat), template)
    except CheckpointError as error:
        return f"{error}; a prompt_template.json can take its place"
    return _first_that_fits(found, tokenizer)


def names_of(model: str, folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that a model goes by, in lower case, the first ones first.

    Args:
        model: path or Hub id that the user gave.
        folder: where the model lies.
        config: its `config.json`.
    """
    # Parts of paths, since clients see them; in the Hub's cache the folder's own name is a hash.
    own = PurePath(str(config.get("_name_or_path") or ""))
    names = [
        part
        for path in (PurePath(model), folder.absolute(), own)
        for part in reversed(path.parts[-4:])
    ]
    return tuple(dict.fromkeys(name.lower() for name in names if name))


def _candidates(checkpoint: Checkpoint, template: PromptTemplate | None) -> Sequence[Profile]:
    """Profiles that would do, the best first."""
    if template is not None:
        return (_of_template(template),)
    if checkpoint.num_head_labels is not None:
        return (_of_head(checkpoint),)
    return _of_language_model(checkpoint)


def _first_that_fits(found: Sequence[Profile], tokenizer: Tokenizer) -> Profile | str:
    """The first profile all of whose labels are tokens; or the reason why there is none."""
    problem = ""
    for profile in found:
        try:
            ids = tuple(map(tokenizer.label_id, profile.labels))
        except RequestError as error:
            problem = problem or f"{error}, or a prompt_template.json with other labels"
            continue
        return replace(profile, label_ids=ids) if ids else profile
    return problem


def _of_template(template: PromptTemplate) -> Profile:
    return Profile(
        "prompt-template",
        "the checkpoint or --prompt-template has a prompt template",
        template.query,
        template.item,
        template.labels,
        template.read_out,
        instruction=template.instruction,
    )


def _of_head(checkpoint: Checkpoint) -> Profile:
    """One label: sigmoid of its logit. Two: probability of the second, as binary heads have it."""
    num_labels = checkpoint.num_head_labels
    if num_labels is not None and num_labels > 2:
        raise CheckpointError(
            f"the classification head has {num_labels} labels, and nothing says which of them "
            "means a match"
        )
    single = num_labels == 1
    read_out, ids = (ReadOut("logit"), (0,)) if single else (ReadOut(), (1, 0))
    why = f"its architecture is {checkpoint.architecture}"
    if name := checkpoint.is_named("qwen3-reranker"):
        return replace(
            _qwen3_reranker(f"{why} and it is named {name!r}"),
            labels=(),
            read_out=read_out,
            label_ids=ids,
        )
    if name := checkpoint.is_named(*_MXBAI_NAMES):
        return replace(
            _mxbai_rerank_v2(f"{why} and it is named {name!r}"),
            labels=(),
            read_out=read_out,
            label_ids=ids,
        )
    # As `tokenizer(query, document)` of transformers: one after the other, nothing between.
    return Profile("classification-head", why, "{query}", "{item}", (), read_out, ids)


def _of_language_model(checkpoint: Checkpoint) -> Sequence[Profile]:
    if name := checkpoint.is_named("qwen3-reranker"):
        return (_qwen3_reranker(f"it is named {name!r}"),)
    if name := checkpoint.is_named(*_MXBAI_NAMES):
        return (_mxbai_rerank_v2(f"it is named {name!r}"),)
    if checkpoint.chat is not None:
        if name := checkpoint.is_named("zerank"):
            return (_zerank(checkpoint.chat, f"it is named {name!r}"),)
        return _of_chat(checkpoint.chat)
    return [
        Profile(
            "plain",
            "it has no chat template",
            "Query: {query}\nDocument:",
            " {item}\nDoes the document answer the query? Answer yes or no.\nAnswer:",
            labels,
        )
        for labels in ((" yes", " no"), ("yes", "no"))
    ]


def _qwen3_reranker(why: str) -> Profile:
    """Source: model card of Qwen/Qwen3-Reranker-0.6B on Hugging Face."""
    return Profile(
        "qwen3-reranker",
        why,
        f"<|im_start|>system\n{_JUDGE}<|im_end|>\n<|im_start|>user\n"
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",
        " {item}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ("yes", "no"),
        instruction=_WEB_SEARCH,
    )


_MXBAI_NAMES = ("mxbai-rerank-base-v2", "mxbai-rerank-large-v2")


def _mxbai_rerank_v2(why: str) -> Profile:
    """Source: the package mxbai-rerank, which the model cards of mxbai-rerank-*-v2 name."""
    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. "
        "For each query-document pair, carefully analyze the semantic relationship between them, "
        "then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:"
    )
    return Profile(
        "mxbai-rerank-v2",
        why,
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n{instruction}query: {query}\ndocument:",
        f" {{item}}\n{task}<|im_end|>\n<|im_start|>assistant\n",
        ("1", "0"),
        instruction_form="instruction: {instruction}\n",
    )


def _zerank(chat: ChatTemplate, why: str) -> Profile:
    """Source: model cards of zeroentropy/zerank-1 and zerank-2: sigmoid(logit of Yes / 5)."""
    query, item = chat.render(
        [{"role": "system", "content": "{query}"}, {"role": "user", "content": "{item}"}]
    )
    read_out = ReadOut("logit", scale=0.2)
    return Profile("zerank", why, query, item, ("Yes",), read_out, strip=True)


def _of_chat(chat: ChatTemplate) -> Sequence[Profile]:
    """A chat model that was not made for it, asked yes or no."""
    content = (
        f"{_JUDGE}\n\n<Instruct>: {{instruction}}\n<Query>: {{query}}\n<Document>: {{item}}\n\n"
        "Answer yes or no."
    )
    query, item = chat.render([{"role": "user", "content": content}])
    why = "it has a chat template"
    return [
        Profile("chat", why, query, item, labels, instruction=_WEB_SEARCH)
        for labels in (("yes", "no"), ("Yes", "No"), (" yes", " no"))
    ]

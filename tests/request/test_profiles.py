"""Which profile a checkpoint gets, and what its prompts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itemwise.errors import RequestError
from itemwise.request.profiles import Profile, find_profile
from itemwise.request.read_out import ReadOut
from itemwise.request.template import PromptTemplate

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class OneTokenEach:
    """A tokenizer for which some texts are labels."""

    def __init__(self, *labels: str) -> None:
        self._labels = labels

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def label_id(self, text: str) -> int:
        if text not in self._labels:
            raise RequestError("label_not_one_token", f"{text!r} is not one token")
        return self._labels.index(text)


ALL: Any = OneTokenEach("yes", "no", "1", "0", "Yes", "No", " yes", " no")


def folder(tmp_path: Path, name: str, architecture: str, chat: str | None = None) -> Path:
    path = tmp_path / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    if chat is not None:
        (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat}))
    return path


def prompt(profile: Profile, query: str, document: str, instruction: str | None = None) -> str:
    parts = (*profile.query_segments(query, instruction), *profile.item_segments(document))
    return "".join(part.text for part in parts)


def found(path: Path, **more: Any) -> Profile:
    arguments = {"num_head_labels": None, "tokenizer": ALL, "template": None, **more}
    profile = find_profile(str(path), path, **arguments)
    assert isinstance(profile, Profile), profile
    return profile


@pytest.mark.parametrize(
    ("place", "num_labels", "name", "labels", "read_out"),
    [
        ("Qwen3-Reranker-0.6B", None, "qwen3-reranker", (0, 1), ReadOut()),
        ("Qwen3-Reranker-0.6B-seq-cls", 1, "qwen3-reranker", (0,), ReadOut("logit")),
        ("models--Qwen--Qwen3-Reranker-4B/snapshots/ab12", None, "qwen3-reranker", (0, 1), None),
        ("mxbai-rerank-base-v2", None, "mxbai-rerank-v2", (2, 3), ReadOut()),
        ("mxbai-rerank-base-v1", None, "chat", (0, 1), ReadOut()),
        ("zerank-1-small", None, "zerank", (4,), ReadOut("logit", 0.2)),
        ("Qwen3-0.6B", None, "chat", (0, 1), ReadOut()),
        ("my-head", 1, "classification-head", (0,), ReadOut("logit")),
        ("my-head", 2, "classification-head", (1, 0), ReadOut()),
    ],
)
def test_profile_is_found_by_the_checkpoint(
    tmp_path: Path,
    place: str,
    num_labels: int | None,
    name: str,
    labels: tuple[int, ...],
    read_out: ReadOut | None,
) -> None:
    path = folder(tmp_path, place, "Qwen3ForCausalLM", CHAT)
    profile = found(path, num_head_labels=num_labels)
    assert (profile.name, profile.label_ids) == (name, labels)
    assert read_out in (None, profile.read_out)
    assert profile.why


def test_clients_do_not_learn_where_the_model_lies(tmp_path: Path) -> None:
    path = folder(tmp_path, "secret/Qwen3-Reranker-0.6B", "Qwen3ForCausalLM")
    assert found(path).why == "it is named 'qwen3-reranker-0.6b'"
    path = folder(tmp_path, "broken", "Qwen3ForCausalLM")
    (path / "tokenizer_config.json").write_text("{")
    why = find_profile(str(path), path, None, ALL, None)
    assert isinstance(why, str)
    assert str(tmp_path) not in why


def test_model_without_chat_template_is_asked_in_plain_text(tmp_path: Path) -> None:
    path = folder(tmp_path, "base", "Qwen3ForCausalLM")
    assert found(path).labels == (" yes", " no")
    assert found(path, tokenizer=OneTokenEach("yes", "no")).labels == ("yes", "no")
    assert prompt(found(path), "q", "d").startswith("Query: q\nDocument: d\n")


def test_template_comes_first(tmp_path: Path) -> None:
    path = folder(tmp_path, "Qwen3-Reranker-0.6B", "Qwen3ForCausalLM", CHAT)
    template = PromptTemplate("{query}?", "{item}!", ("no", "yes"), read_out=ReadOut("logit"))
    profile = found(path, template=template)
    assert (profile.name, profile.label_ids) == ("prompt-template", (1, 0))
    assert profile.read_out == ReadOut("logit")
    assert prompt(profile, "q", "d") == "q?d!"


@pytest.mark.parametrize(
    ("number", "tokenizer", "chat", "reason"),
    [
        (None, None, None, "tokenizer.json"),
        (3, ALL, None, "3 labels"),
        (None, OneTokenEach("ja"), CHAT, "'yes' is not one token"),
        (None, ALL, "{{ raise_exception('no') }}", "chat template fails"),
        (None, ALL, "{{ messages[0].nothing }}", "loses"),
        (None, ALL, "{% for", "chat template fails"),
    ],
)
def test_reason_is_given_where_there_is_no_profile(
    tmp_path: Path, number: int | None, tokenizer: Any, chat: str | None, reason: str
) -> None:
    path = folder(tmp_path, "model", "Qwen3ForCausalLM", chat)
    why = find_profile(str(path), path, number, tokenizer, None)
    assert isinstance(why, str)
    assert reason in why


def test_prompt_of_qwen3_reranker_is_that_of_its_model_card(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, "Qwen3-Reranker-0.6B", "Qwen3ForCausalLM", CHAT))
    judge = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".'
    )
    web = "Given a web search query, retrieve relevant passages that answer the query"
    for given, instruct in ((None, web), ("Find code", "Find code")):
        assert prompt(profile, "q", "d", given) == (
            f"<|im_start|>system\n{judge}<|im_end|>\n<|im_start|>user\n<Instruct>: {instruct}\n"
            "<Query>: q\n<Document>: d<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )


def test_prompt_of_mxbai_rerank(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, "mxbai-rerank-large-v2", "Qwen2ForCausalLM"))
    assert "<|im_start|>user\nquery: q\ndocument: d\nYou are a search" in prompt(profile, "q", "d")
    assert "user\ninstruction: i\nquery: q\n" in prompt(profile, "q", "d", "i")


def test_prompt_of_zerank_is_its_chat_template(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, "zerank-2", "Qwen3ForCausalLM", CHAT))
    assert prompt(profile, " q ", "d\n") == (
        "<|im_start|>system\nq<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n"
    )


def test_texts_of_users_are_told_from_the_template(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, "Qwen3-Reranker-0.6B", "Qwen3ForCausalLM"))
    parts = (*profile.query_segments("<|im_end|>{item}", "{query}"), *profile.item_segments("d"))
    assert [part.text for part in parts if not part.special] == ["{query}", "<|im_end|>{item}", "d"]


def test_instruction_needs_a_place(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, "base", "Qwen3ForCausalLM"))
    with pytest.raises(RequestError) as caught:
        profile.query_segments("q", "i")
    assert (caught.value.code, caught.value.param) == ("no_instruction", "instruction")

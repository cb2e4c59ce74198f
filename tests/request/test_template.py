from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itemwise.errors import CheckpointError
from itemwise.request.prompts import Segment
from itemwise.request.template import TEMPLATE_FILE, PromptTemplate

GOOD: dict[str, Any] = {
    "query": "query: {query}\nitem:",
    "item": " {item}\nmatch:",
    "labels": [" yes", " no"],
}
# The published prompt of Qwen3-Reranker, whose instruction is a text of the template's own.
RERANKER: dict[str, Any] = {
    "query": "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
    'Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that "
    "answer the query\n<Query>: {query}\n<Document>:",
    "item": " {item}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "labels": ["yes", "no"],
}


def write(folder: Path, content: Any) -> Path:
    path = folder / TEMPLATE_FILE
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def filled(template: PromptTemplate, query: str, item: str) -> str:
    prompt = [*template.query_part(Segment(query)), *template.item_part(Segment(item))]
    assert [segment.special for segment in prompt] == [True, False, True] * 2
    return "".join(segment.text for segment in prompt)


@pytest.mark.parametrize("raw", [GOOD, RERANKER])
def test_both_parts_make_up_the_prompt(tmp_path: Path, raw: dict[str, Any]) -> None:
    write(tmp_path, raw)
    template = PromptTemplate.from_folder(tmp_path)
    assert template is not None
    prompt = filled(template, "red lamp", "A lamp")
    assert prompt == (raw["query"] + raw["item"]).replace("{query}", "red lamp").replace(
        "{item}", "A lamp"
    )
    assert template.labels == tuple(raw["labels"])


def test_texts_that_look_like_placeholders_stay() -> None:
    template = PromptTemplate("{query}|", "{item}", ("a", "b"))
    item = r"{query} \1 {item}"
    assert filled(template, "{item} {query} {}", item) == "{item} {query} {}|" + item


def test_folder_without_a_template(tmp_path: Path) -> None:
    assert PromptTemplate.from_folder(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "no place"}, "`query` is 'no place', expected {query} once"),
        ({"query": "{query} {query}"}, "expected {query} once"),
        ({"item": "{item} {query}"}, "`item` is '{item} {query}', expected {item} once"),
        ({"item": 3}, "`item` is int, expected text"),
        ({"labels": [" yes"]}, "`labels`"),
        ({"labels": [" yes", " yes"]}, "`labels`"),
        ({"labels": [" yes", 3]}, "`labels`"),
        ({"labels": "yn"}, "`labels`"),
        ({"lables": []}, "`lables` is not a template field"),
    ],
)
def test_faults_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        PromptTemplate.from_file(write(tmp_path, {**GOOD, **change}))
    assert message in str(caught.value)


def test_all_faults_are_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"`query` is NoneType.*`item`.*`labels`"):
        PromptTemplate.from_file(write(tmp_path, {}))


@pytest.mark.parametrize(("content", "message"), [("{", "as JSON"), ("[1]", "JSON list")])
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        PromptTemplate.from_file(write(tmp_path, content))

"""Chat templates of checkpoints: where they are, what they may use, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itemwise.errors import CheckpointError
from itemwise.request.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "{query} and {item}"}]


def render(source: str, **tokens: str) -> str:
    head, rest = ChatTemplate(source, tokens).render(MESSAGES)
    assert rest.startswith("{item}")
    return head + rest


def test_prompt_is_cut_before_the_item() -> None:
    source = "{{ bos_token }}[{{ messages[0].content | trim }}]{% if add_generation_prompt %}>"
    template = ChatTemplate(source + "{% endif %}", {"bos_token": "<s>"})
    assert template.render(MESSAGES) == ("<s>[{query} and ", "{item}]>")


@pytest.mark.parametrize(
    ("source", "before"),
    [
        ("{%- set ns = namespace(n=1) %}{% for m in messages %}{{ ns.n }}", "1"),
        ("{% for m in messages %}{% if m.role == 'tool' %}{% break %}{% endif %}", ""),
        ("{% for m in messages %}{%- generation %}g{% endgeneration -%}", "g"),
        ("{% for m in messages %}{{ {'a': 1} | tojson }}", '{"a": 1}'),
        ("{% for m in messages %}{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% for m in messages %}{% if enable_thinking is false %}off{% endif %}", "off"),
    ],
)
def test_templates_may_use_what_transformers_offers(source: str, before: str) -> None:
    assert render(source + "{{ m.content }}{% endfor %}") == before + "{query} and {item}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for",
        "{{ raise_exception('system messages are not supported') }}",
        "{{ messages[0].content }}{{ messages[0].content }}",
        "{{ messages[0].role }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}{{ messages[0].content }}",
    ],
)
def test_template_that_fails_or_loses_text_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        render(source)


def folder(tmp_path: Path, config: Any, own: str | None = None) -> ChatTemplate | None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if own is not None:
        (tmp_path / "chat_template.jinja").write_text(own)
    return ChatTemplate.from_folder(tmp_path)


def test_template_is_found(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path) is None
    assert folder(tmp_path, {}) is None
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    found = folder(tmp_path, {"chat_template": "a", **tokens})
    assert found == ChatTemplate("a", {"bos_token": "<s>", "eos_token": "</s>"})
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    found = folder(tmp_path, {"chat_template": named})
    assert found is not None
    assert found.source == "d"
    found = folder(tmp_path, {"chat_template": "a"}, own="b")
    assert found is not None
    assert found.source == "b"


def test_damaged_config_is_refused(tmp_path: Path) -> None:
    configs: list[Any] = [[], "text"]
    for config in configs:
        with pytest.raises(CheckpointError, match="cannot be read"):
            folder(tmp_path, config)

"""Chat templates: messages to the text that a chat model was trained on."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from itemwise.errors import CheckpointError, brief

# Templates that ask for today's date get this one, which Llama 3's template has as its default:
# scores must not change overnight.
_DATE = datetime.date(2024, 7, 26)
# Marks of what a model wrote, for training.
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


_MESSAGE = "{message}"


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around a user's message.

    Attributes:
        head: before it.
        tail: after it, up to the model's turn.
        strips: whether the template takes white space off both ends of the message.
    """

    head: str
    tail: str
    strips: bool


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and the special tokens that it may name.

    Attributes:
        source: jinja2.
        tokens: `bos_token` and such, as text.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template in `chat_template.jinja` or `tokenizer_config.json`; None without one.

        Raises:
            CheckpointError: a file cannot be read.
        """
        config_file, own_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        try:
            text = config_file.read_text(encoding="utf-8") if config_file.is_file() else "{}"
            config = json.loads(text)
            source = config.get("chat_template")
            if own_file.is_file():
                source = own_file.read_text(encoding="utf-8")
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) else brief(error)
            raise CheckpointError(f"the chat template cannot be read ({reason})") from error
        if isinstance(source, list):  # several by name
            named = {each.get("name"): each.get("template") for each in source}
            source = named.get("default")
        if not isinstance(source, str):
            return None
        tokens = {name: _text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        return cls(source, {name: text for name, text in tokens.items() if text is not None})

    def render(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
        """The prompt before the model's turn, cut in two just before `{item}`.

        Raises:
            CheckpointError: the template fails on these messages, or loses a part of them.
        """
        text = self._render(messages)
        head, placeholder, rest = text.partition("{item}")
        if head.count("{query}") != 1 or "{item}" in rest or not placeholder:
            raise CheckpointError("the chat template loses or repeats a part of a message")
        return head, placeholder + rest

    def frame(self, system: str = "") -> Frame:
        """What stands around a user's message, up to the model's turn, with thinking off.

        Args:
            system: a system message, or empty for none.

        Raises:
            CheckpointError: the template fails, changes the message, or lets the model think.
        """
        before = [{"role": "system", "content": system}] if system else []
        plain = self._render([*before, {"role": "user", "content": _MESSAGE}])
        head, found, tail = plain.partition(_MESSAGE)
        padded = self._render([*before, {"role": "user", "content": f"\n {_MESSAGE} \n"}])
        strips = padded == plain
        kept = padded == f"{head}\n {_MESSAGE} \n{tail}"
        if not found or _MESSAGE in tail or not (strips or kept):
            raise CheckpointError("the chat template loses, repeats or changes a message")
        if tail.count("<think>") > tail.count("</think>"):
            raise CheckpointError("the chat template lets the model think before it answers")
        return Frame(head, tail, strips)

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt before the model's turn.

        Raises:
            CheckpointError: the template fails on these messages.
        """
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals.update(
            raise_exception=_refuse, strftime_now=lambda form: _DATE.strftime(form)
        )
        environment.filters["tojson"] = json.dumps
        try:
            return environment.from_string(_GENERATION.sub("", self.source)).render(
                messages=list(messages),
                add_generation_prompt=True,
                enable_thinking=False,
                **self.tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise CheckpointError(f"the chat template fails ({brief(error)})") from error


def _text(token: Any) -> str | None:
    """A special token as text; tokenizer configs write some as objects."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)

r"""Prompt templates: how a query and an item become the text that a model was trained on.

A template has two parts. The part with the query is the same for all items, so it is computed once;
the part with the item follows it. `prompt_template.json` in a checkpoint's folder holds one:

    {
      "query": "query: {query}\nitem:",
      "item": " {item}\nmatch:",
      "labels": [" yes", " no"]
    }

`{query}` and `{item}` stand for the texts of a request; other braces are literal. Text that a model
expects before the query (a system prompt, an instruction) belongs in the query's part. Control
tokens that the template spells are control tokens.

Rankings may need more, all optional: `instruction` is the default of a placeholder `{instruction}`
in the query's part; `read_out`, `scale` and `activation` say how a score comes of the labels'
logits (`request/read_out.py`).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from itemwise.errors import CheckpointError
from itemwise.request.prompts import Prompt, Segment
from itemwise.request.read_out import Activation, Kind, ReadOut

TEMPLATE_FILE = "prompt_template.json"
_PARTS = ("query", "item")
_FIELDS = (*_PARTS, "labels", "instruction", "read_out", "scale", "activation")
_PLACEHOLDER = re.compile(r"\{(query|item)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """How texts become a prompt, and which labels are its answers.

    Attributes:
        query: text that all items share, with `{query}` once.
        item: text that follows it, with `{item}` once.
        labels: texts of one token each; the probability of the first is the score in a ranking.
        instruction: what `{instruction}` stands for if a request says nothing else.
        read_out: how a ranking's score comes of the labels' logits.
    """

    query: str
    item: str
    labels: tuple[str, ...]
    instruction: str = ""
    read_out: ReadOut = ReadOut()

    def query_part(self, query: Segment) -> Prompt:
        """What comes before the items: the template's text, the query, the template's text."""
        before, after = self.query.replace("{instruction}", self.instruction).split("{query}")
        return Segment(before, special=True), query, Segment(after, special=True)

    def item_part(self, item: Segment) -> Prompt:
        """What follows for an item: the template's text, the item, the template's text."""
        before, after = self.item.split("{item}")
        return Segment(before, special=True), item, Segment(after, special=True)

    @classmethod
    def from_folder(cls, folder: Path) -> PromptTemplate | None:
        """The template of a model folder, or None if the folder has no `prompt_template.json`.

        Raises:
            CheckpointError: the file is not a template.
        """
        path = folder / TEMPLATE_FILE
        return cls.from_file(path) if path.exists() else None

    @classmethod
    def from_file(cls, path: Path) -> PromptTemplate:
        """The template that a JSON file holds.

        Raises:
            CheckpointError: the file cannot be read, or is not a template; one message has all
                problems.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"`{path}` cannot be read as JSON ({error})") from error
        problems = _problems(raw)
        if problems:
            raise CheckpointError(f"`{path}` is not a prompt template: {'; '.join(problems)}")
        read_out = ReadOut(
            raw.get("read_out", "log_odds"),
            float(raw.get("scale", 1.0)),
            raw.get("activation", "sigmoid"),
        )
        labels = tuple(raw["labels"])
        return cls(raw["query"], raw["item"], labels, raw.get("instruction", ""), read_out)


def _problems(raw: Any) -> list[str]:
    """The reasons why `raw` is not a template."""
    if not isinstance(raw, dict):
        return [f"it is a JSON {type(raw).__name__}, expected an object"]
    problems = []
    for part in _PARTS:
        text = raw.get(part)
        if not isinstance(text, str):
            problems.append(f"`{part}` is {type(text).__name__}, expected text")
        elif _PLACEHOLDER.findall(text) != [part]:
            problems.append(
                f"`{part}` is {text!r}, expected {{{part}}} once and no other placeholder"
            )
    labels = raw.get("labels")
    texts = labels if isinstance(labels, list) else []
    least = 1 if raw.get("read_out") == "logit" else 2
    all_text = all(isinstance(text, str) for text in texts)
    if len(texts) < least or not all_text or len(set(texts)) < len(texts):
        number = "one" if least == 1 else "two"
        problems.append(f"`labels` is not a list of {number} or more different texts")
    problems += _read_out_problems(raw)
    problems += [f"`{name}` is not a template field" for name in raw if name not in _FIELDS]
    return problems


def _read_out_problems(raw: dict[str, Any]) -> list[str]:
    problems = []
    if not isinstance(raw.get("instruction", ""), str):
        problems.append(f"`instruction` is {type(raw['instruction']).__name__}, expected text")
    for name, choices in (("read_out", get_args(Kind)), ("activation", get_args(Activation))):
        if raw.get(name, choices[0]) not in choices:
            problems.append(f"`{name}` is {raw[name]!r}, expected one of {', '.join(choices)}")
    scale = raw.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        problems.append(f"`scale` is {scale!r}, expected a number above 0")
    return problems

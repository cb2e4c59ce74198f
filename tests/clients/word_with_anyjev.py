"""Prints the prompts that the package `anyjev` makes; it lives in the clients' environment.

    python word_with_anyjev.py < CASES.json

CASES is a list of {"state", "kind", "text", "options", "tokens"}; `tokens` are the texts that are
one token. For each case: the system text, the users' texts with the options in each cyclic order,
and the labels in the order of the places, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from anyjev.calibrate.permute import cyclic_shifts
from anyjev.question import Question
from anyjev.readout import build_prompt, resolve_labels
from anyjev.state import render_state


class Tokenizer:
    """One token for each of some texts, two for all others."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = {text: place for place, text in enumerate(tokens)}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [self.tokens[text]] if text in self.tokens else [-1, -1]


def word(case: dict[str, Any]) -> dict[str, Any]:
    text, options = case["text"], case["options"]
    question = {
        "yes_no": lambda: Question.noul(text),
        "choice": lambda: Question.choice(text, options),
        "score": lambda: Question.score(text, levels=options),
    }[case["kind"]]()
    labels, _ = resolve_labels(Tokenizer(case["tokens"]), question)
    state = render_state(case["state"])
    shifts = cyclic_shifts(question.k) if case["kind"] == "choice" else [list(range(question.k))]
    made = [build_prompt(state, question, shift, labels=labels) for shift in shifts]
    return {"system": made[0].system, "users": [each.user for each in made], "labels": labels}


if __name__ == "__main__":
    json.dump([word(case) for case in json.load(sys.stdin)], sys.stdout)

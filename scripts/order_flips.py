#!/usr/bin/env python3
"""How often the order of options changes a choice, with one order and with all rotations.

    scripts/order_flips.py tickets.jsonl MODEL --json flips.json

Each choice of a labelled set is asked with its options as they are, and in three other orders:
rotated by one place, reversed, and shuffled. A flip is a choice that differs from the first. With
all rotations, an order and its rotations ask the same prompts, so rotating by one flips nothing.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from itemwise.calibration.labelled import LabelledRequest, read_labelled
from itemwise.machine import environment
from itemwise.progress import progress
from itemwise.request.decide.answers import ChoiceAnswer
from itemwise.request.decide.call import DecideCall, Options
from itemwise.request.decide.questions import MAX_OPTIONS, Choice
from itemwise.scorer import Scorer

GIVEN, ROTATED, REVERSED, SHUFFLED = "as given", "rotated by one", "reversed", "shuffled"
REQUESTS_TOGETHER = 10
# At most as many rotations as there are options. What is read for them also tells what one order
# says: the first reading of an answer.
OPTIONS = Options(rotations=MAX_OPTIONS, with_readings=True)


def orders(choice: Choice, seed: str) -> dict[str, Choice]:
    """The choice with its options as given, reversed and shuffled."""
    options = choice.options
    assert isinstance(options, Mapping)
    names = list(options)
    ordered = {
        GIVEN: names,
        REVERSED: names[::-1],
        SHUFFLED: random.Random(seed).sample(names, len(names)),
    }
    return {
        order: replace(choice, options={name: options[name] for name in each})
        for order, each in ordered.items()
    }


def chosen(answers: Mapping[str, Any], name: str) -> tuple[dict[str, str], dict[str, str]]:
    """What is chosen in each order, with K = 1 and with all rotations."""
    one, every = {}, {}
    for order in (GIVEN, REVERSED, SHUFFLED):
        answer = answers[f"{order}/{name}"]
        assert isinstance(answer, ChoiceAnswer)
        names = list(answer.probabilities)
        firsts = [names[_best(reading.logits)] for reading in answer.readings[:2]]
        one[order], every[order] = firsts[0], answer.choice
        if order == GIVEN:
            one[ROTATED], every[ROTATED] = firsts[1], answer.choice
    return one, every


def _best(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=logits.__getitem__)


def study(scorer: Scorer, requests: Sequence[LabelledRequest]) -> dict[str, dict[str, float]]:
    """For K = 1 and all: share of choices that each order flips, and accuracy over all orders."""
    tables: dict[str, list[tuple[str, dict[str, str]]]] = {"1": [], "all": []}
    with progress() as on_progress:
        for first in range(0, len(requests), REQUESTS_TOGETHER):
            chunk = requests[first : first + REQUESTS_TOGETHER]
            prepared = []
            for request in chunk:
                questions = {
                    f"{order}/{name}": ordered
                    for name, question in choices(request).items()
                    for order, ordered in orders(question, f"{request.group} {name}").items()
                }
                call = DecideCall(request.state, questions, OPTIONS)
                prepared.append(scorer.prepare_call(call))
            results = scorer.run([each.request for each in prepared])
            for request, each, result in zip(chunk, prepared, results, strict=True):
                answers = each.finish(result).answers
                for name, question in choices(request).items():
                    truth = list(question.options)[request.answers[name]]
                    one, every = chosen(answers, name)
                    tables["1"].append((truth, one))
                    tables["all"].append((truth, every))
            on_progress("requests", first + len(chunk), len(requests))
    return {name: shares(table) for name, table in tables.items()}


def choices(request: LabelledRequest) -> dict[str, Choice]:
    """The choices of a request with two options or more."""
    return {
        name: question
        for name, question in request.questions.items()
        if isinstance(question, Choice) and len(question.options) > 1
    }


def shares(table: Sequence[tuple[str, Mapping[str, str]]]) -> dict[str, float]:
    """Accuracy over all orders, and the share of choices that each order flips."""
    found: dict[str, float] = {"choices": len(table)}
    right = [choice == truth for truth, each in table for choice in each.values()]
    found["accuracy"] = sum(right) / len(right)
    for order in (ROTATED, REVERSED, SHUFFLED):
        flipped = [each[order] != each[GIVEN] for _, each in table]
        found[f"flips, {order}"] = sum(flipped) / len(flipped)
    return found


def main() -> None:
    """Prints the shares, and writes them with the machine and versions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="labelled set")
    parser.add_argument("model", help="folder of a checkpoint, or its Hub id")
    parser.add_argument("--requests", type=int, help="how many of its requests (all)")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    arguments = parser.parse_args()
    requests = read_labelled(arguments.file)[: arguments.requests]
    scorer = Scorer.from_pretrained(arguments.model)
    found = study(scorer, requests)
    for name, row in found.items():
        print(f"K = {name}: " + ", ".join(f"{what} {share:.3g}" for what, share in row.items()))
    if arguments.json:
        report = {
            "benchmark": "order-flips",
            **environment(),
            "model": arguments.model,
            "labelled_set": arguments.file.name,
            "requests": len(requests),
            "rotations": found,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

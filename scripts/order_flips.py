#!/usr/bin/env python3
"""How often the order of options changes a choice, with one order and with all rotations.

    scripts/order_flips.py tickets.jsonl MODEL --json flips.json

Each choice of a labelled set is asked with its options as they are, and in three other orders:
rotated by one place, reversed, and shuffled. A flip is a choice that differs from the first.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from itemwise.calibration.labelled import LabelledRequest, read_labelled
from itemwise.machine import environment
from itemwise.request.decide.answers import ChoiceAnswer
from itemwise.request.decide.call import DecideCall, Options
from itemwise.request.decide.questions import MAX_OPTIONS, Choice
from itemwise.scorer import Scorer

ORDERS = ("as given", "rotated by one", "reversed", "shuffled")
ROTATIONS = {"1": 1, "all": MAX_OPTIONS}  # at most as many as there are options
REQUESTS_TOGETHER = 50


def orders(choice: Choice, seed: str) -> dict[str, Choice]:
    """The choice with its options in each of `ORDERS`."""
    options = choice.options
    assert isinstance(options, dict)
    names = list(options)
    shuffled = random.Random(seed).sample(names, len(names))
    ordered = (names, [*names[1:], names[0]], names[::-1], shuffled)
    return {
        order: replace(choice, options={name: options[name] for name in each})
        for order, each in zip(ORDERS, ordered, strict=True)
    }


def calls(requests: Sequence[LabelledRequest], rotations: int) -> Iterator[DecideCall]:
    """One call for each request that has choices: all of them, in all orders."""
    for request in requests:
        questions = {
            f"{order}/{name}": ordered
            for name, question in request.questions.items()
            if isinstance(question, Choice)
            for order, ordered in orders(question, f"{request.group} {name}").items()
        }
        yield DecideCall(request.state, questions, Options(rotations=rotations))


def study(scorer: Scorer, requests: Sequence[LabelledRequest], rotations: int) -> dict[str, float]:
    """Share of choices that each order flips, and the accuracy over all orders."""
    flips, right, count = dict.fromkeys(ORDERS[1:], 0), 0, 0
    for first in range(0, len(requests), REQUESTS_TOGETHER):
        chunk = requests[first : first + REQUESTS_TOGETHER]
        prepared = [scorer.prepare_call(call) for call in calls(chunk, rotations)]
        results = scorer.run([each.request for each in prepared])
        for request, each, result in zip(chunk, prepared, results, strict=True):
            answers = each.finish(result).answers
            for name, question in request.questions.items():
                if not isinstance(question, Choice):
                    continue
                count += 1
                chosen = {}
                for order in ORDERS:
                    answer = answers[f"{order}/{name}"]
                    assert isinstance(answer, ChoiceAnswer)
                    chosen[order] = answer.choice
                truth = list(question.options)[request.answers[name]]
                right += sum(choice == truth for choice in chosen.values())
                for order in flips:
                    flips[order] += chosen[order] != chosen["as given"]
    found = {f"flips, {order}": flipped / count for order, flipped in flips.items()}
    return {"choices": count, "accuracy": right / (count * len(ORDERS)), **found}


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
    found = {name: study(scorer, requests, count) for name, count in ROTATIONS.items()}
    for name, shares in found.items():
        print(f"K = {name}: " + ", ".join(f"{what} {share:.3g}" for what, share in shares.items()))
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

"""Asks typed questions with one client of another server. Clients have environments of their own.

    python decide_with.py CLIENT URL    prints {"noul", "choice", "score", "error"} as JSON

Each client is a function that returns P(yes), the options' probabilities and the levels'.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

MODEL = "default"
# Longer than 1 KiB, from which on TypeSafe's client compresses.
STATE = "I was charged twice for my March invoice, and nobody answers my letters. " * 16
TOO_LONG = "desk lamps " * 3000
NOUL = "Does the customer want money back?"
CHOICE = "Which team should handle it?"
OPTIONS: dict[str, str | None] = {"Billing": "Payments and refunds", "Technical": None, "Sales": ""}
SCORE = "How angry is the customer?"
LEVELS = ["calm", "annoyed", "very angry"]
Answers = tuple[float, list[float], list[float]]
Decide = Callable[[str, str], Answers]


def typesafe(url: str, state: str) -> Answers:
    """Lists models, and asks with a compressed body."""
    from typesafe_sdk import Choice, Noul, Score, TypeSafeClient

    with TypeSafeClient(api_key="key", base_url=url, compression="zstd") as client:
        assert [each.name for each in client.models.list().models]
        questions = {
            "noul": Noul(instructions=NOUL),
            "choice": Choice(instructions=CHOICE, criteria=OPTIONS),
            "score": Score(instructions=SCORE, criteria=LEVELS),
        }
        found = client.system_one(state=state, questions=questions)
    score = found.scores["score"]
    assert [score.legend[level] for level in range(3)] == LEVELS
    choice = found.choices["choice"]
    assert choice.probabilities[choice.choice] == max(choice.probabilities.values())
    return (
        found.nouls["noul"].noul,
        list(choice.probabilities.values()),
        [score.probabilities[level] for level in range(3)],
    )


def langchain_typesafe(url: str, state: str) -> Answers:
    from langchain_typesafe import Choice, Noul, Score, TypeSafeClassifier

    classifier = TypeSafeClassifier(api_key="key", base_url=url)
    questions = {
        "noul": Noul(instructions=NOUL),
        "choice": Choice(instructions=CHOICE, criteria=OPTIONS),
        "score": Score(instructions=SCORE, criteria=LEVELS),
    }
    found = classifier.invoke({"state": state, "questions": questions})
    return (
        found.nouls["noul"].noul,
        list(found.choices["choice"].probabilities.values()),
        list(found.scores["score"].probabilities.values()),
    )


def openai(url: str, state: str) -> Answers:
    import openai

    client = openai.OpenAI(api_key="key", base_url=f"{url}/v1", max_retries=0)
    choices: Any = [
        {"value": name, **({"description": text} if text else {})} for name, text in OPTIONS.items()
    ]
    found = client.decisions.create(
        model=MODEL,
        input=state,
        questions=[
            {"type": "predicate", "instructions": NOUL},
            {"type": "choice", "name": "team", "instructions": CHOICE, "choices": choices},
            {"type": "score", "instructions": SCORE, "levels": [{"label": t} for t in LEVELS]},
        ],
        safety_identifier="someone",
    )
    noul, choice, score = found.answers
    assert noul.type == "predicate"
    assert choice.type == "choice"
    assert score.type == "score"
    assert choice.name == "team"
    assert found.usage.total_tokens == found.usage.input_tokens > 0
    return (
        noul.probability,
        [each.probability for each in choice.probabilities],
        [each.probability for each in score.probabilities],
    )


def langchain_openai(url: str, state: str) -> Answers:
    from langchain_openai.decisions import Choice, OpenAIDecisions, Predicate, Score

    client = OpenAIDecisions(model=MODEL, api_key="key", base_url=f"{url}/v1", max_retries=0)
    questions = {
        "noul": Predicate(instructions=NOUL),
        "choice": Choice(instructions=CHOICE, choices={n: t or None for n, t in OPTIONS.items()}),
        "score": Score(instructions=SCORE, levels=LEVELS),
    }
    found = client.invoke({"input": state, "questions": questions})
    return (
        found.answers["noul"].probability,
        list(found.answers["choice"].probabilities.values()),
        list(found.answers["score"].probabilities.values()),
    )


def litellm_systemone(url: str, state: str) -> Answers:
    import litellm

    questions: Any = {
        "noul": {"type": "noul", "instructions": NOUL},
        "choice": {"type": "choice", "instructions": CHOICE, "criteria": OPTIONS},
        "score": {"type": "score", "instructions": SCORE, "criteria": LEVELS},
    }
    found = litellm.systemone(
        model=f"hosted_vllm/{MODEL}", state=state, questions=questions, api_base=url, api_key="key"
    ).answers
    return (
        found["noul"].noul,
        list(found["choice"].probabilities.values()),
        list(found["score"].probabilities.values()),
    )


def litellm_decisions(url: str, state: str) -> Answers:
    import litellm

    choices: Any = [
        {"value": name, **({"description": text} if text else {})} for name, text in OPTIONS.items()
    ]
    questions: Any = [
        {"type": "predicate", "instructions": NOUL},
        {"type": "choice", "instructions": CHOICE, "choices": choices},
        {"type": "score", "instructions": SCORE, "levels": [{"label": each} for each in LEVELS]},
    ]
    found = litellm.decisions(
        model=f"openai/{MODEL}",
        input=state,
        questions=questions,
        api_base=f"{url}/v1",
        api_key="key",
    )
    noul, choice, score = found.answers
    return (
        noul.probability,
        [each.probability for each in choice.probabilities],
        [each.probability for each in score.probabilities],
    )


CLIENTS: dict[str, Decide] = {
    "typesafe": typesafe,
    "langchain-typesafe": langchain_typesafe,
    "openai": openai,
    "langchain-openai": langchain_openai,
    "litellm-systemone": litellm_systemone,
    "litellm-decisions": litellm_decisions,
}


def main() -> None:
    client, url = sys.argv[1:]
    decide = CLIENTS[client]
    noul, choice, score = decide(url, STATE)
    try:
        decide(url, TOO_LONG)
        error = "no error"
    except Exception as problem:
        body = getattr(problem, "body", "")  # of one whose text leaves it out
        error = f"{type(problem).__name__}: {problem} {body}"
    answer = {"noul": noul, "choice": choice, "score": score, "error": error}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()

"""An answer is a function of model, state and question: every comparison of numbers here is `==`.

And the prompts of chat models are those that SGLang makes, token by token.
"""

from __future__ import annotations

import functools
import json
import random
import string
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemwise import Choice, RequestError, Scorer, YesNo
from itemwise.dialects.sglang_decisions import DIALECT as SGLANG
from itemwise.dialects.systemone import read
from itemwise.request import prompts as prompts_module
from itemwise.request.decide import call as call_module
from itemwise.request.decide.answers import ChoiceAnswer, Decisions
from itemwise.request.decide.call import DecideCall, Options
from itemwise.request.decide.questions import Question
from tests.conftest import DEMO_POOL

SMOLLM2 = Path(__file__).parents[1] / ".models" / "SmolLM2-135M-Instruct"
WORDS = ["refund", "invoice", "angry", "late", "thank you", "Größe", "é", "{x}", "3 of 4", "\n", ""]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
CONTENT = TEXTS | st.dictionaries(TEXTS, TEXTS | st.integers(0, 9), min_size=1, max_size=2)
QUESTIONS = st.one_of(
    st.builds(lambda text: {"type": "noul", "instructions": "Is it " + text}, TEXTS),
    st.builds(
        lambda names, detail: {
            "type": "choice",
            "instructions": "Which?",
            "criteria": {f"{name} {i}": detail for i, name in enumerate(names)},
        },
        st.lists(TEXTS, min_size=1, max_size=30),
        st.none() | TEXTS,
    ),
    st.builds(
        lambda levels: {"type": "score", "criteria": [f"L {level}" for level in levels]},
        st.lists(TEXTS, min_size=1, max_size=10),
    ),
)


@functools.cache
def demo() -> Scorer:
    return Scorer.from_pretrained(kv_cache_bytes=DEMO_POOL)


def decide(body: dict[str, Any], scorer: Scorer | None = None) -> Any:
    """The answers to a body of System One."""
    exchange = read({"model": "jev-latest", **body})
    assert exchange.call is not None
    scorer = scorer or demo()
    return exchange.answer(scorer.run_call(exchange.call), "m")["answers"]


def changed_by_company(state: Any, questions: list[dict[str, Any]], seed: int) -> list[int]:
    """Questions whose answers change with their ids, order, company or the cache."""
    scorer, rng = demo(), random.Random(seed)
    scorer.engine.forget_prefixes()
    body = {str(place): each for place, each in enumerate(questions)}
    together = decide({"state": state, "questions": body})
    cached = decide({"state": state, "questions": body})
    shuffled = list(enumerate(questions))
    rng.shuffle(shuffled)
    kept = shuffled[: rng.randint(1, len(shuffled))]
    added = {"type": "noul", "instructions": "Is it about " + rng.choice(WORDS[:3])}
    other = decide(
        {"state": state, "questions": {"added": added, **{f"id {p}": q for p, q in kept}}}
    )
    changed = []
    for place, question in enumerate(questions):
        scorer.engine.forget_prefixes()
        alone = decide({"state": state, "questions": {"alone": question}})["alone"]
        found = [together[str(place)], cached[str(place)], other.get(f"id {place}", alone)]
        if any(each != alone for each in found):
            changed.append(place)
    return changed


@given(
    state=CONTENT, questions=st.lists(QUESTIONS, min_size=1, max_size=4), seed=st.integers(0, 99)
)
@settings(max_examples=25)
def test_answers_do_not_depend_on_company(
    state: Any, questions: list[dict[str, Any]], seed: int
) -> None:
    assert changed_by_company(state, questions, seed) == []


def test_a_planted_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = prompts_module.encode_prompts

    def leaky(tokenizer: Any, shared: Any, items: Any, **more: Any) -> Any:
        """What the first question says goes in front of every other one."""
        return encode(tokenizer, (*shared, items[0][0]), items, **more)

    monkeypatch.setattr(call_module, "encode_prompts", leaky)
    questions = [
        {"type": "noul", "instructions": "Is it a refund?"},
        {"type": "noul", "instructions": "Is it late?"},
    ]
    assert 1 in changed_by_company("late refund", questions, 0)


def test_answers_are_the_same_under_load() -> None:
    from itemwise.config import ServerConfig
    from tests.server.fakes import get, running_server, send, wait_until

    body: dict[str, Any] = {
        "state": "I was charged twice for my invoice.",
        "questions": {
            "a": {"type": "noul", "instructions": "Is it a complaint?"},
            "b": {"type": "choice", "criteria": {f"team {n}": None for n in range(40)}},
        },
    }
    alone = decide(body)
    found: list[Any] = []
    with running_server(ServerConfig("itemwise/demo"), demo) as url:
        wait_until(lambda: get(f"{url}/health").status_code == 200)

        def ask(number: int) -> None:
            mine = {
                **body,
                "questions": {**body["questions"], f"own {number}": body["questions"]["a"]},
            }
            # The plain level takes long for all twelve.
            answer = send("POST", f"{url}/v1/systemone", timeout=300, json=mine)
            found.append(answer.json()["answers"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 12
    assert all({name: each[name] for name in "ab"} == alone for each in found)


def test_all_rotations_make_the_order_of_options_void() -> None:
    names = ["billing", "technical help", "sales", "other"]

    def probabilities(order: list[str], rotations: int) -> dict[str, float]:
        found = demo().decide("I was charged twice.", {"q": Choice(order)}, rotations=rotations)
        answer = found.answers["q"]
        assert isinstance(answer, ChoiceAnswer)
        return dict(answer.probabilities)

    turned = [names[start:] + names[:start] for start in range(4)]
    assert len({tuple(sorted(probabilities(order, 4).items())) for order in turned}) == 1
    assert len({tuple(sorted(probabilities(order, 1).items())) for order in turned}) == 4


def test_label_mass_changes_no_probability() -> None:
    questions: dict[str, Question] = {"q": Choice(["a", "b"]), "y": YesNo("Is it?")}
    plain = demo().decide("S", questions).answers
    massive = demo().decide("S", questions, label_mass=True).answers
    for name, answer in plain.items():
        assert answer.probabilities == massive[name].probabilities
        assert answer.label_mass is None
        assert 0 < (massive[name].label_mass or 0) <= 1


def test_limits_are_those_of_the_model() -> None:
    with pytest.raises(RequestError) as error:
        demo().decide("desk lamps " * 3000, {"q": YesNo("Is it?")})
    assert error.value.code == "sequence_too_long"
    with pytest.raises(RequestError) as error:
        demo().decide("S", {})
    assert error.value.code == "empty_items"


# SGLang's prompts ---------------------------------------------------------------------------------


def sglang_lines(question: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The lines of a question and its labels, by what is known of SGLang's prompt format 1."""

    def text(value: Any) -> str:
        if isinstance(value, str):
            return value
        return "" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    asked = text(question["question"])
    if question["type"] == "choice":
        labels = list(string.ascii_uppercase[: len(question["options"])])
        lines = [f"Question: {asked}"]
        for label, option in zip(labels, question["options"], strict=True):
            detail = text(option.get("description"))
            lines.append(f"{label}: {option['name']}" + (f" - {detail}" if detail else ""))
        return [*lines, "Answer with the letter of one option only."], labels
    if question["type"] == "score":
        labels = [str(level) for level in range(len(question["levels"]))]
        pairs = zip(labels, question["levels"], strict=True)
        lines = [f"Question: {asked}", *(f"{label}: {text(level)}" for label, level in pairs)]
        return [*lines, "Answer with the number of one level only."], labels
    lines = [f"Is the following true? {asked}"]
    lines += [f"{name}: {text(question[name])}" for name in ("yes", "no") if question.get(name)]
    return [*lines, "Answer with yes or no only."], ["yes", "no"]


def sglang_requests(number: int) -> list[dict[str, Any]]:
    rng = random.Random(7)

    def content() -> Any:
        words = " ".join(rng.choices(WORDS[:9], k=rng.randint(1, 12)))
        return rng.choice([words, words, f"  {words}\n\n", {"note": words}, [words, {"n": 1.5}]])

    def question(place: int) -> dict[str, Any]:
        kind = rng.choice(["choice", "score", "yes_no"])
        asked = {"id": f"q{place}", "type": kind, "question": content()}
        if kind == "choice":
            options = [{"name": f"option {n}"} for n in range(rng.randint(2, 26))]
            options[0] = {"name": "Größe", "description": content()}
            return {**asked, "options": options}
        if kind == "score":
            return {**asked, "levels": [content() for _ in range(rng.randint(2, 10))]}
        return {**asked, **({"yes": content()} if rng.random() < 0.5 else {})}

    return [
        {"input": content(), "questions": [question(place) for place in range(rng.randint(1, 4))]}
        for _ in range(number)
    ]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="run `make smollm2` first")
@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")
def test_prompts_are_those_of_sglang_and_give_the_same_on_the_score_api() -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    scorer = Scorer.from_pretrained(SMOLLM2, kv_cache_bytes=1 << 28)
    bodies = sglang_requests(50)
    for body in bodies:
        call = SGLANG.read(body).call
        assert call is not None
        request = scorer.prepare_call(call).request
        state = body["input"]
        if not isinstance(state, str):
            state = json.dumps(state, ensure_ascii=False, separators=(",", ":"))
        for place, question in enumerate(body["questions"]):
            lines, labels = sglang_lines(question)
            messages = [{"role": "user", "content": "\n".join([state, "", *lines])}]
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            ids = [*request.query.tolist(), *request.items[place].tolist()]
            assert ids == tokenizer.encode(text, add_special_tokens=False)
            assert list(request.labels[place]) == [tokenizer.encode(each)[0] for each in labels]
    for body in bodies[:8]:  # the numbers take longer
        exchange = SGLANG.read({**body, "return_prompt_token_ids": True})
        assert exchange.call is not None
        found: Decisions = scorer.run_call(exchange.call)
        for answer in exchange.answer(found, "m")["answers"].values():
            ids, shared = list(answer["prompt_token_ids"]), found.shared_tokens
            result = scorer.score(
                ids[:shared],
                [ids[shared:]],
                label_token_ids=list(answer["label_token_ids"]),
                apply_softmax=True,
            )
            scores = np.asarray(result.scores)[0]
            assert [float(str(p)) for p in scores] == list(answer["probabilities"].values())


def test_a_planted_wording_is_seen() -> None:
    """The comparison above is by token ids; another last line must not pass."""
    lines, _ = sglang_lines({"id": "q", "type": "yes_no", "question": "Q"})
    call = DecideCall("S", {"q": YesNo("Q")}, Options(with_readings=True))
    (reading,) = demo().run_call(call).answers["q"].readings
    tokenizer = demo().tokenizer
    assert tokenizer is not None
    expected = "\n".join(["S", "", *lines]) + "\nAnswer:"
    assert list(reading.token_ids) == tokenizer.encode(expected)
    assert list(reading.token_ids) != tokenizer.encode(expected.replace("only", "alone"))

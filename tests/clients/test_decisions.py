"""Clients for decisions that people have, unchanged, and the conformance suite of System One."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from itemwise import Choice, Rating, Scorer, YesNo
from itemwise.config import ServerConfig
from itemwise.request.decide.answers import ChoiceAnswer, RatingAnswer, YesNoAnswer
from itemwise.request.decide.call import Options
from itemwise.request.decide.questions import Question
from tests.clients.decide_with import CHOICE, CLIENTS, LEVELS, NOUL, OPTIONS, SCORE, STATE
from tests.clients.test_clients import FOLDER, PYTHON
from tests.request.decide.test_profile import CHAT, byte_tokenizer, folder, found, prompts
from tests.server.fakes import get, running_server, wait_until

SCRIPT = Path(__file__).with_name("decide_with.py")
LITELLM = FOLDER.with_name("litellm") / "bin" / "python"  # its pins are not the others'
SMOLLM2 = Path(__file__).parents[2] / ".models" / "SmolLM2-135M-Instruct"
KEY = "a-key-of-the-test"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no clients in {FOLDER}; see `make clients`"),
]


@pytest.mark.parametrize("client", CLIENTS)
def test_client_reads_every_type_and_an_error(client: str, url: str, scorer: Scorer) -> None:
    questions: dict[str, Question] = {
        "a": YesNo(NOUL),
        "b": Choice(OPTIONS, CHOICE),
        "c": Rating(LEVELS, SCORE),
    }
    expected = scorer.decide(STATE, questions).answers
    environment = {**os.environ, "PYTHONPATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    python = LITELLM if client.startswith("litellm") else PYTHON
    done = subprocess.run(
        [python, SCRIPT, client, url],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    yes, choice, rating = expected["a"], expected["b"], expected["c"]
    assert isinstance(yes, YesNoAnswer)
    assert isinstance(choice, ChoiceAnswer)
    assert isinstance(rating, RatingAnswer)
    assert answer["noul"] == yes.probability  # the very bits
    assert answer["choice"] == list(choice.probabilities.values())
    assert answer["score"] == list(rating.probabilities)
    assert "tokens" in answer["error"], answer["error"]


LETTERS, DIGITS = [chr(65 + n) for n in range(26)], [str(n) for n in range(10)]
STATES = [
    "A state.",
    "",
    " two lines\n of it ",
    {"a": "é", "b": [1, 2.5, None, True], "c": {}},
    ["x", 1],
    [{"role": "user", "content": "hi"}, {"role": "agent", "content": "{state}"}],
    [],
]
QUESTIONS: list[tuple[str, list[str], Question]] = [
    ("yes_no", [], YesNo("Is it {so}?")),
    ("choice", ["x", "y"], Choice(["x", "y"], "Which?")),
    ("choice", [f"o {n}" for n in range(26)], Choice([f"o {n}" for n in range(26)], "Which?")),
    ("score", ["low", "high"], Rating(["low", "high"], "How {label}?")),
    ("score", [f"l{n}" for n in range(10)], Rating([f"l{n}" for n in range(10)], "How?")),
]


@pytest.mark.parametrize("ten", [["10"], []], ids=["ten is a token", "ten is two tokens"])
def test_tacit_gets_the_prompts_of_anyjev(tmp_path: Path, ten: list[str]) -> None:
    tokenizer = byte_tokenizer("Yes", "No", *ten)
    profile = found(folder(tmp_path, CHAT, name="Tacit-4B"), tokenizer)
    tokens = ["Yes", "No", *LETTERS, *DIGITS, *ten]
    cases = [
        {
            "state": state,
            "kind": kind,
            "text": question.question,
            "options": options,
            "tokens": tokens,
        }
        for state in STATES
        for kind, options, question in QUESTIONS
    ]
    done = subprocess.run(
        [PYTHON, SCRIPT.with_name("word_with_anyjev.py")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout)
    asked = ((state, question) for state in STATES for _, _, question in QUESTIONS)
    for (state, question), their in zip(asked, theirs, strict=True):
        ours = prompts(profile, state, question, Options(rotations=26))
        assert ours == [
            f"<|im_start|>system\n{their['system']}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
            for user in their["users"]
        ]


def conformance(url: str, report: Path, *key: str) -> dict[str, Any]:
    """What `jevcompat test` finds, by requirement; fails if it finds a fault."""
    done = subprocess.run(
        [PYTHON.with_name("jevcompat"), "test", url, "--json", report, *key],
        capture_output=True,
        text=True,
        timeout=540,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(report.read_text())
    return {each["id"]: each["status"] for each in found["results"]}


def check_conformance(scorer: Scorer, name: str, folder: Path) -> None:
    """Each of the 48 requirements holds with a key or without one, and none fails."""
    configs = {"open": ServerConfig(name), "keyed": ServerConfig(name, api_key=KEY)}
    found = {}
    for kind, config in configs.items():
        key = ("--key", KEY) if config.api_key else ()
        with running_server(config, lambda: scorer) as url:
            wait_until(lambda url=url: get(f"{url}/health").status_code == 200)  # type: ignore[misc]
            found[kind] = conformance(url, folder / f"{kind}.json", *key)
    assert len(found["open"]) == 48
    assert all("fail" not in statuses.values() for statuses in found.values())
    untested = [
        name for name in found["open"] if found["open"][name] == found["keyed"][name] == "skip"
    ]
    assert untested == []


def test_demo_model_conforms_to_system_one(scorer: Scorer, tmp_path: Path) -> None:
    check_conformance(scorer, "itemwise/demo", tmp_path)


@pytest.mark.real
def test_real_model_conforms_to_system_one(cache_folder: str, tmp_path: Path) -> None:
    scorer = Scorer.from_pretrained(SMOLLM2, compilation_cache_dir=cache_folder)
    check_conformance(scorer, str(SMOLLM2), tmp_path)

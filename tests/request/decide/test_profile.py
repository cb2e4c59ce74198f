"""Decision profiles: which one a checkpoint gets, its prompts, its labels, its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from itemwise.errors import CheckpointError, RequestError
from itemwise.request.check import RequestLimits
from itemwise.request.decide.call import DecideCall, Options
from itemwise.request.decide.profile import DecisionProfile, find_decision_profile
from itemwise.request.decide.profile_file import Calibration, read_profile, write_calibration
from itemwise.request.decide.questions import Choice, Question, Rating, YesNo
from itemwise.request.tokenizer import Tokenizer
from itemwise.request.tools import PromptTools

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def byte_tokenizer(*words: str) -> Tokenizer:
    """A token for each byte, and for each of the words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*alphabet, *words])}
    backend = Backend(models.BPE(vocabulary, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")]
    )
    return Tokenizer(backend)


WORDS = ("yes", "no", "Yes", "No", "AA", "AB", "Ġyes", "Ġno", "ĠA", "ĠB")


def folder(
    tmp_path: Path,
    chat: str | None = None,
    name: str = "model",
    profile: dict[str, Any] | None = None,
) -> Path:
    path = tmp_path / name
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    config = {} if chat is None else {"chat_template": chat}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if profile:
        (path / "decision_profile.json").write_text(json.dumps(profile))
    return path


def found(path: Path, tokenizer: Tokenizer | None = None) -> DecisionProfile:
    tokenizer = tokenizer or byte_tokenizer(*WORDS)
    profile = find_decision_profile(str(path), path, None, tokenizer)
    assert isinstance(profile, DecisionProfile), profile
    return profile


def prompts(
    profile: DecisionProfile, state: Any, question: Question, options: Options | None = None
) -> list[str]:
    """The prompts for a question, as text."""
    limits = RequestLimits(100_000, max_seq_len=100_000)
    tools = PromptTools(limits, profile.tokenizer, decisions=profile)
    call = DecideCall(state, {"id": question}, options or Options())
    request = call.prepare(tools).request
    backend = profile.tokenizer._backend
    return [
        backend.decode([*request.query.tolist(), *item.tolist()], skip_special_tokens=False)
        for item in request.items
    ]


def test_chat_models_are_asked_as_sglang_asks(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, CHAT))
    assert (profile.name, profile.frame.head, profile.frame.tail) == ("sglang-1", HEAD, TAIL)
    assert prompts(profile, "A state.", YesNo("Is it so?")) == [
        f"{HEAD}A state.\n\nIs the following true? Is it so?\nAnswer with yes or no only.{TAIL}"
    ]
    assert prompts(profile, {"a": "é"}, YesNo(yes="it is", no={"b": [1]})) == [
        f'{HEAD}{{"a":"é"}}\n\nIs the following true?\nyes: it is\nno: {{"b":[1]}}\n'
        f"Answer with yes or no only.{TAIL}"
    ]
    assert prompts(profile, "S", Choice({"x": None, "y": "why", "z": " "}, "Which?")) == [
        f"{HEAD}S\n\nQuestion: Which?\nA: x\nB: y - why\nC: z\n"
        f"Answer with the letter of one option only.{TAIL}"
    ]
    assert prompts(profile, "S", Rating(["low", {"high": 1}])) == [
        f'{HEAD}S\n\n0: low\n1: {{"high":1}}\nAnswer with the number of one level only.{TAIL}'
    ]


def test_rotations_show_every_option_at_every_place(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, CHAT))
    shown = prompts(profile, "S", Choice(["x", "y", "z"]), Options(rotations=9))
    assert [[line[3:] for line in text.splitlines() if line[1:3] == ": "] for text in shown] == [
        ["x", "y", "z"],
        ["y", "z", "x"],
        ["z", "x", "y"],
    ]
    assert len(prompts(profile, "S", Choice(list("vwxyz")), Options(rotations=2))) == 2
    assert len(prompts(profile, "S", YesNo("q"), Options(rotations=9))) == 1


def test_braces_and_control_tokens_of_users_are_text(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, CHAT))
    (text,) = prompts(profile, "{state}", Choice(["{label}", "{name} {description}"], "{question}"))
    assert "{state}\n\nQuestion: {question}\nA: {label}\nB: {name} {description}\n" in text
    limits = RequestLimits(100_000, max_seq_len=100_000)
    tools = PromptTools(limits, profile.tokenizer, decisions=profile)
    call = DecideCall("<|im_end|>", {"id": YesNo("<|im_end|>")})
    request = call.prepare(tools).request
    end = profile.tokenizer._backend.token_to_id("<|im_end|>")
    ids = [*request.query.tolist(), *request.items[0].tolist()]
    assert ids.count(end) == 1  # the template's own


def test_models_without_a_chat_template_get_plain_text(tmp_path: Path) -> None:
    profile = found(folder(tmp_path))
    assert profile.name == "sglang-1-plain"
    assert prompts(profile, "S", YesNo("q")) == [
        "S\n\nIs the following true? q\nAnswer with yes or no only.\nAnswer:"
    ]
    assert profile.asks["yes_no"][0].labels.tokens["yes"] == (
        profile.tokenizer._backend.token_to_id("Ġyes")
    )


def test_a_template_that_strips_gets_a_stripped_state(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, CHAT.replace("m.content", "m.content | trim")))
    assert prompts(profile, "  S ", YesNo("q"))[0].startswith(f"{HEAD}S \n\nIs")
    assert prompts(found(folder(tmp_path, CHAT)), "  S", YesNo("q"))[0].startswith(f"{HEAD}  S")


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ("{{ raise_exception('not today') }}", "not today"),
        ("no message", "loses"),
        ("{{ messages[0].content | upper }}", "loses"),
        ("{{ messages[0].content }}<think>\n", "think"),
    ],
)
def test_a_template_that_cannot_ask_is_a_reason(tmp_path: Path, chat: str, reason: str) -> None:
    path = folder(tmp_path, chat)
    why = find_decision_profile(str(path), path, None, byte_tokenizer())
    assert isinstance(why, str)
    assert reason in why
    call = DecideCall("S", {"id": YesNo("q")})
    tools = PromptTools(RequestLimits(9, 9), byte_tokenizer(), decisions=why)
    with pytest.raises(RequestError, match=reason) as error:
        call.prepare(tools)
    assert error.value.code == "no_profile"


def test_tacit_is_asked_as_anyjev_asks(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, CHAT, name="Tacit-4B"))
    system = profile.wording.system
    head = f"<|im_start|>system\n{system}<|im_end|>\n{HEAD}"
    assert prompts(profile, "S", Choice(["x", "y"], "Which?")) == [
        f"{head}State:\nS\n\nQuestion: Which?\nOptions:\nA. x\nB. y\n"
        f"Answer with the letter only.{TAIL}"
    ]
    assert prompts(profile, "", YesNo("Is it?")) == [
        f"{head}State:\n(empty)\n\nQuestion: Is it?\nAnswer Yes or No.{TAIL}"
    ]
    messages = [{"role": "user", "content": "hi"}, {"role": "agent", "content": "ho"}]
    assert "State:\nuser: hi\nagent: ho\n\n" in prompts(profile, messages, YesNo("q"))[0]
    levels = [str(n) for n in range(10)]
    # The label "10" is two tokens, so letters take its place.
    assert "A. 0\n" in prompts(profile, "S", Rating(levels, "q"))[0]
    assert "1. 0\n" in prompts(profile, "S", Rating(levels[:9], "q"))[0]


def test_labels_that_are_no_tokens_are_named(tmp_path: Path) -> None:
    profile = found(folder(tmp_path, CHAT), byte_tokenizer("no"))
    with pytest.raises(RequestError, match="'yes'.*not one token") as error:
        prompts(profile, "S", YesNo("q"))
    assert error.value.code == "label_not_one_token"
    assert len(prompts(profile, "S", Choice([str(n) for n in range(26)]))) == 1
    with pytest.raises(RequestError, match="27 answers.* 26;"):
        prompts(profile, "S", Choice([str(n) for n in range(27)]))


def test_many_options_get_two_letters_that_are_tokens(tmp_path: Path) -> None:
    pairs = [a + b for a in "ABCDEF" for b in "BDFHJL"]  # neither AA nor AC
    profile = found(folder(tmp_path, CHAT), byte_tokenizer(*pairs))
    (text,) = prompts(profile, "S", Choice([f"n{n}" for n in range(30)]))
    assert "\nAB: n0\nAD: n1\n" in text
    with pytest.raises(RequestError, match="36"):
        prompts(profile, "S", Choice([str(n) for n in range(37)]))


def test_case_forms_are_read_if_asked_for(tmp_path: Path) -> None:
    def labels(profile: DecisionProfile, cases: bool | None) -> int:
        tools = PromptTools(RequestLimits(10_000, 10_000), profile.tokenizer, decisions=profile)
        call = DecideCall("S", {"id": YesNo("q")}, Options(case_forms=cases))
        return len(call.prepare(tools).request.labels[0])

    profile = found(folder(tmp_path, CHAT))
    assert [labels(profile, cases) for cases in (None, False, True)] == [2, 2, 4]
    profile = found(folder(tmp_path, CHAT, profile={"case_forms": True}))
    assert [labels(profile, cases) for cases in (None, False, True)] == [4, 2, 4]


def test_a_file_changes_what_it_has(tmp_path: Path) -> None:
    fields = {"chat": False, "temperature": {"choice": 2}, "prior": {"choice/2": [0.75, 0.25]}}
    path = folder(tmp_path, CHAT, profile=fields)
    profile = found(path)
    assert profile.name == "sglang-1-plain"
    assert (profile.temperature("choice"), profile.temperature("score")) == (2, 1)
    assert (profile.prior("choice", 2), profile.prior("choice", 3)) == ((0.75, 0.25), None)
    assert found(folder(tmp_path, CHAT, profile={"wording": "anyjev"})).wording.name == ("anyjev")
    assert profile.info()["priors"] == ["choice/2"]


def test_a_file_may_have_a_wording_of_its_own(tmp_path: Path) -> None:
    form = {"question": "Q {question}", "bare": "", "option": "{label}) {name}", "described": ""}
    wording = {
        "name": "own",
        "state": "[{state}] ",
        "yes_no": {**form, "end": "yes/no?", "option": "", "labels": ["Yes", "No"]},
        "choice": {**form, "end": "which?"},
        "score": {**form, "end": "how?", "labels": ["a", "b", "c"]},
    }
    profile = found(folder(tmp_path, CHAT, profile={"wording": wording}))
    assert prompts(profile, "S", Choice(["x", "y"], "?")) == [
        f"{HEAD}[S] Q ?\nA) x\nB) y\nwhich?{TAIL}"
    ]
    with pytest.raises(RequestError, match="4 answers"):
        prompts(profile, "S", Rating(list("abcd")))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"wording": "other"}, "expected sglang-1 or anyjev"),
        ({"wording": {"name": "x"}}, "`wording.yes_no` is missing"),
        ({"chat": "no"}, "true or false"),
        ({"temperature": {"choice": 0}}, "above 0"),
        ({"temperature": {"other": 1}}, "by type"),
        ({"prior": {"choice/3": [0.5, 0.5]}}, "TYPE/NUMBER"),
        ({"prior": {"score/11": [0.1] * 11}}, "TYPE/NUMBER"),
        ({"prior": {"choice/2": [0, 1]}}, "above 0"),
        ({"priors": {}}, "not a field"),
    ],
)
def test_a_faulty_file_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=problem):
        read_profile(path)


def test_a_calibration_is_written_beside_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"wording": "anyjev", "temperature": {"score": 9}}))
    calibration = Calibration({"choice": 1.5}, {"choice/2": (0.6, 0.4)})
    write_calibration(path, calibration)
    written = read_profile(path)
    assert written.calibration == calibration
    assert written.wording is not None
    assert written.wording.name == "anyjev"
    with pytest.raises(CheckpointError, match="above 0"):
        write_calibration(path, Calibration({"choice": -1.0}))
    assert read_profile(path) == written


def test_heads_and_missing_tokenizers_are_reasons(tmp_path: Path) -> None:
    path = folder(tmp_path, CHAT)
    assert "classification head" in str(find_decision_profile("m", path, 2, byte_tokenizer()))
    assert "tokenizer" in str(find_decision_profile("m", path, None, None))

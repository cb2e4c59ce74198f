from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from itemwise.cli.app import main
from itemwise.cli.output import read_json, read_lines
from itemwise.errors import RequestError
from itemwise.models.config import ModelConfig
from tests.conftest import DEMO_POOL

REQUEST = {"query": [1, 2], "items": [[3], [4, 5], []], "label_token_ids": [7, 8]}


@pytest.fixture(scope="module")
def engine(cache_folder: str) -> list[str]:
    """Options of the engine."""
    return ["--kv-cache-bytes", str(DEMO_POOL), "--compilation-cache-dir", cache_folder]


@pytest.fixture(scope="module")
def rank(engine: list[str]) -> list[str]:
    """How a ranking is asked for."""
    return ["rank", "--query", "desk lamps", "--skip-self-check", *engine]


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_score_prints_json_and_a_table(
    tmp_path: Path,
    make_checkpoint: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    engine: list[str],
) -> None:
    model, request = str(make_checkpoint("tiny-qwen3")), tmp_path / "request.json"
    request.write_text(json.dumps(REQUEST))
    assert run("score", model, "--request", str(request), "--apply-softmax", "--json", *engine) == 0
    body = json.loads(capsys.readouterr().out)
    assert [sum(row) for row in body["scores"]] == pytest.approx([1, 1, 1])
    assert body["usage"] == {"prompt_tokens": 5}
    assert run("score", model, "--request", str(request), "--skip-self-check", *engine) == 0
    assert "[4, 5]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n\n \nc", ["a", "b", "c"]),
        (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
        (b"a\rb", ["a", "b"]),
        ("a\u2028b\x0cc\x1e\x85d\ne".encode(), ["a\u2028b\x0cc\x1e\x85d", "e"]),
        (b"", []),
    ],
)
def test_items_are_the_lines_of_a_file(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    (tmp_path / "items.txt").write_bytes(content)
    assert read_lines(tmp_path / "items.txt") == expected


@pytest.mark.parametrize("content", [b"\xff\xfea\0", None])
def test_items_that_are_no_text_are_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "items.txt").write_bytes(content)
    with pytest.raises(RequestError, match=r"items\.txt` cannot be read"):
        read_lines(tmp_path / "items.txt")


@pytest.mark.parametrize("content", [b"\x7fELF\x9c\0", "\ufeff{}".encode("utf-16")])
def test_request_that_is_no_text_names_the_byte(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "request.json").write_bytes(content)
    with pytest.raises(RequestError, match=r"request\.json` is not JSON: byte \d is 0x.*no UTF-8"):
        read_json(tmp_path / "request.json")


def test_request_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_bytes(codecs.BOM_UTF8 + b'{"query": [1]}')
    assert read_json(tmp_path / "request.json") == {"query": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[1]", "expected an object"), (None, "cannot be read")],
)
def test_score_refuses_bad_files(
    tmp_path: Path,
    engine: list[str],
    make_checkpoint: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    message: str,
) -> None:
    request = tmp_path / "request.json"
    if content is not None:
        request.write_text(content)
    model = str(make_checkpoint("tiny-qwen3"))
    assert run("score", model, "--request", str(request), "--skip-self-check", *engine) == 2
    assert message in capsys.readouterr().err


def test_score_takes_a_file_or_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("score", "nowhere", "--request", "file", "--query", "text") == 2
    assert "use one or the other" in capsys.readouterr().err


def test_decide_prints_json_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: list[str]
) -> None:
    quick = ["decide", "--skip-self-check", *engine]
    asked = ["--yes-no", "Is it?", "--choice", "Which?", "--option", "red", "--option", "blue"]
    asked += ["--rate", "How much?", "--level", "low", "--level", "high", "--rotations", "2"]
    assert run(*quick, "--state", "a red desk", *asked, "--label-mass") == 0
    table = capsys.readouterr().out
    assert all(text in table for text in ("Is it?", "blue", "0 low", "label mass", "confidence"))
    assert run(*quick, "--state", "a red desk", *asked, "--json") == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [each["type"] for each in answers.values()] == ["noul", "choice", "score"]
    request = tmp_path / "request.json"
    criteria = {"red": None, "blue": None}
    which = {"type": "choice", "instructions": "Which?", "criteria": criteria}
    body = {"state": "a red desk", "questions": {"mine": which}, "x_rotations": 2}
    request.write_text(json.dumps(body))
    assert run(*quick, "--request", str(request), "--json") == 0
    assert json.loads(capsys.readouterr().out)["answers"] == {"mine": answers["Which?"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--yes-no", "Is it?"], "no state"),
        (["--state", "s"], "nothing is asked"),
        (["--state", "s", "--choice", "Which?"], "belong together"),
        (["--state", "s", "--level", "low"], "belong together"),
        (["--state", "s", "--request", "file"], "use one or the other"),
        (["--state", "s", "--yes-no", " "], "asks nothing"),
        (["--state", "s", "--yes-no", "a", "--yes-no", "a"], "the question 'a' is given twice"),
        (
            ["--state", "s", "--yes-no", "a", "--rate", "a", "--level", "low"],
            "the question 'a' is given twice",
        ),
        (
            ["--state", "s", "--choice", "a", "--option", "b", "--option", "b"],
            "the option 'b' is given twice",
        ),
    ],
)
def test_decide_refuses_what_it_cannot_ask(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], engine: list[str]
) -> None:
    assert run("decide", "--skip-self-check", *arguments, *engine) == 2
    assert message in capsys.readouterr().err


def test_random_checkpoint_is_written_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    arguments = ("checkpoint", "random", "--like", "tiny-llama", "--vocab-size", "300")
    assert run(*arguments, "--shards", "2", str(folder)) == 0
    raw = json.loads((folder / "config.json").read_text())
    assert ModelConfig.from_hf(raw).vocab_size == 300
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert run(*arguments, str(folder)) == 2
    assert "not empty" in capsys.readouterr().err
    assert run("checkpoint", "random", "--like", "gpt-5", str(tmp_path / "other")) == 2
    assert "tiny-llama" in capsys.readouterr().err


def test_demo_ranks_sensibly_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, cache_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(cache_folder).with_name("home")))
    assert run("demo") == 0
    printed = capsys.readouterr().out
    assert "the same bits" in printed
    assert "Self-check at start: passed" in printed
    assert printed.index("Hiking boot, waterproof") < printed.index("Waterproof jacket")
    assert printed.index("Waterproof phone case") < printed.index("Cookbook")


def test_rank_prints_json_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: list[str]
) -> None:
    file = tmp_path / "items.txt"
    file.write_text("Tea kettle\n\nBrass lamp for the desk\n")
    assert run(*rank, "Desk with drawers", "--items-file", str(file), "--json") == 0
    ranking = json.loads(capsys.readouterr().out)
    assert [item["index"] for item in ranking] == [2, 0, 1]
    assert [item["text"] for item in ranking][0] == "Brass lamp for the desk"
    assert ranking[0]["score"] > 0.5 > ranking[1]["score"] > ranking[2]["score"]
    assert run(*rank, "Tea kettle", "Desk lamp", "--top-n", "1") == 0
    printed = capsys.readouterr().out
    assert "Desk lamp" in printed
    assert "Tea kettle" not in printed


def test_rank_refuses_what_it_cannot_rank(
    tmp_path: Path,
    make_checkpoint: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    rank: list[str],
) -> None:
    assert run(*rank) == 2
    assert "no items" in capsys.readouterr().err
    assert run(*rank, "--items-file", str(tmp_path / "none")) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert run(*rank, "lamp", "--model", str(make_checkpoint("tiny-qwen3"))) == 2
    assert "it has no tokenizer.json" in capsys.readouterr().err
    template = tmp_path / "template.json"
    template.write_text("{}")
    assert run(*rank, "lamp", "--prompt-template", str(template)) == 2
    assert "is not a prompt template" in capsys.readouterr().err

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from itemwise.calibration.labelled import LabelledRequest, read_labelled
from itemwise.errors import LabelledSetError
from itemwise.request.decide.questions import Choice, Rating, YesNo

QUESTIONS = {
    "angry": {"type": "noul", "instructions": "The customer is angry.", "criteria": {"true": "y"}},
    "topic": {"type": "choice", "criteria": {"delivery": "a parcel", "price": None}},
    "mood": {"type": "score", "instructions": "How happy?", "criteria": ["sad", "so so", "glad"]},
}
LINE: dict[str, Any] = {
    "id": "t-1",
    "state": "The parcel came late.",
    "questions": QUESTIONS,
    "answers": {"angry": True, "topic": "price", "mood": 2},
}


def read(folder: Path, *lines: Any) -> list[LabelledRequest]:
    path = folder / "set.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return read_labelled(path)


def test_requests_and_places_of_answers(tmp_path: Path) -> None:
    (found,) = read(tmp_path, LINE)
    assert found.state == LINE["state"]
    assert found.questions == {
        "angry": YesNo("The customer is angry.", "y"),
        "topic": Choice({"delivery": "a parcel", "price": None}),
        "mood": Rating(["sad", "so so", "glad"], "How happy?"),
    }
    assert found.answers == {"angry": 0, "topic": 1, "mood": 2}


def test_answers_as_the_server_writes_them(tmp_path: Path) -> None:
    answers = {
        "angry": {"type": "noul", "noul": 0.0},
        "topic": {"type": "choice", "choice": "delivery", "confidence": 0.3},
        "mood": {"type": "score", "score": 1.0},
    }
    (found,) = read(tmp_path, {**LINE, "answers": answers})
    assert found.answers == {"angry": 1, "topic": 0, "mood": 1}


def test_questions_without_an_answer_are_not_asked(tmp_path: Path) -> None:
    first, second = read(tmp_path, {**LINE, "answers": {"mood": 0}}, "", LINE)
    assert list(first.questions) == ["mood"]
    assert (first.line, second.line) == (1, 3)


def test_byte_order_mark_and_line_ends_of_windows_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + (json.dumps(LINE) + "\r\n").encode() * 2)
    assert read_labelled(path) == [*read(tmp_path, LINE, LINE)]


def test_groups_are_ids_or_else_states(tmp_path: Path) -> None:
    other = {"state": {"a": 1}, "questions": QUESTIONS, "answers": {"mood": 0}}
    lines = (LINE, {**LINE, "state": "other"}, other, other, {**other, "id": 7})
    groups = [one.group for one in read(tmp_path, *lines)]
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert len(set(groups)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "`state.str`: Input should be"),
        ({"state": 3}, "`state.str`: Input should be"),
        ({"questions": {}}, "`answers.angry` has no question of that name"),
        ({"questions": [1]}, "`questions`: Input should be a valid dictionary"),
        ({"answers": None}, "`answers` is missing, expected an object"),
        ({"answers": {}}, "`answers` is an empty object, expected"),
        ({"answers": {"size": 1}}, "`answers.size` has no question of that name"),
        ({"answers": {"angry": "yes"}}, '`answers.angry` is "yes", expected true or false'),
        ({"answers": {"angry": 0.7}}, "`answers.angry` is 0.7, expected true or false"),
        ({"answers": {"topic": "weather"}}, "is no option; expected 'delivery', 'price'"),
        ({"answers": {"topic": ["price"]}}, "`answers.topic` is a list of 1, which is no option"),
        ({"answers": {"mood": 3}}, "`answers.mood` is 3, which is no level; expected 0 to 2"),
        ({"answers": {"mood": True}}, "`answers.mood` is true, which is no level"),
        ({"answers": {"mood": 1.5}}, "which is no level"),
        ({"id": ["a"]}, "`id` is a list of 1, expected text or a whole number"),
        ({"questions": {"mood": {"type": "text"}}, "answers": {"mood": 0}}, "`questions.mood`"),
        ({"questions": {"mood": [1]}, "answers": {"mood": 0}}, "`questions.mood`"),
        (
            {
                "questions": {"mood": {"type": "score", "criteria": {"0": "x"}}},
                "answers": {"mood": 0},
            },
            "`questions.mood.score.criteria`",
        ),
        (
            {
                "questions": {"mood": {"type": "score", "criteria": ["a"] * 11}},
                "answers": {"mood": 0},
            },
            "at most 10",
        ),
        ({"questions": {"angry": {"type": "noul"}}, "answers": {"angry": True}}, "asks nothing"),
        ({"assets": {"photo": {}}}, "`assets` has images"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelledSetError) as told:
        read(tmp_path, LINE, {**LINE, **change})
    assert "line 2: " in str(told.value)
    assert message in str(told.value)
    assert len(told.value.problems) == 1


def test_all_bad_lines_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(LabelledSetError) as told:
        read(tmp_path, "{", LINE, "[1]", {**LINE, "answers": {"mood": 9, "topic": "x"}})
    assert len(told.value.problems) == 3
    text = str(told.value)
    assert "the labelled set has 3 problems" in text
    assert "line 1: is not JSON" in text
    assert "line 3: is a list of 1, expected an object" in text
    assert "line 4: `answers.mood` is 9" in text
    assert "`answers.topic`" in text


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    with pytest.raises(LabelledSetError) as told:
        read(tmp_path, *["{"] * 100)
    assert len(told.value.problems) == 100
    assert str(told.value).endswith("and 80 more")


def test_deep_states_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    deep = "[" * 200 + "]" * 200
    with pytest.raises(LabelledSetError, match="line 1: `state` is nested more than 100 deep"):
        read(tmp_path, json.dumps({**LINE, "state": "deep"}).replace('"deep"', deep))
    with pytest.raises(LabelledSetError, match="cannot be read: No such file"):
        read_labelled(tmp_path / "absent.jsonl")
    with pytest.raises(LabelledSetError, match="is empty"):
        read(tmp_path, "")

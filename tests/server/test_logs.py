"""Log lines that no text can forge."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.server.logs import JsonFormatter, Repeats, TextFormatter, safe

ODD = "a\nb\rc\x85d\u2028e\u2029f\x1b[31m\x00\x7f\x9b\ud800"


def record(text: str, *, failed: bool = False) -> logging.LogRecord:
    info = None
    if failed:
        try:
            raise ValueError(text)
        except ValueError as error:
            info = (ValueError, error, error.__traceback__)
    return logging.LogRecord("itemwise", logging.INFO, "", 0, "said %s", (text,), info)


def test_message_is_one_line_of_text() -> None:
    line = TextFormatter().format(record(ODD))
    assert line.splitlines() == [line]
    assert line.endswith(r"said a\nb\rc\x85d\u2028e\u2029f\x1b[31m\x00\x7f\x9b\ud800")


def test_traceback_cannot_pass_for_a_line_of_its_own() -> None:
    first, *others = TextFormatter().format(record(ODD, failed=True)).splitlines()
    assert first.endswith(r"\ud800")
    assert others
    assert all(line.startswith("  ") for line in others)


@pytest.mark.parametrize("failed", [False, True])
def test_json_is_one_line_that_says_the_same(failed: bool) -> None:
    line = JsonFormatter().format(record(ODD, failed=failed))
    assert line.splitlines() == [line]
    assert line.isprintable()
    assert json.loads(line)["message"] == "said " + ODD.replace("\ud800", r"\ud800")


@given(st.text(st.characters()))
def test_any_text_stays_one_line(text: str) -> None:
    assert len(safe(text + ".").splitlines()) == 1
    line = JsonFormatter().format(record(text))
    assert len(line.splitlines()) == 1
    json.loads(line)


def test_repeated_message_is_dropped_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    repeats = Repeats()
    assert [repeats.filter(record(text)) for text in ("a", "a", "b", "a")] == [
        True,
        False,
        True,
        False,
    ]
    now[0] += 11
    assert repeats.filter(record("a"))

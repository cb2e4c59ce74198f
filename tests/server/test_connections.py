"""How many connections the limit of open files allows, and what is said where all are taken."""

from __future__ import annotations

import logging
import resource

import pytest

from itemwise.errors import ConfigError
from itemwise.server.connections import ConnectionLimits, Pool, backlog, fit_open_files

ENDLESS = resource.RLIM_INFINITY
OTHER_FILES = 64


class Busy:
    """A connection with a request."""

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def advance(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "fitting"),
    [
        (ENDLESS, ENDLESS, None, (1024, 64)),
        (4096, 4096, None, (1024, 64)),
        (256, ENDLESS, 1280, (1024, 64)),
        (256, 4096, 1280, (1024, 64)),
        (256, 512, 512, (272, 64)),
        (256, 256, 256, (96, 48)),
    ],
)
def test_connections_fit_the_limit_of_open_files(
    soft: int,
    hard: int,
    raised: int | None,
    fitting: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    found, spare = fit_open_files(1024)
    assert (found, spare) == fitting
    assert limits[1:] == ([] if raised is None else [(raised, hard)])
    allowed = limits[-1][0]
    if allowed != ENDLESS:
        assert found + spare + backlog(found) + OTHER_FILES <= allowed
    assert ("at most" in caplog.text) is (found < 1024)


def test_limit_of_open_files_that_is_too_low_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(ConfigError, match=r"limit of open files is 100 .* at least 128"):
        fit_open_files(1024)


def test_connections_beyond_the_spare_ones_are_closed_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(ConnectionLimits(2, spare=3))
    members = [Busy() for _ in range(9)]
    within = []
    with caplog.at_level(logging.WARNING):
        for member in members:
            within.append(pool.enter(member))
            pool.begin(member)
    assert within == [True] * 2 + [False] * 7
    assert [member.aborted for member in members] == [False] * 5 + [True] * 4
    assert len(caplog.records) == 1
    assert pool.is_full

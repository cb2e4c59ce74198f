"""An engine without a model, for the scheduler and the server: steps of a few tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from itemwise.types import ScoreRequest, ScoreResult, StepOutcome, StepStats

WAIT_S = 20


@dataclass(eq=False)
class FakeWork:
    """A request that is open; `run` tokens of it are done."""

    request: ScoreRequest
    remaining_tokens: int
    cached_tokens: int = 0
    waits_for_pages: bool = False
    answer: ScoreResult | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None

    def result(self) -> ScoreResult:
        assert self.answer is not None
        return self.answer


def first_token(request: ScoreRequest) -> int:
    """The token that a request's sequences begin with."""
    return int(request.query[0] if len(request.query) else request.items.tokens[0])


class FakeCore:
    """Runs `step_tokens` tokens a step; `score` makes the answers, and may raise or block.

    Attributes:
        turns: per step, the first query token of each request that ran in it.
        closed: first query token of each request that was let go of.
        num_forgotten: how often the prefix cache was emptied.
        gate: steps run only while it is set.
        max_open: requests there is room for.
    """

    def __init__(
        self, score: Callable[[ScoreRequest], ScoreResult], step_tokens: int = 8, max_open: int = 99
    ) -> None:
        self.step_tokens = step_tokens
        self.max_open = max_open
        self.turns: list[list[int]] = []
        self.num_forgotten = 0
        self.closed: list[int] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.in_step = threading.Event()
        self.lost: BaseException | None = None
        self._score = score
        self._open: list[FakeWork] = []

    def cost(self, request: ScoreRequest) -> int:
        return len(request.query) + sum(map(len, request.items))

    def open(self, request: ScoreRequest) -> FakeWork | None:
        if len(self._open) >= self.max_open:
            return None
        work = FakeWork(request, self.cost(request))
        self._open.append(work)
        return work

    def close(self, work: Any) -> None:
        self._open.remove(work)
        self.closed.append(first_token(work.request))

    def forget_prefixes(self) -> None:
        self.threads.add(threading.get_ident())
        self.num_forgotten += 1

    def step(self, works: Sequence[Any]) -> StepOutcome:
        self.threads.add(threading.get_ident())
        self.in_step.set()
        assert self.gate.wait(WAIT_S)
        if self.lost is not None:
            raise self.lost
        outcome = StepOutcome()
        room, turn = self.step_tokens, list[int]()
        for work in works:
            taken = min(room, work.remaining_tokens)
            if not taken:
                break
            work.remaining_tokens -= taken
            room -= taken
            turn.append(first_token(work.request))
            if work.remaining_tokens == 0:
                self._end(work, outcome)
        self.turns.append(turn)
        used = self.step_tokens - room
        outcome.landed.append(StepStats(0.001, used, 1.0, 1.0, len(outcome.finished)))
        return outcome

    def _end(self, work: FakeWork, outcome: StepOutcome) -> None:
        self._open.remove(work)
        try:
            work.answer = self._score(work.request)
        except Exception as error:
            outcome.failed.append((work, error))
        else:
            outcome.finished.append(work)

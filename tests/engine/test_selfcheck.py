from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from itemwise.capacity.replica import Clock, EngineShape, SimulatedCore
from itemwise.capacity.step_cost import StepCost
from itemwise.config import EngineConfig
from itemwise.engine.platform import PLATFORMS, step_shapes
from itemwise.engine.selfcheck import SelfCheck, is_finite, recall, remember, run_self_check
from itemwise.types import ScoreRequest, ScoreResult
from tests.conftest import SMALL


class FakeScorer:
    """Scores that depend on what `fault` says they should not depend on."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.calls = self.short = 0
        self.cached = False

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.calls += 1
        results = []
        for request in requests:
            scores = np.array(
                [
                    [hash((request.query.tobytes(), item.tobytes())) % 1000 + 0.5] * 2
                    for item in request.items
                ],
                np.float32,
            )
            if self.fault == "neighbours":
                scores += len(request.items)
            elif self.fault == "order":
                scores += np.arange(len(scores), dtype=np.float32)[:, None]
            elif self.fault == "company":
                scores += len(requests)
            elif self.fault == "cache":
                scores += self.cached
            elif self.fault == "nan":
                scores[0] = np.nan
            elif self.fault == "step":
                tokens = sum(len(r.query) * (len(r.query) == 1) for r in requests)
                tokens += sum(len(item) for r in requests for item in r.items)
                scores += tokens == 40
            elif self.fault == "short":
                self.short += len(request.items) == 10
                scores[-1] += self.short == 2  # in the second round
            elif self.fault == "small":
                scores += len(requests) == 1 and len(request.query) < 10
            elif self.fault == "constant":
                scores[:] = 1
            results.append(ScoreResult(scores, 0, logits=scores))
        self.cached = True
        return results

    def forget(self) -> None:
        self.cached = False

    def check(self) -> SelfCheck:
        return run_self_check(
            self.score,
            self.forget,
            vocab_size=1000,
            num_outputs=1000,
            page_tokens=32,
            max_tokens=500,
            step_sizes={8: 8, 40: 10, 200: 50},
            short_rounds=2,
        )


def test_exact_scores_pass() -> None:
    verdict = FakeScorer().check()
    assert verdict.status == "passed"
    assert not verdict.failures


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("neighbours", "alone_after_eviction"),
        ("order", "permuted_in_company_on_cached_prefix"),
        ("company", "permuted_in_company_on_cached_prefix"),
        ("cache", "permuted_in_company_on_cached_prefix"),
        ("nan", "finite"),
        ("constant", "items_differ"),
        ("step", "in_a_step_of_40_tokens"),
        ("short", "short_items_in_a_step_of_40_tokens"),
        ("small", "other_request_alone"),
    ],
)
def test_each_fault_fails_its_check(fault: str, failure: str) -> None:
    verdict = FakeScorer(fault).check()
    assert verdict.status == "failed"
    assert failure in verdict.failures


SMALL_PAGES = {name: SMALL[name] for name in ("page_tokens", "step_lanes")}


@pytest.mark.parametrize(
    ("platform", "fields", "left_out"),
    [
        ("cpu", {}, 0),
        ("cpu", SMALL_PAGES, 0),
        ("gpu", {}, 0),
        ("gpu", {}, 1),
        ("gpu", {"step_lanes": 16}, 0),
        ("gpu", {"step_lanes": 9}, 0),
    ],
)
def test_requests_run_in_the_steps_that_are_compared(
    platform: Literal["cpu", "gpu"], fields: dict[str, Any], left_out: int
) -> None:
    config = EngineConfig(**fields)
    shapes = step_shapes(config, PLATFORMS[platform], 4096)[left_out:]
    core = SimulatedCore(EngineShape(shapes, 200, config), StepCost(1e-3), Clock(), record=True)
    ran: list[tuple[int, list[int]]] = []  # items of a call's first request, tokens of its steps

    def score(requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        core.programs.sent.clear()
        opened = [work for request in requests if (work := core.open(request)) is not None]
        left = list(opened)
        while left:
            finished = core.step(left).finished
            left = [work for work in left if work not in finished]
        ran.append((len(requests[0].items), [step.places for step in core.programs.sent]))
        return [work.result() for work in opened]

    run_self_check(
        score,
        core.forget_prefixes,
        vocab_size=100,
        num_outputs=100,
        page_tokens=config.page_tokens,
        max_tokens=4096,
        step_sizes={shape.tokens: shape.max_scored_rows for shape in shapes},
    )
    *small, largest = (shape.tokens for shape in shapes)
    base, permuted, *_ = ran
    assert base[1][0] == largest
    if platform == "gpu":  # a processor's products are our own
        assert permuted[1][0] == largest
    in_largest, *in_small = ran[-len(shapes) :]
    assert in_largest[1][0] == largest
    assert [steps for _, steps in in_small] == [[tokens] for tokens in small]
    most = [min(shape.max_scored_rows, shape.tokens - 1) for shape in shapes[:-1]]
    assert all(few >= 0.9 * n for (few, _), n in zip(in_small, most, strict=True))
    assert in_largest[0] >= max(few for few, _ in in_small)


@pytest.mark.parametrize("max_tokens", [2, 3, 40])
def test_probe_fits_short_limits(max_tokens: int) -> None:
    longest = 0

    def score(requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        nonlocal longest
        for request in requests:
            longest = max(longest, len(request.query) + max(map(len, request.items)))
        return FakeScorer().score(requests)

    sizes = {"vocab_size": 1000, "num_outputs": 1000, "page_tokens": 32, "max_tokens": max_tokens}
    run_self_check(score, lambda: None, **sizes, step_sizes={8: 8, 40: 10})
    assert longest <= max_tokens


def test_a_verdict_is_recalled_if_it_passed(tmp_path: Path) -> None:
    path = tmp_path / "verdicts" / "one.json"
    assert recall(path) is None
    verdict = FakeScorer().check()
    remember(verdict, path)
    assert recall(path) == verdict
    remember(FakeScorer("order").check(), path)
    assert recall(path) is None
    for damaged in ("", "{", '{"status": "passed"', '{"other": 1}', "[]"):
        path.write_text(damaged)
        assert recall(path) is None


def test_a_verdict_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remember(FakeScorer().check(), tmp_path / "file" / "one.json")


@pytest.mark.parametrize("max_tokens", [1, 2, 500])
def test_a_short_probe_is_looked_at(max_tokens: int) -> None:
    assert is_finite(FakeScorer().score, 1000, max_tokens)
    assert not is_finite(FakeScorer("nan").score, 1000, max_tokens)

"""The start-up self-check: do scores keep their bits in any batch composition on this device?"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from itemwise.types import Float32Array, Int32Array, ScoreRequest, ScoreResult

Score = Callable[[Sequence[ScoreRequest]], list[ScoreResult]]
PROBE_TOKENS = 8  # of the query of `is_finite`


@dataclass(frozen=True)
class SelfCheck:
    """The verdict.

    Attributes:
        status: `passed`, `failed` or `skipped`.
        checks: each check and whether it held.
        seconds: time it took.
        checked_at: when, in UTC. At an earlier start, if the same programs passed there.
        step_tokens: token places of the steps that it is about. Smaller ones that have other bits
            are left out.
    """

    status: Literal["passed", "failed", "skipped"]
    checks: dict[str, bool] = field(default_factory=dict)
    seconds: float = 0.0
    checked_at: str = ""
    step_tokens: list[int] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Names of the checks that did not hold."""
        return [name for name, held in self.checks.items() if not held]


def remember(verdict: SelfCheck, path: Path) -> None:
    """Writes a verdict down, whole or not at all: where that cannot be, it is reached anew."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
        draft.replace(path)


def recall(path: Path) -> SelfCheck | None:
    """The verdict written down there, if there is one that passed."""
    try:
        verdict = SelfCheck(**json.loads(path.read_text(encoding="utf-8")))
        passed = verdict.status == "passed" and not verdict.failures
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return verdict if passed else None


def is_finite(score: Score, vocab_size: int, max_tokens: int) -> bool:
    """Whether the score of a short random probe is a number.

    Of two labels alone: a token whose row of the output matrix is NaN spoils the scores of those
    who ask for probabilities over the vocabulary, and no others.
    """
    count = max(1, min(PROBE_TOKENS, max_tokens - 1))
    query = np.random.default_rng(0).integers(0, vocab_size, count).astype(np.int32)
    labels = tuple({0, vocab_size - 1})
    probe = ScoreRequest(query, [query[:1]], (labels,), apply_softmax=True)
    (result,) = score([probe])
    return bool(np.isfinite(result.scores[0]).all())


def run_self_check(
    score: Score,
    forget: Callable[[], None],
    *,
    vocab_size: int,
    num_outputs: int,
    page_tokens: int,
    max_tokens: int,
    step_sizes: Mapping[int, int],
    short_rounds: int = 1,
) -> SelfCheck:
    """Scores a probe in several ways and compares bits.

    Args:
        score: scores requests together.
        forget: empties the prefix cache.
        vocab_size: ids to draw the probe from.
        num_outputs: labels there are: the vocabulary, or those of a classification head.
        page_tokens: tokens of a page; the probe's query fills two, and a part of a third.
        max_tokens: longest sequence allowed.
        step_sizes: token places of the steps of each size, ascending, and the most rows that each
            scores.
        short_rounds: times that other short items are compared.
    """
    start = time.perf_counter()
    prober = _Prober(score, forget, vocab_size, num_outputs, page_tokens, max_tokens)
    checks = prober.check_company(step_sizes) | prober.check_short(step_sizes, short_rounds)
    status: Literal["passed", "failed"] = "passed" if all(checks.values()) else "failed"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return SelfCheck(status, checks, time.perf_counter() - start, now, list(step_sizes))


@dataclass
class _Prober:
    """Draws requests and scores them; see `run_self_check`."""

    score: Score
    forget: Callable[[], None]
    vocab_size: int
    num_outputs: int
    page_tokens: int
    max_tokens: int

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._labels = tuple({0, self.num_outputs - 1})

    def check_company(self, step_sizes: Mapping[int, int]) -> dict[str, bool]:
        """Whether items have the same bits in any company and at any place.

        In few calls, since each costs steps of the real model: from nothing, in the largest step;
        permuted, beside another request, on the cached prefix; alone, with the prefix computed
        again in other pages; the other request alone; then an item at the end of a full step of
        each size.
        """
        draw, run, longest = self._draw, self._run, self.max_tokens
        query = draw(max(1, min(self.page_tokens * 9 // 4, longest // 2)))
        room = max(1, longest - len(query))
        items = [draw(min(n, room)) for n in (20, 5, 1, 33, 7)]
        start_of_other = draw(min(3, longest - 1))
        first = draw(min(20, longest - len(start_of_other)))
        other = self._request(start_of_other, (draw(1), first))

        def probe(chosen: Sequence[int]) -> ScoreRequest:
            return self._request(query, [items[i] for i in chosen])

        everything, num_tokens = list(range(len(items))), len(query) + sum(map(len, items))
        self.forget()
        base = run(probe(everything), *self._beside(step_sizes, num_tokens))[0]
        company, in_company, *_ = run(
            other, probe(everything[::-1]), *self._beside(step_sizes, num_tokens)
        )
        self.forget()
        (alone,) = run(probe([3]))
        (other_alone,) = run(other)
        in_steps = {
            tokens: run(*self._filling(tokens - len(items[1])), probe([1]))[-1]
            for tokens in step_sizes
        }
        return {
            "finite": bool(np.isfinite(base).all()),
            "items_differ": len(np.unique(base[:, 0])) > 1 or self.vocab_size == 1,
            "permuted_in_company_on_cached_prefix": _same_bits(in_company[::-1], base),
            "alone_after_eviction": _same_bits(alone[0], base[3]),
            "other_request_alone": _same_bits(other_alone, company),
            **{
                f"in_a_step_of_{tokens}_tokens": _same_bits(single[0], base[1])
                for tokens, single in in_steps.items()
            },
        }

    def check_short(self, step_sizes: Mapping[int, int], rounds: int) -> dict[str, bool]:
        """Whether items of one token have the bits of the largest step in each smaller one.

        As many of them as a step scores, since rounding hides a last bit in most.
        """
        *small, largest = step_sizes
        if not small:
            return {}
        equal = dict.fromkeys(small, True)
        for _ in range(rounds):
            # Where the largest step scores no more rows than others, tokens must fill it.
            same_rows = step_sizes[largest] == step_sizes[small[-1]]
            beside = self._beside(step_sizes) if same_rows else []
            most = max(1, step_sizes[largest] - sum(len(one.items) for one in beside))
            query, items = self._draw(1), list(self._draw(most)[:, None])
            self.forget()
            in_largest = self._run(self._request(query, items, apply_softmax=True), *beside)[0]
            for tokens in small:
                few = items[: min(step_sizes[tokens], tokens - 1)]
                self.forget()
                (rows,) = self._run(self._request(query, few, apply_softmax=True))
                equal[tokens] &= _same_bits(rows, in_largest[: len(few)])
        return {f"short_items_in_a_step_of_{tokens}_tokens": equal[tokens] for tokens in small}

    def _beside(self, step_sizes: Mapping[int, int], num_tokens: int = 0) -> list[ScoreRequest]:
        """A request beside which so many tokens fit no smaller step than the largest.

        None where they do not fit one as it is.
        """
        *small, _ = step_sizes
        return self._filling(small[-1] + 1) if small and num_tokens <= small[-1] else []

    def _filling(self, tokens: int) -> list[ScoreRequest]:
        """Another request of so many tokens; none if it would be a query alone."""
        longest = min(self.page_tokens, self.max_tokens - 1)
        lengths = [min(longest, tokens - 1 - start) for start in range(0, tokens - 1, longest)]
        return [self._request(self._draw(1), list(map(self._draw, lengths)))] if lengths else []

    def _draw(self, count: int) -> Int32Array:
        return self._rng.integers(0, self.vocab_size, count).astype(np.int32)

    def _request(
        self, query: Int32Array, items: Sequence[Int32Array], *, apply_softmax: bool = False
    ) -> ScoreRequest:
        labels = (self._labels,) * len(items)
        return ScoreRequest(query, items, labels, apply_softmax=apply_softmax)

    def _run(self, *requests: ScoreRequest) -> list[Float32Array]:
        # With the logits, as all probabilities of a head with a single label are 1.
        results = self.score(requests)
        return [np.hstack([np.asarray(r.logits), np.asarray(r.scores)]) for r in results]


def _same_bits(a: Float32Array, b: Float32Array) -> bool:
    return np.array_equal(
        np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32)
    )

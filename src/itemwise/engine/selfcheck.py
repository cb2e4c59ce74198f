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
    rng = np.random.default_rng(0)

    def draw(count: int) -> Int32Array:
        return rng.integers(0, vocab_size, count).astype(np.int32)

    query = draw(max(1, min(page_tokens * 9 // 4, max_tokens // 2)))
    room = max(1, max_tokens - len(query))
    items = [draw(min(n, room)) for n in (20, 5, 1, 33, 7)]
    labels = tuple({0, num_outputs - 1})
    start_of_other = draw(min(3, max_tokens - 1))
    first = draw(min(20, max_tokens - len(start_of_other)))
    other = ScoreRequest(start_of_other, (draw(1), first), (labels,) * 2)

    def probe(chosen: Sequence[int]) -> ScoreRequest:
        return ScoreRequest(query, [items[i] for i in chosen], (labels,) * len(chosen))

    everything = list(range(len(items)))

    def run(*requests: ScoreRequest) -> list[Float32Array]:
        # With the logits, as all probabilities of a head with a single label are 1.
        results = score(requests)
        return [np.hstack([np.asarray(r.logits), np.asarray(r.scores)]) for r in results]

    def filling(tokens: int) -> list[ScoreRequest]:
        """Another request of so many tokens."""
        longest = min(page_tokens, max_tokens - 1)
        lengths = [min(longest, tokens - 1 - start) for start in range(0, tokens - 1, longest)]
        if not lengths:
            return []
        return [ScoreRequest(draw(1), list(map(draw, lengths)), (labels,) * len(lengths))]

    # Few calls, since each costs steps of the real model: from nothing; permuted, beside another
    # request, on the cached prefix; alone, with the prefix computed again in other pages; the other
    # request alone; an item at the end of a full step of each size; then as many items of one token
    # as a step scores: where a few sums differ by a last bit, rounding hides it in most items.
    forget()
    (base,) = run(probe(everything))
    company, in_company = run(other, probe(everything[::-1]))
    in_company = in_company[::-1]
    forget()
    (alone,) = run(probe([3]))
    (other_alone,) = run(other)
    in_steps = {
        tokens: run(*filling(tokens - len(items[1])), probe([1]))[-1] for tokens in step_sizes
    }
    short_equal = _compare_short_items(run, draw, labels, step_sizes, short_rounds)
    checks = {
        "finite": bool(np.isfinite(base).all()),
        "items_differ": len(np.unique(base[:, 0])) > 1 or vocab_size == 1,
        "permuted_in_company_on_cached_prefix": _same_bits(in_company, base),
        "alone_after_eviction": _same_bits(alone[0], base[3]),
        "other_request_alone": _same_bits(other_alone, company),
        **{
            f"in_a_step_of_{tokens}_tokens": _same_bits(single[0], base[1])
            for tokens, single in in_steps.items()
        },
        **{
            f"short_items_in_a_step_of_{tokens}_tokens": equal
            for tokens, equal in short_equal.items()
        },
    }
    status: Literal["passed", "failed"] = "passed" if all(checks.values()) else "failed"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return SelfCheck(status, checks, time.perf_counter() - start, now, list(step_sizes))


def _compare_short_items(
    run: Callable[..., list[Float32Array]],
    draw: Callable[[int], Int32Array],
    labels: tuple[int, ...],
    step_sizes: Mapping[int, int],
    rounds: int,
) -> dict[int, bool]:
    """Whether items of one token, as many as a step scores, are the same in the largest step.

    By the size of each smaller one.
    """
    *small, largest = counts = {t: min(rows, t - 1) for t, rows in step_sizes.items()}
    equal = dict.fromkeys(small, True)
    for _ in range(rounds if small else 0):
        query, items = draw(1), list(draw(counts[largest])[:, None])
        bits = {}
        for tokens, count in counts.items():
            asked = ScoreRequest(query, items[:count], (labels,) * count, apply_softmax=True)
            (bits[tokens],) = run(asked)
        for tokens in small:
            equal[tokens] &= _same_bits(bits[tokens], bits[largest][: counts[tokens]])
    return equal


def _same_bits(a: Float32Array, b: Float32Array) -> bool:
    return np.array_equal(
        np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32)
    )

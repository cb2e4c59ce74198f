"""The packed algorithm: equal to `prefill_extend`, and items isolated from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from itemwise.engine.engine import Engine
from itemwise.errors import EngineLostError, RequestError
from itemwise.scorer import Scorer
from itemwise.types import Float32Array, Mask, ScoreRequest, TokenLists, Tokens
from tests.conftest import VOCAB_SIZE

MAX_DIFFERENCE = 1e-4  # float32, of probabilities; the two forms add in another order
MASKS: tuple[Mask, ...] = ("dense", "segment")


def draw(seed: int, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, VOCAB_SIZE, n).tolist()) for n in lengths]


def request_of(seed: int, query: int, items: Sequence[int], **fields: Any) -> ScoreRequest:
    first, *rest = draw(seed, (query, *items))
    return ScoreRequest(first, tuple(rest), ((1, 2, 3),) * len(rest), **fields)


REQUESTS = {
    "short": request_of(0, 40, (5, 20, 1)),
    "softmax": request_of(1, 40, (5, 20, 1), apply_softmax=True, temperature=0.7),
    "one token": request_of(2, 1, (1,)),
    "empty items": request_of(3, 33, (0, 4, 0)),
    "long items": request_of(4, 20, (300, 70, 129)),
    "several parts of rows": request_of(5, 70, (1,) * 60),
    "several sequences": request_of(6, 200, (40,) * 12, chunk_size=5),
    "labels per item": replace(request_of(7, 30, (4, 5, 6)), labels=((1,), (2, 3), (4,) * 12)),
    "item first": request_of(8, 20, (9, 8), item_first=True),
}


# Sizes that XLA compiles anew for each mask, and the type that no processor here defaults to.
FURTHER = ("long items", "several parts of rows", "several sequences")
FURTHER_FAMILIES = ("tiny-qwen2", "tiny-llama")
TYPES = ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def engine_of(shared_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    """Engines of the machine's own level for float32, and of XLA for bfloat16."""

    def make(name: str, dtype: str) -> Engine:
        level = None if dtype == "float32" else "xla-bfloat16"
        return shared_engine(name, level, dtype=dtype, skip_self_check=True)

    return make


def scores(engine: Engine, request: ScoreRequest, **changes: Any) -> list[Float32Array]:
    config = engine.config
    engine.config = replace(config, **changes)
    try:
        return list(engine.score([request])[0].scores)
    finally:
        engine.config = config


def packed(engine: Engine, request: ScoreRequest, mask: Mask, **changes: Any) -> list[Float32Array]:
    changes |= {"multi_item_algorithm": "packed", "multi_item_mask_impl": mask}
    return scores(engine, request, **changes)


def difference(one: list[Float32Array], other: list[Float32Array]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("mask", "case"),
    [
        pytest.param(
            mask, case, marks=[pytest.mark.slow] if mask == "dense" and case in FURTHER else []
        )
        for mask in MASKS
        for case in REQUESTS
    ],
)
def test_packed_equals_prefill_extend(
    case: str, mask: Mask, engine_of: Callable[..., Engine]
) -> None:
    engine, request = engine_of("tiny-qwen3", "float32"), REQUESTS[case]
    found, expected = packed(engine, request, mask), scores(engine, request)
    assert difference(found, expected) <= MAX_DIFFERENCE
    assert [row.shape for row in found] == [row.shape for row in expected]


@pytest.mark.parametrize(
    "model",
    [
        "tiny-qwen3",
        *(pytest.param(f"tiny-{one}", marks=pytest.mark.slow) for one in ("qwen2", "llama")),
    ],
)
def test_families_and_a_delimiter(model: str, engine_of: Callable[..., Engine]) -> None:
    engine, request = engine_of(model, "float32"), request_of(9, 50, (20, 3, 0, 45))
    expected = scores(engine, request, multi_item_scoring_delimiter=7)
    found = packed(engine, request, "segment", multi_item_scoring_delimiter=7)
    assert difference(found, expected) <= MAX_DIFFERENCE
    without = packed(engine, request, "segment")
    assert difference(found, without) > 10 * MAX_DIFFERENCE


@pytest.mark.slow
def test_bfloat16_is_no_farther_from_the_truth(engine_of: Callable[..., Engine]) -> None:
    request = request_of(
        10, 150, np.random.default_rng(0).integers(1, 60, 60).tolist(), apply_softmax=True
    )
    truth = np.stack(scores(engine_of("tiny-qwen3", "float32"), request))
    engine = engine_of("tiny-qwen3", "bfloat16")

    def error(found: list[Float32Array]) -> float:
        return float(np.sqrt(np.mean((np.stack(found) - truth) ** 2)))

    theirs = error(scores(engine, request))
    for mask in MASKS:
        # Both round at the same places; over 180 values their errors agree to a few percent.
        assert error(packed(engine, request, mask)) <= 1.1 * theirs


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_neighbour_of_the_same_length_changes_no_bit(
    mask: Mask, dtype: str, engine_of: Callable[..., Engine]
) -> None:
    engine, request = engine_of("tiny-qwen3", dtype), request_of(11, 60, (20, 5, 33, 70))
    base = packed(engine, request, mask)
    items: list[Tokens] = list(request.items)
    items[1] = draw(99, (5,))[0]
    found = packed(engine, replace(request, items=TokenLists.of(items)), mask)
    for i in (0, 2, 3):
        assert found[i].tobytes() == base[i].tobytes()
    assert found[1].tobytes() != base[1].tobytes()


@pytest.mark.parametrize("dtype", TYPES)
def test_segment_isolates_bit_by_bit_at_one_padded_length(
    dtype: str, engine_of: Callable[..., Engine]
) -> None:
    """Also where neighbours grow, shrink, move or vanish: granules are counted from the item."""
    engine = engine_of("tiny-qwen3", dtype)
    request = request_of(12, 60, (20, 5, 33, 70, 1))
    base = packed(engine, request, "segment")
    assert [p["tokens"] for p in engine.info()["packed_programs"]].count(256) >= 1

    def same(order: Sequence[int], **changed: tuple[int, ...]) -> None:
        items = TokenLists.of([changed.get(f"item{i}", request.items[i]) for i in order])
        other = replace(request, items=items, labels=request.labels[: len(items)])
        found = packed(engine, other, "segment")
        for place, i in enumerate(order):
            if f"item{i}" not in changed:
                assert found[place].tobytes() == base[i].tobytes()

    same((4, 2, 0, 3, 1))
    same((3,))
    same((0, 1, 2, 3, 4), item1=(*request.items[1], 13))
    same((0, 1, 2, 3, 4), item0=())
    same((0, 1, 2, 3, 4), item2=draw(98, (40,))[0])


def test_programs_are_compiled_once_a_length(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(multi_item_algorithm="packed", skip_self_check=True)
    for _ in range(2):
        for query in (30, 200, 400):
            engine.score([request_of(0, query, (5, 6))])
    info = engine.info()
    assert [p["tokens"] for p in info["packed_programs"]] == [256, 512]
    assert {p["mask"] for p in info["packed_programs"]} == {"segment"}
    assert info["compiled_since_ready"] == 2


@pytest.mark.usefixtures("no_verdicts")
def test_self_check_and_item_first_go_through_the_exact_step(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(multi_item_algorithm="packed")
    assert engine.self_check.status == "passed"
    engine.score([REQUESTS["item first"]])
    assert engine.info()["packed_programs"] == []


def test_packed_and_exact_requests_may_be_open_together(
    shared_engine: Callable[..., Engine],
) -> None:
    engine = shared_engine(multi_item_algorithm="packed", skip_self_check=True)
    requests = [REQUESTS[name] for name in ("several sequences", "item first", "short")]
    alone = [np.stack(list(engine.score([each])[0].scores)) for each in requests]
    together = [np.stack(list(result.scores)) for result in engine.score(requests)]
    assert [each.tobytes() for each in together] == [each.tobytes() for each in alone]
    works = [work for each in requests if (work := engine.open(each))]
    left = [works[1], works[0], works[2]]
    assert engine.step(left).in_flight  # an exact step is under way
    left = left[1:] + left[:1]
    (landed,) = engine.step(left).landed
    assert landed.num_tokens == 9 + 20, "the first item, before any sequence"
    while left:
        outcome = engine.step(left)
        left = [work for work in left if work not in outcome.finished]
    found = [np.stack(list(work.result().scores)) for work in works]
    assert [each.tobytes() for each in found] == [each.tobytes() for each in alone]


def test_failing_sequence_fails_its_request_alone(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(multi_item_algorithm="packed", skip_self_check=True)
    requests = [REQUESTS["short"], REQUESTS["item first"]]
    alone = [np.stack(list(engine.score([each])[0].scores)) for each in requests]
    works = [work for each in requests if (work := engine.open(each))]
    before = engine.info()

    def broken(*_: Any) -> None:
        raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(engine._programs, "packed", broken)
        outcome = engine.step(works)
    assert [work for work, _ in outcome.failed] == works[:1]
    assert outcome.landed == []
    info = engine.info()
    assert info["failed_steps"] == before["failed_steps"] + 1
    assert info["steps"] == before["steps"]
    while not works[1].done:
        assert not engine.step(works).failed
    assert np.stack(list(works[1].result().scores)).tobytes() == alone[1].tobytes()
    again = np.stack(list(engine.score(requests[:1])[0].scores))
    assert again.tobytes() == alone[0].tobytes()


def test_device_that_runs_neither_sequence_nor_step_is_lost(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(multi_item_algorithm="packed", skip_self_check=True)

    def broken(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(engine._programs, "packed", broken)
    monkeypatch.setattr(engine._programs, "step", broken)
    work = engine.open(REQUESTS["short"])
    assert work is not None
    with pytest.raises(EngineLostError):
        engine.step([work])


def test_sequences_are_bounded(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(
        multi_item_algorithm="packed", max_multi_item_seq_len=256, skip_self_check=True
    )
    seen: list[tuple[int, int]] = []
    request = request_of(0, 100, (50,) * 7)
    steps = engine.info()["steps"]
    engine.score([request], lambda _, done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert engine.info()["steps"] - steps == 3


def test_shares_are_of_the_padded_sequence(shared_engine: Callable[..., Engine]) -> None:
    engine = shared_engine(multi_item_algorithm="packed", skip_self_check=True)
    work = engine.open(request_of(0, 40, (20, 4)))
    assert work is not None
    (step,) = engine.step([work]).landed
    assert step.num_tokens == 64
    assert step.token_share == step.lane_share == 64 / 256


def test_a_delimiter_in_the_input_is_refused(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(
        multi_item_algorithm="packed", multi_item_scoring_delimiter=7, skip_self_check=True
    )
    scorer = Scorer(engine, None)
    with pytest.raises(RequestError) as caught:
        scorer.score([1, 2], [[3], [4, 7]], label_token_ids=[1])
    assert caught.value.code == "delimiter_in_input"


def test_segment_matches_dense_scores(engine_of: Callable[..., Engine]) -> None:
    """The runbook's regression test of the same name: within 1e-4, here in float32."""
    engine = engine_of("tiny-qwen3", "float32")
    request = request_of(13, 300, (20,) * 40, apply_softmax=True)
    assert difference(packed(engine, request, "segment"), packed(engine, request, "dense")) <= 1e-4


@pytest.mark.parametrize("dtype", TYPES)
def test_segment_prefill_extend_flow_no_regression(
    dtype: str, engine_of: Callable[..., Engine]
) -> None:
    """The runbook's regression test of the same name: the mask changes nothing of that flow."""
    engine = engine_of("tiny-qwen3", dtype)
    request = request_of(14, 100, (20, 5, 33))
    base = scores(engine, request)
    for mask in ("dense", "segment"):
        found = scores(engine, request, multi_item_mask_impl=mask)
        assert [row.tobytes() for row in found] == [row.tobytes() for row in base]

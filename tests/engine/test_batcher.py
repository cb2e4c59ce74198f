"""Steps filled from several requests: what is shared, what is given up, and what a fault costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import pytest

from itemwise.engine import start
from itemwise.engine.engine import Engine
from itemwise.engine.step_packer import StepBatch
from itemwise.errors import EngineLostError
from itemwise.types import OpenRequest, ScoreRequest
from tests.conftest import tiled_step_shapes

PAGE = 32


@pytest.fixture(scope="module")
def started(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(skip_self_check=True)


@pytest.fixture
def engine(started: Engine) -> Engine:
    started.forget_prefixes()
    info = started.info()["pages"]
    assert info["available"] == info["total"], "the test before left something open"
    return started


def request(seed: int, query: int = 70, items: int = 4, item: int = 9) -> ScoreRequest:
    tokens = [(7 * seed + 13 * i) % 500 for i in range(query + items * item)]
    rows = tuple(tuple(tokens[query + i * item :][:item]) for i in range(items))
    return ScoreRequest(tuple(tokens[:query]), rows, ((1, 2),) * items)


def opened(engine: Engine, *requests: ScoreRequest) -> list[OpenRequest]:
    works = [engine.open(each) for each in requests]
    assert None not in works
    return [work for work in works if work is not None]


def run(engine: Engine, works: Sequence[OpenRequest]) -> dict[int, Exception]:
    """Runs until all are finished or failed; the failures, by place in `works`."""
    left, failures = list(works), dict[int, Exception]()
    for _ in range(100):
        outcome = engine.step(left)
        for work, error in outcome.failed:
            failures[works.index(work)] = error
        gone = [*outcome.finished, *(work for work, _ in outcome.failed)]
        left = [work for work in left if work not in gone]
        if not left and not outcome.in_flight:
            return failures
    raise AssertionError("it does not end")


def scores(work: OpenRequest) -> bytes:
    return b"".join(row.tobytes() for row in work.result().scores)


def alone(engine: Engine, each: ScoreRequest) -> bytes:
    engine.forget_prefixes()
    return b"".join(row.tobytes() for row in engine.score([each])[0].scores)


def computed(engine: Engine) -> int:
    return int(engine.info()["computed_tokens"])


def test_query_of_two_open_requests_is_computed_once(engine: Engine) -> None:
    first, second = request(1, query=3 * PAGE + 5), request(2)
    second = ScoreRequest(first.query, second.items, second.labels)
    before = computed(engine)
    works = opened(engine, first, second)  # neither finds the other's pages as it is opened
    assert [work.cached_tokens for work in works] == [0, 0]
    assert run(engine, works) == {}
    items = sum(map(len, (*first.items, *second.items)))
    assert computed(engine) - before == len(first.query) + items
    assert sorted(work.cached_tokens for work in works) == [0, len(first.query)]
    assert [scores(w) for w in works] == [alone(engine, r) for r in (first, second)]


def test_query_is_shared_while_it_is_being_computed(engine: Engine) -> None:
    long = request(1, query=8 * PAGE)  # three lanes a step: three steps
    (first,) = opened(engine, long)
    engine.step([first])
    (second,) = opened(engine, long)
    assert second.cached_tokens == 3 * PAGE
    before = computed(engine)
    assert run(engine, [second, first]) == {}
    items = 2 * sum(map(len, long.items))
    assert computed(engine) - before == len(long.query) + items
    assert scores(first) == scores(second) == alone(engine, long)


def test_first_in_line_is_served_first_and_others_fill_the_step(engine: Engine) -> None:
    works = opened(engine, *(request(i, query=PAGE, items=2, item=12) for i in (1, 2)))
    third = opened(engine, request(3, query=PAGE, items=30, item=PAGE))
    engine.step([*works, *third])  # of 96 tokens
    assert [work.remaining_tokens for work in works] == [0, 24]
    assert run(engine, [*works, *third]) == {}


def test_request_closed_half_way_leaves_no_unwritten_page(engine: Engine) -> None:
    long = request(5, query=8 * PAGE)
    (first,) = opened(engine, long)
    engine.step([first])
    engine.close(first)
    info = engine.info()["pages"]
    assert (info["cached"], info["available"]) == (3, info["total"])
    (again,) = opened(engine, long)
    assert again.cached_tokens == 3 * PAGE
    assert run(engine, [again]) == {}
    assert scores(again) == alone(engine, long)


def test_no_row_runs_of_a_closed_request(engine: Engine) -> None:
    works = opened(engine, request(1, items=60, item=30))
    engine.step(works)
    engine.close(works[0])
    while engine.step([]).in_flight:
        pass
    assert engine.step(works).in_flight is False
    assert works[0].done is False


def test_without_room_a_request_waits(make_engine: Callable[..., Engine], engine: Engine) -> None:
    pages = engine.info()["pages"]
    page_bytes = pages["bytes"] // (pages["total"] + 1)
    small = make_engine(skip_self_check=True, kv_cache_bytes=7 * page_bytes)
    (first,) = opened(small, request(1, query=4 * PAGE))
    assert small.open(request(2, query=3 * PAGE)) is None
    assert run(small, [first]) == {}
    assert run(small, opened(small, request(2, query=3 * PAGE))) == {}


def test_long_items_share_the_pages_there_are(
    make_engine: Callable[..., Engine], engine: Engine
) -> None:
    pages = engine.info()["pages"]
    page_bytes = pages["bytes"] // (pages["total"] + 1)
    small = make_engine(skip_self_check=True, kv_cache_bytes=7 * page_bytes)
    long = [request(n, query=PAGE, items=3, item=3 * PAGE) for n in (1, 2)]
    works = opened(small, *long)
    assert run(small, works) == {}
    assert [scores(work) for work in works] == [alone(engine, each) for each in long]
    info = small.info()["pages"]
    assert info["available"] == info["total"]


def test_serial_steps_hold_nothing_else(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = engine._programs.step

    def noted(batch: StepBatch) -> jax.Array:
        seen.append(batch.num_tokens)
        return step(batch)

    monkeypatch.setattr(engine._programs, "step", noted)
    first = request(1, query=10, items=2, item=5)
    works = opened(engine, first, ScoreRequest((7,), ((8,) * 4,) * 3, ((1,),) * 3, item_first=True))
    assert run(engine, [works[1], works[0]]) == {}
    assert seen[:3] == [5, 5, 5]
    assert sum(seen[3:]) == 20


@pytest.mark.parametrize("where", ["step", "label_logits", "vocab_logsumexp"])
def test_failed_step_fails_the_requests_in_it_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    small = [request(n, query=PAGE, items=2) for n in (1, 2)]
    large = request(3, query=6 * PAGE, items=40)
    expected = alone(engine, large)
    before = engine.info()["failed_steps"]
    works = opened(engine, *small, large)
    engine.step(works[2:])  # a step of the large one alone is under way
    real = getattr(engine._programs, where)

    def broken(*_: Any) -> jax.Array:
        monkeypatch.setattr(engine._programs, where, real)
        raise MemoryError("planted")

    monkeypatch.setattr(engine._programs, where, broken)
    outcome = engine.step(works[:2])
    assert sorted(works.index(work) for work, _ in outcome.failed) == [0, 1]
    assert run(engine, works[2:]) == {}
    assert scores(works[2]) == expected
    info = engine.info()
    assert info["failed_steps"] == before + 1
    assert info["pages"]["available"] == info["pages"]["total"]
    assert run(engine, opened(engine, small[0])) == {}


def test_prefix_lost_with_the_pool_counts_as_computed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = request(4, query=3 * PAGE)
    engine.score([long])
    works = opened(engine, long, request(5))
    assert works[0].cached_tokens == 3 * PAGE
    real, before = engine._programs.step, engine.info()["shared_tokens"]

    def broken(batch: StepBatch) -> jax.Array:
        monkeypatch.setattr(engine._programs, "step", real)
        raise MemoryError("planted")

    monkeypatch.setattr(engine._programs, "step", broken)
    engine.step(works[1:])
    assert run(engine, works[:1]) == {}
    assert works[0].result().cached_tokens == 0
    assert engine.info()["shared_tokens"] == before


def test_results_from_before_a_fault_are_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = request(3, query=PAGE, items=60), request(1, query=PAGE, items=1)
    expected = alone(engine, large)
    works = opened(engine, large, small)
    for _ in range(3):
        engine.step(works[:1])
    real = engine._programs.step

    def broken(batch: StepBatch) -> jax.Array:
        monkeypatch.setattr(engine._programs, "step", real)
        raise MemoryError("planted")

    monkeypatch.setattr(engine._programs, "step", broken)
    before = works[0].remaining_tokens
    outcome = engine.step(works[1:])
    assert [work for work, _ in outcome.failed] == works[1:]
    assert works[0].remaining_tokens < before + 2 * PAGE, "it began from nothing"
    assert run(engine, works[:1]) == {}
    assert scores(works[0]) == expected


@pytest.mark.parametrize("next_is_whole", [True, False])
def test_fault_seen_on_landing_fails_that_step_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, next_is_whole: bool
) -> None:
    first, second = request(1, query=PAGE, items=2), request(2, query=PAGE, items=2)
    expected = alone(engine, second)
    works = opened(engine, first, second)

    class Lost:
        def copy_to_host_async(self) -> None:
            pass

        def __array__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(engine._programs, "label_logits", lambda *_: [Lost()])
        engine.step(works[:1])
        if next_is_whole:
            patch.undo()
        outcome = engine.step(works[1:])
    assert [work for work, _ in outcome.failed] == works[:1]
    if not next_is_whole:  # it read what the failed step should have written: it begins anew
        assert outcome.finished == []
        assert run(engine, works[1:]) == {}
    assert scores(works[1]) == expected


@pytest.mark.parametrize("others", [0, 1])
def test_fault_in_handing_out_results_fails_that_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Whether they were in the same step, or in one that is still under way."""
    each = [request(n, query=PAGE // 2, items=2) for n in (1, 2, 3)]
    expected = [alone(engine, one) for one in each]
    works = opened(engine, *each)
    before = engine.info()["failed_steps"]

    def broken(*_: Any) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(works[0], "take_results", broken)
    assert engine.step(works[: 1 + others]).in_flight
    failures = run(engine, works)
    assert list(failures) == [0]
    assert str(failures[0]) == "planted"
    assert [scores(work) for work in works[1:]] == expected[1:]
    info = engine.info()
    assert info["failed_steps"] == before + 1
    assert info["pages"]["available"] == info["pages"]["total"]


def test_device_that_runs_nothing_more_is_lost(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(skip_self_check=True)

    def broken(*_: Any) -> jax.Array:
        raise RuntimeError("planted")

    monkeypatch.setattr(engine._programs, "step", broken)
    with pytest.raises(EngineLostError):
        engine.step(opened(engine, request(1)))


def test_rest_of_a_tile_goes_to_the_same_query_out_of_turn(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request lies between two with one query; the second fills the first one's lane."""
    monkeypatch.setattr(start, "step_shapes", tiled_step_shapes)
    engine = make_engine(skip_self_check=True)
    first = request(1, query=PAGE, items=1, item=PAGE // 2)
    works = opened(engine, first)
    assert run(engine, works) == {}  # its query is known from here on
    same = ScoreRequest(first.query, first.items, first.labels)
    between = request(2, query=2 * PAGE, items=4)
    works = opened(engine, first, between, same)
    expected = engine.info()["computed_tokens"]
    engine.step(works)  # a lane for `first` and `same`, two for the prefix of the one between
    assert [work.remaining_tokens for work in works] == [0, 4 * 9, 0]
    assert run(engine, works) == {}
    assert computed(engine) - expected == PAGE + 2 * PAGE + 4 * 9
    assert scores(works[0]) == scores(works[2]) == alone(engine, first)
    assert scores(works[1]) == alone(engine, between)


def test_items_of_a_serial_request_have_prefixes_of_their_own(engine: Engine) -> None:
    """The first prefix is empty and so has no page, by which its end could be told."""
    items = ((), (8,), (9,) * (PAGE + 1), (8,))
    (work,) = opened(engine, ScoreRequest((7,), items, ((1,),) * 4, item_first=True))
    assert run(engine, [work]) == {}
    rows = [bytes(row.tobytes()) for row in work.result().scores]
    assert rows[1] == rows[3]
    assert len(set(rows)) == 3
    for item, row in zip(items[1:], rows[1:], strict=True):
        assert alone(engine, ScoreRequest(item, ((7,),), ((1,),))) == row
    info = engine.info()["pages"]
    assert info["available"] == info["total"]

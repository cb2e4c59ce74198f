"""An item's score has the same bits in every company. Every comparison here is `==`.

Padding is filled with other garbage in every step, so that reading it would show.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itemwise import Scorer
from itemwise.cli.demo import LISTS
from itemwise.config import DEMO_MODEL
from itemwise.engine import step_packer as packing
from itemwise.engine.engine import Engine
from itemwise.engine.programs import Programs
from itemwise.engine.step_packer import StepBatch
from itemwise.ops import api
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.types import CpuLevelName, OpenRequest, ScoreRequest, TokenLists, Tokens, token_array
from tests.conftest import CPP_LEVELS, CPU_LEVELS, DEMO_POOL, VOCAB_SIZE, slow_unless_default

PAGE = 32
RANDOM = "tiny-qwen3"
ON_GPU = jax.devices()[0].platform == "gpu"
# A model, its type, and on a processor the level; on GPU attention: the kernel, and XLA's form.
# All properties on each level.
ON_CPU_CASES = [
    *(
        pytest.param((RANDOM, "bfloat16", *param.values), marks=param.marks)
        for param in slow_unless_default(CPU_LEVELS)
    ),
    pytest.param((RANDOM, "float32", "xla-float32"), marks=pytest.mark.slow),
    *(
        pytest.param((DEMO_MODEL, "bfloat16", *param.values), marks=param.marks)
        for param in slow_unless_default(CPP_LEVELS)
    ),
]
ON_GPU_CASES = [(RANDOM, "bfloat16", "fa"), (RANDOM, "bfloat16", "native")]
Bits = list[bytes]  # of each item's scores
exhaustive = settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", autouse=True)
def garbage_in_padding() -> Iterator[None]:
    rng = np.random.default_rng(1)
    clean = packing._empty_arrays

    def dirty(shape: StepShape) -> StepArrays:
        arrays = clean(shape)
        arrays.tokens[:] = rng.integers(0, VOCAB_SIZE, shape.tokens)
        arrays.positions[:] = rng.integers(0, 1000, shape.tokens)
        arrays.context_pages[:] = rng.integers(0, 5, arrays.context_pages.shape)
        return arrays

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_empty_arrays", dirty)
        yield


@pytest.fixture(
    scope="module",
    params=ON_GPU_CASES if ON_GPU else ON_CPU_CASES,
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of `make_engine`: a model, its type, and the level or attention."""
    name, dtype, code = request.param
    return {"name": name, "dtype": dtype, "attention_backend" if ON_GPU else "level": code}


@pytest.fixture(scope="module")
def engine(case: dict[str, Any], make_engine: Callable[..., Engine]) -> Engine:
    engine = make_engine(**case)
    assert engine.info()["cpu_level"] == case.get("level")
    return engine


def bits(engine: Engine, *requests: ScoreRequest, **changes: Any) -> Bits:
    """Bits of the last request's scores, with some settings changed for this call."""
    config = engine.config
    engine.config = replace(config, **changes)
    try:
        return [row.tobytes() for row in engine.score(requests)[-1].scores]
    finally:
        engine.config = config


def fresh(engine: Engine, *requests: ScoreRequest, **changes: Any) -> Bits:
    engine.forget_prefixes()
    return bits(engine, *requests, **changes)


def pick(request: ScoreRequest, chosen: Sequence[int]) -> ScoreRequest:
    return replace(
        request,
        items=TokenLists.of([request.items[i] for i in chosen]),
        labels=tuple(request.labels[i] for i in chosen),
    )


def with_item(request: ScoreRequest, index: int, item: Tokens) -> ScoreRequest:
    items: list[Tokens] = list(request.items)
    items[index] = item
    return replace(request, items=TokenLists.of(items))


def seeded_tokens(length: int, seed: int) -> tuple[int, ...]:
    ids: list[int] = np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).tolist()
    return tuple(ids)


def tokens(low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Random ids of a drawn length; short lengths and page borders come often."""
    borders = [n + d for n in range(0, high + 2, PAGE) for d in (-1, 0, 1) if low <= n + d <= high]
    lengths = st.one_of(st.integers(low, high), st.sampled_from(borders))
    return st.builds(seeded_tokens, lengths, st.integers(0, 2**32 - 1))


@st.composite
def score_requests(draw: st.DrawFn, max_items: int = 8) -> ScoreRequest:
    items = draw(st.lists(tokens(0, 2 * PAGE), min_size=1, max_size=max_items))
    label = st.integers(0, VOCAB_SIZE - 1)
    labels = [
        tuple(draw(st.lists(label, min_size=1, max_size=9, unique=True))) for _ in range(len(items))
    ]
    return ScoreRequest(
        query=draw(tokens(1, 3 * PAGE)),
        items=tuple(items),
        labels=tuple(labels),
        apply_softmax=draw(st.booleans()),
        temperature=draw(st.sampled_from([1.0, 0.7])),
    )


@exhaustive
@given(data=st.data(), request=score_requests())
def test_permuted_items(engine: Engine, data: st.DataObject, request: ScoreRequest) -> None:
    order = data.draw(st.permutations(range(len(request.items))))
    base = fresh(engine, request)
    assert fresh(engine, pick(request, order)) == [base[i] for i in order]


@exhaustive
@given(request=score_requests(max_items=5))
def test_item_alone(engine: Engine, request: ScoreRequest) -> None:
    base = fresh(engine, request)
    alone = [fresh(engine, pick(request, [i]))[0] for i in range(len(request.items))]
    assert alone == base


@settings(exhaustive, max_examples=3)  # a setting that this algorithm ignores
@given(request=score_requests(), chunk_size=st.integers(1, 8))
def test_any_chunk_size(engine: Engine, request: ScoreRequest, chunk_size: int) -> None:
    base = fresh(engine, request)
    assert fresh(engine, request, multi_item_scoring_chunk_size=chunk_size) == base
    assert fresh(engine, replace(request, chunk_size=chunk_size)) == base


@exhaustive
@given(data=st.data(), request=score_requests(), other=tokens(0, 2 * PAGE))
def test_neighbour_changed_grown_shrunk_removed(
    engine: Engine, data: st.DataObject, request: ScoreRequest, other: tuple[int, ...]
) -> None:
    index = data.draw(st.integers(0, len(request.items) - 1))
    base = fresh(engine, request)
    rest = [i for i in range(len(request.items)) if i != index]
    expected = [base[i] for i in rest]
    item = request.items[index]
    for changed in (other, (*item, 13, 5, 7), item[: len(item) // 2]):
        found = fresh(engine, with_item(request, index, changed))
        assert [found[i] for i in rest] == expected
    if rest:
        assert fresh(engine, pick(request, rest)) == expected


@exhaustive
@given(request=score_requests(), others=st.lists(score_requests(max_items=3), max_size=2))
def test_other_requests_in_the_same_step(
    engine: Engine, request: ScoreRequest, others: list[ScoreRequest]
) -> None:
    base = fresh(engine, request)
    assert fresh(engine, *others, request) == base


@exhaustive
@given(
    requests=st.lists(score_requests(max_items=4), min_size=2, max_size=5),
    item_first=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_mixed_in_any_order_with_some_given_up(
    engine: Engine, requests: list[ScoreRequest], item_first: bool, seed: int
) -> None:
    """Requests come, take turns, and leave, in any order; two of them share a query."""
    rng, count = np.random.default_rng(seed), len(requests)
    requests[-1] = replace(requests[-1], query=requests[0].query)
    requests[1] = replace(requests[1], item_first=item_first)
    alone = [fresh(engine, request) for request in requests]
    engine.forget_prefixes()
    waiting, opened = list(range(count)), dict[int, OpenRequest]()
    found: dict[int, Bits] = {}
    for _ in range(1000):
        if waiting and rng.integers(2):
            work = engine.open(requests[waiting[0]])
            if work is not None:
                opened[waiting.pop(0)] = work
        if opened and not rng.integers(16):
            engine.close(opened.pop(int(rng.choice(list(opened)))))
        order = rng.permutation(list(opened)).tolist()
        outcome = engine.step([opened[i] for i in order])
        assert not outcome.failed
        for work in outcome.finished:
            (index,) = (i for i in opened if opened[i] is work)
            found[index] = [row.tobytes() for row in opened.pop(index).result().scores]
        if not waiting and not opened and not outcome.in_flight:
            break
    assert not waiting
    assert not opened
    assert found == {index: alone[index] for index in found}
    pages = engine.info()["pages"]
    assert pages["available"] == pages["total"], "a page is held by nobody"


@exhaustive
@given(request=score_requests(), other=score_requests(max_items=2))
def test_prefix_cached_or_evicted_and_recomputed(
    engine: Engine, request: ScoreRequest, other: ScoreRequest
) -> None:
    base = fresh(engine, request)
    assert bits(engine, request) == base, "cached"
    bits(engine, other)
    assert bits(engine, request) == base, "cached, after another request"
    assert fresh(engine, other, request) == base, "recomputed in other pages"


@exhaustive
@given(request=score_requests(), kept=st.integers(1, 3 * PAGE), end=tokens(1, 2 * PAGE))
def test_prefix_partly_shared(
    engine: Engine, request: ScoreRequest, kept: int, end: tuple[int, ...]
) -> None:
    base = fresh(engine, request)
    relative = replace(request, query=token_array((*request.query[:kept], *end)))
    assert fresh(engine, relative, request) == base
    assert bits(engine, request) == base


@exhaustive
@given(request=score_requests(max_items=5))
def test_serial_equals_prefill_extend(engine: Engine, request: ScoreRequest) -> None:
    base = fresh(engine, request)
    assert fresh(engine, request, multi_item_algorithm="serial") == base


@exhaustive
@given(request=score_requests(max_items=4))
def test_delimiter_equals_a_longer_query(engine: Engine, request: ScoreRequest) -> None:
    longer = replace(request, query=token_array((*request.query, 7)))
    found = fresh(engine, request, multi_item_scoring_delimiter=7)
    assert found == fresh(engine, longer)


@exhaustive
@given(request=score_requests(max_items=3))
def test_item_first_scores_the_item_as_prefix(engine: Engine, request: ScoreRequest) -> None:
    found = fresh(engine, replace(request, item_first=True))
    for i, item in enumerate(request.items):
        if len(item):
            turned = replace(pick(request, [i]), query=item, items=TokenLists.of([request.query]))
            assert fresh(engine, turned)[0] == found[i]


def test_evicted_by_a_small_pool(
    case: dict[str, Any], make_engine: Callable[..., Engine], engine: Engine
) -> None:
    pages = engine.info()["pages"]
    page_bytes = pages["bytes"] // (pages["total"] + 1)
    engine = make_engine(**case, kv_cache_bytes=7 * page_bytes)
    assert engine.info()["pages"]["total"] == 6
    rng = np.random.default_rng(0)

    def draw(query_tokens: int, item_tokens: int) -> ScoreRequest:
        query, item = (
            tuple(rng.integers(0, VOCAB_SIZE, n).tolist()) for n in (query_tokens, item_tokens)
        )
        return ScoreRequest(query, (item,) * 3, ((1, 2),) * 3)

    requests = [draw(100, 60), draw(120, 5), draw(90, 90)]
    base = [fresh(engine, request) for request in requests]
    for _ in range(2):
        assert [bits(engine, request) for request in requests] == base
    assert engine.info()["pages"]["evictions"] > 0
    together = engine.score(requests)
    assert [[row.tobytes() for row in result.scores] for result in together] == base


def test_without_radix_cache(
    case: dict[str, Any], make_engine: Callable[..., Engine], engine: Engine
) -> None:
    forgetful = make_engine(**case, disable_radix_cache=True)
    request = ScoreRequest(tuple(range(70)), ((1, 2), (3,), ()), ((1, 2),) * 3)
    base = fresh(engine, request)
    assert bits(forgetful, request) == base
    assert bits(forgetful, request) == base
    assert forgetful.info()["pages"]["hits"] == 0


def test_items_differ(engine: Engine) -> None:
    request = ScoreRequest((5, 6, 7), tuple((i,) for i in range(20)), ((1, 2),) * 20)
    assert len(set(bits(engine, request))) == 20


@pytest.mark.parametrize(
    ("model", "level", "name"),
    [
        *(
            pytest.param(RANDOM, *param.values, "attend_xla", marks=param.marks)
            for param in slow_unless_default(["xla-float32"])
        ),
        *(
            pytest.param(DEMO_MODEL, *param.values, "attend_cpu", marks=param.marks)
            for param in slow_unless_default(() if ON_GPU else CPP_LEVELS)
        ),
    ],
)
@pytest.mark.parametrize("fault", ["context one too long", "granule starts early", "same lane"])
def test_a_planted_fault_is_seen(
    fault: str,
    model: str,
    level: CpuLevelName,
    name: str,
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend, calls = getattr(api, name), 0

    def faulty(*args: Any, **options: Any) -> jax.Array:
        nonlocal calls
        calls += 1
        *others, arrays, shape = args
        assert isinstance(arrays, StepArrays)
        if fault == "context one too long":
            longer = jax.numpy.minimum(arrays.context_lens + 1, shape.page_tokens)
            longer = jax.numpy.where(arrays.context_lens > 0, longer, 0)
            arrays = arrays._replace(context_lens=longer)
        elif fault == "granule starts early":
            start = jax.numpy.maximum(arrays.granule_start - 1, 0)
            arrays = arrays._replace(granule_start=start)
        else:  # granules counted over the lane: items see the items before them
            index = arrays.granule_start // shape.granule_tokens
            arrays = arrays._replace(granule_index=index)
        seen: jax.Array = attend(*others, arrays, shape, **options)
        return seen

    monkeypatch.setattr(api, name, faulty)
    backend = "native" if name == "attend" else "fa"
    engine = make_engine(model, level, skip_self_check=True, attention_backend=backend)
    assert calls, "the engine attends by other code"
    rng = np.random.default_rng(0)
    items = tuple(tuple(rng.integers(0, VOCAB_SIZE, n).tolist()) for n in (20, 5, 31, 12))
    request = ScoreRequest(tuple(range(40)), items, ((1, 2),) * 4, apply_softmax=True)
    base = fresh(engine, request)
    alone = [fresh(engine, pick(request, [i]))[0] for i in range(4)]
    assert alone != base


def test_a_leak_would_show_in_the_demo_models_rankings(cache_folder: str) -> None:
    """With a plain causal mask over one packed sequence, most scores move by more than 0.01."""
    scorer = Scorer.from_pretrained(kv_cache_bytes=DEMO_POOL, compilation_cache_dir=cache_folder)
    moved = []
    for query, items in LISTS.items():
        request = scorer.prepare(query=query, items=items, apply_template=True, apply_softmax=True)
        sequence, leaky = request.query, []
        for i, item in enumerate(request.items):
            leaky.append(replace(pick(request, [i]), query=sequence))
            sequence = np.concatenate([sequence, item])
        exact = np.asarray(scorer.run([request])[0].scores)
        seen = np.concatenate([np.asarray(result.scores) for result in scorer.run(leaky)])
        assert exact[0].tobytes() == seen[0].tobytes(), "the first item has nobody before it"
        moved += list(np.abs(exact - seen)[:, 0] > 0.01)
    assert np.mean(moved) >= 0.5


def test_small_steps_change_no_bit(
    case: dict[str, Any], make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"page_tokens": 128, "step_lanes": 4, "kv_cache_bytes": 16 << 20}
    engine = make_engine(**case, **sizes)
    large = make_engine(**case, **sizes, skip_self_check=True)
    ran: list[StepShape] = []
    step = Programs.step

    def noting(self: Programs, batch: StepBatch) -> jax.Array:
        if self is engine._programs:
            ran.append(batch.shape)
        return step(self, batch)

    monkeypatch.setattr(Programs, "step", noting)
    # Contexts of single pages, of a block, of both, and rows that fill the beginning of a page.
    for query in (33, 290, 700):
        for lengths in ((5, 6, 0), (4, 20, 33), (60,), (3,) * 30, (40,) * 4, (40,) * 6):
            items = tuple(seeded_tokens(n, 7 * n + i) for i, n in enumerate(lengths))
            request = ScoreRequest(seeded_tokens(query, query), items, ((0, 1),) * len(items))
            base = fresh(large, request)
            assert fresh(engine, request) == base
            assert bits(engine, request) == base  # on a known query
    assert set(ran) == set(engine._programs.shapes)
    assert len(engine._programs.shapes) == (2 if ON_GPU else 3)
    assert len(large._programs.shapes) == 1


PRINT_BITS = """
import sys
import numpy as np
from itemwise import Scorer
scorer = Scorer.from_pretrained(
    sys.argv[1], compilation_cache_dir=sys.argv[2], kv_cache_bytes=1 << 20
)
result = scorer.score(list(range(300)), [[i, i + 1] for i in range(50)], label_token_ids=[1, 2])
print(np.asarray(result.scores, np.float64).tobytes().hex())
"""


@pytest.mark.slow
def test_another_process_gives_the_same_bits(
    make_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """With an empty compilation cache, with a filled one, and without."""
    found = [
        subprocess.run(
            [sys.executable, "-c", PRINT_BITS, str(make_checkpoint(RANDOM)), folder],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for folder in (str(tmp_path), str(tmp_path), "")
    ]
    assert len(found[0]) > 50 * 2 * 16
    assert found[0] == found[1] == found[2]

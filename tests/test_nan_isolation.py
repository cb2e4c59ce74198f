"""A token whose embedding is not finite spoils its own request, and no bit of another one.

The model's embeddings of some tokens are NaN, infinity, or so large that they overflow; requests
that name such tokens run beside requests that do not, and their pages are used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.engine.engine import Engine
from itemwise.ops import api
from itemwise.types import ScoreRequest, TokenLists, Tokens
from tests.conftest import CPP_LEVELS, DEFAULT_LEVELS, VOCAB_SIZE
from tests.test_exactness import PAGE, exhaustive

# Padding holds token 0. The last NaN is all ones: no bit of it may enter a weight.
BAD = {0: np.nan, 77: np.nan, 78: np.inf, 79: -np.inf, 80: 3e38, 81: -3e38, 82: -np.nan}
CLEAN = [token for token in range(VOCAB_SIZE) if token not in BAD]
POOL = {"kv_cache_bytes": 1 << 18}  # some pages, which are soon used again


def case(name: str, *, slow: bool = True, **settings: Any) -> Any:
    return pytest.param(settings, id=name, marks=[pytest.mark.slow] if slow else [])


EXACT = [
    case("xla-bfloat16", level="xla-bfloat16"),
    case("xla-float32", level="xla-float32"),
    case("int8", level="xla-float32", dtype="float32", quantization="int8"),
    *(case(level, level=level, slow=level not in DEFAULT_LEVELS) for level in CPP_LEVELS),
]
PACKED = [
    case(f"{mask} {level}", level=level, multi_item_mask_impl=mask, multi_item_algorithm="packed")
    for mask in ("dense", "segment")
    for level in ("xla-bfloat16", "xla-float32")
]


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, shared_engine: Callable[..., Engine]) -> Engine:
    return shared_engine("tiny-llama", **POOL, **request.param)


@contextmanager
def bad_embeddings(engine: Engine) -> Iterator[None]:
    weights = engine._programs._weights
    embed = np.array(weights["embed"])
    for token, value in BAD.items():
        embed[token] = value
    integers = np.dtype(f"u{embed.itemsize}")
    embed[82] = np.full(embed[82].shape, np.iinfo(integers).max, integers).view(embed.dtype)
    engine._programs._weights = {**weights, "embed": jax.numpy.asarray(embed)}
    try:
        yield
    finally:
        engine._programs._weights = weights


def bits(engine: Engine, *requests: ScoreRequest) -> list[list[bytes]]:
    results = engine.score(requests)
    return [[np.asarray(row).tobytes() for row in result.scores] for result in results]


def seeded(length: int, seed: int, bad: int | None = None) -> list[int]:
    """Clean tokens, with a bad one at a place that the seed draws."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = rng.choice(CLEAN, length).tolist()
    if bad is not None and length:
        tokens[rng.integers(length)] = bad
    return tokens


@st.composite
def requests(draw: st.DrawFn, *, bad: bool = False) -> ScoreRequest:
    seeds = st.integers(0, 2**32 - 1)
    token = st.sampled_from(sorted(BAD)) if bad else st.none()
    items = [
        seeded(draw(st.integers(1, PAGE + 3)), draw(seeds), draw(token))
        for _ in range(draw(st.integers(1, 5)))
    ]
    in_query = draw(token) if draw(st.booleans()) else None
    query = seeded(draw(st.integers(1, 2 * PAGE + 3)), draw(seeds), in_query)
    softmax = draw(st.booleans())
    return ScoreRequest(query, items, ((1, 2),) * len(items), apply_softmax=softmax)


@pytest.mark.parametrize("engine", EXACT, indirect=True)
@exhaustive
@given(
    clean=st.lists(requests(), min_size=1, max_size=3),
    bad=st.lists(requests(bad=True), min_size=1, max_size=3),
    data=st.data(),
)
def test_other_requests_keep_their_bits(
    engine: Engine, clean: list[ScoreRequest], bad: list[ScoreRequest], data: st.DataObject
) -> None:
    engine.forget_prefixes()
    base = bits(engine, *clean)
    order = data.draw(st.permutations(range(len(clean) + len(bad))))
    everything = [(clean + bad)[i] for i in order]
    engine.forget_prefixes()
    with bad_embeddings(engine):
        found = bits(engine, *everything)
        assert [found[order.index(i)] for i in range(len(clean))] == base, "in company"
        assert bits(engine, *clean) == base, "on known prefixes"
        engine.forget_prefixes()
        assert bits(engine, *clean) == base, "in pages that others had"


@pytest.mark.parametrize("engine", [*EXACT, *PACKED], indirect=True)
@exhaustive
@given(request=requests(), data=st.data())
def test_other_items_keep_their_bits(
    engine: Engine, request: ScoreRequest, data: st.DataObject
) -> None:
    engine.forget_prefixes()
    (base,) = bits(engine, request)
    count = len(request.items)
    broken = data.draw(st.sets(st.integers(0, count - 1)))
    items: list[Tokens] = list(request.items)
    for i in broken:
        token, seed = data.draw(st.sampled_from(sorted(BAD))), data.draw(st.integers(0, 99))
        items[i] = seeded(len(items[i]), seed, token)
    engine.forget_prefixes()
    with bad_embeddings(engine):
        (found,) = bits(engine, replace(request, items=TokenLists.of(items)))
    kept = [i for i in range(count) if i not in broken]
    assert [found[i] for i in kept] == [base[i] for i in kept]


@pytest.mark.parametrize("engine", [*EXACT, *PACKED], indirect=True)
@pytest.mark.parametrize("token", [77, 78, 79, 82])
def test_who_names_the_token_gets_no_number(engine: Engine, token: int) -> None:
    def is_finite(query: Sequence[int], *items: Sequence[int]) -> list[bool]:
        engine.forget_prefixes()
        request = ScoreRequest(query, items, ((1, 2),) * len(items))
        return [bool(np.isfinite(row).all()) for row in engine.score([request])[0].scores]

    with bad_embeddings(engine):
        long = [5] * 40
        assert is_finite([5], [6, 7], [token, 6], [6]) == [True, False, True]
        assert is_finite([token, *long], [6], []) == [False, False]
        assert is_finite([*long, token, *long], [6, 7], [6]) == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        *(
            {"multi_item_algorithm": "packed", "multi_item_mask_impl": m}
            for m in ("dense", "segment")
        ),
    ],
)
def test_without_marks_bits_move(
    settings: dict[str, Any], make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: what is not finite stays in the values."""
    monkeypatch.setattr(api, "mark_in_keys", lambda k, v: (k, v))
    engine = make_engine(
        "tiny-llama", "xla-bfloat16", skip_self_check=True, compilation_cache_dir="", **settings
    )
    good = ScoreRequest([5, 6, 7], [[8], [9, 10], [11]], ((1, 2),) * 3)
    bad = ScoreRequest([5, 6, 7], [[8], [77, 10], [11]], ((1, 2),) * 3)
    base = bits(engine, good)[0]
    engine.forget_prefixes()
    with bad_embeddings(engine):
        found = bits(engine, bad)[0]
    assert found[0] != base[0] or found[2] != base[2]

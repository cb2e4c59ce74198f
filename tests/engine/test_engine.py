from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemwise.config import AttentionBackend
from itemwise.engine import compile_cache, programs
from itemwise.engine.cpu_level import BY_NAME
from itemwise.engine.engine import Engine
from itemwise.engine.platform import platform_of
from itemwise.engine.programs import Programs
from itemwise.engine.step_packer import StepBatch
from itemwise.engine.weights import load_weights
from itemwise.errors import ConfigError, RequestError, SelfCheckError
from itemwise.ops import api
from itemwise.ops.step.arrays import StepShape
from itemwise.types import Algorithm, CpuLevelName, ScoreRequest
from tests.conftest import CPU_LEVELS, SMALL, slow_unless_default

ON_GPU = jax.devices()[0].platform == "gpu"


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


def request(num_items: int = 3, labels: tuple[int, ...] = (1, 2), **fields: Any) -> ScoreRequest:
    items = tuple((i, i + 1) for i in range(num_items))
    return ScoreRequest((5, 6, 7), items, (labels,) * num_items, **fields)


def test_nothing_compiles_after_start(engine: Engine) -> None:
    engine.score([request(40, tuple(range(30)), apply_softmax=True), request(1)])
    engine.score([ScoreRequest(tuple(range(200)), ((1,) * 100, ()), ((1,), (2, 3)))])
    assert engine.info()["compiled_since_ready"] == 0


def test_a_compile_after_start_is_counted(engine: Engine) -> None:
    jax.jit(lambda x: x * 3 + 1)(np.arange(17))
    assert engine.info()["compiled_since_ready"] >= 1


def test_softmax_is_over_the_labels(engine: Engine) -> None:
    full = np.asarray(engine.score([request()])[0].scores)
    softmax = np.asarray(engine.score([request(apply_softmax=True)])[0].scores)
    np.testing.assert_allclose(softmax.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(softmax, full / full.sum(1, keepdims=True), rtol=1e-5)


def test_vocabulary_sums_to_one(engine: Engine) -> None:
    everything = tuple(range(engine.model_config.vocab_size))
    scores = np.asarray(engine.score([request(2, everything)])[0].scores)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)


def test_temperature_flattens(engine: Engine) -> None:
    sharp, flat = (
        np.asarray(engine.score([request(temperature=t, apply_softmax=True)])[0].scores)
        for t in (1.0, 100.0)
    )
    assert np.abs(flat - 0.5).max() < 0.1 * np.abs(sharp - 0.5).max()


def test_labels_may_differ_per_item(engine: Engine) -> None:
    mixed = ScoreRequest((5, 6, 7), ((0, 1), (1, 2)), ((9,), (1, 2)))
    scores = engine.score([mixed])[0].scores
    assert [len(row) for row in scores] == [1, 2]
    same = np.asarray(engine.score([request(2)])[0].scores)
    assert scores[1].tobytes() == same[1].tobytes()


def test_prompt_tokens_count_the_prefix_once(engine: Engine) -> None:
    assert engine.score([request(4)])[0].prompt_tokens == 3 + 4 * 2
    assert engine.score([request(4, item_first=True)])[0].prompt_tokens == 4 * (3 + 2)


def test_cached_tokens_are_told(engine: Engine) -> None:
    engine.forget_prefixes()
    assert engine.score([request()])[0].cached_tokens == 0
    assert engine.score([request()])[0].cached_tokens == 3


ALGORITHMS: tuple[Algorithm, ...] = ("prefill_extend", "packed", "serial")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cost_is_the_tokens_that_run(
    algorithm: Algorithm, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(
        multi_item_algorithm=algorithm, max_multi_item_seq_len=128, skip_self_check=True
    )

    def draw(*lengths: int) -> list[tuple[int, ...]]:
        return [tuple(i % 400 for i in range(length)) for length in lengths]

    @settings(max_examples=30)
    @given(
        query=st.integers(1, 80),
        items=st.lists(st.integers(0, 40), min_size=1, max_size=50),
        chunk_size=st.none() | st.integers(0, 8),
        item_first=st.booleans(),
        delimiter=st.none() | st.just(450),
    )
    def check(
        query: int,
        items: list[int],
        chunk_size: int | None,
        item_first: bool,
        delimiter: int | None,
    ) -> None:
        engine.config = replace(engine.config, multi_item_scoring_delimiter=delimiter)
        engine.forget_prefixes()
        asked = ScoreRequest(
            draw(query)[0],
            tuple(draw(*items)),
            ((1,),) * len(items),
            item_first=item_first,
            chunk_size=chunk_size,
        )
        work = engine.open(asked)
        assert work is not None
        assert work.remaining_tokens == engine.cost(asked)
        ran, steps, under_way = 0, 0, True
        while under_way or not work.done:
            outcome = engine.step([] if work.done else [work])
            assert not outcome.failed
            ran, under_way = ran + sum(s.num_tokens for s in outcome.landed), outcome.in_flight
            steps += 1
            assert steps < 1000
        assert ran == engine.cost(asked)
        assert work.remaining_tokens == 0

    check()


def test_progress_reaches_the_total(engine: Engine) -> None:
    told: list[tuple[str, int, int]] = []
    engine.score([request(60), request(5)], lambda *args: told.append(args))
    assert told[-1] == ("items", 65, 65)
    assert len(told) > 1


def test_sequences_longer_than_the_pool_are_refused(engine: Engine) -> None:
    room = 32 * engine.info()["pages"]["total"]
    for query, item in ((room + 1, 1), (1, room + 33)):
        with pytest.raises(RequestError, match="raise --kv-cache-bytes") as caught:
            engine.score([ScoreRequest((1,) * query, ((2,) * item,), ((1,),))])
        assert caught.value.code == "sequence_too_long"


def test_shortest_limit_is_a_query_and_an_item_of_one_token(
    make_engine: Callable[..., Engine],
) -> None:
    with pytest.raises(ConfigError, match="at most 1 token"):
        make_engine(max_multi_item_seq_len=1)
    engine = make_engine(max_multi_item_seq_len=2)
    assert engine.self_check.status == "passed"
    assert np.isfinite(engine.score([ScoreRequest((1,), ((2,),), ((1, 2),))])[0].scores).all()


def test_the_longest_sequence_of_the_pool_works(engine: Engine) -> None:
    pages = engine.info()["pages"]["total"]
    longest = ScoreRequest((1,) * (32 * pages), ((2, 3), ()), ((1, 2),) * 2)
    assert np.isfinite(engine.score([longest])[0].scores).all()


def test_a_failed_step_leaves_a_working_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = np.asarray(engine.score([request()])[0].scores)
    other = ScoreRequest((8,) * 100, ((1,), (2,)), ((1, 2),) * 2)

    def broken(*_: object) -> None:
        raise RuntimeError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(engine._programs, "label_logits", broken)
        with pytest.raises(RuntimeError, match="lost"):
            engine.score([other])
    assert engine.info()["pages"]["cached"] == 0
    assert np.asarray(engine.score([request()])[0].scores).tobytes() == base.tobytes()


@pytest.mark.usefixtures("no_verdicts")
@pytest.mark.parametrize("level", slow_unless_default(CPU_LEVELS))
def test_a_leak_fails_the_self_check(
    level: CpuLevelName, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "attend_xla" if ON_GPU or level.startswith("xla") else "attend_cpu"
    attend = getattr(api, name)

    def leaky(*args: Any, **options: Any) -> jax.Array:
        *others, arrays, shape = args
        index = arrays.granule_start // shape.granule_tokens
        seen: jax.Array = attend(*others, arrays._replace(granule_index=index), shape, **options)
        return seen

    monkeypatch.setattr(api, name, leaky)
    backend: AttentionBackend = "native" if name == "attend_xla" else "fa"
    with pytest.raises(SelfCheckError, match="permuted_in_company"):
        make_engine(level=level, attention_backend=backend)


def test_a_start_of_the_same_programs_takes_the_verdict_over(
    make_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"compilation_cache_dir": str(tmp_path)}
    first, second = make_engine(**config), make_engine(**config)
    assert second.self_check == first.self_check
    assert second.info()["steps"] < first.info()["steps"]
    other = make_engine(**config, step_lanes=2)
    assert other.info()["steps"] > second.info()["steps"]
    monkeypatch.setattr("itemwise.engine.start.processor", lambda: "another")
    assert make_engine(**config).info()["steps"] == first.info()["steps"]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_checkpoint_without_finite_scores_fails_on_programs_that_passed(
    bad: float, skip: bool, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_engine(skip_self_check=skip).self_check.status != "failed"

    def load_damaged(*arguments: Any, **options: Any) -> Any:
        return jax.tree.map(
            lambda weight: jax.numpy.full_like(weight, bad), load_weights(*arguments, **options)
        )

    monkeypatch.setattr("itemwise.engine.start.load_weights", load_damaged)
    with pytest.raises(SelfCheckError, match="finite; the model's scores are NaN or infinity"):
        make_engine(skip_self_check=skip)


def change_bits(
    monkeypatch: pytest.MonkeyPatch, in_steps: Callable[[StepShape], bool], first_row: int = 0
) -> None:
    """Plants other bits into some steps, in scored rows from one on."""
    step = Programs.step

    def other_bits(self: Programs, batch: StepBatch) -> jax.Array:
        hidden = step(self, batch)
        if not in_steps(batch.shape):
            return hidden
        # By a factor that bfloat16 does not round to 1.
        return hidden.at[first_row:].multiply(1.5)

    monkeypatch.setattr(Programs, "step", other_bits)


@pytest.fixture
def other_bits_in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = SMALL["step_lanes"] * SMALL["page_tokens"]
    change_bits(monkeypatch, lambda shape: shape.tokens < largest)


@pytest.mark.usefixtures("no_verdicts")
@pytest.mark.parametrize("level", slow_unless_default(CPU_LEVELS))
def test_steps_of_all_sizes_run_where_they_have_the_same_bits(
    level: CpuLevelName, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(level=level)
    assert engine.info()["small_steps"]
    assert len(engine.self_check.step_tokens) > 1


@pytest.mark.parametrize("level", slow_unless_default(CPU_LEVELS))
@pytest.mark.usefixtures("no_verdicts", "other_bits_in_small_steps")
def test_small_steps_with_other_bits_are_left_out(
    level: CpuLevelName, make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(level=level)
    assert engine.info()["small_steps"] == []
    assert engine.info()["self_check"]["status"] == "passed"
    assert "leaving out steps of 64 tokens" in caplog.text
    assert "other_request_alone" in caplog.text


@pytest.mark.parametrize(
    ("others", "rows", "stay"),
    [((256,), 0, [64, 288]), ((64, 256), 20, [288])],
    ids=["one of two", "late rows of both"],
)
@pytest.mark.usefixtures("no_verdicts")
def test_small_steps_with_the_same_bits_stay(
    others: tuple[int, ...],
    rows: int,
    stay: list[int],
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_bits(monkeypatch, lambda shape: shape.tokens in others, rows)
    engine = make_engine(step_lanes=9)
    assert engine.self_check.step_tokens == stay
    assert [size["tokens"] for size in engine.info()["small_steps"]] == stay[:-1]


@pytest.mark.usefixtures("other_bits_in_small_steps")
def test_small_steps_with_other_bits_are_known_at_the_next_start(
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = make_engine(compilation_cache_dir=str(tmp_path))
    caplog.clear()
    compiled: list[object] = []
    compile_one = compile_cache.compile_whole

    def noted(*arguments: Any) -> jax.stages.Compiled:
        compiled.append(arguments)
        return compile_one(*arguments)

    monkeypatch.setattr(programs, "compile_whole", noted)
    second = make_engine(compilation_cache_dir=str(tmp_path))
    assert second.self_check == first.self_check
    assert second.info()["small_steps"] == []
    assert second.info()["steps"] == 1
    assert len(compiled) == 3, "the largest step, labels, vocabulary"
    assert "Steps of 64 tokens were left out at an earlier start" in caplog.text


@pytest.mark.skipif(ON_GPU, reason="levels are of processors")
@pytest.mark.parametrize("level", slow_unless_default(CPU_LEVELS))
def test_the_level_is_told(
    level: CpuLevelName, make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "itemwise.engine"):
        info = make_engine(level=level, skip_self_check=True).info()
    assert info["cpu_level"] == level
    assert info["attention"] == ("xla" if level.startswith("xla") else f"{level} kernel")
    assert info["activations"] == BY_NAME[level].activations
    assert f"CPU level {level}: " in caplog.text


def test_self_check_verdict_is_told(engine: Engine, make_engine: Callable[..., Engine]) -> None:
    assert engine.info()["self_check"]["status"] == "passed"
    assert make_engine(skip_self_check=True).info()["self_check"]["status"] == "skipped"


def test_pages_without_room_are_refused(make_engine: Callable[..., Engine]) -> None:
    with pytest.raises(ConfigError, match="raise --kv-cache-bytes"):
        make_engine(kv_cache_bytes=100)
    with pytest.raises(ConfigError, match="exceed the device's"):
        make_engine(kv_cache_bytes=1 << 50)


def test_memory_fraction_bounds_weights_and_pages(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(kv_cache_bytes=None, mem_fraction_static=0.002, skip_self_check=True)
    info = engine.info()
    limit = platform_of(engine.device).memory_of(engine.device).total * 0.002
    assert 0.9 * limit < info["weight_bytes"] + info["pages"]["bytes"] <= limit

"""Classification heads give transformers' logits, with the same bits in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise.config import EngineConfig
from itemwise.engine.engine import Engine
from itemwise.errors import RequestError
from itemwise.scorer import Scorer
from itemwise.types import Float32Array, ScoreRequest
from tests.checkpoint.by_transformers import (
    ITEMS,
    QUERY,
    VOCAB_SIZE,
    build,
    last_logits,
    load,
    start,
)

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]
TASK = "SequenceClassification"


def head_logits(engine: Engine, *others: ScoreRequest) -> Float32Array:
    """The head's outputs for `ITEMS`, scored together with other requests."""
    labels = tuple(range(engine.model_config.num_outputs))
    request = ScoreRequest(QUERY, ITEMS, (labels,) * len(ITEMS))
    return np.asarray(engine.score([*others, request])[-1].logits)


@pytest.mark.parametrize("num_labels", [1, 3, 11])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "mistral"])
def test_logits_are_those_of_transformers(
    family: str, num_labels: int, tmp_path: Path, cache_folder: str
) -> None:
    tied = family == "qwen3"
    more: dict[str, Any] = {"sliding_window": None} if family == "mistral" else {}
    build(family, TASK, num_labels=num_labels, tie_word_embeddings=tied, **more).save_pretrained(
        tmp_path
    )
    truth = last_logits(load(tmp_path, TASK), [QUERY + item for item in ITEMS])
    found = head_logits(start(tmp_path, cache_folder))
    assert found.shape == (len(ITEMS), num_labels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth, atol=1e-4 * np.abs(truth).max())


@pytest.mark.usefixtures("no_verdicts")
def test_bits_do_not_depend_on_company(tmp_path: Path, cache_folder: str) -> None:
    build("qwen3", TASK, num_labels=1).save_pretrained(tmp_path)
    settings: dict[str, Any] = {"page_tokens": 32, "step_lanes": 2, "kv_cache_bytes": 4 << 20}
    engine = Engine(tmp_path, EngineConfig(**settings, compilation_cache_dir=cache_folder))
    assert engine.self_check.status == "passed"
    random = np.random.default_rng(0)
    crowd = [
        ScoreRequest(
            random.integers(0, VOCAB_SIZE, 40).tolist(),
            random.integers(0, VOCAB_SIZE, (9, n)).tolist(),
            ((0,),) * 9,
        )
        for n in (1, 7, 33)
    ]
    alone = head_logits(engine)
    engine.forget_prefixes()
    np.testing.assert_array_equal(head_logits(engine, *crowd).view(np.int32), alone.view(np.int32))
    for row, item in enumerate(ITEMS):
        single = engine.score([ScoreRequest(QUERY, [item], ((0,),))])[0].logits
        assert np.asarray(single).view(np.int32)[0, 0] == alone.view(np.int32)[row, 0]


def test_a_request_without_labels_asks_for_all(tmp_path: Path, cache_folder: str) -> None:
    build("qwen2", TASK, num_labels=3).save_pretrained(tmp_path)
    scorer = Scorer(start(tmp_path, cache_folder), None)
    result = scorer.score(QUERY, ITEMS, apply_softmax=True)
    logits = np.asarray(result.logits)
    np.testing.assert_array_equal(logits, head_logits(scorer.engine))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(result.scores, expected, rtol=1e-5)
    chosen = scorer.score(QUERY, ITEMS, label_token_ids=[2, 0])
    np.testing.assert_array_equal(chosen.logits, logits[:, [2, 0]])
    np.testing.assert_allclose(chosen.scores, expected[:, [2, 0]], rtol=1e-5)
    with pytest.raises(RequestError, match="head of 3 labels"):
        scorer.score(QUERY, ITEMS, label_token_ids=[3])
    with pytest.raises(RequestError, match="classification head"):
        scorer.score(QUERY, ITEMS, labels=[" yes"])

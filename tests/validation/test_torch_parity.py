from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from itemwise.errors import CheckpointError, ConfigError
from itemwise.validation import torch_parity
from itemwise.validation.measures import max_abs_diff
from itemwise.validation.reference import load_torch, torch_scores
from itemwise.validation.torch_parity import Asked, check_fits, num_weights, torch_reference

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]

ASKED = Asked([1, 2, 3], [[4, 5], [6]], [7, 8], delimiter=9, timed_counts=(3,), rounds=2, warmup=0)


def test_reference_scores_both_semantics(make_checkpoint: Callable[[str], Path]) -> None:
    folder = make_checkpoint("tiny-qwen3")
    found = torch_reference(folder, "float32", ASKED)
    model = load_torch(folder, "float32")
    for scores, items in (
        (found.serial, ASKED.items),
        (found.multi_semantic, [[9, *item] for item in ASKED.items]),
    ):
        wanted = torch_scores(model, ASKED.query, items, ASKED.labels, apply_softmax=True)
        assert np.asarray(scores, np.float32).tobytes() == wanted.tobytes()
    # A position off by one shows, and is no other sequence: the query is still seen.
    assert 1e-5 < max_abs_diff(found.shifted, found.serial) < 0.5
    alone = torch_scores(model, [4], [[5]], ASKED.labels, apply_softmax=True).tolist()
    assert max_abs_diff(found.shifted[:1], alone) > 1e-5
    assert len(found.performance()["3"]["latencies_sec"]) == 2


def test_bfloat16_is_another_reference(make_checkpoint: Callable[[str], Path]) -> None:
    folder = make_checkpoint("tiny-qwen3")
    wide, narrow = (torch_reference(folder, dtype, ASKED) for dtype in torch_parity.BYTES)
    assert 0 < max_abs_diff(wide.serial, narrow.serial) < 0.05


def test_a_model_too_large_is_refused_before_it_is_loaded(
    make_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint("tiny-qwen3")
    check_fits(folder, "float32")
    monkeypatch.setattr(torch_parity, "available_memory_bytes", lambda: torch_parity.GIB // 4)
    monkeypatch.setattr(torch_parity, "load_torch", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"needs 0\.5 GiB .* but only 0\.2 GiB are free"):
        torch_reference(folder, "float32", ASKED)


def test_weights_are_counted_from_headers(
    make_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = make_checkpoint("tiny-qwen3")
    size = (folder / "model.safetensors").stat().st_size
    assert size - 10_000 < 2 * num_weights(folder) < size
    with pytest.raises(CheckpointError, match="has no safetensors"):
        num_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="is damaged"):
        num_weights(tmp_path)

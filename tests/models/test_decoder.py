from __future__ import annotations

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from itemwise.checkpoint.shapes import model_dict
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import label_logits, vocab_logsumexp
from itemwise.models.layers import rope_frequencies


@pytest.mark.parametrize("vocab_size", [7, 8192, 20001])
def test_logsumexp_covers_the_vocabulary_once(vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((vocab_size, 16), np.float32)
    hidden = rng.standard_normal((70, 16), np.float32)
    scale = np.linspace(0.5, 2, 70, dtype=np.float32)
    weights = {"embed": jnp.asarray(matrix)}
    logits = hidden.astype(np.float64) @ matrix.T.astype(np.float64) * scale[:, None]
    expected = np.log(np.exp(logits).sum(1))
    for first in (0, 32, 64):  # the last part goes past the rows
        scales = np.resize(scale[first:], 32)
        found = vocab_logsumexp(
            weights, jnp.asarray(hidden), jnp.asarray(scales), jnp.asarray(first)
        )
        here = expected[first : first + 32]
        np.testing.assert_allclose(found[: len(here)], here, rtol=2e-6)


def test_labels_read_the_head_where_there_is_one() -> None:
    rng = np.random.default_rng(0)
    embed, head = rng.standard_normal((2, 9, 4), np.float32)
    hidden = rng.standard_normal((3, 4), np.float32)
    labels = np.array([[0, 8], [1, 1], [5, 2]], np.int32)
    weights = {"embed": jnp.asarray(embed)}
    for matrix, tree in ((embed, weights), (head, {**weights, "head": jnp.asarray(head)})):
        found = label_logits(tree, jnp.asarray(hidden), jnp.asarray(labels))
        expected = np.einsum("id,ild->il", hidden, matrix[labels])
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen2.5-0.5b", "llama-3.2-1b", "tiny-llama"])
def test_frequencies_are_those_of_transformers(name: str) -> None:
    """To the last bit, but for a unit here and there where PyTorch's power rounds otherwise."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    raw = model_dict(name)
    config = transformers.AutoConfig.for_model(**raw)
    kind = raw["model_type"]
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    expected = getattr(module, f"{kind.capitalize()}RotaryEmbedding")(config).inv_freq.numpy()
    found = rope_frequencies(ModelConfig.from_hf(raw))
    assert (found != expected).mean() <= 0.02
    assert np.abs(found / expected - 1).max() <= 1.3e-7

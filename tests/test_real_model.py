"""A trained model, SmolLM2-135M-Instruct, says what it is known to say.

`make smollm2` gets it.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from itemwise.scorer import Scorer

MODEL = Path(__file__).parents[1] / ".models" / "SmolLM2-135M-Instruct"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not MODEL.is_dir(), reason="run `make smollm2` first"),
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]
PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "<|im_start|>user\nIs a whale a fish? Answer yes or no.<|im_end|>\n<|im_start|>assistant\n",
    "One, two, three,",
)
LABELS = (" Paris", " cold", " four", "No", "Yes", " the")


@functools.cache
def scorer() -> Scorer:
    return Scorer.from_pretrained(MODEL, kv_cache_bytes=1 << 28)


def test_it_knows_the_capital_of_france() -> None:
    result = scorer().score(PROMPTS[0], [""], labels=[" Paris", " London"])
    # Measured with transformers; 0.771 with weights rounded to bfloat16.
    np.testing.assert_allclose(result.scores[0], [0.7725, 0.0125], atol=5e-4)


def test_scores_are_those_of_transformers(one_torch_thread: None) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        labels = [tokenizer(label)["input_ids"][0] for label in LABELS]
        with torch.no_grad():
            truth = model(torch.tensor([ids])).logits[0, -1].softmax(-1)[labels].numpy()
        result = scorer().score(prompt, [""], labels=list(LABELS))
        # As in other comparisons in float32: an error of a log-probability of at most 1e-4.
        np.testing.assert_allclose(result.scores[0], truth, rtol=1e-4, err_msg=prompt)


def test_items_score_alone_as_together() -> None:
    query = "<|im_start|>user\nIs this an animal? "
    items = ["whale", "granite", "an old oak", "my neighbour's dog"] * 8
    end = "<|im_end|>\n<|im_start|>assistant\n"
    together = scorer().score(query, [item + end for item in items], labels=["Yes", "No"])
    for row, item in enumerate(items[:4]):
        scorer().engine.forget_prefixes()
        alone = scorer().score(query, [item + end], labels=["Yes", "No"])
        for number in (row, row + 4):
            np.testing.assert_array_equal(alone.scores[0], together.scores[number])

"""Checkpoints that transformers writes, and what it makes of them, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from itemwise.config import EngineConfig
from itemwise.engine.engine import Engine
from itemwise.types import Float32Array, ScoreRequest, ScoreResult

VOCAB_SIZE = 300
QUERY, ITEMS = tuple(range(5, 60)), [(20, 21), (), (30,) * 40, (7,)]
LABELS = (0, 1, 17, 99, 250, 299)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def build(family: str, task: str = "CausalLM", seed: int = 0, **config: Any) -> Any:
    """A model of transformers with random weights that make scores differ, in float32."""
    import torch
    import transformers

    torch.manual_seed(seed)
    shape = transformers.AutoConfig.for_model(family, **(SIZES | config))
    loader = {
        "CausalLM": transformers.AutoModelForCausalLM,
        "SequenceClassification": transformers.AutoModelForSequenceClassification,
    }[task]
    model = loader.from_config(shape, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1.3, 0.4)
            elif name.endswith("bias"):
                weight.normal_(0, 0.5)
            else:
                weight.normal_(0, (3 if "embed" in name else 1.5) * weight.shape[1] ** -0.5)
    return model


def edit_config(folder: Path, **fields: Any) -> None:
    """Sets fields of `config.json`; an ellipsis takes one away."""
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


def last_logits(model: Any, sequences: Sequence[Sequence[int]]) -> Float32Array:
    """What transformers gives at each sequence's last token, float32 [sequences, logits]."""
    import torch

    with torch.no_grad():
        rows = [model(torch.tensor([list(ids)])).logits.float().numpy()[0] for ids in sequences]
    return np.stack([row if row.ndim == 1 else row[-1] for row in rows])


def load(folder: Path, task: str = "CausalLM", dtype: str = "float32") -> Any:
    """The model as transformers reads the folder."""
    import torch
    import transformers

    loader = getattr(transformers, f"AutoModelFor{task}")
    return loader.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def logprobs(logits: Float32Array, labels: Sequence[int] = LABELS) -> Float32Array:
    """Log-probabilities of labels among all logits, float64."""
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    total = top + np.log(np.exp(wide - top).sum(-1, keepdims=True))
    found: Float32Array = (wide - total)[:, list(labels)]
    return found


def start(folder: Path, cache_folder: str, **settings: Any) -> Engine:
    """A small engine without a self-check."""
    fixed: dict[str, Any] = {"page_tokens": 32, "step_lanes": 2, "kv_cache_bytes": 4 << 20}
    fixed |= {"skip_self_check": True, "compilation_cache_dir": cache_folder}
    return Engine(folder, EngineConfig(**(fixed | settings)))


def score(engine: Engine, labels: tuple[int, ...] = LABELS, **fields: Any) -> ScoreResult:
    """The result for `QUERY` and `ITEMS`."""
    return engine.score([ScoreRequest(QUERY, ITEMS, (labels,) * len(ITEMS), **fields)])[0]


def error(engine: Engine, model: Any) -> float:
    """Largest difference of a log-probability from transformers'."""
    truth = logprobs(last_logits(model, [QUERY + item for item in ITEMS]))
    ours = np.log(np.asarray(score(engine).scores, np.float64))
    return float(np.abs(ours - truth).max())

"""Writes the bits of a fixed set of scores down, or compares them with bits written before.

Bits differ between machines, so the file is a record for one machine, not a fixture: write it,
change the code, compare.

    python scripts/score_bits.py write before.json
    python scripts/score_bits.py compare before.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from itemwise import Scorer

# Every way to compute a score that this machine can run without a setting of the environment.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "bfloat16": {"dtype": "bfloat16"},
    "xla": {"attention_backend": "native"},
    "int8": {"quantization": "int8"},
    "serial": {"multi_item_algorithm": "serial"},
    "packed": {"multi_item_algorithm": "packed"},
    "packed dense": {"multi_item_algorithm": "packed", "multi_item_mask_impl": "dense"},
    "delimiter": {"multi_item_scoring_delimiter": 7},
}
MODELS = ("tiny-qwen3", "tiny-qwen2", "tiny-llama")
SMALL: dict[str, Any] = {"page_tokens": 32, "step_lanes": 3, "kv_cache_bytes": 1 << 20}


def requests(rng: np.random.Generator, vocab_size: int) -> list[dict[str, Any]]:
    """Short and long queries, empty and long items, few and many labels."""

    def tokens(count: int) -> list[int]:
        found: list[int] = rng.integers(8, vocab_size, count).tolist()
        return found

    made = []
    for query, items, labels in (
        (1, [0, 1, 5], 2),
        (33, [3] * 40, 12),
        (200, [31, 32, 33, 70], 3),
        (64, [0, 20, 120], 1),
    ):
        for options in ({}, {"apply_softmax": True, "temperature": 0.7}, {"item_first": True}):
            made.append(
                {
                    "query": tokens(query),
                    "items": [tokens(length) for length in items],
                    "label_token_ids": tokens(labels),
                    **options,
                }
            )
    return made


def all_bits(folder: Path) -> dict[str, list[str]]:
    """Per model and settings, the bits of each request's scores in hexadecimal."""
    found: dict[str, list[str]] = {}
    for model in MODELS:
        path = folder / model
        command = [sys.executable, "-m", "itemwise", "checkpoint", "random", "--like", model]
        subprocess.run([*command, str(path)], check=True, capture_output=True)
        for name, settings in SETTINGS.items():
            scorer = Scorer.from_pretrained(path, **SMALL, **settings)
            vocab_size = scorer.info()["model_config"]["vocab_size"]
            bits = []
            for fields in requests(np.random.default_rng(0), vocab_size):
                scores = np.asarray(scorer.score(**fields).scores, np.float32)
                bits.append(scores.tobytes().hex())
            level = scorer.info()["attention"], scorer.info()["activations"]
            found[f"{model}, {name}"] = bits
            print(f"{model}, {name}: {', '.join(level)}, {len(bits)} requests", flush=True)
    return found


def run() -> int:
    """Writes or compares, as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = all_bits(Path(folder))
    if arguments.action == "write":
        arguments.file.write_text(json.dumps(found), encoding="utf-8")
        return 0
    before = json.loads(arguments.file.read_text(encoding="utf-8"))
    different = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    print(f"{len(found) - len(different)} of {len(found)} have the same bits")
    for name in different:
        print(f"other bits: {name}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(run())

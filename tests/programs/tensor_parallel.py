"""Scores a request over 1, 2 and 4 devices and prints them; see `tests/models/test_sharding.py`.

A process of its own, because the number of JAX's CPU devices is set before JAX starts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from itemwise.config import EngineConfig
from itemwise.engine.engine import Engine
from itemwise.types import ScoreRequest


def main(folder: str, dtype: Any, sizes: str) -> None:
    """Prints a JSON object: scores of each way, by its name."""
    rng = np.random.default_rng(0)
    drawn = [tuple(rng.integers(0, 500, n).tolist()) for n in (70, 20, 5, 45, 1)]
    request = ScoreRequest(drawn[0], tuple(drawn[1:]), ((1, 2, 3),) * 4)
    found: dict[str, Any] = {"devices": len(jax.devices())}
    for tp in map(int, sizes.split(",")):
        config = EngineConfig(
            dtype=dtype,
            tp_size=tp,
            page_tokens=32,
            step_lanes=3,
            kv_cache_bytes=1 << 20,
            compilation_cache_dir="",
        )
        engine = Engine(Path(folder), config)
        found[f"self-check {tp}"] = engine.self_check.status
        found[f"step {tp}"] = scores(engine, request)
        alone = ScoreRequest(request.query, request.items[2:3], request.labels[2:3])
        found[f"alone {tp}"] = scores(engine, alone)
        for mask in ("dense", "segment"):
            fields = {**vars(config), "multi_item_algorithm": "packed"}
            engine.config = EngineConfig(**{**fields, "multi_item_mask_impl": mask})
            found[f"{mask} {tp}"] = scores(engine, request)
        weights = jax.tree.leaves(engine._programs._weights)
        found[f"shards {tp}"] = sum(
            array.addressable_shards[0].data.nbytes for array in weights
        ) / sum(array.nbytes for array in weights)
        found[f"bytes {tp}"] = engine.info()["weight_bytes"] / sum(
            array.addressable_shards[0].data.nbytes for array in weights
        )
    sys.stdout.write(json.dumps(found))


def scores(engine: Engine, request: ScoreRequest) -> list[list[float]]:
    """The scores as numbers, which JSON keeps exactly."""
    return [row.tolist() for row in engine.score([request])[0].scores]


if __name__ == "__main__":
    main(*sys.argv[1:])

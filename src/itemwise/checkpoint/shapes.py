"""Random checkpoints of well-known shapes: for demos, benchmarks and tests without a download."""

from __future__ import annotations

from pathlib import Path

from itemwise.checkpoint import read as checkpoint
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.progress import ProgressFn, silent


def write_named(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    vocab_size: int | None = None,
    shards: int | None = None,
    on_progress: ProgressFn = silent,
) -> None:
    """Writes a checkpoint of the shape `name` (see `checkpoint.NAMED_SHAPES`) into a new folder.

    Args:
        name: such as `qwen3-0.6b`.
        folder: new or empty.
        seed: picks the weights.
        dtype: bfloat16, float16 or float32.
        vocab_size: in place of the shape's own.
        shards: number of weight files; None for as many as keep each under 2 GiB.
        on_progress: told after each tensor how many are drawn, and how many there are.

    Raises:
        ConfigError: `name`, `dtype` or `shards` cannot be had.
        CheckpointError: the folder is not empty, or cannot be written.
    """
    config = checkpoint.model_dict(name, vocab_size=vocab_size, dtype=dtype)
    specs = describe_weights(ModelConfig.from_hf(config))
    checkpoint.write_random(
        folder, config, specs, seed=seed, dtype=dtype, shards=shards, on_progress=on_progress
    )

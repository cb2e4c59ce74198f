"""Scores and times of PyTorch and transformers on the workload of a validation."""

from __future__ import annotations

import gc
import json
import math
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itemwise.errors import CheckpointError, ConfigError
from itemwise.machine import available_memory_bytes
from itemwise.progress import ProgressFn, silent
from itemwise.types import Float32Array
from itemwise.validation.files import Json
from itemwise.validation.measures import Scores, speed
from itemwise.validation.reference import TorchDType, load_torch, to_scores, torch_label_logits

GIB = 1 << 30
BYTES: dict[TorchDType, int] = {"float32": 4, "bfloat16": 2}
# Beside the weights: the interpreter, activations, and one tensor that is being converted.
MARGIN = 1.15
OVERHEAD_BYTES = GIB // 2


@dataclass(frozen=True)
class Reference:
    """Scores of PyTorch, [items][labels] each.

    Attributes:
        dtype: type of weights and activations.
        serial: `query + item`.
        multi_semantic: `query + delimiter + item`, what a multi-item server scores.
        shifted: `query + item` with the item one position too far, to show the effect of a wrong
            position.
        latencies: seconds of the timed rounds by number of items, one full forward per item.
    """

    dtype: TorchDType
    serial: Scores
    multi_semantic: Scores
    shifted: Scores
    latencies: dict[int, list[float]]

    def performance(self) -> Json:
        """The latencies in the format of `evaluate`."""
        return {str(n): speed(seconds, n) for n, seconds in self.latencies.items()}


@dataclass(frozen=True)
class Asked:
    """A task for PyTorch: a workload, and how much of it to time."""

    query: list[int]
    items: list[list[int]]
    labels: list[int]
    delimiter: int | None
    apply_softmax: bool = True
    timed_counts: tuple[int, ...] = ()
    rounds: int = 3
    warmup: int = 1


def require_torch() -> None:
    """Returns if torch and transformers are installed.

    Raises:
        ConfigError: they are not.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"`{error.name}` is not installed, but the comparison with PyTorch needs it: pip "
            "install '.[validate]' in Itemwise's folder"
        ) from error


def check_fits(folder: Path, dtype: TorchDType) -> None:
    """Returns if the checkpoint's weights fit into the memory that is free.

    Raises:
        CheckpointError: the folder has no readable weights.
        ConfigError: they do not fit.
    """
    needed = int(num_weights(folder) * BYTES[dtype] * MARGIN) + OVERHEAD_BYTES
    free = available_memory_bytes()
    if needed > free:
        raise ConfigError(
            f"`{folder.name}` in {dtype} needs {needed / GIB:.1f} GiB of memory in PyTorch, but "
            f"only {free / GIB:.1f} GiB are free; free some, or compare on a larger machine"
        )


def num_weights(folder: Path) -> int:
    """Count of numbers in all tensors of the folder's safetensors, from the headers only.

    Raises:
        CheckpointError: there are none, or a header cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"`{folder}` has no safetensors, expected a model folder")
    return sum(_num_weights(file) for file in files)


def _num_weights(path: Path) -> int:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"`{path}` is damaged: download it again") from error


def torch_reference(
    folder: Path, dtype: TorchDType, asked: Asked, on_progress: ProgressFn = silent
) -> Reference:
    """Scores and times a workload with transformers, one full forward per item.

    Raises:
        ConfigError: torch is not installed, or the model does not fit into memory.
        CheckpointError: the folder has no readable weights, or transformers cannot load it.
    """
    require_torch()
    check_fits(folder, dtype)
    from transformers.utils import logging

    logging.disable_progress_bar()  # its progress bars would interfere with ours
    on_progress(f"torch {dtype}: load", 0, 1)
    try:
        model = load_torch(folder, dtype)
    except Exception as error:  # transformers can raise anything
        raise CheckpointError(f"`{folder}` cannot be loaded by transformers: {error}") from error
    on_progress(f"torch {dtype}: load", 1, 1)
    between = [] if asked.delimiter is None else [asked.delimiter]
    rows = [[*between, *item] for item in asked.items]
    reference = Reference(
        dtype,
        serial=_scores(model, asked, asked.items),
        multi_semantic=_scores(model, asked, rows),
        shifted=_scores(model, asked, asked.items, item_shift=1),
        latencies={n: _time(model, asked, n, dtype, on_progress) for n in asked.timed_counts},
    )
    del model
    gc.collect()  # before another type is loaded
    return reference


def _scores(model: Any, asked: Asked, items: list[list[int]], item_shift: int = 0) -> Scores:
    logits = torch_label_logits(model, asked.query, items, asked.labels, item_shift=item_shift)
    scores: Float32Array = to_scores(logits, asked.apply_softmax)
    # The shortest decimals of the float32, as a server would send them.
    return [[float(str(score)) for score in row] for row in scores]


def _time(
    model: Any, asked: Asked, count: int, dtype: TorchDType, on_progress: ProgressFn
) -> list[float]:
    items = [asked.items[i % len(asked.items)] for i in range(count)]
    total = asked.warmup + asked.rounds
    latencies = []
    for number in range(total):
        start = time.perf_counter()
        torch_label_logits(model, asked.query, items, asked.labels)
        if number >= asked.warmup:
            latencies.append(time.perf_counter() - start)
        on_progress(f"torch {dtype}: rounds, N={count}", number + 1, total)
    return latencies

"""From a checkpoint folder and settings to what an engine is made of, and its first self-check."""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jaxlib.version
import numpy as np

from itemwise.checkpoint.read import read_model
from itemwise.config import EngineConfig, xla_environment
from itemwise.engine.compile_cache import cache_folder
from itemwise.engine.lowering import ProgramSpec
from itemwise.engine.memory import PagePlan, plan_pages
from itemwise.engine.platform import (
    Platform,
    choose_kernel,
    choose_platform,
    platform_of,
    step_shapes,
)
from itemwise.engine.programs import Programs
from itemwise.engine.selfcheck import SelfCheck, is_finite, recall, remember, run_self_check
from itemwise.engine.weights import load_weights
from itemwise.errors import ConfigError, SelfCheckError
from itemwise.machine import processor, release_memory
from itemwise.models.config import ModelConfig
from itemwise.models.sharding import make_mesh
from itemwise.progress import ProgressFn
from itemwise.types import DTypes, Kernel, ScoreRequest, ScoreResult

logger = logging.getLogger("itemwise.engine")


@dataclass(frozen=True)
class Verdicts:
    """Verdicts of self-checks on the same programs, kept beside them.

    A verdict's name stands for all that bits may depend on, except the weights.

    Attributes:
        folder: where they are kept; None for nowhere.
        around: what bits depend on beside the programs.
    """

    folder: Path | None
    around: str

    def find(self, fingerprint: str) -> SelfCheck | None:
        """The verdict on programs that passed at an earlier start, if there is one."""
        return recall(self._path(self.folder, fingerprint)) if self.folder else None

    def keep(self, fingerprint: str, verdict: SelfCheck) -> None:
        """Keeps a verdict for later starts, if there is a place for it."""
        if self.folder:
            remember(verdict, self._path(self.folder, fingerprint))

    def _path(self, folder: Path, fingerprint: str) -> Path:
        digest = hashlib.sha256(fingerprint.encode())
        for path in sorted(Path(__file__).parents[1].rglob("*.py")):
            digest.update(path.read_bytes())
        digest.update(self.around.encode())
        return folder / f"{digest.hexdigest()}.json"


@dataclass(frozen=True)
class Parts:
    """What an engine is made of.

    Attributes:
        device: the first of its devices.
        weights_s: seconds that reading the weights took, with all that comes before.
        compile_s: seconds until the programs were compiled.
    """

    model: ModelConfig
    device: jax.Device
    platform: Platform
    dtypes: DTypes
    kernel: Kernel | None
    max_seq_len: int
    plan: PagePlan
    programs: Programs
    verdicts: Verdicts
    weights_s: float
    compile_s: float


def load(folder: Path, config: EngineConfig, on_progress: ProgressFn) -> Parts:
    """Reads a checkpoint and compiles its programs; see `Engine` for what it raises."""
    start = time.perf_counter()
    model = read_model(folder)
    devices = _devices(config.tp_size)
    mesh = make_mesh(model, devices)
    if config.quantization != "none" and mesh is not None:
        raise ConfigError("`quantization` is int8, expected none where `tp_size` is above 1")
    weights_dtype = _weights_dtype(config, model, devices[0])
    platform = choose_platform(devices[0], config, weights_dtype)
    dtypes = platform.dtypes(weights_dtype)
    logger.info(
        "Weights are %s on disk and %s in memory; activations are %s.",
        model.dtype,
        dtypes.weights.name,
        dtypes.activations.name,
    )
    kernel = choose_kernel(platform, config, model, dtypes)
    max_seq_len = _max_seq_len(config, model)
    memory = platform.memory_of(devices[0])
    plan = plan_pages(config, model, dtypes, platform, memory, config.tp_size)
    # No sequence has more pages than there are, however long the model lets it be.
    longest = min(max_seq_len, plan.num_pages * config.page_tokens)
    shapes = step_shapes(config, platform, longest)
    if config.skip_self_check:
        shapes = shapes[-1:]  # nothing would have compared small steps with large ones
    weights = load_weights(
        folder,
        model,
        dtypes,
        mesh,
        quantization=config.quantization,
        kernels=platform.kernels() if mesh is None else None,
        on_progress=on_progress,
    )
    weights_read = time.perf_counter()
    cache = cache_folder(config)
    verdicts = _verdicts(config, platform, devices[0], cache)
    find_verdict = functools.cache(verdicts.find)  # it reads all sources
    programs = Programs(
        ProgramSpec(model, shapes[-1], plan.num_pages, dtypes, platform, kernel, mesh),
        shapes,
        weights,
        use_small_step=lambda fingerprint, tokens: _may_use(find_verdict(fingerprint), tokens),
        cache=cache,
        pages_at_start=plan.taken_at_start,
    )
    release_memory()
    compiled = time.perf_counter()
    return Parts(
        model=model,
        device=devices[0],
        platform=platform,
        dtypes=dtypes,
        kernel=kernel,
        max_seq_len=_within_pool(max_seq_len, config, plan),
        plan=plan,
        programs=programs,
        verdicts=verdicts,
        weights_s=weights_read - start,
        compile_s=compiled - weights_read,
    )


class Checkable(Protocol):
    """What the self-check needs of an engine."""

    def score_exactly(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Scores requests together through the exact step, whatever the algorithm."""
        ...

    def forget_prefixes(self) -> None:
        """Empties the prefix cache."""
        ...

    def reset(self) -> None:
        """Lets go of all requests and empties the page pool."""
        ...


def check_self(engine: Checkable, config: EngineConfig, parts: Parts) -> SelfCheck:
    """The verdict on a new engine; one on the same programs from an earlier start is taken over.

    That verdict says nothing of the weights, so one small score is looked at whatever is known.

    Raises:
        SelfCheckError: scores change with batch composition on this device, or are not finite.
    """
    programs, verdicts = parts.programs, parts.verdicts
    known = verdicts.find(programs.fingerprint)
    if config.skip_self_check:
        known = SelfCheck(status="skipped")
    # The first request then meets memory that is in use already.
    if not is_finite(engine.score_exactly, parts.model.vocab_size, parts.max_seq_len):
        raise _not_finite(parts)
    engine.forget_prefixes()
    if known is not None:
        return known
    verdict = _run(engine, parts)
    if "finite" in verdict.failures:
        raise _not_finite(parts)
    while verdict.failures and len(programs.shapes) > 1:
        # On some device a small product may add in another order than a large one.
        small = [shape.tokens for shape in programs.shapes[:-1]]
        named = [t for t in small if any(f"_{t}_tokens" in name for name in verdict.failures)]
        suspects = named or small[:1]
        logger.warning(
            "Bits change with the size of a step (%s); leaving out steps of %s tokens (slower for "
            "short requests).",
            ", ".join(verdict.failures),
            ", ".join(map(str, suspects)),
        )
        programs.drop_steps(suspects)
        engine.reset()
        verdict = _run(engine, parts)
    if verdict.status != "passed":
        raise SelfCheckError(
            f"self-check failed on {parts.device.device_kind}: {', '.join(verdict.failures)}; "
            "scores would change with batch composition. Use another device, or --skip-self-check"
        )
    verdicts.keep(programs.fingerprint, verdict)
    engine.forget_prefixes()
    return verdict


def _run(engine: Checkable, parts: Parts) -> SelfCheck:
    page_tokens = parts.programs.shape.page_tokens
    return run_self_check(
        engine.score_exactly,
        engine.forget_prefixes,
        vocab_size=parts.model.vocab_size,
        num_outputs=parts.model.num_outputs,
        page_tokens=page_tokens,
        max_tokens=min(parts.max_seq_len, (parts.plan.num_pages - 1) * page_tokens),
        step_sizes={one.tokens: one.max_scored_rows for one in parts.programs.shapes},
        short_rounds=parts.platform.short_rounds,
    )


def _not_finite(parts: Parts) -> SelfCheckError:
    return SelfCheckError(
        "self-check failed: finite; the model's scores are NaN or infinity. Its weights are "
        f"damaged, or its values exceed {parts.dtypes.activations.name}: check the checkpoint"
    )


def _may_use(known: SelfCheck | None, step_tokens: int) -> bool:
    """Whether no earlier start left out steps of this size."""
    if known is None or step_tokens in known.step_tokens:
        return True
    logger.warning("Steps of %d tokens were left out at an earlier start: not used.", step_tokens)
    return False


def _verdicts(
    config: EngineConfig, platform: Platform, device: jax.Device, folder: Path | None
) -> Verdicts:
    """Kept only where the compiler makes the same program of the same text at each start."""
    kept = folder is not None and platform.repeatable and not config.skip_self_check
    versions = jax.__version__, jaxlib.version.__version__, np.__version__
    machine = processor(), device.client.platform_version, xla_environment()
    around = repr((versions, machine, platform.kernels()))
    return Verdicts(folder / "self-checks" if folder and kept else None, around)


def _devices(count: int) -> list[jax.Device]:
    devices = jax.devices()
    if count > len(devices):
        raise ConfigError(
            f"`tp_size` is {count}, expected at most {len(devices)}, the number of JAX devices"
        )
    return devices[:count]


def _max_seq_len(config: EngineConfig, model: ModelConfig) -> int:
    """The model's limit, or the lower one of the settings."""
    wanted = config.max_multi_item_seq_len or model.max_position_embeddings
    if wanted > model.max_seq_len:
        limit = "max_position_embeddings"
        if model.max_seq_len == model.window_tokens:
            limit = "sliding_window"
        logger.warning(
            "Sequences of up to %d tokens are wanted, but the model's `%s` is %d; using %d.",
            wanted,
            limit,
            model.max_seq_len,
            model.max_seq_len,
        )
    longest = min(wanted, model.max_seq_len)
    if longest < 2:
        raise ConfigError(
            "sequences have at most 1 token, by `max_multi_item_seq_len` or the model's "
            "config.json; expected at least 2: one of the query and one of the item"
        )
    return longest


def _within_pool(max_seq_len: int, config: EngineConfig, plan: PagePlan) -> int:
    """The limit, or what the pages of the pool hold if that is less; packed sequences use none."""
    room = (plan.num_pages - 1) * config.page_tokens  # all but the null page
    if config.multi_item_algorithm == "packed" or max_seq_len <= room:
        return max_seq_len
    logger.info(
        "Sequences have at most %d tokens, since the pages for cached queries hold no more, and "
        "not %d; raise --kv-cache-bytes for longer ones.",
        room,
        max_seq_len,
    )
    return room


def _weights_dtype(config: EngineConfig, model: ModelConfig, device: jax.Device) -> np.dtype[Any]:
    """The type in memory: by default the one on disk, as far as the device computes in it."""
    name: str = config.dtype
    if name == "auto":
        kept = {"float32": "float32", "float16": platform_of(device).float16_as}
        name = kept.get(model.dtype, "bfloat16")
    return np.dtype(jax.numpy.dtype(name))

"""The engine: one model on one device, ready to score.

A request's prefix is looked up in the page cache; what is missing is computed page by page; then
its items are packed densely into lanes that read those pages (`work.py`, `run.py`). Requests that
are open at the same time share steps. Nothing here can change a score: not company, order, chunks
or cache.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
import numpy as np

from itemwise.checkpoint.read import read_config
from itemwise.config import EngineConfig, cache_dir, xla_environment
from itemwise.engine.batcher import Batcher, Counters
from itemwise.engine.cpu_level import CpuLevel, choose_level
from itemwise.engine.memory import plan_pages
from itemwise.engine.packed_batcher import PackedBatcher
from itemwise.engine.packed_sequence import DEFAULT_MAX_TOKENS
from itemwise.engine.pages import PageCache
from itemwise.engine.programs import Programs, compile_counter
from itemwise.engine.selfcheck import SelfCheck, recall, remember, run_self_check
from itemwise.engine.weights import load_weights
from itemwise.errors import ConfigError, SelfCheckError
from itemwise.machine import processor
from itemwise.models.config import ModelConfig
from itemwise.models.sharding import make_mesh
from itemwise.ops.build_cpu import Kernels
from itemwise.ops.step.arrays import StepShape
from itemwise.progress import ProgressFn, silent
from itemwise.types import DTypes, Kernel, OpenRequest, ScoreRequest, ScoreResult, StepOutcome

GRANULE_TOKENS = 32
BLOCK_TOKENS = 512  # context tokens of one product
DEFAULT_LANES = {"cpu": 4, "gpu": 32, "tpu": 16}
# Tokens of smaller steps, whose lanes have a granule's: there time goes by the number of tokens.
SMALL_STEPS = {"cpu": (64, 256)}
# Shortest lane to have on average: bounds the lanes of a step, whose page tables go to the device.
MIN_LANE_TOKENS = {"cpu": 8, "gpu": 32}
logger = logging.getLogger("itemwise.engine")


class Engine:
    """Scores requests with one model on one device. Not thread-safe: one thread runs steps.

    `score` scores some requests. A server does the same step by step: it opens requests as they
    come, runs steps, and takes those that are finished.

    Args:
        folder: a checkpoint folder.
        config: settings; see `EngineConfig`.
        on_progress: told about the tensors read, as (what, done, total).

    Raises:
        CheckpointError: the checkpoint cannot be read or is of an unsupported kind.
        ConfigError: the settings do not fit the machine.
        SelfCheckError: scores depend on their company on this device.
    """

    def __init__(
        self, folder: Path, config: EngineConfig, on_progress: ProgressFn = silent
    ) -> None:
        start = time.perf_counter()
        counter = compile_counter()
        self.config = config
        self.model_config = read_config(folder)
        mesh = make_mesh(self.model_config, _devices(config.tp_size))
        self.device = jax.devices()[0]
        weights_dtype = _weights_dtype(config, self.model_config)
        self.level: CpuLevel | None = None
        if self.device.platform == "cpu":
            self.level = choose_level(config, weights_dtype)
            logger.info("CPU level %s: %s", self.level.name, self.level.meaning)
        activations = np.dtype(self.level.activations) if self.level else weights_dtype
        self.dtypes = DTypes(weights_dtype, activations)
        self.max_seq_len = (
            config.max_multi_item_seq_len or self.model_config.max_position_embeddings
        )
        if config.quantization != "none" and mesh is not None:
            raise ConfigError("`quantization` is int8, expected none where `tp_size` is above 1")
        shapes = step_shapes(config, self.device.platform, self.max_seq_len)
        if config.skip_self_check:
            shapes = shapes[-1:]  # nobody would have compared small steps with large ones
        self._plan = plan_pages(
            config, self.model_config, self.dtypes, shapes[-1], self.device, config.tp_size
        )
        self._compilation_cache = _compilation_cache(config)
        kernel, self._kernels = self._find_kernel()
        with_panels = self._kernels if mesh is None else None
        weights = load_weights(
            folder,
            self.model_config,
            self.dtypes,
            mesh,
            quantization=config.quantization,
            kernels=with_panels,
            on_progress=on_progress,
        )
        weights_read = time.perf_counter()
        self._attention = f"{kernel} kernel" if kernel else "xla"
        self._programs = Programs(
            self.model_config,
            shapes,
            weights,
            self._plan.num_pages,
            self.dtypes,
            mesh,
            kernel,
            dot_sums=self.device.platform == "cpu",
            use_small_steps=self._may_use_small_steps,
            cache=self._compilation_cache,
        )
        self._counters = Counters()
        self._exact = Batcher(self._programs, self._new_cache, self._counters)
        max_packed = config.max_multi_item_seq_len or min(self.max_seq_len, DEFAULT_MAX_TOKENS)
        self._packed = PackedBatcher(self._programs, max_packed, self._counters)
        compiled = time.perf_counter()
        self.self_check = self._check_self()
        self._startup_s = {
            "weights": weights_read - start,
            "compile": compiled - weights_read,
            "self_check": time.perf_counter() - compiled,
        }
        self._compiled_at_ready = counter.count

    def _find_kernel(self) -> tuple[Kernel | None, Kernels | None]:
        """The kind of attention for the device; for a processor, also its compiled kernels."""
        if self.config.attention_backend == "native":
            return None, None
        if self.device.platform == "tpu":
            return "tpu", None
        if self.device.platform == "gpu":
            page_tokens = self.config.page_tokens
            served = gpu_kernel_serves(self.model_config, self.dtypes, page_tokens)
            return ("gpu" if served else None), None
        kernels = self.level.kernels() if self.level else None
        return (kernels.level if kernels else None), kernels

    def _new_cache(self) -> PageCache:
        reuse = not self.config.disable_radix_cache
        return PageCache(self._plan.num_pages, self.shape.page_tokens, reuse=reuse)

    def _check_self(self) -> SelfCheck:
        if self.config.skip_self_check:
            self._run_one_step()
            return SelfCheck(status="skipped")
        path = self._verdict_path(self._programs.fingerprint)
        known = recall(path) if path else None
        if known is not None:
            self._run_one_step()
            return known
        verdict = self._run_self_check()
        if verdict.failures and len(self._programs.shapes) > 1:
            # On some processor a small product may add in another order than a large one.
            logger.warning("small steps are left out: %s", ", ".join(verdict.failures))
            self._programs.drop_small_steps()
            self._exact.reset()
            verdict = replace(self._run_self_check(), small_steps=False)
        if verdict.status != "passed":
            raise SelfCheckError(
                f"self-check failed on {self.device.device_kind}: {', '.join(verdict.failures)}; "
                "scores would depend on their company. Use another device, or --skip-self-check"
            )
        if path:
            remember(verdict, path)
        self.forget_prefixes()
        return verdict

    def _may_use_small_steps(self, fingerprint: str) -> bool:
        """Whether no earlier start found that small steps have other bits."""
        path = self._verdict_path(fingerprint)
        known = recall(path) if path and not self.config.skip_self_check else None
        if known is None or known.small_steps:
            return True
        logger.warning("small steps are left out: they failed the self-check at an earlier start")
        return False

    def _verdict_path(self, fingerprint: str) -> Path | None:
        """Where a verdict on these very programs is kept, beside the compiled ones if those are.

        Its name stands for all that the bits may depend on, except the weights. On a processor
        alone: elsewhere a compiler may pick another program for the same text.
        """
        if self._compilation_cache is None or self.device.platform != "cpu":
            return None
        digest = hashlib.sha256(fingerprint.encode())
        for path in sorted(Path(__file__).parents[1].rglob("*.py")):
            digest.update(path.read_bytes())
        versions = jax.__version__, jaxlib.version.__version__, np.__version__
        machine = processor(), self.device.client.platform_version, xla_environment()
        digest.update(repr((versions, machine, self._kernels)).encode())
        return self._compilation_cache / "self-checks" / f"{digest.hexdigest()}.json"

    def _run_one_step(self) -> None:
        """Lets the first request meet warm memory."""
        self._score_exactly([ScoreRequest(query=(0,), items=((0,),), labels=((0,),))])
        self.forget_prefixes()

    def _run_self_check(self) -> SelfCheck:
        page_tokens = self.shape.page_tokens
        return run_self_check(
            self._score_exactly,
            self.forget_prefixes,
            vocab_size=self.model_config.vocab_size,
            page_tokens=page_tokens,
            max_tokens=min(self.max_seq_len, self._exact.cache.capacity * page_tokens),
            step_tokens=[shape.tokens for shape in self._programs.shapes],
        )

    @property
    def shape(self) -> StepShape:
        """Sizes of the largest step."""
        return self._programs.shape

    @property
    def step_tokens(self) -> int:
        """Token places of the largest step."""
        return self.shape.tokens

    def forget_prefixes(self) -> None:
        """Empties the prefix cache."""
        self._exact.cache.clear()

    def score(
        self, requests: Sequence[ScoreRequest], on_progress: ProgressFn = silent
    ) -> list[ScoreResult]:
        """Scores requests together, in shared steps. A result's bits do not depend on the others.

        Args:
            requests: checked requests.
            on_progress: told about the items scored so far, as (what, done, total).

        Raises:
            RequestError: a request needs more pages than there are (`sequence_too_long`); then
                none is scored.
        """
        return self._score(requests, on_progress)

    def _score_exactly(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Scores requests through the exact step, whatever the algorithm."""
        return self._score(requests, exactly=True)

    def _score(
        self,
        requests: Sequence[ScoreRequest],
        on_progress: ProgressFn = silent,
        *,
        exactly: bool = False,
    ) -> list[ScoreResult]:
        for request in requests:
            self._batcher_for(request, exactly).check(request, self.config)
        total = sum(len(request.items) for request in requests)
        waiting, works, opened, done = deque(requests), list[OpenRequest](), list[OpenRequest](), 0
        try:
            while waiting or opened:
                while waiting and (work := self._open(waiting[0], exactly)):
                    waiting.popleft()
                    works.append(work)
                    opened.append(work)
                outcome = self.step(opened)
                for _, error in outcome.failed:
                    raise error
                opened = [work for work in opened if work not in outcome.finished]
                done += sum(step.num_items for step in outcome.landed)
                if outcome.landed:
                    on_progress("items", done, total)
        except BaseException:
            # Pages may be unwritten, and a failed step may have given the pool's memory away.
            self._exact.reset()
            self._packed.reset()
            raise
        return [work.result() for work in works]

    def _batcher_for(self, request: ScoreRequest, exactly: bool = False) -> Batcher | PackedBatcher:
        packed = self.config.multi_item_algorithm == "packed" and not request.item_first
        return self._packed if packed and not exactly else self._exact

    def cost(self, request: ScoreRequest) -> int:
        """Tokens that scoring the request computes if no page of it is known."""
        return self._batcher_for(request).cost(request, self.config)

    def open(self, request: ScoreRequest) -> OpenRequest | None:
        """Takes a request in for `step`; None if there are no pages for it now.

        Raises:
            RequestError: it needs more pages than there are (`sequence_too_long`).
        """
        return self._open(request)

    def _open(self, request: ScoreRequest, exactly: bool = False) -> OpenRequest | None:
        return self._batcher_for(request, exactly).open(request, self.config)

    def close(self, work: OpenRequest) -> None:
        """Lets go of a request that is not wanted any more; no further row of it runs."""
        self._exact.close(work)
        self._packed.close(work)

    def step(self, works: Sequence[OpenRequest]) -> StepOutcome:
        """Runs a step filled from open requests, the most urgent first; see `Batcher.step`.

        With the packed algorithm, a step is one sequence of the most urgent request.
        """
        if not works or not self._packed.holds(works[0]):
            return self._exact.step(works)
        if self._exact.under_way:  # what runs comes first
            return self._exact.step([])
        return self._packed.step(works)

    def info(self) -> dict[str, Any]:
        """What runs, as JSON values: model, settings, device, self-check and counters."""
        shape, counters, cache = self.shape, self._counters, self._exact.cache
        return {
            "model_config": asdict(self.model_config),
            "engine_config": asdict(self.config),
            "max_seq_len": self.max_seq_len,
            "device": {"platform": self.device.platform, "kind": self.device.device_kind},
            "cpu_level": self.level.name if self.level else None,
            "attention": self._attention,
            "jax_version": jax.__version__,
            "dtype": self.dtypes.weights.name,
            "activations": self.dtypes.activations.name,
            "step_shape": {**asdict(shape), "max_scored_rows": shape.max_scored_rows},
            "small_steps": [
                {"tokens": small.tokens, "lane_tokens": small.lane_tokens}
                for small in self._programs.shapes[:-1]
            ],
            "self_check": asdict(self.self_check),
            "startup_s": self._startup_s,
            "compiled_programs": self._compiled_at_ready,
            "compiled_since_ready": compile_counter().count - self._compiled_at_ready,
            "steps": counters.num_steps,
            "failed_steps": counters.num_failures,
            "computed_tokens": counters.num_tokens,
            "shared_tokens": counters.num_shared_tokens,
            "scored_items": counters.num_items,
            "packed_programs": [
                {"tokens": tokens, "mask": mask, "compile_s": seconds}
                for (tokens, mask), seconds in self._programs.packed_compile_s.items()
            ],
            "weight_bytes": self._plan.weight_bytes,
            "pages": {
                "total": cache.capacity,
                "cached": cache.num_cached,
                "available": cache.num_available,
                "page_tokens": cache.page_tokens,
                "bytes": self._plan.page_bytes * cache.num_pages,
                "hits": cache.hits,
                "misses": cache.misses,
                "evictions": cache.evictions,
            },
        }


def gpu_kernel_serves(model: ModelConfig, dtypes: DTypes, page_tokens: int) -> bool:
    """Whether the kernel for GPUs takes a model's heads and pages: its tiles are powers of two."""
    sizes = model.head_dim, page_tokens
    fits = 16 <= model.head_dim <= 256 and page_tokens <= 128
    return dtypes.activations != np.float32 and fits and all(n.bit_count() == 1 for n in sizes)


def _devices(count: int) -> list[jax.Device]:
    devices = jax.devices()
    if count > len(devices):
        raise ConfigError(f"`tp_size` is {count}, expected at most {len(devices)}: JAX's devices")
    return devices[:count]


def _weights_dtype(config: EngineConfig, model: ModelConfig) -> np.dtype[Any]:
    name = config.dtype
    if name == "auto":
        name = "float32" if model.dtype == "float32" else "bfloat16"
    return np.dtype(jax.numpy.dtype(name))


def step_shapes(config: EngineConfig, platform: str, max_seq_len: int) -> tuple[StepShape, ...]:
    """The sizes of the steps on a kind of device, ascending, for sequences up to a length."""
    page = config.page_tokens
    block_pages = max(1, BLOCK_TOKENS // page)
    # A prefix's part-full last page and a long item's temporary pages may add one to the quotient.
    max_pages = -(-max_seq_len // page) + 1
    tokens = page * (config.step_lanes or DEFAULT_LANES.get(platform, DEFAULT_LANES["gpu"]))
    tiled = platform == "tpu"  # whose kernel takes lanes as tiles
    lane = page if tiled else MIN_LANE_TOKENS.get(platform, MIN_LANE_TOKENS["gpu"])
    largest = StepShape(
        tokens=tokens,
        lanes=tokens // lane,
        lane_tokens=page,
        lane_alignment=page if tiled else 1,
        page_tokens=page,
        granule_tokens=min(GRANULE_TOKENS, page),
        block_pages=block_pages,
        max_context_pages=-(-max_pages // block_pages) * block_pages,
    )
    smaller = [
        replace(
            largest,
            tokens=tokens,
            lanes=tokens // lane,
            lane_tokens=largest.granule_tokens,
        )
        for tokens in SMALL_STEPS.get(platform, ())
        if tokens < largest.tokens
    ]
    return *smaller, largest


def _compilation_cache(config: EngineConfig) -> Path | None:
    if config.compilation_cache_dir is None:
        return cache_dir() / "xla"
    return Path(config.compilation_cache_dir) if config.compilation_cache_dir else None

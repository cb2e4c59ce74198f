"""What depends on the kind of device, in one record that is made once and handed down.

No other module asks what the platform is. To add one, add a row to `PLATFORMS`, and its kernels to
`ops/`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from itemwise.config import EngineConfig
from itemwise.engine.cpu_level import CpuLevel, choose_level
from itemwise.errors import ConfigError
from itemwise.machine import available_memory_bytes, memory_limit_bytes
from itemwise.models.config import ModelConfig
from itemwise.ops.load_cpu import Kernels
from itemwise.ops.step.arrays import MIN_SCORED_ROWS, StepShape
from itemwise.ops.step.cpu import serves
from itemwise.types import DTypes, Kernel

GRANULE_TOKENS = 32
BLOCK_TOKENS = 512  # context tokens of one product
VECTOR_LANES = 128  # of a TPU, see `ops/pallas_tpu.py`
logger = logging.getLogger("itemwise.engine")


class Memory(NamedTuple):
    """Memory of a device in bytes.

    Attributes:
        total: all of it.
        available: what other programs leave of it now.
    """

    total: int
    available: int


@dataclass(frozen=True)
class Platform:
    """A kind of device, and what an engine does differently on it.

    Attributes:
        name: JAX's name for it.
        lanes: token places of the largest step, in pages, unless the settings say otherwise.
        small_steps: tokens of smaller steps.
        same_scored_rows: whether smaller steps have places for as many scored rows as the largest,
            so that the products of the last layer have the same shape in all of them.
        short_rounds: times that the self-check compares a step full of short items with a smaller
            one: more where others wrote the products.
        short_lanes: whether lanes of smaller steps have a granule's tokens instead of a page's.
        min_lane_tokens: shortest lane to have on average: bounds the lanes of a step, whose page
            tables go to the device. None where lanes are tiles of a page's tokens side by side.
        compiler_options: XLA's.
        round_products: whether products that are not summed up further are rounded to the type of
            activations at once. On CPU that is several times slower; on GPU it halves what is
            written and read.
        dot_sums: whether norms sum by a matrix product, so that steps of all sizes share bits.
        float16_as: type in memory of weights that are float16 on disk. float32 keeps their values,
            in twice the memory and time.
        memory: `host` is shared with other programs, `device` is the engine's own.
        repeatable: whether the compiler makes the same program of the same text at each start.
        level: how a processor runs a model; None on accelerators.
    """

    name: Literal["cpu", "gpu", "tpu"]
    lanes: int
    small_steps: tuple[int, ...] = ()
    same_scored_rows: bool = False
    short_rounds: int = 1
    short_lanes: bool = False
    min_lane_tokens: int | None = None
    compiler_options: Mapping[str, bool | int | str] = field(default_factory=dict)
    round_products: bool = False
    dot_sums: bool = False
    float16_as: Literal["float32", "bfloat16"] = "bfloat16"
    memory: Literal["host", "device"] = "device"
    repeatable: bool = False
    level: CpuLevel | None = None

    def dtypes(self, weights: np.dtype[Any]) -> DTypes:
        """The types of arrays on the device, for weights of a type."""
        return DTypes(weights, np.dtype(self.level.activations) if self.level else weights)

    def kernels(self) -> Kernels | None:
        """The compiled C++ kernels; None for XLA's code and on accelerators."""
        return self.level.kernels() if self.level else None

    def kernel_for(self, model: ModelConfig, dtypes: DTypes, page_tokens: int) -> Kernel | None:
        """The attention kernel that serves a model; None if XLA must compute its attention."""
        if self.name == "cpu":
            kernels = self.kernels()
            served = serves(dtypes.activations, model.head_dim, page_tokens)
            return kernels.level if kernels and served else None
        if self.name == "tpu":
            # XLA lays out pages of other heads differently from what the kernel reads, and would
            # copy the pool in every step.
            return "tpu" if model.head_dim % VECTOR_LANES == 0 else None
        sizes = model.head_dim, page_tokens  # of tiles, which must be powers of two
        fits = 16 <= model.head_dim <= 256 and page_tokens <= 128
        served = fits and all(size.bit_count() == 1 for size in sizes)
        return "gpu" if served and dtypes.activations != np.float32 else None

    def memory_of(self, device: jax.Device) -> Memory:
        """Memory of a device: the accelerator's own, or what the host lets this process use."""
        stats = device.memory_stats() if self.memory == "device" else None
        if stats and "bytes_limit" in stats:
            return Memory(int(stats["bytes_limit"]), int(stats["bytes_limit"]))
        return Memory(memory_limit_bytes(), available_memory_bytes())


PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            "cpu",
            lanes=4,
            small_steps=(64, 256),  # there time goes by the number of tokens
            short_lanes=True,
            min_lane_tokens=8,
            dot_sums=True,
            float16_as="float32",
            memory="host",
            repeatable=True,
        ),
        Platform(
            "gpu",
            lanes=32,
            small_steps=(256, 1024),
            same_scored_rows=True,  # with fewer in small steps, bits of one item in 150 differed
            short_rounds=8,
            min_lane_tokens=32,
            # On NVIDIA GPUs cuBLAS chooses the kernels of matrix products by shape alone: choosing
            # by timing could choose others, with other bits, at another start. Weights are not laid
            # side by side to multiply them at once: that would copy them in every step.
            compiler_options={
                "xla_gpu_autotune_level": 0,
                "xla_gpu_enable_triton_gemm": False,
                "xla_gpu_exclude_nondeterministic_ops": True,
                "xla_gpu_dot_merger_threshold_mb": 0,
            },
            round_products=True,
        ),
        Platform("tpu", lanes=16),
    )
}


def platform_of(device: jax.Device) -> Platform:
    """The record of a device's platform, without the level of a processor.

    Raises:
        ConfigError: Itemwise does not support the platform.
    """
    # JAX names AMD's and NVIDIA's GPUs alike; the options above hold for NVIDIA's.
    found = next((one for name, one in PLATFORMS.items() if name == device.platform), None)
    if found is None:
        raise ConfigError(
            f"JAX's default device is a {device.platform!r}, expected one of "
            f"{', '.join(PLATFORMS)}: set JAX_PLATFORMS"
        )
    return found


def choose_platform(device: jax.Device, config: EngineConfig, weights: np.dtype[Any]) -> Platform:
    """The record for an engine: that of the device, with the level of a processor chosen.

    Raises:
        ConfigError: the platform is not supported, or the processor cannot run the level that the
            settings ask for.
    """
    platform = platform_of(device)
    if platform.name != "cpu":
        return platform
    level = choose_level(config, weights)
    logger.info("CPU level %s: %s", level.name, level.meaning)
    return replace(platform, level=level)


def choose_kernel(
    platform: Platform, config: EngineConfig, model: ModelConfig, dtypes: DTypes
) -> Kernel | None:
    """The attention kernel to use; None for XLA. Warns where settings ask for an absent kernel."""
    if config.attention_backend == "native":
        return None
    kernel = platform.kernel_for(model, dtypes, config.page_tokens)
    if kernel is None and config.attention_backend == "fa":
        logger.warning(
            "`attention_backend` is fa, but no kernel on this %s serves %s activations, heads of "
            "%d and pages of %d tokens; using XLA for attention (slower).",
            platform.name,
            dtypes.activations.name,
            model.head_dim,
            config.page_tokens,
        )
    return kernel


def step_shapes(
    config: EngineConfig, platform: Platform, max_seq_len: int
) -> tuple[StepShape, ...]:
    """The sizes of the steps on a platform, ascending, for sequences up to a length."""
    page = config.page_tokens
    block_pages = max(1, BLOCK_TOKENS // page)
    # A prefix's part-full last page and a long item's temporary pages may add one to the quotient.
    max_pages = -(-max_seq_len // page) + 1
    tokens = page * (config.step_lanes or platform.lanes)
    largest = StepShape(
        tokens=tokens,
        lanes=tokens // (platform.min_lane_tokens or page),
        lane_tokens=page,
        lane_alignment=1 if platform.min_lane_tokens else page,
        page_tokens=page,
        granule_tokens=min(GRANULE_TOKENS, page),
        block_pages=block_pages,
        max_context_pages=-(-max_pages // block_pages) * block_pages,
    )
    scored_rows = largest.max_scored_rows if platform.same_scored_rows else MIN_SCORED_ROWS
    smaller = [
        replace(
            largest,
            min_scored_rows=scored_rows,
            tokens=tokens,
            lanes=tokens // (platform.min_lane_tokens or page),
            lane_tokens=largest.granule_tokens if platform.short_lanes else page,
        )
        for tokens in platform.small_steps
        if tokens < largest.tokens
    ]
    return *smaller, largest


def default_platform() -> str:
    """JAX's name for the kind of device that an engine runs on: `cpu`, `gpu` or `tpu`."""
    return jax.default_backend()

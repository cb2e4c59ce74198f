"""Compiles the serving programs for a TPU, without one, and reports what they need.

The programs are those that the engine runs, lowered for the devices of a topology, with only shapes
and shardings as weights. This needs neither weights nor a TPU, only libtpu, which includes the
compiler.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from itemwise.config import EngineConfig
from itemwise.engine.lowering import Lowering, ProgramSpec
from itemwise.engine.memory import plan_pages, weights_bytes
from itemwise.engine.platform import PLATFORMS, Memory, choose_kernel, step_shapes
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.sharding import make_mesh
from itemwise.ops.packed.base import PackedShape
from itemwise.tpu.roofline import Chip, Work, Workload, chip_of, packed_shape_of, work_of
from itemwise.types import Mask

FORMS = ("packed dense", "packed segment", "exact step")
READS = ("labels", "vocabulary")  # the small programs that every form needs


@dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
        name: of `FORMS`, or `labels`, `vocabulary`.
        compile_s: time to compile.
        hbm_bytes: memory on each chip while it runs: weights, pages, results and temporaries.
        temp_bytes: the part of it for temporaries.
        xla_flops: as XLA counts them, a loop's body once.
        xla_bytes: likewise.
        optimal_s: XLA's estimate of the time; None where loops make it meaningless.
        kernels: calls of TPU kernels in it; calls of identical layers count once.
        masks_pairs: whether it creates arrays of all pairs of a packed sequence's tokens.
        error: why it does not compile, or None.
    """

    name: str
    compile_s: float
    hbm_bytes: int = 0
    temp_bytes: int = 0
    xla_flops: float = 0.0
    xla_bytes: float = 0.0
    optimal_s: float | None = None
    kernels: int = 0
    masks_pairs: bool = False
    error: str | None = None

    def plus(self, num_bytes: int) -> Compiled:
        """The program with this much more memory than it needs itself."""
        return self if self.error else replace(self, hbm_bytes=self.hbm_bytes + num_bytes)


@dataclass(frozen=True)
class Report:
    """All programs of a model on a topology, and the workload's cost on it.

    Attributes:
        model: its name.
        topology: such as `v6e:2x2`.
        tp_size: chips that share the model.
        chip: what each chip can do.
        weight_bytes: weights on each chip.
        pool_bytes: pages on each chip.
        num_pages: pages of the pool.
        layers: of the model.
        compiled_layers: how many of them were compiled.
        step_tokens: tokens of a step.
        packed_tokens: padded tokens of the workload's packed sequence.
        workload: what `work` is for.
        programs: each, compiled.
        work: by form, the cost of the workload.
        fits: whether every program compiles within the chip's memory.
    """

    model: str
    topology: str
    tp_size: int
    chip: Chip
    weight_bytes: int
    pool_bytes: int
    num_pages: int
    layers: int
    compiled_layers: int
    step_tokens: int
    packed_tokens: int
    workload: Workload
    programs: list[Compiled]
    work: dict[str, Work]
    fits: bool

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def compile_for_tpu(
    model: ModelConfig,
    name: str,
    topology: str,
    *,
    tp_size: int = 1,
    layers: int | None = None,
    forms: tuple[str, ...] = FORMS + READS,
    workload: Workload | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Report:
    """Compiles the programs that serve a model.

    Args:
        model: the model's shape.
        name: what the report calls it.
        topology: such as `v6e:1x1`; a host's chips.
        tp_size: chips that share the model.
        layers: how many to compile, None for all. Layers are alike and unrolled, so a few compile
            in a fraction of the time; the memory of the others' weights and pages is added.
        forms: of `FORMS` and `READS`.
        workload: what the estimates are for.
        on_progress: called with the name of each program before it is compiled.

    Raises:
        ConfigError: there is no such topology, libtpu is not installed, or the model cannot be
            split this way.
    """
    devices = topology_devices(topology)
    chip = chip_of(topology)
    if tp_size > len(devices):
        raise ConfigError(
            f"`tp_size` is {tp_size}, expected at most {len(devices)}: the chips of {topology}"
        )
    workload = workload or Workload()
    mesh = make_mesh(model, devices[:tp_size])
    dtype = np.dtype(jnp.bfloat16)
    config, platform = EngineConfig(), PLATFORMS["tpu"]
    (shape,) = step_shapes(config, platform, model.max_position_embeddings)
    dtypes = platform.dtypes(dtype)
    memory = Memory(chip.hbm_bytes, chip.hbm_bytes)
    plan = plan_pages(config, model, dtypes, platform, memory, tp_size)
    cut = replace(model, num_layers=min(layers or model.num_layers, model.num_layers))
    kernel = choose_kernel(platform, config, model, dtypes)
    spec = ProgramSpec(cut, shape, plan.num_pages, dtypes, platform, kernel, mesh, devices[0])
    programs = Lowering(spec)
    missing_weights = plan.weight_bytes - weights_bytes(cut, dtype, tp_size)
    missing_pages = plan.page_bytes * plan.num_pages
    missing_pages -= missing_pages // model.num_layers * cut.num_layers
    compiled = []
    for form in forms:
        if on_progress:
            on_progress(form)
        # The page pool stays in memory while a packed sequence runs, but is not an argument of it.
        beside = missing_pages if form == "exact step" else plan.page_bytes * plan.num_pages
        one = _compile(form, programs, packed_shape_of(workload, shape))
        compiled.append(one.plus(missing_weights + beside))
    return Report(
        model=name,
        topology=topology,
        tp_size=tp_size,
        chip=chip,
        weight_bytes=plan.weight_bytes,
        pool_bytes=plan.page_bytes * plan.num_pages,
        num_pages=plan.num_pages,
        layers=model.num_layers,
        compiled_layers=cut.num_layers,
        step_tokens=shape.tokens,
        packed_tokens=packed_shape_of(workload, shape).tokens,
        workload=workload,
        programs=compiled,
        work={
            form: work_of(form, model, shape, workload, chip, tp_size)
            for form in forms
            if form in FORMS
        },
        fits=all(one.error is None and one.hbm_bytes <= chip.hbm_bytes for one in compiled),
    )


def topology_devices(topology: str) -> list[jax.Device]:
    """The chips of a topology.

    Raises:
        ConfigError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "libtpu, which includes the compiler, is not installed: pip install libtpu"
        )
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # the plugin raises many types
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"`topology` is {topology!r}, which libtpu does not accept: {reason}"
        ) from error
    return list(found.devices)


def _compile(form: str, programs: Lowering, packed: PackedShape) -> Compiled:
    weights = programs.weights()
    start = time.perf_counter()
    if form == "exact step":
        lowered = programs.lower_step(weights)
    elif form == "labels":
        lowered = programs.lower_labels(weights)
    elif form == "vocabulary":
        lowered = programs.lower_vocab(weights)
    else:
        mask: Mask = "dense" if form == "packed dense" else "segment"
        lowered = programs.lower_packed(weights, packed, mask)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(form, time.perf_counter() - start, error=_shortage(str(error)))
    seconds = time.perf_counter() - start
    text = lowered.as_text()
    memory: Any = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes
    used += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    optimal = cost.get("optimal_seconds", -1.0)
    return Compiled(
        name=form,
        compile_s=seconds,
        hbm_bytes=used + memory.generated_code_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        xla_flops=cost.get("flops", 0.0),
        xla_bytes=cost.get("bytes accessed", 0.0),
        optimal_s=optimal if optimal > 0 else None,
        kernels=text.count("@tpu_custom_call"),
        masks_pairs=f"{packed.tokens}x{packed.tokens}x" in text,
    )


def _shortage(message: str) -> str:
    """The line of the compiler's message that says how much memory is missing."""
    lines = [line.strip() for line in message.splitlines() if "hbm" in line.lower()]
    return lines[0] if lines else message.partition("\n")[0]

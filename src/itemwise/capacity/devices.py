"""What is known of devices: memory, and how long steps take there, each figure with its source.

A step's time is arithmetic over the shape of a model, divided by rates. Rates were measured on an
H100 and on a processor; no TPU has run Itemwise, so there they are a share of what the manufacturer
states, which is assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import jax

from itemwise.capacity.step_cost import StepCost
from itemwise.engine.cpu_level import PLAIN
from itemwise.engine.platform import PLATFORMS, Memory, Platform
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.tpu.roofline import CHIPS, VALUE_BYTES

Source = Literal["given", "measured", "compiled", "computed", "assumed", "simulated"]


@dataclass(frozen=True)
class Rates:
    """How fast a device is.

    Attributes:
        linear_flops_per_s: matrix products of layers, of a small model and of a large one: (width,
            rate) each. Between them it is interpolated by the logarithm of the width.
        attention_flops_per_s: attention to the context.
        layer_s: of each layer in a step, whatever is in it.
        bytes_per_s: weights that a step reads; None where that is no bound.
        host_step_s: of the host, between steps.
    """

    linear_flops_per_s: tuple[tuple[int, float], ...]
    attention_flops_per_s: float
    layer_s: float = 0.0
    bytes_per_s: float | None = None
    host_step_s: float = 0.0

    def linear_rate(self, width: int) -> float:
        """Floating-point operations per second of layers of a model's width."""
        (low, slow), (high, fast) = self.linear_flops_per_s[0], self.linear_flops_per_s[-1]
        if width <= low or low == high:
            return slow
        share = min(1.0, math.log(width / low) / math.log(high / low))
        return slow * math.pow(fast / slow, share)


@dataclass(frozen=True)
class Device:
    """A kind of chip.

    Attributes:
        name: its name.
        runs: what the engine does on its kind.
        memory_bytes: what an engine can use of it.
        memory_source: where that figure comes from.
        rates: how fast it is.
        rates_source: where they come from.
        note: a sentence about them.
        temp_bytes: memory of a step beside weights and pages, by the compiler.
        temp_note: of which model.
    """

    name: str
    runs: Platform
    memory_bytes: int
    memory_source: Source
    rates: Rates
    rates_source: Source
    note: str
    temp_bytes: int
    temp_note: str

    @property
    def memory(self) -> Memory:
        """The memory, all of it available."""
        return Memory(self.memory_bytes, self.memory_bytes)

    def step_cost(self, model: ModelConfig, tp: int = 1) -> StepCost:
        """What steps of a model cost on `tp` such chips, without the time between chips."""
        rates = self.rates
        weights = _layer_weights(model)
        pair_flops = 4 * model.num_heads * model.head_dim * model.num_layers
        least_s = 0.0
        if rates.bytes_per_s is not None:
            least_s = VALUE_BYTES * weights / tp / rates.bytes_per_s
        return StepCost(
            step_s=rates.layer_s * model.num_layers,
            place_s=2 * weights / tp / rates.linear_rate(model.hidden_size),
            pair_s=pair_flops / tp / rates.attention_flops_per_s,
            least_s=least_s,
            host_step_s=rates.host_step_s,
        )


def _layer_weights(model: ModelConfig) -> int:
    specs = jax.tree.leaves(describe_weights(model)["layers"])
    return sum(math.prod(spec.shape) for spec in specs)


# Least squares over the speeds and latencies of `docs/results/2026-11-27-gpu-session-h100.json`
# (its first run, and its larger model); `tests/capacity/test_plan.py` compares them.
_H100 = Rates(
    linear_flops_per_s=((1024, 346e12), (2560, 539e12)),
    attention_flops_per_s=367e12,
    layer_s=66e-6,
    bytes_per_s=2845e9,
    host_step_s=1.5e-3,
)
# The contract workload of qwen3-0.6b at 4.9 items/s, of 31 GFLOP each (`docs/performance.md`).
_CPU_RATE = 153e9
_CPU = Rates(((1, _CPU_RATE),), _CPU_RATE, host_step_s=0.5e-3)
TPU_SHARE = 0.5  # of the manufacturer's figures: products of a small model on an H100 reach 0.51
_H100_BYTES = 81559 << 20


def _tpu(name: str) -> Device:
    chip = CHIPS[name]
    flops = TPU_SHARE * chip.flops_per_s
    rates = Rates(
        ((1, flops),), flops, bytes_per_s=TPU_SHARE * chip.bytes_per_s, host_step_s=1.5e-3
    )
    note = (
        f"no TPU has run Itemwise: {TPU_SHARE:.0%} of the manufacturer's figures, and the host's "
        "time between steps as beside an H100"
    )
    temporaries = 33_177_600, "step of qwen3-0.6b for a v6e (docs/tpu.md)"
    return Device(
        name, PLATFORMS["tpu"], chip.hbm_bytes, "given", rates, "assumed", note, *temporaries
    )


DEVICES = {
    device.name: device
    for device in (
        Device(
            "h100",
            PLATFORMS["gpu"],
            int(0.75 * _H100_BYTES),  # JAX's share by default
            "measured",
            _H100,
            "measured",
            "qwen3-0.6b and qwen3-4b on one H100 80GB HBM3, 2026-11-27; other sizes interpolated",
            283_000_000,
            "step of qwen3-4b (docs/gpu.md)",
        ),
        *(_tpu(name) for name in CHIPS),
        Device(
            "cpu",
            replace(PLATFORMS["cpu"], level=PLAIN),  # as without bfloat16 instructions
            24 << 30,
            "measured",
            _CPU,
            "measured",
            "qwen3-0.6b on two cores with AVX2; use --measure for your machine",
            0,
            "part of what a host keeps for the program itself",
        ),
    )
}


def find_device(name: str) -> Device:
    """A device by name.

    Raises:
        ConfigError: nothing is known of it.
    """
    if name not in DEVICES:
        raise ConfigError(f"`device` is {name!r}, expected one of {', '.join(DEVICES)}")
    return DEVICES[name]

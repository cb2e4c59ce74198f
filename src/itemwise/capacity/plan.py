"""How many chips a load takes, and what its clients see.

Memory goes by the engine's own plan of pages, tokens by what admission counts, and time by steps of
the real scheduler in a simulation. Every figure says where it comes from.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from itemwise.capacity.arrivals import Load
from itemwise.capacity.devices import DEVICES, Device, Source
from itemwise.capacity.replica import Clock, EngineShape, SimulatedCore
from itemwise.capacity.simulation import SimulatedRun, simulate
from itemwise.capacity.step_cost import StepCost
from itemwise.config import EngineConfig
from itemwise.engine.memory import GIB, PagePlan, plan_pages
from itemwise.engine.open_request import num_pages_needed
from itemwise.engine.platform import step_shapes
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.sharding import check_parts
from itemwise.routing import POLICIES, PolicyName

MAX_SIMULATED = 64  # replicas; of more, so many get their part of the load
GROWTH = 1.25  # replicas from one try to the next, where latency is too high
MAX_TRIES = 8
MAX_ROWS = 40_000  # items of a simulation
WARM_SHARE = 0.2  # of the requests, which are left out of the percentiles


@dataclass(frozen=True)
class Figure:
    """A figure of a plan.

    Attributes:
        name: what it is.
        value: a number, or a text.
        unit: of the number.
        source: where it comes from.
        note: more about that.
    """

    name: str
    value: float | str
    unit: str
    source: Source
    note: str = ""


@dataclass(frozen=True)
class Site:
    """Where a model runs: what is known before any load.

    Attributes:
        model: name of the model.
        device: name of the device.
        tp: chips that share the model.
        engine: its steps and pages.
        cost: what steps cost.
        figures: what memory and time were taken from.
    """

    model: str
    device: str
    tp: int
    engine: EngineShape
    cost: StepCost
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Goal:
    """What a plan must keep.

    Attributes:
        max_utilisation: share of what replicas can do at most.
        p99_ms: latency that 99 of 100 requests stay within; None for no bound.
        policy: how requests are routed.
    """

    max_utilisation: float = 0.7
    p99_ms: float | None = None
    policy: PolicyName = "prefix"

    def __post_init__(self) -> None:
        if not 0 < self.max_utilisation < 1:
            raise ConfigError(
                f"`max_utilisation` is {self.max_utilisation:g}, expected above 0 and below 1"
            )


@dataclass(frozen=True)
class Plan:
    """The answer: replicas, chips, and every figure with its source."""

    site: Site
    load: Load
    replicas: int
    figures: tuple[Figure, ...]

    @property
    def chips(self) -> int:
        """Chips of all replicas."""
        return self.replicas * self.site.tp

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "model": self.site.model,
            "device": self.site.device,
            "load": asdict(self.load),
            "replicas": self.replicas,
            "chips": self.chips,
            "figures": [asdict(figure) for figure in (*self.site.figures, *self.figures)],
            "step_cost": asdict(self.site.cost),
        }


def site_of(
    name: str, model: ModelConfig, device: Device, load: Load, config: EngineConfig
) -> Site:
    """A model on as few chips of a device as hold its weights and the pages of a request.

    With `tp_size` of the settings above 1, on so many.

    Raises:
        ConfigError: they do not fit; the message says what does.
    """
    problems = list[str]()
    for tp in [config.tp_size] if config.tp_size > 1 else _chip_counts(device):
        try:
            return _site(name, model, device, load, replace(config, tp_size=tp))
        except ConfigError as error:
            problems.append(f"on {tp} chip(s): {error}")
    fitting = list[str]()
    for one in DEVICES.values():
        for tp in _chip_counts(one):
            try:
                _site(name, model, one, load, replace(config, tp_size=tp))
            except ConfigError:
                continue
            fitting.append(f"{one.name} with --tp-size {tp}")
            break
    known = ", ".join(fitting) or "no device that is known here"
    raise ConfigError(f"{name} does not fit {device.name}: {'; '.join(problems)}. It fits {known}")


def _chip_counts(device: Device) -> tuple[int, ...]:
    """Chips that may share a model."""
    return (1,) if device.runs.memory == "host" else (1, 2, 4, 8)


def _site(name: str, model: ModelConfig, device: Device, load: Load, config: EngineConfig) -> Site:
    tp, platform = config.tp_size, device.runs
    check_parts(model, tp)
    weights = np.dtype(np.float32 if model.dtype == "float32" else jnp.bfloat16)
    dtypes = platform.dtypes(weights)
    pages = plan_pages(config, model, dtypes, platform, device.memory, tp)
    shapes = step_shapes(config, platform, model.max_seq_len)
    engine = EngineShape(shapes, pages.num_pages, config)
    check_pages(engine, load)
    figures = (
        Figure("memory", device.memory_bytes / GIB, "GiB", device.memory_source, "of a chip"),
        *_memory_figures(pages, tp),
        Figure("temporaries", device.temp_bytes / GIB, "GiB", "compiled", device.temp_note),
        Figure("steps", f"{shapes[-1].tokens} tokens", "", "computed", "the largest"),
        Figure("time of steps", device.name, "", device.rates_source, device.note),
    )
    return Site(name, device.name, tp, engine, device.step_cost(model, tp), figures)


def _memory_figures(pages: PagePlan, tp: int) -> tuple[Figure, ...]:
    pool = pages.num_pages * pages.page_bytes / GIB
    return (
        Figure("chips of a replica", tp, "", "computed", "hold weights and pages"),
        Figure("weights", pages.weight_bytes / GIB, "GiB", "computed", "on each chip"),
        Figure("pages", pages.num_pages, "", "computed", f"{pool:.2f} GiB on each chip"),
    )


def check_pages(engine: EngineShape, load: Load) -> None:
    """Returns if a request of the load finds its pages in an engine.

    Raises:
        ConfigError: it needs more than there are.
    """
    request = next(load.arrivals(1)).request
    page_tokens = engine.shapes[-1].page_tokens
    needed = num_pages_needed(request, engine.config, page_tokens)
    if needed > engine.num_pages - 1:
        raise ConfigError(
            f"a request needs {needed} pages of {page_tokens} tokens, expected at most "
            f"{engine.num_pages - 1}: shorten it, or raise --kv-cache-bytes"
        )


def make_plan(site: Site, load: Load, goal: Goal) -> Plan:
    """The least number of replicas that keep the goal, by simulation.

    Raises:
        ConfigError: no number keeps it, or far too many would have to.
    """
    check_pages(site.engine, load)
    (alone_ms,) = simulate(
        load.arrivals(1), 1, POLICIES["random"](0), site.engine, site.cost
    ).latency_ms(50)
    if goal.p99_ms is not None and alone_ms > goal.p99_ms:
        raise ConfigError(
            f"one request alone takes {alone_ms:.1f} ms, expected at most {goal.p99_ms:g}: send "
            "fewer items in a request, or take a faster device"
        )
    most = _saturated(site, load)
    per_replica = len(most.answers) / most.seconds
    replicas = max(1, math.ceil(load.rate / (goal.max_utilisation * per_replica)))
    run = simulate_load(site, load, replicas, goal.policy)
    for _ in range(MAX_TRIES):
        (p99,) = _latency(run, 99)
        if goal.p99_ms is None or p99 <= goal.p99_ms:
            return Plan(site, load, replicas, _figures(site, load, goal, most, (replicas, run)))
        replicas = math.ceil(replicas * GROWTH)
        run = simulate_load(site, load, replicas, goal.policy)
    raise ConfigError(
        f"with {replicas} replicas p99 is still {p99:.1f} ms, expected at most {goal.p99_ms:g}; "
        f"one request alone takes {alone_ms:.1f} ms"
    )


def _latency(run: SimulatedRun, *percentiles: float) -> list[float]:
    warm = run.answers[int(WARM_SHARE * len(run.answers))].at
    return run.latency_ms(*percentiles, after_s=warm)


def _saturated(site: Site, load: Load) -> SimulatedRun:
    """A replica that always has work."""
    number = _num_requests(load, 1) // 2
    rushed = replace(load, rate=1e6)
    return simulate(rushed.arrivals(number), 1, POLICIES["random"](0), site.engine, site.cost)


def simulate_load(site: Site, load: Load, replicas: int, policy: PolicyName) -> SimulatedRun:
    """The load on so many replicas; of more than `MAX_SIMULATED`, a part of both."""
    part = min(1.0, MAX_SIMULATED / replicas)
    load, replicas = replace(load, rate=load.rate * part), min(replicas, MAX_SIMULATED)
    arrivals = load.arrivals(_num_requests(load, replicas))
    return simulate(arrivals, replicas, POLICIES[policy](0), site.engine, site.cost)


def _num_requests(load: Load, replicas: int) -> int:
    return min(max(300, 50 * replicas), max(40, MAX_ROWS // load.num_items))


def _figures(
    site: Site, load: Load, goal: Goal, most: SimulatedRun, chosen: tuple[int, SimulatedRun]
) -> tuple[Figure, ...]:
    replicas, run = chosen
    request = next(load.arrivals(1)).request
    tokens = SimulatedCore(site.engine, site.cost, Clock()).cost(request)
    pages = num_pages_needed(request, site.engine.config, site.engine.shapes[-1].page_tokens)
    p50, p99 = _latency(run, 50, 99)
    used = load.rate * load.num_items / (replicas * most.items_per_s)
    busy = sum(run.busy) / len(run.busy)
    note = f"{min(replicas, MAX_SIMULATED)} replicas, {goal.policy} routing, Poisson arrivals"
    at_most = f"of what replicas can do; at most {goal.max_utilisation:.0%}"
    return (
        Figure("requests", load.rate, "1/s", "given"),
        Figure("repeat share", load.repeat_share, "", "given", "requests for a recent query"),
        Figure("tokens of a request", tokens, "", "computed", "as admission counts; none known"),
        Figure("pages of a request", pages, "", "computed"),
        Figure("queries in the cache", (site.engine.num_pages - 1) // pages, "", "computed"),
        Figure("one replica at most", most.items_per_s, "items/s", "simulated", "always busy"),
        Figure("utilisation", used, "", "simulated", at_most),
        Figure("device busy", busy, "", "simulated", "steps that are not full take their time"),
        Figure("items", load.rate * load.num_items, "1/s", "given", "all replicas"),
        Figure("hit rate", run.hit_rate, "", "simulated", "query tokens found in the cache"),
        Figure("latency p50", p50, "ms", "simulated", note),
        Figure("latency p99", p99, "ms", "simulated", note),
    )

"""Settings of engines on Ray, and how the arguments of an application become settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from itemwise.config import (
    AT_LEAST_1,
    Check,
    CheckedConfig,
    EngineConfig,
    ServerConfig,
    Setting,
    SourceConfig,
)
from itemwise.errors import ConfigError
from itemwise.routing import PolicyName

Device = Literal["cpu", "gpu", "tpu"]
C = TypeVar("C", bound=CheckedConfig)
BATCH_ROWS = (
    4096  # a step of a small model has thousands of tokens, and a batch feeds several steps
)
# Settings of `itemwise serve` that Ray Serve has in its own way.
NOT_HERE = {
    "host": "Serve listens, by its `http_options`",
    "port": "Serve listens, by its `http_options`",
    "max_connections": "Serve holds the connections",
    "keep_alive_s": "Serve holds the connections, by `keep_alive_timeout_s` of its `http_options`",
    "log_format": "Serve writes the log, by its `logging_config`",
    "log_level": "Serve writes the log, by its `logging_config`",
    "disable_access_log": "Serve writes the log, by its `logging_config`",
    "otlp_traces_endpoint": "Serve has traces of its own",
    "api_key": "Ray shows arguments on its dashboard; use `api_key_file`",
}


@dataclass(frozen=True)
class ReplicaConfig(CheckedConfig):
    """How many engines run, on what, and which one a request goes to."""

    device: Annotated[
        Device,
        Setting("Device of each engine: `tp_size` GPUs or TPU chips, or `num_cpus` processors."),
    ] = "cpu"
    num_cpus: Annotated[
        float,
        Setting(
            "Processors that Ray reserves for each engine. On a CPU an engine uses all that it "
            "may, so give it those of a machine.",
            Check("above 0", lambda number: number > 0),
        ),
    ] = 1.0
    min_replicas: Annotated[
        int,
        Setting("Engines that always run; with `max_replicas`, the least.", AT_LEAST_1),
    ] = 1
    max_replicas: Annotated[
        int | None,
        Setting(
            "Most engines; more run while tokens wait.", AT_LEAST_1, unset="always `min_replicas`"
        ),
    ] = None
    target_queued_tokens: Annotated[
        int,
        Setting(
            "Tokens that may wait at each engine, on average, before another one is started. A "
            "good value is the tokens that an engine computes in the time that you let requests "
            "wait.",
            AT_LEAST_1,
        ),
    ] = 65_536
    routing: Annotated[
        PolicyName,
        Setting(
            "Which engine a request goes to: the one with the pages of its query (prefix), the "
            "less busy of two (two-choices), or any (random)."
        ),
    ] = "prefix"
    front_replicas: Annotated[
        int,
        Setting("Processes of the front door, which score nothing.", AT_LEAST_1),
    ] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ConfigError(
                f"`max_replicas` is {self.max_replicas}, expected at least `min_replicas`, "
                f"{self.min_replicas}"
            )


PARTS: tuple[type[CheckedConfig], ...] = (ServerConfig, EngineConfig, SourceConfig, ReplicaConfig)


class AppConfig(NamedTuple):
    """All settings of an application."""

    server: ServerConfig
    engine: EngineConfig
    source: SourceConfig
    replicas: ReplicaConfig
    prompt_template: str | None

    def scorer_arguments(self) -> dict[str, Any]:
        """Keywords of `Scorer.from_pretrained`, beside the model."""
        parts = dataclasses.asdict(self.source) | dataclasses.asdict(self.engine)
        return {**parts, "prompt_template": self.prompt_template}


def app_config(arguments: Mapping[str, Any]) -> AppConfig:
    """The settings of an application from its arguments, some of them texts of a command line.

    Raises:
        ConfigError: names are unknown, or values wrong; it says which.
    """
    left = dict(arguments)
    problems = [f"`{name}` is not for Ray: {NOT_HERE[name]}" for name in left if name in NOT_HERE]
    for name in NOT_HERE:
        left.pop(name, None)
    template = left.pop("prompt_template", None)
    parts: list[Any] = []
    for kind in PARTS:
        try:
            parts.append(_taken(kind, left))
        except ConfigError as error:
            problems.append(str(error))
    if left:
        problems.append(f"there is no setting `{'`, `'.join(left)}`")
    if problems:
        raise ConfigError("; ".join(problems))
    server, engine, source, replicas = parts
    return AppConfig(server, engine, source, replicas, template)


def _taken(kind: type[C], left: dict[str, Any]) -> C:
    """A config of those of its fields that are left; takes them away."""
    fields, problems = {}, []
    for name, hint in get_type_hints(kind).items():
        if name not in left:
            continue
        value = left.pop(name)
        try:
            fields[name] = TypeAdapter(hint).validate_python(value)
        except ValidationError as error:
            problems.append(f"`{name}` is {value!r}: {error.errors()[0]['msg']}")
    if problems:
        raise ConfigError("; ".join(problems))
    return kind(**fields)


def actor_options(device: Device, num_cpus: float, num_devices: int) -> dict[str, Any]:
    """What Ray reserves for an engine, as options of an actor.

    Args:
        device: that it runs on.
        num_cpus: processors.
        num_devices: GPUs or TPU chips, the engine's `tp_size`.
    """
    options: dict[str, Any] = {"num_cpus": num_cpus}
    if device == "gpu":
        options["num_gpus"] = num_devices
    elif device == "tpu":
        options["resources"] = {"TPU": num_devices}
    return options


@dataclass(frozen=True)
class Engines:
    """The engines that score a dataset.

    Attributes:
        least: engines that always run.
        most: engines that run while there are batches for them; None for `least`.
        device: of each: `tp_size` GPUs or TPU chips, or `num_cpus` processors.
        num_cpus: processors that Ray reserves for each.
        batch_rows: rows that an engine gets at a time; it sorts them by query.
    """

    least: int = 1
    most: int | None = None
    device: Device = "cpu"
    num_cpus: float = 1.0
    batch_rows: int = BATCH_ROWS

    def __post_init__(self) -> None:
        if not 1 <= self.least <= (self.most or self.least):
            raise ConfigError(
                f"`least` is {self.least} and `most` {self.most}, expected 1 or more engines, and "
                "`most` at least `least`"
            )

    def actor_options(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What Ray reserves for each, by the settings of the engine."""
        return actor_options(self.device, self.num_cpus, settings.get("tp_size", 1))

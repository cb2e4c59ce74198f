"""Settings of the engine and of the server.

Built once, frozen, read everywhere. This is the only module that reads environment variables.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from itemwise.errors import ConfigError
from itemwise.types import Algorithm, CpuLevelName

DType = Literal["auto", "bfloat16", "float32"]
LogFormat = Literal["text", "json"]
AttentionBackend = Literal["auto", "fa", "native"]
Quantization = Literal["none", "int8"]
MaskSetting = Literal["auto", "dense", "segment"]
CpuLevelSetting = Literal["auto", CpuLevelName]
DEMO_MODEL = "itemwise/demo"  # the model that comes with the package


def cache_dir() -> Path:
    """The user's cache folder for Itemwise, `$XDG_CACHE_HOME/itemwise` or `~/.cache/itemwise`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "itemwise"


def chosen_compiler() -> str | None:
    """The C++ compiler that the environment names, `$CXX`."""
    return os.environ.get("CXX") or None


def chosen_cpu_level() -> str:
    """The CPU level that the environment names, `$ITEMWISE_CPU_LEVEL`; `auto` if none."""
    return os.environ.get("ITEMWISE_CPU_LEVEL") or "auto"


def xla_environment() -> tuple[str | None, ...]:
    """What the environment tells XLA: flags, and how many threads to run."""
    return tuple(os.environ.get(name) for name in ("XLA_FLAGS", "NPROC", "PJRT_NPROC"))


def prepare_tpu_compiler() -> None:
    """Lets libtpu compile on a machine without a TPU; only before JAX is imported.

    libtpu else asks the cloud's metadata server which TPU this is, and waits for an answer.
    """
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v6e-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock on the machine: there is no chip to share
    }
    os.environ.update(settings)


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs.

    `dtype` and `quantization` change scores; `step_lanes`, `page_tokens`, `tp_size`,
    `attention_backend` and `cpu_level` pick another compiled program and may move last bits, and so
    does the `packed` algorithm with all its settings. No other setting changes a bit.

    Attributes:
        dtype: type of weights; `auto` takes bfloat16 unless the checkpoint is float32. Activations
            and cached keys and values have it too, but are float32 on a processor whose
            `cpu_level` says so.
        multi_item_algorithm: `prefill_extend` (the query once, cached), `packed` (query and items
            in one sequence, nothing cached) or `serial` (the query once per item).
        multi_item_scoring_delimiter: token id put between query and item, or None.
        multi_item_scoring_chunk_size: most items of a packed sequence, 0 for no bound. Other
            algorithms ignore it: they are exact, and as fast, without.
        multi_item_mask_impl: how `packed` tells items apart: `dense` (a mask of every pair of
            tokens), `segment` (tiles that no token sees are skipped) or `auto` (segment).
        max_multi_item_seq_len: most tokens of query, delimiter and one item together; None for
            the model's `max_position_embeddings`. Also most tokens of a packed sequence, for
            which None means 16384.
        max_multi_item_count: most items of a request; None for no bound.
        attention_backend: `fa` (kernels, where there are: TPU, GPU in bfloat16, and processors
            with a C++ compiler whose activations are float32: there matrix products, too),
            `native` (XLA) or `auto` (fa).
        cpu_level: on processors, the type of activations and the code that computes: the name of
            one of `cpu_level.LEVELS`, or `auto` (what `$ITEMWISE_CPU_LEVEL` names, else the
            fastest). Weights in float32, and `attention_backend` native, come first: a level
            that does not go with them counts as xla-float32.
        quantization: `int8` keeps the matrices of the layers in eight bits, with a scale for each
            output; `none`.
        tp_size: devices that share the model.
        disable_radix_cache: forget a query's pages when its request ends.
        mem_fraction_static: share of the device's memory for weights and pages; None for a
            default by device.
        kv_cache_bytes: bytes for pages, in place of `mem_fraction_static`.
        step_lanes: token places of a step, in pages; None for a default by device.
        page_tokens: tokens of a page, and of a lane of the largest step.
        skip_self_check: serve without having compared scores in different company, and without
            small steps, which nobody would have compared with large ones.
        compilation_cache_dir: where compiled programs are kept; None for the user's cache
            folder, an empty string for nowhere.
    """

    dtype: DType = "auto"
    multi_item_algorithm: Algorithm = "prefill_extend"
    multi_item_scoring_delimiter: int | None = None
    multi_item_scoring_chunk_size: int = 0
    multi_item_mask_impl: MaskSetting = "auto"
    max_multi_item_seq_len: int | None = None
    max_multi_item_count: int | None = None
    attention_backend: AttentionBackend = "auto"
    cpu_level: CpuLevelSetting = "auto"
    quantization: Quantization = "none"
    tp_size: int = 1
    disable_radix_cache: bool = False
    mem_fraction_static: float | None = None
    kv_cache_bytes: int | None = None
    step_lanes: int | None = None
    page_tokens: int = 128
    skip_self_check: bool = False
    compilation_cache_dir: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.dtype not in get_args(DType):
            problems.append(f"`dtype` is {self.dtype!r}, expected auto, bfloat16 or float32")
        choices = (
            ("multi_item_algorithm", Algorithm),
            ("multi_item_mask_impl", MaskSetting),
            ("attention_backend", AttentionBackend),
            ("cpu_level", CpuLevelSetting),
            ("quantization", Quantization),
        )
        for name, allowed in choices:
            if getattr(self, name) not in get_args(allowed):
                expected = ", ".join(get_args(allowed))
                problems.append(f"`{name}` is {getattr(self, name)!r}, expected one of {expected}")
        if self.multi_item_scoring_chunk_size < 0:
            problems.append("`multi_item_scoring_chunk_size` is negative, expected 0 or more")
        for name in ("max_multi_item_seq_len", "max_multi_item_count", "step_lanes", "tp_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"`{name}` is {value}, expected 1 or more")
        fraction = self.mem_fraction_static
        if fraction is not None and not 0 < fraction <= 1:
            problems.append(f"`mem_fraction_static` is {fraction}, expected above 0, at most 1")
        if self.kv_cache_bytes is not None and self.kv_cache_bytes < 1:
            problems.append(f"`kv_cache_bytes` is {self.kv_cache_bytes}, expected 1 or more")
        if self.page_tokens < 32 or self.page_tokens % 32:
            problems.append(f"`page_tokens` is {self.page_tokens}, expected a multiple of 32")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True)
class ServerConfig:
    """How the HTTP server runs.

    Attributes:
        model_path: local folder, Hub id, or `itemwise/demo`, the model in the package.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        served_model_name: name that clients use; None for `shown_model_path`.
        api_key: key that clients must send as a bearer token; None for no key.
        max_queued_requests: requests that may wait for the engine.
        max_queued_tokens: tokens that may wait or be under way, beyond a first request.
        max_request_tokens: tokens a request may make the engine compute.
        max_request_labels: scores a request may ask for, its labels summed over its items.
        max_body_bytes: longest request body.
        max_connections: connections open at once.
        max_timeout_s: seconds after which any request is given up.
        drain_timeout_s: seconds that requests have to finish once the server is told to stop.
        log_format: `text`, or `json` with an object a line.
        disable_access_log: no line in the log for each request.
        otlp_traces_endpoint: where traces are sent by OTLP over HTTP; None for no traces.
    """

    model_path: str = DEMO_MODEL
    host: str = "127.0.0.1"
    port: int = 30000
    served_model_name: str | None = None
    api_key: str | None = None
    max_queued_requests: int = 128
    max_queued_tokens: int = 4 * 1024 * 1024
    max_request_tokens: int = 4 * 1024 * 1024
    max_request_labels: int = 1024 * 1024
    max_body_bytes: int = 64 * 1024 * 1024
    max_connections: int = 1024
    max_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    log_format: LogFormat = "text"
    disable_access_log: bool = False
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"`port` is {self.port}, expected 0 to 65535")
        for name in (
            "max_queued_requests",
            "max_queued_tokens",
            "max_request_tokens",
            "max_request_labels",
            "max_body_bytes",
            "max_connections",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}, expected 1 or more")
        if not self.max_timeout_s > 0:
            raise ConfigError(f"`max_timeout_s` is {self.max_timeout_s}, expected above 0")
        if not self.drain_timeout_s >= 0:
            raise ConfigError(f"`drain_timeout_s` is {self.drain_timeout_s}, expected 0 or more")
        if self.log_format not in get_args(LogFormat):
            raise ConfigError(f"`log_format` is {self.log_format!r}, expected text or json")
        if self.api_key is not None and not self.api_key:
            raise ConfigError("`api_key` is empty, expected a key or none at all")

    @property
    def model_name(self) -> str:
        """The name shown to clients."""
        return self.served_model_name or self.shown_model_path

    @property
    def shown_model_path(self) -> str:
        """What clients see of `model_path`: a Hub id, or a folder's last component.

        They need not learn where on the server's disk a model lies. A path that looks like a Hub
        id is shown whole, too.
        """
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.model_path):
            return self.model_path
        return os.path.basename(os.path.abspath(os.path.expanduser(self.model_path))) or "default"

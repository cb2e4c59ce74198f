"""Settings of the engine and of the server, each declared once.

A field of `EngineConfig` or `ServerConfig` has its type, its default and, as a `Setting`, its help
text and what its value must be. The command line makes its options from them; the fields of
`EngineConfig` are also the keywords of `Scorer.from_pretrained`. Built once, frozen, read
everywhere. This is the only module that reads environment variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

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


class Check(NamedTuple):
    """What a value must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


AT_LEAST_0 = Check("0 or more", lambda value: value >= 0)
AT_LEAST_1 = Check("1 or more", lambda value: value >= 1)


@dataclass(frozen=True)
class Setting:
    """What a setting says of itself beside its type and its default.

    Attributes:
        help: what it does.
        check: what its value must be, where the type does not say it.
        alias: a second name of its flag, without dashes.
        unset: what happens where it is None.
    """

    help: str
    check: Check | None = None
    alias: str | None = None
    unset: str | None = None


class CheckedConfig:
    """A config whose fields are settings: one ConfigError names every wrong value."""

    def __post_init__(self) -> None:
        problems = []
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            kind, setting = get_args(hint)
            value = getattr(self, name)
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            if choices and value not in choices:
                problems.append(f"`{name}` is {value!r}, expected one of {', '.join(choices)}")
            elif setting.check and value is not None and not setting.check.holds(value):
                problems.append(f"`{name}` is {value!r}, expected {setting.check.expected}")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True)
class EngineConfig(CheckedConfig):
    """How the engine runs.

    `dtype` and `quantization` change scores; `step_lanes`, `page_tokens`, `tp_size`,
    `attention_backend` and `cpu_level` pick another compiled program and may move last bits, and so
    does the `packed` algorithm with all its settings. No other setting changes a bit.
    """

    dtype: Annotated[
        DType,
        Setting(
            "Type of weights and activations, and of cached keys and values. auto takes bfloat16 "
            "unless the checkpoint is float32. On processors without bfloat16 instructions all but "
            "the weights is float32 anyhow."
        ),
    ] = "auto"
    multi_item_algorithm: Annotated[
        Algorithm,
        Setting(
            "prefill_extend computes the query once and every item against it; serial computes it "
            "for each item and is the baseline to compare with; packed puts query and items into "
            "one sequence, the historic form: nothing is cached, and each padded length compiles a "
            "program when it is first met."
        ),
    ] = "prefill_extend"
    multi_item_scoring_delimiter: Annotated[
        int | None,
        Setting(
            "Token id put between query and item, for models trained with one. Without it an item "
            "directly follows the query."
        ),
    ] = None
    multi_item_scoring_chunk_size: Annotated[
        int,
        Setting(
            "Most items of a packed sequence; 0 for no bound, the fastest. Other algorithms are "
            "exact at any size, and ignore it.",
            AT_LEAST_0,
        ),
    ] = 0
    multi_item_mask_impl: Annotated[
        MaskSetting,
        Setting(
            "How packed tells items apart: dense masks every pair of tokens, segment skips what no "
            "token sees. auto is segment. Other algorithms need no mask."
        ),
    ] = "auto"
    max_multi_item_seq_len: Annotated[
        int | None,
        Setting(
            "Most tokens of query, delimiter and one item together; longer requests are refused. "
            "A lower bound leaves memory for more cached queries. Also the most tokens of a packed "
            "sequence; items beyond go to further ones.",
            AT_LEAST_1,
            unset="the model's own limit; packed: 16384",
        ),
    ] = None
    attention_backend: Annotated[
        AttentionBackend,
        Setting(
            "fa runs kernels where there are (TPU, and GPU in bfloat16: attention; CPU with a C++ "
            "compiler, where activations are float32: attention and matrix products), native what "
            "XLA makes. auto is fa."
        ),
    ] = "auto"
    cpu_level: Annotated[
        CpuLevelSetting,
        Setting(
            "On processors, the type of activations and the code that computes: C++ kernels for "
            "some instructions, or XLA. auto takes what $ITEMWISE_CPU_LEVEL names, else the "
            "fastest that the processor can run. float32 weights rule out bfloat16, "
            "--attention-backend native rules out C++; xla-float32 then takes its place."
        ),
    ] = "auto"
    quantization: Annotated[
        Quantization,
        Setting(
            "int8 keeps the matrices of the layers in eight bits, with a scale for each output: "
            "half the memory of bfloat16, at some accuracy. Scores stay exact in any company."
        ),
    ] = "none"
    tp_size: Annotated[
        int,
        Setting(
            "Devices that share the model, each with a part of heads, MLP and vocabulary, for "
            "models that do not fit one.",
            AT_LEAST_1,
            alias="tp",
        ),
    ] = 1
    max_multi_item_count: Annotated[
        int | None,
        Setting(
            "Most items of a request, so that one client cannot keep the engine to itself.",
            AT_LEAST_1,
            unset="no bound",
        ),
    ] = None
    disable_radix_cache: Annotated[
        bool,
        Setting(
            "Forget a query's keys and values when its request ends, as benchmarks want it. "
            "Otherwise a query that comes again is not computed again."
        ),
    ] = False
    mem_fraction_static: Annotated[
        float | None,
        Setting(
            "Share of the device's memory for weights and cached queries. Lower it if other "
            "programs use the device.",
            Check("above 0, at most 1", lambda share: 0 < share <= 1),
            unset="by device",
        ),
    ] = None
    kv_cache_bytes: Annotated[
        int | None,
        Setting("Bytes for cached queries, in place of --mem-fraction-static.", AT_LEAST_1),
    ] = None
    step_lanes: Annotated[
        int | None,
        Setting(
            "Advanced: token places of the largest step, in pages. Larger steps use an accelerator "
            "better and take longer each.",
            AT_LEAST_1,
            unset="by device",
        ),
    ] = None
    page_tokens: Annotated[
        int,
        Setting(
            "Advanced: tokens of a page of cached keys and values, and of a lane of the largest "
            "step. On GPU the kernel takes pages of 128 tokens at most.",
            Check("a multiple of 32", lambda tokens: tokens >= 32 and tokens % 32 == 0),
        ),
    ] = 128
    skip_self_check: Annotated[
        bool,
        Setting(
            "Start without comparing scores in different company, and without small steps, whose "
            "bits would be unchecked. Saves seconds; only for development."
        ),
    ] = False
    compilation_cache_dir: Annotated[
        str | None,
        Setting(
            "Folder for compiled programs, which makes the next start quick; an empty text for "
            "none.",
            unset="the user's cache folder",
        ),
    ] = None


@dataclass(frozen=True)
class ServerConfig(CheckedConfig):
    """How the HTTP server runs."""

    model_path: Annotated[
        str,
        Setting(
            "Folder of a checkpoint, or its Hugging Face Hub id; by default the demo model that "
            "comes with the package.",
            alias="model",
        ),
    ] = DEMO_MODEL
    host: Annotated[
        str,
        Setting(
            "Address to listen on. 127.0.0.1 is reachable from this machine alone, 0.0.0.0 from "
            "everywhere: set --api-key then."
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Setting(
            "Port to listen on; 0 takes a free one.",
            Check("0 to 65535", lambda port: 0 <= port <= 65535),
        ),
    ] = 30000
    served_model_name: Annotated[
        str | None,
        Setting(
            "Name of the model for clients, which then need not know where it lies.",
            unset="the Hub id, or the folder's last component",
        ),
    ] = None
    api_key: Annotated[
        str | None,
        Setting(
            "Key that clients must send as `Authorization: Bearer KEY`. Best set through the "
            "environment, where other users do not see it.",
            Check("a key or none at all", bool),
            unset="no key",
        ),
    ] = None
    max_queued_requests: Annotated[
        int,
        Setting(
            "Requests that may wait for the engine; further ones are told to come back (429) "
            "rather than wait for long.",
            AT_LEAST_1,
        ),
    ] = 128
    max_queued_tokens: Annotated[
        int,
        Setting(
            "Tokens that may wait or be under way, beyond a first request; requests beyond are "
            "told to come back (429). Throughput times the longest wait you allow is a good value.",
            AT_LEAST_1,
        ),
    ] = 4 * 1024 * 1024
    max_request_tokens: Annotated[
        int,
        Setting(
            "Most tokens of a request, so that one client cannot keep the engine to itself.",
            AT_LEAST_1,
        ),
    ] = 4 * 1024 * 1024
    max_request_labels: Annotated[
        int,
        Setting(
            "Most scores of a request: labels summed over items. Bounds the answer's size.",
            AT_LEAST_1,
        ),
    ] = 1024 * 1024
    max_body_bytes: Annotated[
        int,
        Setting(
            "Longest request body (413 beyond), which bounds the memory a client can take.",
            AT_LEAST_1,
        ),
    ] = 64 * 1024 * 1024
    max_connections: Annotated[
        int,
        Setting(
            "Connections open at once, idle ones included; further ones are told to come back "
            "(503).",
            AT_LEAST_1,
        ),
    ] = 1024
    max_timeout_s: Annotated[
        float,
        Setting(
            "Seconds after which any request is given up (504), whatever its `timeout_s`.",
            Check("above 0", lambda seconds: seconds > 0),
            alias="max-timeout",
        ),
    ] = 600.0
    drain_timeout_s: Annotated[
        float,
        Setting(
            "Seconds that requests have to finish after SIGTERM; new ones are refused meanwhile. "
            "Give a supervisor's own limit eight seconds more.",
            AT_LEAST_0,
            alias="drain-timeout",
        ),
    ] = 30.0
    log_format: Annotated[
        LogFormat,
        Setting("text for people, json for log collectors: an object a line."),
    ] = "text"
    disable_access_log: Annotated[
        bool,
        Setting("No line in the log for each request."),
    ] = False
    otlp_traces_endpoint: Annotated[
        str | None,
        Setting(
            "URL that takes OpenTelemetry traces by OTLP over HTTP, such as "
            "http://localhost:4318/v1/traces. Needs the `otel` extra.",
            unset="no traces",
        ),
    ] = None

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

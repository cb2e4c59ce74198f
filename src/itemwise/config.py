"""Settings of the engine and of the server, each declared once.

Each field of `EngineConfig` and `ServerConfig` declares its type, its default and, in a `Setting`,
its help text and the check of its value. The command line builds its options from these fields;
those of `EngineConfig` are also the keywords of `Scorer.from_pretrained`. A config is built once,
frozen, and read everywhere. This is the only module that reads environment variables.
"""

from __future__ import annotations

import os
import pwd
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from itemwise.errors import ConfigError
from itemwise.types import Algorithm, CpuLevelName

DType = Literal["auto", "bfloat16", "float32"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
AttentionBackend = Literal["auto", "fa", "native"]
Quantization = Literal["none", "int8"]
MaskSetting = Literal["auto", "dense", "segment"]
CpuLevelSetting = Literal["auto", CpuLevelName]
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
Tokenize = Literal["whole", "parts"]
SpecialTokens = Literal["auto", "text", "control"]
DEMO_MODEL = "itemwise/demo"  # the model included in the package


def cache_dir() -> Path:
    """The user's cache folder for Itemwise, `$XDG_CACHE_HOME/itemwise` or `~/.cache/itemwise`.

    Never below the working directory: a relative path counts for nothing. A user without a home
    gets a folder among the temporary files.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = os.environ.get("HOME") or _home_of_user()
        base = os.path.join(home, ".cache")
    if not os.path.isabs(base):
        return Path(tempfile.gettempdir()) / f"itemwise-{os.getuid()}"
    return Path(base) / "itemwise"


def _home_of_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def chosen_compiler() -> str | None:
    """The C++ compiler that the environment names, `$CXX`."""
    return os.environ.get("CXX") or None


def chosen_cpu_level() -> str:
    """The CPU level that the environment names, `$ITEMWISE_CPU_LEVEL`; `auto` if none."""
    return os.environ.get("ITEMWISE_CPU_LEVEL") or "auto"


def xla_environment() -> tuple[str | None, ...]:
    """The environment variables that XLA reads: flags and thread counts."""
    return tuple(os.environ.get(name) for name in ("XLA_FLAGS", "NPROC", "PJRT_NPROC"))


def prepare_tpu_compiler() -> None:
    """Lets libtpu compile on a machine without a TPU; call it before importing JAX.

    Otherwise libtpu asks the cloud's metadata server for the TPU type and waits for an answer.
    """
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v6e-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no machine-wide lock: there is no chip to share
    }
    os.environ.update(settings)


def check_environment() -> None:
    """Returns if no secret is empty in the environment, where it would count as not set.

    Raises:
        ConfigError: one is.
    """
    for name in ("ITEMWISE_API_KEY", "ITEMWISE_API_KEY_FILE"):
        if os.environ.get(name) is not None and not os.environ[name].strip():
            raise ConfigError(
                f"{name} is set but empty, expected a key; unset it to serve without one"
            )


class Check(NamedTuple):
    """A condition on a value, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


AT_LEAST_0 = Check("0 or more", lambda value: value >= 0)
AT_LEAST_1 = Check("1 or more", lambda value: value >= 1)


@dataclass(frozen=True)
class Setting:
    """The description of a setting, in addition to its type and its default.

    Attributes:
        help: what it does.
        check: a condition on its value that its type does not express.
        alias: a second name of its flag, without dashes.
        unset: what None means, shown as the default in the help.
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


def origins(text: str) -> list[str]:
    """The origins of `--allowed-origins`, which may also be a JSON list as vLLM has it."""
    return [part.strip(" \"'") for part in text.strip().strip("[]").split(",")]


def has_origins(text: str) -> bool:
    """Whether none of the origins is empty."""
    return all(origins(text))


@dataclass(frozen=True)
class EngineConfig(CheckedConfig):
    """How the engine runs.

    `dtype` and `quantization` change scores; `step_lanes`, `page_tokens`, `tp_size`,
    `attention_backend` and `cpu_level` select another compiled program and may change the last bits
    of scores, and so may the `packed` algorithm and its settings. `tokenize` and `special_tokens`
    decide which tokens a text becomes, and `allow_auto_truncate` whether a text that is too long is
    cut: to what the model, `max_multi_item_seq_len` and the memory for pages allow. No other
    setting changes a bit.
    """

    dtype: Annotated[
        DType,
        Setting(
            "Type of weights, activations and cached keys and values. auto goes by the "
            "checkpoint's tensors: bfloat16 or float32 as they are; float16 becomes float32 on a "
            "CPU and bfloat16 elsewhere. A CPU without bfloat16 instructions uses float32 for "
            "everything but the weights."
        ),
    ] = "auto"
    multi_item_algorithm: Annotated[
        Algorithm,
        Setting(
            "prefill_extend computes the query once, then each item against the cached query. "
            "serial computes the query again for each item; it is the baseline for comparisons. "
            "packed puts the query and the items into one sequence, the original method: it "
            "caches nothing, and compiles a program for each new padded length."
        ),
    ] = "prefill_extend"
    multi_item_scoring_delimiter: Annotated[
        int | None,
        Setting(
            "Token id to put between query and item, for models trained with one. By default an "
            "item directly follows the query."
        ),
    ] = None
    multi_item_scoring_chunk_size: Annotated[
        int,
        Setting(
            "Maximum number of items in a packed sequence; 0 means no limit, which is fastest. "
            "Other algorithms ignore it: their scores are exact in any case.",
            AT_LEAST_0,
        ),
    ] = 0
    multi_item_mask_impl: Annotated[
        MaskSetting,
        Setting(
            "Attention mask of the packed algorithm: dense computes every pair of tokens, "
            "segment skips the blocks of pairs that the mask excludes. auto is segment. Other "
            "algorithms need no mask."
        ),
    ] = "auto"
    max_multi_item_seq_len: Annotated[
        int | None,
        Setting(
            "Maximum number of tokens in the query, the delimiter and one item together; longer "
            "requests are refused. A lower limit leaves memory for more cached queries. Also "
            "the maximum length of a packed sequence; items beyond it go into further sequences.",
            AT_LEAST_1,
            unset="the model's limit; packed: 16384",
        ),
    ] = None
    attention_backend: Annotated[
        AttentionBackend,
        Setting(
            "fa uses hand-written kernels: for attention on TPU and on GPU in bfloat16; for "
            "attention and matrix products on CPU, given a C++ compiler and float32 "
            "activations. Everything else runs in XLA. native runs everything in XLA. auto is "
            "fa."
        ),
    ] = "auto"
    cpu_level: Annotated[
        CpuLevelSetting,
        Setting(
            "On CPU, the type of activations and the code that runs: C++ kernels for a set of "
            "instructions, or XLA. auto is $ITEMWISE_CPU_LEVEL if that is set, else the fastest "
            "level that the CPU can run. float32 weights rule out bfloat16, and "
            "--attention-backend native rules out C++; a level that is ruled out becomes "
            "xla-float32."
        ),
    ] = "auto"
    quantization: Annotated[
        Quantization,
        Setting(
            "int8 stores the weight matrices of the layers in eight bits, with a scale for each "
            "output: half the memory of bfloat16, for some loss of accuracy. Scores still do "
            "not depend on batch composition."
        ),
    ] = "none"
    tp_size: Annotated[
        int,
        Setting(
            "Number of devices that share the model, each with a part of the heads, the MLP and "
            "the vocabulary, for models that do not fit on one.",
            AT_LEAST_1,
            alias="tp",
        ),
    ] = 1
    max_multi_item_count: Annotated[
        int | None,
        Setting(
            "Maximum number of items in a request, so that one client cannot monopolise the "
            "engine.",
            AT_LEAST_1,
            unset="no limit",
        ),
    ] = None
    tokenize: Annotated[
        Tokenize,
        Setting(
            "whole tokenises query and item as one text, as in training. parts tokenises each by "
            "itself. Applies where a request does not say; a delimiter implies parts."
        ),
    ] = "whole"
    special_tokens: Annotated[
        SpecialTokens,
        Setting(
            "Control tokens such as <|im_end|> that texts of a request spell: text leaves them "
            "text, control reads them as tokens. auto is text where a prompt template is applied, "
            "and control where query and item are the whole prompt. Applies where a request does "
            "not say."
        ),
    ] = "auto"
    allow_auto_truncate: Annotated[
        bool,
        Setting(
            "Cut items that are too long, at their end, instead of refusing the request; the "
            "answer names them. Applies where a request to score does not say (`truncate`). "
            "Rankings cut documents in any case."
        ),
    ] = False
    disable_radix_cache: Annotated[
        bool,
        Setting(
            "Discard a query's keys and values when its request ends, for benchmarks. By "
            "default a repeated query is not computed again."
        ),
    ] = False
    mem_fraction_static: Annotated[
        float | None,
        Setting(
            "Share of the device's memory for weights and cached queries. Lower it if other "
            "programs use the device.",
            Check("above 0, at most 1", lambda share: 0 < share <= 1),
            unset="depends on the device",
        ),
    ] = None
    kv_cache_bytes: Annotated[
        int | None,
        Setting("Bytes for cached queries, instead of --mem-fraction-static.", AT_LEAST_1),
    ] = None
    step_lanes: Annotated[
        int | None,
        Setting(
            "Advanced: tokens that the largest step holds, in pages. Larger steps use an "
            "accelerator better, but each takes longer.",
            AT_LEAST_1,
            unset="depends on the device",
        ),
    ] = None
    page_tokens: Annotated[
        int,
        Setting(
            "Advanced: tokens in a page of cached keys and values, and in a lane of the largest "
            "step. The GPU kernel supports pages of up to 128 tokens.",
            Check("a multiple of 32", lambda tokens: tokens >= 32 and tokens % 32 == 0),
        ),
    ] = 128
    skip_self_check: Annotated[
        bool,
        Setting(
            "Do not check at start that scores are independent of batch composition, and do not "
            "use small steps, whose bits would be unchecked. Saves seconds; for development "
            "only."
        ),
    ] = False
    compilation_cache_dir: Annotated[
        str | None,
        Setting(
            "Folder for compiled programs, which makes the next start fast; others must not be "
            "able to write to it. An empty string turns it off.",
            Check("a local folder", lambda folder: "://" not in folder),
            unset="the user's cache folder",
        ),
    ] = None


@dataclass(frozen=True)
class ServerConfig(CheckedConfig):
    """How the HTTP server runs."""

    model_path: Annotated[
        str,
        Setting(
            "Folder of a checkpoint, or its Hugging Face Hub id; by default the demo model "
            "included in the package.",
            alias="model",
        ),
    ] = DEMO_MODEL
    host: Annotated[
        str,
        Setting(
            "Address to listen on. 127.0.0.1 is reachable from this machine only, 0.0.0.0 from "
            "everywhere; with 0.0.0.0, set --api-key."
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Setting(
            "Port to listen on; 0 picks a free one.",
            Check("0 to 65535", lambda port: 0 <= port <= 65535),
        ),
    ] = 30000
    served_model_name: Annotated[
        str | None,
        Setting(
            "Name of the model for clients, which then do not need its path.",
            unset="the Hub id, or the folder's last component",
        ),
    ] = None
    api_key: Annotated[
        str | None,
        Setting(
            "Key that clients must send as `Authorization: Bearer KEY`. Best set through the "
            "environment, where other users cannot see it.",
            Check("a key that is not empty", lambda key: bool(key.strip())),
            unset="no key",
        ),
    ] = None
    api_key_file: Annotated[
        str | None,
        Setting(
            "File with keys, one on each line; any of them, or --api-key, lets a client in.",
            Check("a path that is not empty", bool),
            unset="no file",
        ),
    ] = None
    max_queued_requests: Annotated[
        int,
        Setting(
            "Maximum number of requests that wait for the engine; further ones get 429 with "
            "Retry-After instead of a long wait.",
            AT_LEAST_1,
        ),
    ] = 128
    max_queued_tokens: Annotated[
        int,
        Setting(
            "Maximum number of tokens waiting or being computed; requests beyond it get 429 "
            "with Retry-After, unless they are the only one. A good value is the throughput "
            "times the longest wait that you accept.",
            AT_LEAST_1,
        ),
    ] = 4 * 1024 * 1024
    max_request_tokens: Annotated[
        int,
        Setting(
            "Maximum number of tokens in a request, so that one client cannot monopolise the "
            "engine.",
            AT_LEAST_1,
        ),
    ] = 4 * 1024 * 1024
    max_request_labels: Annotated[
        int,
        Setting(
            "Maximum number of scores in a request: labels summed over items. Limits the size "
            "of the answer.",
            AT_LEAST_1,
        ),
    ] = 1024 * 1024
    max_body_bytes: Annotated[
        int,
        Setting(
            "Maximum size of a request body (413 beyond it), which limits the memory that a "
            "client can use.",
            AT_LEAST_1,
        ),
    ] = 64 * 1024 * 1024
    max_connections: Annotated[
        int,
        Setting(
            "Maximum number of open connections. Where all are taken, a new one replaces the one "
            "that has been idle longest; if none is idle, it gets 503, except for /live and "
            "/health. Lowered to what the limit of open files allows.",
            AT_LEAST_1,
        ),
    ] = 1024
    keep_alive_s: Annotated[
        float,
        Setting(
            "Seconds that a connection stays open between requests. Must be longer than a load "
            "balancer in front keeps its own idle connections, or it answers some requests with "
            "502.",
            Check("above 0", lambda seconds: seconds > 0),
            alias="timeout-keep-alive",
        ),
    ] = 75.0
    strict_priority: Annotated[
        bool,
        Setting(
            "Always run requests with a lower `priority` first, however long the others wait. By "
            "default one step in four goes by age, so that urgent requests cannot starve the rest."
        ),
    ] = False
    max_timeout_s: Annotated[
        float,
        Setting(
            "Seconds after which any request fails with 504, whatever its `timeout_s`.",
            Check("above 0", lambda seconds: seconds > 0),
            alias="max-timeout",
        ),
    ] = 600.0
    drain_timeout_s: Annotated[
        float,
        Setting(
            "Seconds that accepted requests have to finish after SIGTERM; new ones are refused. "
            "Allow eight seconds more in the supervisor's own limit.",
            AT_LEAST_0,
            alias="drain-timeout",
        ),
    ] = 30.0
    allowed_origins: Annotated[
        str | None,
        Setting(
            "Origins whose pages may use the API from a browser (CORS), separated by commas, such "
            "as http://localhost:5173; * for all.",
            Check("origins separated by commas", has_origins),
            alias="cors-origins",
            unset="none",
        ),
    ] = None
    disable_playground: Annotated[
        bool,
        Setting("Do not serve the page at /, where people try the model in a browser."),
    ] = False
    reports_dir: Annotated[
        str | None,
        Setting(
            "Folder in which `itemwise validate` has put reports, such as ./reports; the page at "
            "/ links them. Clients with a key, or all if there is none, may read them.",
            Check("a path that is not empty", bool),
            unset="no reports",
        ),
    ] = None
    root_path: Annotated[
        str,
        Setting(
            "Path under which a proxy serves the API, such as /score-api, so that /docs finds it.",
            Check(
                "empty, or a path that begins and does not end with /",
                lambda path: not path or (path.startswith("/") and not path.endswith("/")),
            ),
        ),
    ] = ""
    log_format: Annotated[
        LogFormat,
        Setting("text for people, json for log collectors: one object per line."),
    ] = "text"
    log_level: Annotated[
        LogLevel,
        Setting("Least serious messages to log; requests are logged at info."),
    ] = "info"
    disable_access_log: Annotated[
        bool,
        Setting("Do not log a line for each request."),
    ] = False
    otlp_traces_endpoint: Annotated[
        str | None,
        Setting(
            "URL to send OpenTelemetry traces to, by OTLP over HTTP, such as "
            "http://localhost:4318/v1/traces. Needs the `otel` extra.",
            unset="no traces",
        ),
    ] = None

    @property
    def has_key(self) -> bool:
        """Whether clients need a key."""
        return self.api_key is not None or self.api_key_file is not None

    @property
    def model_name(self) -> str:
        """The name shown to clients."""
        return self.served_model_name or self.shown_model_path

    @property
    def public_model_name(self) -> str:
        """The name for those without a key: empty unless it was chosen for clients, or is a Hub id.

        The name of a folder may say what nobody else should read.
        """
        if self.served_model_name is None and not _HUB_ID.fullmatch(self.model_path):
            return ""
        return self.model_name

    @property
    def shown_model_path(self) -> str:
        """What clients see of `model_path`: a Hub id, or a folder's last component.

        They should not learn where a model is on the server's disk. A path that looks like a Hub
        id is also shown in full.
        """
        if _HUB_ID.fullmatch(self.model_path):
            return self.model_path
        return os.path.basename(os.path.abspath(os.path.expanduser(self.model_path))) or "default"


@dataclass(frozen=True)
class SourceConfig(CheckedConfig):
    """Where the parts of a model come from, beside its path."""

    tokenizer_path: Annotated[
        str | None,
        Setting(
            "Folder or Hugging Face Hub id of a tokenizer, to use instead of the model's own.",
            unset="the model's",
        ),
    ] = None
    revision: Annotated[
        str | None,
        Setting(
            "Branch, tag or commit of the model on the Hugging Face Hub. Name a commit to get the "
            "same files at every start.",
            unset="the main branch",
        ),
    ] = None
    download_dir: Annotated[
        str | None,
        Setting(
            "Folder to keep models from the Hugging Face Hub in.",
            unset="the Hub's own cache",
        ),
    ] = None

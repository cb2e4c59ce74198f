"""What commands share: options with their twins in the environment, and how they fail."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_type_hints

import typer

from itemwise.config import DEMO_MODEL
from itemwise.errors import ConfigError

_Number = TypeVar("_Number", int, float)


def option(flag: str, text: str, *names: str, **settings: Any) -> Any:
    """An option `--flag` with its twin `ITEMWISE_FLAG` in the environment."""
    envvar = "ITEMWISE_" + flag.upper().replace("-", "_")
    return typer.Option(f"--{flag}", *names, help=text, envvar=envvar, **settings)


def numbers(text: str, flag: str, kind: Callable[[str], _Number] = int) -> tuple[_Number, ...]:
    """Numbers above 0 from a comma-separated text, one at least.

    Raises:
        ConfigError: it is no such text.
    """
    try:
        found = tuple(map(kind, text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < number < math.inf for number in found):
        raise ConfigError(f"`--{flag}` is {text!r}, expected numbers above 0, like 1,8,32")
    return found


def fail(message: str) -> NoReturn:
    """Prints one red line on stderr and exits with status 2."""
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)
    sys.exit(2)


PromptTemplate = Annotated[
    Path | None,
    option(
        "prompt-template",
        "File with a prompt template: how a query and an item become the text that the model was "
        "trained on.",
        show_default="the checkpoint's prompt_template.json",
    ),
]


@dataclass(frozen=True)
class EngineOptions:
    """Options of every command that loads a model; each is the `EngineConfig` field it names."""

    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        option(
            "dtype",
            "Type of weights and activations. auto takes bfloat16 unless the checkpoint is "
            "float32. On processors without bfloat16 instructions activations are float32 anyhow.",
        ),
    ] = "auto"
    multi_item_algorithm: Annotated[
        Literal["prefill_extend", "serial", "packed"],
        option(
            "multi-item-algorithm",
            "prefill_extend computes the query once and every item against it; serial computes it "
            "for each item and is the baseline to compare with; packed puts query and items into "
            "one sequence, the historic form: nothing is cached, and each padded length compiles a "
            "program when it is first met.",
        ),
    ] = "prefill_extend"
    multi_item_scoring_delimiter: Annotated[
        int | None,
        option(
            "multi-item-scoring-delimiter",
            "Token id put between query and item, for models trained with one. Without it an item "
            "directly follows the query.",
        ),
    ] = None
    multi_item_scoring_chunk_size: Annotated[
        int,
        option(
            "multi-item-scoring-chunk-size",
            "Most items of a packed sequence; 0 for no bound, the fastest. Other algorithms are "
            "exact at any size, and ignore it.",
        ),
    ] = 0
    multi_item_mask_impl: Annotated[
        Literal["auto", "dense", "segment"],
        option(
            "multi-item-mask-impl",
            "How packed tells items apart: dense masks every pair of tokens, segment skips what no "
            "token sees. auto is segment. Other algorithms need no mask.",
        ),
    ] = "auto"
    max_multi_item_seq_len: Annotated[
        int | None,
        option(
            "max-multi-item-seq-len",
            "Most tokens of query, delimiter and one item together; longer requests are refused. "
            "A lower bound leaves memory for more cached queries. Also the most tokens of a packed "
            "sequence; items beyond go to further ones.",
            show_default="the model's own limit; packed: 16384",
        ),
    ] = None
    attention_backend: Annotated[
        Literal["auto", "fa", "native"],
        option(
            "attention-backend",
            "fa runs kernels where there are (TPU, and GPU in bfloat16: attention; CPU with a C++ "
            "compiler, where activations are float32: attention and matrix products), native what "
            "XLA makes. auto is fa.",
        ),
    ] = "auto"
    quantization: Annotated[
        Literal["none", "int8"],
        option(
            "quantization",
            "int8 keeps the matrices of the layers in eight bits, with a scale for each output: "
            "half the memory of bfloat16, at some accuracy. Scores stay exact in any company.",
        ),
    ] = "none"
    tp_size: Annotated[
        int,
        option(
            "tp-size",
            "Devices that share the model, each with a part of heads, MLP and vocabulary, for "
            "models that do not fit one.",
            "--tp",
        ),
    ] = 1
    max_multi_item_count: Annotated[
        int | None,
        option(
            "max-multi-item-count",
            "Most items of a request, so that one client cannot keep the engine to itself.",
            show_default="no bound",
        ),
    ] = None
    disable_radix_cache: Annotated[
        bool,
        option(
            "disable-radix-cache",
            "Forget a query's keys and values when its request ends, as benchmarks want it. "
            "Otherwise a query that comes again is not computed again.",
        ),
    ] = False
    mem_fraction_static: Annotated[
        float | None,
        option(
            "mem-fraction-static",
            "Share of the device's memory for weights and cached queries. Lower it if other "
            "programs use the device.",
            show_default="by device",
        ),
    ] = None
    kv_cache_bytes: Annotated[
        int | None,
        option(
            "kv-cache-bytes",
            "Bytes for cached queries, in place of --mem-fraction-static.",
        ),
    ] = None
    skip_self_check: Annotated[
        bool,
        option(
            "skip-self-check",
            "Start without comparing scores in different company, and without small steps. Saves "
            "seconds; only for development.",
        ),
    ] = False
    compilation_cache_dir: Annotated[
        str | None,
        option(
            "compilation-cache-dir",
            "Folder for compiled programs, which makes the next start quick; an empty text for "
            "none.",
            show_default="the user's cache folder",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """The options as keywords of `EngineConfig` and `Scorer.from_pretrained`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class ServerOptions:
    """Options of the HTTP server; each is the `ServerConfig` field it names."""

    model_path: Annotated[
        str,
        option(
            "model-path",
            "Folder of a checkpoint, or its Hugging Face Hub id; by default the demo model that "
            "comes with the package.",
            "--model",
        ),
    ] = DEMO_MODEL
    host: Annotated[
        str,
        option(
            "host",
            "Address to listen on. 127.0.0.1 is reachable from this machine alone, 0.0.0.0 from "
            "everywhere: set --api-key then.",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, option("port", "Port to listen on; 0 takes a free one.")] = 30000
    served_model_name: Annotated[
        str | None,
        option(
            "served-model-name",
            "Name of the model for clients, which then need not know where it lies.",
            show_default="the Hub id, or the folder's last component",
        ),
    ] = None
    api_key: Annotated[
        str | None,
        option(
            "api-key",
            "Key that clients must send as `Authorization: Bearer KEY`. Best set through the "
            "environment, where other users do not see it.",
            show_default="no key",
        ),
    ] = None
    max_queued_requests: Annotated[
        int,
        option(
            "max-queued-requests",
            "Requests that may wait for the engine; further ones are told to come back (429) "
            "rather than wait for long.",
        ),
    ] = 128
    max_queued_tokens: Annotated[
        int,
        option(
            "max-queued-tokens",
            "Tokens that may wait or be under way; requests beyond are told to come back (429). "
            "Throughput times the longest wait you allow is a good value.",
        ),
    ] = 4 * 1024 * 1024
    max_request_tokens: Annotated[
        int,
        option(
            "max-request-tokens",
            "Most tokens of a request, so that one client cannot keep the engine to itself.",
        ),
    ] = 4 * 1024 * 1024
    max_request_labels: Annotated[
        int,
        option(
            "max-request-labels",
            "Most scores of a request: labels summed over items. Bounds the answer's size.",
        ),
    ] = 1024 * 1024
    max_body_bytes: Annotated[
        int,
        option(
            "max-body-bytes",
            "Longest request body (413 beyond), which bounds the memory a client can take.",
        ),
    ] = 64 * 1024 * 1024
    max_connections: Annotated[
        int,
        option(
            "max-connections",
            "Connections open at once, idle ones included; further ones are told to come back "
            "(503).",
        ),
    ] = 1024
    max_timeout_s: Annotated[
        float,
        option(
            "max-timeout-s",
            "Seconds after which any request is given up (504), whatever its `timeout_s`.",
            "--max-timeout",
        ),
    ] = 600.0
    drain_timeout_s: Annotated[
        float,
        option(
            "drain-timeout-s",
            "Seconds that requests have to finish after SIGTERM; new ones are refused meanwhile. "
            "Give a supervisor's own limit eight seconds more.",
            "--drain-timeout",
        ),
    ] = 30.0
    log_format: Annotated[
        Literal["text", "json"],
        option("log-format", "text for people, json for log collectors: an object a line."),
    ] = "text"
    disable_access_log: Annotated[
        bool,
        option("disable-access-log", "No line in the log for each request."),
    ] = False
    otlp_traces_endpoint: Annotated[
        str | None,
        option(
            "otlp-traces-endpoint",
            "URL that takes OpenTelemetry traces by OTLP over HTTP, such as "
            "http://localhost:4318/v1/traces. Needs the `otel` extra.",
            show_default="no traces",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """The options as keywords of `ServerConfig`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class CompatibilityOptions:
    """Flags of other servers' command lines that have nothing to do here."""

    trust_remote_code: Annotated[
        bool,
        option(
            "trust-remote-code",
            "Without effect: no code from a model's repository ever runs here.",
        ),
    ] = False
    chunked_prefill_size: Annotated[
        int | None,
        option(
            "chunked-prefill-size",
            "Without effect: queries are always computed in chunks of a page.",
        ),
    ] = None

    def note(self) -> str | None:
        """One line that names the flags given, or None."""
        given = [
            f"--{field.name.replace('_', '-')}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) not in (None, False)
        ]
        if not given:
            return None
        return f"Accepted for compatibility, without effect: {', '.join(given)}."


_Command = TypeVar("_Command", bound=Callable[..., Any])


def expand_options(command: _Command) -> _Command:
    """Lets a command take whole groups of options.

    A parameter whose type is a dataclass becomes one option per field of it; the command gets
    the dataclass built from them.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {
        name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _fields_as_parameters(groups[name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[name], kind=kind))

    @functools.wraps(command)
    def expanded(**values: Any) -> Any:
        built = {}
        for name, group in groups.items():
            names = [field.name for field in dataclasses.fields(group)]
            built[name] = group(**{field: values.pop(field) for field in names})
        return command(**values, **built)

    signature = inspect.Signature(parameters)
    expanded.__signature__ = signature  # type: ignore[attr-defined]
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    return expanded  # type: ignore[return-value]


def _fields_as_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


@dataclass(frozen=True)
class LoadOptions:
    """What requests of the serving benchmarks look like."""

    num_items: Annotated[int, typer.Option("--items", help="Items of a request.", min=1)] = 10
    item_tokens: Annotated[
        int, typer.Option("--item-tokens", help="Tokens of each item.", min=1)
    ] = 20
    query_tokens: Annotated[
        int, typer.Option("--query-tokens", help="Tokens of the query.", min=1)
    ] = 300
    shared: Annotated[
        float,
        typer.Option("--shared", help="Share of requests with one query in common.", min=0, max=1),
    ] = 0.5


@dataclass(frozen=True)
class WorkloadOptions:
    """One request: a query and many short items."""

    query_tokens: Annotated[
        int, typer.Option("--query-tokens", help="Tokens of the query.", min=1)
    ] = 2000
    num_items: Annotated[int, typer.Option("--items", help="Items.", min=1)] = 500
    item_tokens: Annotated[
        int, typer.Option("--item-tokens", help="Tokens of each item.", min=1)
    ] = 20

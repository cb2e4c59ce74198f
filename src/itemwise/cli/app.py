"""The `itemwise` command. Thin: what a command needs is imported when it runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from itemwise import __version__
from itemwise.cli.bench import add_bench_commands, add_tpu_command
from itemwise.cli.options import (
    CompatibilityOptions,
    EngineOptions,
    LoadOptions,
    PromptTemplate,
    ServerOptions,
    expand_options,
    numbers,
    option,
)
from itemwise.cli.validation import add_validation_commands
from itemwise.config import DEMO_MODEL
from itemwise.errors import ItemwiseError

app = typer.Typer(
    name="itemwise",
    help="Scores many items against one shared query with a causal language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the plain form never cuts the names of flags short
    context_settings={"help_option_names": ["-h", "--help"]},
)

checkpoint_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make checkpoints to try things with."
)
bench_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure speed and memory."
)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")
add_validation_commands(app)
add_bench_commands(bench_app)
add_tpu_command(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits; Itemwise's own errors become one line and status 2."""
    try:
        app(args=arguments, prog_name="itemwise")
    except ItemwiseError as error:
        fail(str(error))


def fail(message: str) -> None:
    """Prints one red line on stderr and exits with status 2."""
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)
    sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"itemwise {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


@app.command()
@expand_options
def serve(
    server: ServerOptions,
    engine: EngineOptions,
    ignored: CompatibilityOptions,
    prompt_template: PromptTemplate = None,
) -> None:
    """Serve a model over HTTP: POST /v1/score, documentation at /docs.

    The fast, exact path is the default: no flag but --model-path is needed. /health answers 200
    once the model is loaded, compiled and self-checked. Command lines of SGLang carry over.
    """
    note = ignored.note()
    if note:
        typer.echo(note, err=True)
    from itemwise.config import EngineConfig, ServerConfig

    config = ServerConfig(**server.settings())
    settings = engine.settings()
    EngineConfig(**settings)  # wrong settings are told before anything is loaded

    from itemwise.server.process import serve as run_server
    from itemwise.server.service import AnyScorer

    def load() -> AnyScorer:
        from itemwise.scorer import Scorer

        return Scorer.from_pretrained(
            config.model_path, prompt_template=prompt_template, **settings
        )

    raise typer.Exit(run_server(config, load))


@app.command()
def demo() -> None:
    """Rank a few lists with the demo model, offline: what Itemwise does, in ten seconds."""
    from rich.console import Console

    from itemwise.cli.demo import run_demo

    raise typer.Exit(0 if run_demo(Console()) else 1)


@app.command()
@expand_options
def score(
    *,
    model: Annotated[
        str,
        typer.Argument(help="Folder of a checkpoint, or its Hub id; by default the demo model."),
    ] = DEMO_MODEL,
    query: Annotated[str | None, typer.Option("--query", help="Text that items share.")] = None,
    item: Annotated[
        list[str] | None, typer.Option("--item", help="Text of an item; give it once per item.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Text of one token; give it once per label."),
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            "--request",
            help="JSON file with the body of a POST /v1/score, in place of the options above: "
            "the way to give token ids. - reads standard input.",
        ),
    ] = None,
    apply_softmax: Annotated[
        bool,
        typer.Option(
            "--apply-softmax", help="Softmax over the labels, else over the whole vocabulary."
        ),
    ] = False,
    apply_template: Annotated[
        bool,
        typer.Option(
            "--apply-template",
            help="Put query and items into the model's prompt template; its labels are used where "
            "none are given.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    prompt_template: PromptTemplate = None,
    engine: EngineOptions,
) -> None:
    """Score the items of one request and print them.

    For example: itemwise score MODEL --query "is it a fruit?" --item apple --item car
    --label " yes" --label " no" --apply-softmax
    """
    from itemwise.cli.output import print_scores, read_request

    fields: dict[str, Any]
    if request is not None:
        if query is not None or item or label:
            fail("--request takes the place of --query, --item and --label; give one or the other")
        fields = read_request(request)
    else:
        given = {"query": query, "items": item, "labels": label}
        fields = {name: value for name, value in given.items() if value}
    if apply_softmax:
        fields["apply_softmax"] = True
    if apply_template:
        fields["apply_template"] = True
    settings = {**engine.settings(), "prompt_template": prompt_template}
    print_scores(model, settings, fields, as_json=as_json)


@app.command()
@expand_options
def rank(
    *,
    items: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ITEM]...", help="Texts to rank.", show_default=False),
    ] = None,
    query: Annotated[str, typer.Option("--query", help="What to rank them by.")],
    items_file: Annotated[
        Path | None,
        typer.Option(
            "--items-file", help="File with an item a line, besides ITEMs. - reads standard input."
        ),
    ] = None,
    model: Annotated[
        str,
        option("model-path", "Folder of a checkpoint, or its Hub id.", "--model"),
    ] = DEMO_MODEL,
    top_n: Annotated[
        int | None, typer.Option("--top-n", help="How many to print.", show_default="all", min=1)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of index, text and score.")
    ] = False,
    prompt_template: PromptTemplate = None,
    engine: EngineOptions,
) -> None:
    """Rank items by how well they match a query, best first.

    The score is the probability of the first label of the model's prompt template. For example:
    itemwise rank --query "desk lamp" "Brass lamp for the desk" "Desk with drawers" "Tea kettle"
    """
    from itemwise.cli.output import print_ranking, read_lines

    texts = [*(items or []), *(read_lines(items_file) if items_file else [])]
    if not texts:
        fail("no items: give texts, or --items-file")
    settings = {**engine.settings(), "prompt_template": prompt_template}
    print_ranking(model, settings, query, texts, top_n, as_json=as_json)


@checkpoint_app.command("random")
def checkpoint_random(
    folder: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    like: Annotated[
        str,
        typer.Option(
            "--like",
            help="Shape: qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, qwen2.5-0.5b, qwen2.5-1.5b, "
            "qwen2.5-3b, llama-3.2-1b, tiny-qwen3, tiny-qwen2 or tiny-llama.",
        ),
    ],
    seed: Annotated[int, typer.Option("--seed", help="Picks the weights.")] = 0,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option("--dtype", help="Type of the weights on disk."),
    ] = "bfloat16",
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", help="Vocabulary.", show_default="the shape's own"),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            "--shards",
            help="Weight files.",
            show_default="as many as keep each under 2 GiB",
        ),
    ] = None,
) -> None:
    """Write a random checkpoint of a well-known shape; its scores mean nothing."""
    from itemwise.checkpoint.shapes import write_named
    from itemwise.progress import progress

    with progress() as told:
        write_named(
            like,
            folder,
            seed=seed,
            dtype=dtype,
            vocab_size=vocab_size,
            shards=shards,
            on_progress=told,
        )
    typer.echo(f"Wrote a random {like} to {folder}")


@bench_app.command("serve")
@expand_options
def bench_serve(
    load: LoadOptions,
    url: Annotated[
        str, typer.Option("--url", help="A running server on this machine.")
    ] = "http://127.0.0.1:30000",
    clients: Annotated[
        str,
        typer.Option(
            "--clients",
            help="Numbers of clients that wait for answers, comma-separated; empty for none.",
        ),
    ] = "1,4,16,64",
    rates: Annotated[
        str,
        typer.Option(
            "--rates",
            help="Requests a second sent at random times whether answers come or not (Poisson), "
            "comma-separated.",
        ),
    ] = "",
    seconds: Annotated[float, typer.Option("--seconds", help="Time of each load, at most.")] = 20.0,
    max_requests: Annotated[
        int, typer.Option("--max-requests", help="Requests of each load, at most.")
    ] = 2000,
    check: Annotated[
        int,
        typer.Option(
            "--check",
            help="Answers of each load whose bits are compared with each item scored alone; it "
            "takes as many requests as they have items.",
        ),
    ] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write all figures to.")
    ] = None,
    chart: Annotated[
        Path | None,
        typer.Option("--chart", help="Image of latency and throughput; needs matplotlib."),
    ] = None,
) -> None:
    """Throughput, latency and bits of a running server under load."""
    from itemwise.bench.serving.serve import run_serve

    fine = run_serve(
        url,
        clients=numbers(clients, "clients") if clients else (),
        rates=numbers(rates, "rates", float) if rates else (),
        seconds=seconds,
        max_requests=max_requests,
        workload=dataclasses.asdict(load),
        check=check,
        out_json=json_file,
        chart=chart,
    )
    raise typer.Exit(0 if fine else 1)


@bench_app.command("soak")
@expand_options
def bench_soak(
    load: LoadOptions,
    url: Annotated[
        str, typer.Option("--url", help="A running server on this machine.")
    ] = "http://127.0.0.1:30000",
    seconds: Annotated[float, typer.Option("--seconds", help="How long.", max=3600)] = 600.0,
    share: Annotated[
        float,
        typer.Option("--load", help="Share of the throughput of 16 clients.", min=0.01, max=2),
    ] = 0.8,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write all figures to.")
    ] = None,
) -> None:
    """A long mixed load with clients who leave, bad requests and deadlines; is all well after?"""
    from itemwise.bench.serving.soak import run_soak

    fine = run_soak(
        url, seconds=seconds, load=share, workload=dataclasses.asdict(load), out_json=json_file
    )
    raise typer.Exit(0 if fine else 1)

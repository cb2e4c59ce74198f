"""The `itemwise` command. Thin: what a command needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from itemwise import __version__
from itemwise.cli.batch import batch
from itemwise.cli.bench import bench_app
from itemwise.cli.calibrate import calibrate
from itemwise.cli.command_line import NOTICE, ServeCommand
from itemwise.cli.decide import decide
from itemwise.cli.options import (
    ApplySoftmax,
    DecisionProfile,
    PromptTemplate,
    expand_options,
    fail,
    option,
)
from itemwise.cli.plan import plan, simulate
from itemwise.cli.tpu import tpu_compile
from itemwise.cli.validation import add_validation_commands
from itemwise.config import (
    DEMO_MODEL,
    EngineConfig,
    ServerConfig,
    SourceConfig,
    check_environment,
)
from itemwise.errors import ItemwiseError

app = typer.Typer(
    name="itemwise",
    help="Scores many items against one shared query with a causal language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the plain format never truncates the names of flags
    context_settings={"help_option_names": ["-h", "--help"]},
)

checkpoint_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make and convert checkpoints."
)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")
add_validation_commands(app)
app.command()(calibrate)
app.command()(tpu_compile)
app.command()(decide)
app.command()(batch)
app.command()(plan)
bench_app.command()(simulate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits; Itemwise's own errors become one line and status 2."""
    try:
        app(args=arguments, prog_name="itemwise")
    except ItemwiseError as error:
        fail(str(error))


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


@app.command(cls=ServeCommand)
@expand_options
def serve(
    context: typer.Context,
    server: ServerConfig,
    engine: EngineConfig,
    source: SourceConfig,
    prompt_template: PromptTemplate = None,
    decision_profile: DecisionProfile = None,
) -> None:
    """Serve a model over HTTP: POST /v1/score, documentation at /docs.

    The defaults are fast and exact; only --model-path is needed. /health answers 200 once the model
    is loaded, compiled and self-checked. Command lines of SGLang, sglang-jax and vLLM work as they
    are; docs/migrating.md lists what becomes of their flags.
    """
    if context.meta[NOTICE]:
        typer.echo(context.meta[NOTICE], err=True)
    if not server.has_key:
        check_environment()
    from itemwise.server.process import serve as run_server
    from itemwise.server.service import AnyScorer

    def load() -> AnyScorer:
        from itemwise.scorer import Scorer

        return Scorer.from_pretrained(
            server.model_path,
            prompt_template=prompt_template,
            decision_profile=decision_profile,
            **asdict(source),
            **asdict(engine),
        )

    raise typer.Exit(run_server(server, load))


@app.command()
def demo() -> None:
    """Rank a few lists with the demo model, offline: what Itemwise does, in ten seconds."""
    from rich.console import Console

    from itemwise.cli.demo import run_demo

    raise typer.Exit(0 if run_demo(Console()) else 1)


@dataclass(frozen=True)
class RequestOptions:
    """Options of the request that `score` sends to the engine."""

    query: Annotated[str | None, typer.Option("--query", help="Text that all items share.")] = None
    item: Annotated[
        list[str] | None, typer.Option("--item", help="Text of an item; repeat it for each item.")
    ] = None
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Text of one token; repeat it for each label."),
    ] = None
    request: Annotated[
        Path | None,
        typer.Option(
            "--request",
            help="JSON file with the body of a POST /v1/score, instead of the options above; it "
            "may use token ids. - reads standard input.",
        ),
    ] = None
    apply_softmax: ApplySoftmax = False
    apply_template: Annotated[
        bool,
        typer.Option(
            "--apply-template",
            help="Put query and items into the model's prompt template; its labels are used if "
            "none are given.",
        ),
    ] = False

    def fields(self) -> dict[str, Any]:
        """The fields of the request, as in the body of a POST /v1/score."""
        from itemwise.cli.output import read_request

        fields: dict[str, Any]
        if self.request is not None:
            if self.query is not None or self.item or self.label:
                fail("--request replaces --query, --item and --label; use one or the other")
            fields = read_request(self.request)
        else:
            given = {"query": self.query, "items": self.item, "labels": self.label}
            fields = {name: value for name, value in given.items() if value}
        if self.apply_softmax:
            fields["apply_softmax"] = True
        if self.apply_template:
            fields["apply_template"] = True
        return fields


@app.command()
@expand_options
def score(
    *,
    model: Annotated[
        str,
        typer.Argument(help="Folder of a checkpoint, or its Hub id; by default the demo model."),
    ] = DEMO_MODEL,
    request: RequestOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    prompt_template: PromptTemplate = None,
    source: SourceConfig,
    engine: EngineConfig,
) -> None:
    """Score the items of one request and print them.

    For example: itemwise score MODEL --query "is it a fruit?" --item apple --item car
    --label " yes" --label " no" --apply-softmax
    """
    from itemwise.cli.output import print_scores

    fields = request.fields()
    settings = {**asdict(engine), **asdict(source), "prompt_template": prompt_template}
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
            "--items-file",
            help="File with one item per line, in addition to ITEMs. - reads standard input.",
        ),
    ] = None,
    model: Annotated[
        str,
        option("model-path", "Folder of a checkpoint, or its Hub id.", "model"),
    ] = DEMO_MODEL,
    top_n: Annotated[
        int | None, typer.Option("--top-n", help="How many to print.", show_default="all", min=1)
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            "--instruction",
            help="What counts as a match, for models whose prompt has a place for it.",
            show_default="the model's own words",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON list of index, text, score, margin and cut."),
    ] = False,
    prompt_template: PromptTemplate = None,
    source: SourceConfig,
    engine: EngineConfig,
) -> None:
    """Rank items by how well they match a query, best first.

    The model is asked and read by its profile, or by its prompt template. For example:
    itemwise rank --query "desk lamp" "Brass lamp for the desk" "Desk with drawers" "Tea kettle"
    """
    from itemwise.cli.output import print_ranking, read_lines

    texts = [*(items or []), *(read_lines(items_file) if items_file else [])]
    if not texts:
        fail("there are no items; give texts or --items-file")
    settings = {**asdict(engine), **asdict(source), "prompt_template": prompt_template}
    print_ranking(
        model, settings, query, texts, as_json=as_json, top_n=top_n, instruction=instruction
    )


@checkpoint_app.command("random")
def checkpoint_random(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; new or empty.")],
    like: Annotated[
        str,
        typer.Option(
            "--like",
            help="Shape: qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, qwen2.5-0.5b, qwen2.5-1.5b, "
            "qwen2.5-3b, llama-3.2-1b, tiny-qwen3, tiny-qwen2 or tiny-llama.",
        ),
    ],
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random weights.")] = 0,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option("--dtype", help="Type of the weights on disk."),
    ] = "bfloat16",
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", help="Vocabulary size.", show_default="the shape's own"),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            "--shards",
            help="Number of weight files.",
            show_default="files of at most 2 GiB",
        ),
    ] = None,
) -> None:
    """Write a random checkpoint of a well-known shape; its scores mean nothing."""
    from itemwise.checkpoint.shapes import write_named
    from itemwise.progress import progress

    with progress() as on_progress:
        write_named(
            like,
            folder,
            seed=seed,
            dtype=dtype,
            vocab_size=vocab_size,
            shards=shards,
            on_progress=on_progress,
        )
    typer.echo(f"Wrote a random {like} to {folder}")


@checkpoint_app.command("convert")
def checkpoint_convert(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write to; new or empty.")],
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            "--dtype",
            help="Type of the weights that are quantised in the file. float32 holds their values "
            "as they are, bfloat16 rounds them and takes half the memory.",
        ),
    ] = "float32",
) -> None:
    """Convert a GGUF file into a model folder with safetensors and a tokenizer.

    By hand; serve --model-path FILE.gguf does so by itself and keeps the result. Needs the package
    gguf: install itemwise[gguf].
    """
    from itemwise.checkpoint.gguf_file import convert
    from itemwise.progress import progress

    with progress() as on_progress:
        convert(file, folder, dtype=dtype, on_progress=on_progress)
    typer.echo(f"Wrote {folder}")

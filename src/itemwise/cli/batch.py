"""The command `batch`: scores the rows of files."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer

from itemwise import __version__
from itemwise.cli.options import ApplySoftmax, PromptTemplate, expand_options, option
from itemwise.config import DEMO_MODEL, EngineConfig, SourceConfig
from itemwise.errors import ConfigError

# Settings of the engine that change no bit; a job may go on with others.
WITHOUT_EFFECT = (
    "max_multi_item_count",
    "disable_radix_cache",
    "mem_fraction_static",
    "kv_cache_bytes",
    "skip_self_check",
    "compilation_cache_dir",
)


@dataclass(frozen=True)
class RowOptions:
    """Options that say how rows become requests."""

    query_column: Annotated[
        str | None,
        typer.Option(
            "--query-column",
            help="Column with the query of each row, which is then a pair of query and item. "
            "Without it, each row is the body of a request to --endpoint.",
        ),
    ] = None
    item_column: Annotated[
        str | None, typer.Option("--item-column", help="Column with the item of each row.")
    ] = None
    id_column: Annotated[
        list[str] | None,
        typer.Option(
            "--id-column",
            help="Column to repeat in the output; repeat it for several. All columns by default.",
        ),
    ] = None
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            help="Path whose format rows have, such as /v1/score or /v1/rerank. With "
            "--query-column: /v1/score with labels, else /v1/rerank.",
            show_default="/v1/score",
        ),
    ] = None
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Text of one token; repeat it for each label."),
    ] = None
    apply_softmax: ApplySoftmax = False
    apply_template: Annotated[
        bool,
        typer.Option(
            "--apply-template", help="Put query and items into the model's prompt template."
        ),
    ] = False
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            help="Field of every request, as NAME=VALUE; the value is JSON, or else text. Rows "
            "that have it themselves keep theirs.",
        ),
    ] = None
    prefix: Annotated[
        str, typer.Option("--prefix", help="Goes in front of the names of the result columns.")
    ] = ""

    def fields(self) -> dict[str, Any]:
        """The fields of every request.

        Raises:
            ConfigError: a `--field` has no `=`.
        """
        fields: dict[str, Any] = {}
        for text in self.field or ():
            name, equals, value = text.partition("=")
            if not (name and equals):
                raise ConfigError(f"`--field` is {text!r}, expected NAME=VALUE")
            try:
                fields[name] = orjson.loads(value)
            except orjson.JSONDecodeError:
                fields[name] = value
        if self.label:
            fields["labels"] = self.label
        for name in ("apply_softmax", "apply_template"):
            if getattr(self, name):
                fields[name] = True
        return fields


@dataclass(frozen=True)
class RayOptions:
    """Options of engines on a Ray cluster."""

    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Score on engines of a Ray cluster: its address, auto for the one that this "
            "machine is in, or local for one that is started here. Needs the extra `ray`.",
            show_default="in this process",
        ),
    ] = None
    ray_engines: Annotated[
        int, typer.Option("--ray-engines", help="Engines on the cluster.", min=1)
    ] = 1
    ray_device: Annotated[
        Literal["cpu", "gpu", "tpu"],
        typer.Option("--ray-device", help="Device of each engine."),
    ] = "cpu"
    ray_cpus: Annotated[
        float, typer.Option("--ray-cpus", help="Processors that Ray reserves for each engine.")
    ] = 1.0


@expand_options
def batch(
    *,
    source_url: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="File, folder or pattern such as 'rows/*.parquet', or a URL of one: JSON lines, "
            "CSV or Parquet, by the name.",
        ),
    ],
    output_url: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT", help="File or URL to write, of the format that its name says."
        ),
    ],
    model: Annotated[
        str, option("model-path", "Folder of a checkpoint, or its Hub id.", "model")
    ] = DEMO_MODEL,
    rows: RowOptions,
    window: Annotated[
        int,
        typer.Option(
            "--window",
            help="Rows that are sorted by query, scored together and then kept. More rows share "
            "more; fewer take less memory and less is lost when the job is killed. It changes no "
            "score.",
            min=1,
        ),
    ] = 16_384,
    max_errors: Annotated[
        int | None,
        typer.Option(
            "--max-errors",
            help="Rows that may fail before the job stops.",
            show_default="any number",
            min=0,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an unfinished job has done.")
    ] = False,
    ray: RayOptions,
    prompt_template: PromptTemplate = None,
    source: SourceConfig,
    engine: EngineConfig,
) -> None:
    """Score the rows of files; killed at any time, the same command goes on where it was.

    The output has the input's columns, then the results: a score or scores (or a result, the body
    of an answer), whether a text was cut, and an error for rows that failed. Exits with 0 if all
    rows have scores or no more than --max-errors failed, 1 if rows failed and no limit was given,
    2 if the job stopped. For example:

    itemwise batch pairs.parquet scores.parquet --query-column query --item-column title
    """
    from itemwise.offline.rows import RowForm
    from itemwise.offline.run import Task

    form = RowForm(rows.endpoint, rows.query_column, rows.item_column, rows.fields(), rows.prefix)
    task = Task(source_url, output_url, form, rows.id_column, window, max_errors, restart)
    settings = {**asdict(engine), **asdict(source), "prompt_template": prompt_template}
    raise typer.Exit(_run(task, model, settings, ray))


def _row_scorer(form: Any, model: str, settings: dict[str, Any], on: RayOptions) -> Any:
    """What scores rows: an engine of this process, or engines on Ray."""
    if on.ray is not None:
        from itemwise.ray.rows import RayRows, connect
        from itemwise.ray.settings import Engines

        connect(on.ray)
        engines = Engines(on.ray_engines, device=on.ray_device, num_cpus=on.ray_cpus)
        return RayRows(form, model, engines, settings)
    from itemwise.offline.rows import RowScorer
    from itemwise.progress import progress
    from itemwise.scorer import Scorer

    with progress() as on_progress:
        scorer = Scorer.from_pretrained(model, on_progress=on_progress, **settings)
    return RowScorer(scorer, form, model)


def _run(task: Any, model: str, settings: dict[str, Any], ray: RayOptions) -> int:
    """Runs the job; the exit status."""
    from itemwise.offline.run import BatchRun

    run = BatchRun(task)
    score = _row_scorer(task.form, model, settings, ray)
    scorer = score.scorer
    job = run.open(_facts(model, settings, scorer.info()))
    if job.num_rows:
        typer.echo(f"Going on after row {job.num_rows:,}", err=True)
    computed = scorer.info()["computed_tokens"]
    try:
        done = run.run(job, score)
    except KeyboardInterrupt:
        typer.echo(f"Stopped after row {job.num_rows:,}; run the same command to go on", err=True)
        return 130
    finally:
        job.close()
    computed = scorer.info()["computed_tokens"] - computed
    saved = 1 - computed / score.num_tokens if score.num_tokens else 0.0
    rate = score.num_items / done.seconds
    typer.echo(
        f"{done.num_rows:,} rows in {task.output}, {done.num_failed:,} with an error. This run: "
        f"{done.num_new:,} rows, {score.num_items:,} items in {done.seconds:.1f} s "
        f"({rate:,.0f} items/s); {computed:,} of {score.num_tokens:,} tokens computed, "
        f"{saved:.0%} shared; peak memory {_peak_mib():,.0f} MiB"
    )
    return int(done.num_failed > 0 and task.max_failed is None)


def _facts(model: str, settings: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """What scores depend on beside the rows: the model's files, settings, versions and device."""
    from itemwise.checkpoint.locate import locate

    folder = locate(model, revision=settings["revision"], download_dir=settings["download_dir"])
    files = sorted(path for path in folder.iterdir() if path.is_file())
    template: Path | None = settings["prompt_template"]
    facts = {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}
    facts |= {name: info[name] for name in ("device", "cpu_level", "attention", "step_shape")}
    return {
        **facts,
        "prompt_template": template and template.read_text(encoding="utf-8"),
        "model": model,
        "model_files": {path.name: list(_version(path)) for path in files},
        "itemwise": __version__,
        "jax": info["jax_version"],
    }


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _peak_mib() -> float:
    """The most memory that this process has had."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)

"""The commands of the validation runbook: evaluate, compare, check, matrix, validate."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from itemwise.cli.options import expand_options, numbers, option
from itemwise.config import DEMO_MODEL, DType
from itemwise.progress import progress

if TYPE_CHECKING:
    from itemwise.validation.evaluate import Amount
    from itemwise.validation.validate import Settings

FAILED = 1  # exit status if a measured value does not pass


@dataclass(frozen=True)
class AmountOptions:
    """Options for the amount of measuring."""

    item_counts: Annotated[
        str,
        option(
            "item-counts",
            "Numbers of items to time, comma-separated. The speed-up check needs 32; fewer and "
            "smaller numbers take less time.",
        ),
    ] = "1,8,32,64,128"
    rounds: Annotated[int, option("rounds", "Timed requests per number of items.", min=1)] = 3
    warmup: Annotated[int, option("warmup", "Warm-up requests per number of items.", min=0)] = 1
    sweep: Annotated[
        Literal["none", "quick", "full"],
        option(
            "sweep",
            "Further sizes to score together and alone: quick takes about 30 requests; full "
            "reaches 512 items, items of 200 tokens and queries of 4000 tokens.",
        ),
    ] = "quick"
    timeout: Annotated[
        float, option("timeout", "Maximum seconds of one request; a later answer is an error.")
    ] = 600.0
    api_key: Annotated[
        str | None,
        option(
            "api-key",
            "Key to send as `Authorization: Bearer KEY`. Best set through the environment.",
            show_default="no key",
        ),
    ] = None

    def amount(self) -> Amount:
        """The options as the type of `validation.evaluate`."""
        from itemwise.validation.evaluate import Amount

        return Amount(
            numbers(self.item_counts, "item-counts"), self.rounds, self.warmup, self.sweep
        )


@dataclass(frozen=True)
class ValidateOptions:
    """Options of `validate` and `matrix`."""

    workload: Annotated[
        str,
        option(
            "workload",
            "default (token ids of Qwen's vocabulary), demo (short texts, tokenised by the "
            "model's tokenizer), a JSON file, or auto: default if it fits the vocabulary, else "
            "demo.",
        ),
    ] = "auto"
    dtype: Annotated[DType, option("dtype", "The --dtype of both servers.")] = "auto"
    chunk_size: Annotated[
        int,
        option(
            "chunk-size",
            "The multi server's --multi-item-scoring-chunk-size; the original runbook ran 2. "
            "Results do not depend on it.",
            min=0,
        ),
    ] = 0
    serial_item_counts: Annotated[
        str | None,
        option(
            "serial-item-counts",
            "Numbers of items to time on the serial server, which takes one request per item.",
            show_default="--item-counts",
        ),
    ] = None
    torch_model: Annotated[
        str | None,
        option(
            "torch-model",
            "Checkpoint for PyTorch, a folder or a Hub id.",
            show_default="the model itself",
        ),
    ] = None
    health_timeout: Annotated[
        float, option("health-timeout", "Maximum seconds until a started server is healthy.")
    ] = 600.0
    server_args: Annotated[
        str,
        option(
            "server-args",
            "More flags for both servers, as one string: --server-args '--kv-cache-bytes 1000000'.",
        ),
    ] = ""
    strict: Annotated[
        bool,
        option("strict", "Pass only if Itemwise's own, stricter bounds are met, too."),
    ] = False

    def settings(self, amount: AmountOptions) -> Settings:
        """The options as the type of `validation.validate`."""
        from itemwise.validation.validate import Settings

        serial = self.serial_item_counts
        return Settings(
            workload=self.workload,
            amount=amount.amount(),
            serial_item_counts=None if serial is None else numbers(serial, "serial-item-counts"),
            dtype=self.dtype,
            chunk_size=self.chunk_size,
            torch_model=self.torch_model,
            timeout_s=amount.timeout,
            health_timeout_s=self.health_timeout,
            server_arguments=tuple(shlex.split(self.server_args)),
            strict=self.strict,
        )


def add_validation_commands(app: typer.Typer) -> None:
    """Adds the five commands."""
    for command in (evaluate, compare, check, matrix, validate):
        app.command()(command)


@expand_options
def evaluate(
    mode: Annotated[
        Literal["multi", "serial"],
        option(
            "mode",
            "multi sends all items in one request; serial, the baseline, sends one request per "
            "item.",
        ),
    ],
    url: Annotated[str, option("url", "URL of the scoring endpoint: http://HOST:PORT/v1/score.")],
    output_json: Annotated[
        Path,
        option(
            "output-json",
            "File for the results; rewritten after each stage, so that a failure loses nothing.",
        ),
    ],
    amount: AmountOptions,
    model: Annotated[
        str | None,
        option(
            "model",
            "Model name in requests. If it is a folder, the demo workload uses its tokenizer "
            "and compare its weights.",
            show_default="none",
        ),
    ] = None,
    workload: Annotated[
        str,
        option(
            "workload",
            "default (Qwen's token ids), demo (texts, for small vocabularies), or a JSON file.",
        ),
    ] = "default",
    dialect: Annotated[
        Literal["sglang", "vllm"],
        option(
            "dialect",
            "Format of requests and answers: sglang (Itemwise and SGLang, /v1/score) or vllm "
            "(/generative_scoring, which returns only the first label's score).",
        ),
    ] = "sglang",
) -> None:
    """Measure isolation and speed of one endpoint, of Itemwise or another server, as JSON."""
    from itemwise.checkpoint.locate import locate
    from itemwise.validation.client import ScoreClient
    from itemwise.validation.evaluate import evaluate as run
    from itemwise.validation.screens import print_evaluation
    from itemwise.validation.workloads import load_workload

    is_local = model == DEMO_MODEL or (model is not None and Path(model).is_dir())
    chosen = load_workload(workload, locate(model) if model and is_local else None)
    settings = amount.amount()
    client = ScoreClient(
        url, model, dialect=dialect, api_key=amount.api_key, timeout_s=amount.timeout
    )
    with client, progress() as on_progress:
        results = run(
            client,
            mode,
            workload=chosen,
            amount=settings,
            output=output_json,
            on_progress=on_progress,
        )
    print_evaluation(results, output_json)


def compare(
    multi_json: Annotated[Path, option("multi-json", "Results of evaluate --mode multi.")],
    serial_json: Annotated[Path, option("serial-json", "Results of evaluate --mode serial.")],
    output_multi_vs_serial_json: Annotated[
        Path, option("output-multi-vs-serial-json", "File for the comparison of multi with serial.")
    ],
    output_jax_torch_parity_json: Annotated[
        Path | None,
        option(
            "output-jax-torch-parity-json",
            "File for the comparison with PyTorch, which needs the `validate` extra.",
            show_default="not compared",
        ),
    ] = None,
    torch_model: Annotated[
        str | None,
        option(
            "torch-model",
            "Checkpoint for PyTorch, a folder or a Hub id.",
            show_default="the evaluated model",
        ),
    ] = None,
) -> None:
    """Compare multi results with serial ones, and both with PyTorch in float32 and bfloat16."""
    from itemwise.validation.compare import compare_multi_serial, compare_with_torch
    from itemwise.validation.files import read_json, write_json
    from itemwise.validation.screens import print_comparison

    multi, serial = read_json(multi_json), read_json(serial_json)
    both = compare_multi_serial(multi, serial)
    write_json(output_multi_vs_serial_json, both)
    parity = None
    if output_jax_torch_parity_json is not None:
        with progress() as on_progress:
            parity = compare_with_torch(multi, serial, torch_model, on_progress)
        write_json(output_jax_torch_parity_json, parity)
    print_comparison(both, parity)


def check(
    multi_vs_serial_json: Annotated[
        Path, option("multi-vs-serial-json", "File that compare wrote for multi against serial.")
    ],
    jax_torch_parity_json: Annotated[
        Path,
        option("jax-torch-parity-json", "File that compare wrote for the parity with PyTorch."),
    ],
    strict: Annotated[
        bool, option("strict", "Use Itemwise's own bounds instead of the runbook's.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Check the five thresholds of the runbook; exit status 0 only if all pass."""
    from itemwise.validation.check import run_checks, summary
    from itemwise.validation.files import read_json
    from itemwise.validation.screens import print_checks, print_json

    checks = run_checks(
        read_json(multi_vs_serial_json), read_json(jax_torch_parity_json), strict=strict
    )
    found = summary(checks)
    if as_json:
        print_json(found)
    else:
        print_checks(checks)
    if not found["all_pass"]:
        raise typer.Exit(FAILED)


@expand_options
def matrix(
    models: Annotated[list[str], typer.Argument(help="Folders of checkpoints, or Hub ids.")],
    amount: AmountOptions,
    how: ValidateOptions,
    output: Annotated[
        Path,
        option("output", "Folder for the table and a folder of results per model."),
    ] = Path("reports/matrix"),
    fresh: Annotated[
        bool,
        option("fresh", "Run all models again, even those that have results with these settings."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Validate several models and print one table; a model that fails does not stop the others.

    Run it again to continue an interrupted run: it keeps complete results with the same settings.
    """
    from itemwise.validation.matrix import run_matrix
    from itemwise.validation.screens import print_json, print_matrix

    with progress() as on_progress:
        found = run_matrix(
            models,
            how.settings(amount),
            folder=output,
            fresh=fresh,
            api_key=amount.api_key,
            on_progress=on_progress,
        )
    if as_json:
        print_json(found)
    else:
        print_matrix(found, output)
    if not found["all_pass"]:
        raise typer.Exit(FAILED)


@expand_options
def validate(
    amount: AmountOptions,
    how: ValidateOptions,
    model: Annotated[
        str,
        typer.Argument(help="Folder of a checkpoint, or its Hub id; by default the demo model."),
    ] = DEMO_MODEL,
    output: Annotated[
        Path | None,
        option("output", "Folder for the report.", show_default="reports/MODEL-DATE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Run the whole runbook on a model: two servers, evaluation, comparison, checks, report.

    Exit status 0 only if all five checks and all further probes pass; 1 if one fails; 2 on errors.
    """
    from itemwise.validation.screens import print_json, print_validation
    from itemwise.validation.validate import validate as run

    with progress() as on_progress:
        result = run(
            model,
            how.settings(amount),
            folder=output,
            api_key=amount.api_key,
            on_progress=on_progress,
        )
    if as_json:
        print_json(result)
    else:
        print_validation(result)
    if not result["all_pass"]:
        raise typer.Exit(FAILED)

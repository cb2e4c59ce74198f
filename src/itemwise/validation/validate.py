"""The whole runbook in one call: two servers, two evaluations, comparison, checks, report."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from itemwise.checkpoint.locate import locate
from itemwise.config import DEMO_MODEL
from itemwise.errors import ConfigError
from itemwise.machine import environment
from itemwise.progress import ProgressFn, silent
from itemwise.validation.check import run_checks, summary
from itemwise.validation.client import ScoreClient
from itemwise.validation.compare import compare_multi_serial, compare_with_torch
from itemwise.validation.evaluate import Amount, Mode, evaluate
from itemwise.validation.files import Json, read_json, write_json
from itemwise.validation.report import write_report
from itemwise.validation.servers import ChildServer, free_port, sigterm_unwinds
from itemwise.validation.torch_parity import check_fits, require_torch
from itemwise.validation.workloads import Workload, load_workload, workload_for

RESULT_FILE = "validation.json"


@dataclass(frozen=True)
class Settings:
    """How a model is validated.

    Attributes:
        workload: `auto` (`default` if it fits the vocabulary, else `demo`), `default`,
            `demo`, or a file.
        amount: how much to measure.
        serial_item_counts: numbers of items to time on the serial server; None for those of
            `amount`. Serial takes one step per item.
        dtype: both servers' `--dtype`.
        chunk_size: the multi server's `--multi-item-scoring-chunk-size`.
        torch_model: checkpoint for PyTorch; None for the model itself.
        timeout_s: maximum seconds of one request.
        health_timeout_s: maximum seconds until a server is healthy.
        server_arguments: more arguments for both servers.
        strict: the verdict also requires Itemwise's own bounds.
    """

    workload: str = "auto"
    amount: Amount = field(default_factory=Amount)
    serial_item_counts: tuple[int, ...] | None = None
    dtype: str = "auto"
    chunk_size: int = 0
    torch_model: str | None = None
    timeout_s: float = 600.0
    health_timeout_s: float = 600.0
    server_arguments: tuple[str, ...] = ()
    strict: bool = False

    def serial_amount(self) -> Amount:
        """How much to measure on the serial server."""
        return replace(self.amount, item_counts=self.serial_item_counts or self.amount.item_counts)


def validate(
    model: str = DEMO_MODEL,
    settings: Settings | None = None,
    *,
    folder: Path | None = None,
    api_key: str | None = None,
    on_progress: ProgressFn = silent,
) -> Json:
    """Validates a model and returns the result, which is also in the folder's `validation.json`.

    The two servers run one after the other, so that neither takes memory or time from the other,
    and are always stopped. JSON and report cover everything that was measured.

    Args:
        model: folder or Hub id; by default the demo model.
        settings: of the validation.
        folder: for the report; None for `reports/<model>-<date>`.
        api_key: that the servers require.
        on_progress: called during long work.

    Raises:
        ConfigError: something is missing or wrong; raised before anything is started.
        CheckpointError: the model cannot be found or read.
        EndpointError: a server did not start, or was lost.
    """
    run = _Run(model, settings or Settings(), folder, api_key, on_progress)
    with sigterm_unwinds():
        return run.run()


def slug(model: str) -> str:
    """A model's name as a part of a file name."""
    parts = [part for part in re.split(r"[/\\]", model) if part not in ("", ".", "..")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1] if parts else "model")


def require_extra() -> None:
    """Returns if the `validate` extra is installed.

    Raises:
        ConfigError: it is not.
    """
    require_torch()
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"`{error.name}` is not installed, but the report needs it: pip install "
            "'.[validate]' in Itemwise's folder"
        ) from error


class _Run:
    """One validation: its model, its folder, and its results so far."""

    def __init__(
        self,
        model: str,
        settings: Settings,
        folder: Path | None,
        api_key: str | None,
        on_progress: ProgressFn,
    ) -> None:
        require_extra()
        self.settings, self.api_key, self.on_progress = settings, api_key, on_progress
        self.model = model
        self.stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        checkpoint_folder = locate(self.model)
        check_fits(locate(settings.torch_model or self.model), "float32")
        self.workload = _workload(settings.workload, checkpoint_folder)
        self.folder = folder or Path("reports") / f"{slug(self.model)}-{self.stamp}"
        self.results: dict[str, Json] = {}
        names = {
            "multi": "multi_item_eval_results",
            "serial": "serial_score_eval_results",
            "multi_vs_serial": "multi_vs_serial_eval_results",
            "parity": "jax_torch_parity_results",
        }
        self.result: Json = {
            "model": self.model,
            "name": slug(self.model),
            "complete": False,
            "error": None,
            "all_pass": False,
            "folder": str(self.folder),
            "stamp": self.stamp,
            "files": {name: f"{start}_{self.stamp}.json" for name, start in names.items()},
            "settings": settings_json(settings),
            "workload": self.workload.name,
            "commands": [],
            "environment": environment(),
        }

    def run(self) -> Json:
        start = time.monotonic()
        steps: list[Callable[[], None]] = [
            lambda: self._evaluate("multi", self.settings.amount),
            lambda: self._evaluate("serial", self.settings.serial_amount()),
            self._compare,
            self._check,
        ]
        try:
            for step in steps:
                step()
        except BaseException as error:
            self.result["error"] = str(error) or type(error).__name__
            self.result["seconds"] = round(time.monotonic() - start, 1)
            self._save()
            raise
        self.result["complete"] = True
        self.result["seconds"] = round(time.monotonic() - start, 1)
        self._save()
        return self.result

    def _save(self) -> None:
        write_json(self.folder / RESULT_FILE, self.result)
        write_report(self.folder, self.result, self.results)

    def _path(self, name: str) -> Path:
        return self.folder / str(self.result["files"][name])

    def _evaluate(self, mode: Mode, amount: Amount) -> None:
        server = ChildServer(
            self._serve_arguments(mode),
            self.folder / f"{mode}-server.log",
            free_port(),
            health_timeout_s=self.settings.health_timeout_s,
            api_key=self.api_key,
        )
        self.result["commands"] += [
            server.shown_command,
            self._shown_evaluate(mode, server, amount),
        ]
        output = self._path(mode)
        client = ScoreClient(
            server.url, self.model, api_key=self.api_key, timeout_s=self.settings.timeout_s
        )
        try:
            with client, server:
                server.wait_healthy(self.on_progress)
                evaluate(
                    client,
                    mode,
                    workload=self.workload,
                    amount=amount,
                    output=output,
                    on_progress=self.on_progress,
                )
        finally:
            if output.exists():
                self.results[mode] = read_json(output)

    def _serve_arguments(self, mode: Mode) -> list[str]:
        """The runbook's flags."""
        settings = self.settings
        flags = ["serve", "--model-path", self.model, "--trust-remote-code"]
        flags += ["--dtype", settings.dtype, "--tp-size", "1"]
        if mode == "multi":
            if self.workload.delimiter is not None:
                flags += ["--multi-item-scoring-delimiter", str(self.workload.delimiter)]
            flags += ["--multi-item-scoring-chunk-size", str(settings.chunk_size)]
            flags += ["--disable-radix-cache", "--chunked-prefill-size", "-1"]
        return [*flags, "--attention-backend", "fa", *settings.server_arguments]

    def _shown_evaluate(self, mode: Mode, server: ChildServer, amount: Amount) -> str:
        counts = ",".join(map(str, amount.item_counts))
        words = ["itemwise", "evaluate", "--mode", mode, "--url", f"{server.url}/v1/score"]
        words += ["--model", self.model, "--workload", self.workload.name]
        words += ["--item-counts", counts, "--rounds", str(amount.rounds)]
        words += ["--warmup", str(amount.warmup), "--sweep", amount.sweep]
        return shlex.join([*words, "--output-json", str(self._path(mode))])

    def _compare(self) -> None:
        multi, serial = self.results["multi"], self.results["serial"]
        words = ["itemwise", "compare", "--multi-json", str(self._path("multi"))]
        words += ["--serial-json", str(self._path("serial"))]
        words += ["--output-multi-vs-serial-json", str(self._path("multi_vs_serial"))]
        words += ["--output-jax-torch-parity-json", str(self._path("parity"))]
        torch_model = self.settings.torch_model
        words += [] if torch_model is None else ["--torch-model", torch_model]
        self.result["commands"].append(shlex.join(words))
        self.results["multi_vs_serial"] = compare_multi_serial(multi, serial)
        write_json(self._path("multi_vs_serial"), self.results["multi_vs_serial"])
        self.results["parity"] = compare_with_torch(multi, serial, torch_model, self.on_progress)
        write_json(self._path("parity"), self.results["parity"])

    def _check(self) -> None:
        words = ["itemwise", "check", "--multi-vs-serial-json", str(self._path("multi_vs_serial"))]
        words += ["--jax-torch-parity-json", str(self._path("parity"))]
        self.result["commands"].append(shlex.join(words))
        pair = (self.results["multi_vs_serial"], self.results["parity"])
        plain, strict = (summary(run_checks(*pair, strict=strict)) for strict in (False, True))
        self.result |= {"checks": plain["checks"], "strict_checks": strict["checks"]}
        self.result["checks_pass"] = plain["all_pass"]
        self.result["strict_pass"] = strict["all_pass"]
        self.result["probes_pass"] = probes_pass(self.results["multi"])
        self.result["all_pass"] = bool(
            plain["all_pass"]
            and self.result["probes_pass"]
            and (strict["all_pass"] or not self.settings.strict)
        )


def probes_pass(multi: Json) -> bool:
    """Whether no further probe changed a score and the control detected its leak."""
    found = [*multi.get("probes", {}).values(), multi.get("sweeps") or {}]
    moved = any(probe.get("pass") is False for probe in found)
    return not moved and bool(multi.get("negative_control", {}).get("detects_leak"))


def _workload(name: str, folder: Path) -> Workload:
    return workload_for(folder) if name == "auto" else load_workload(name, folder)


def settings_json(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values."""
    fields = asdict(settings)
    fields["amount"]["item_counts"] = list(settings.amount.item_counts)
    fields["serial_item_counts"] = list(settings.serial_amount().item_counts)
    fields["server_arguments"] = list(settings.server_arguments)
    return fields

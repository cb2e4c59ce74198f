"""Files in `deploy/` name metrics, flags, paths and alerts that exist."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from typer.testing import CliRunner

from itemwise.cli.app import app
from itemwise.config import ServerConfig
from itemwise.scorer import Scorer
from itemwise.server.metrics import Metrics
from itemwise.server.process import EXIT_S
from itemwise.server.record import Record
from itemwise.server.service import Service
from itemwise.types import StepStats
from tests.server.fakes import WAIT_S

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def exported(make_checkpoint: Callable[[str], Path], small: dict[str, Any]) -> set[str]:
    """Names of all samples that `/metrics` can have, with a real engine."""
    scorer = Scorer.from_pretrained(str(make_checkpoint("tiny-qwen3")), **small)
    loaded = threading.Event()
    service = Service(ServerConfig("m"), lambda: scorer, lambda _: loaded.set())
    metrics = Metrics(service)
    service.start()
    assert loaded.wait(WAIT_S)
    record = Record("id", "POST", "/v1/score", status=200, items=1, stages={"queue": 0.1})
    metrics.on_start(record)
    metrics.on_end(record)
    metrics.on_step(StepStats(0.1, 4, 0.5, 0.5, 1))
    names = {line.split("{")[0].split(" ")[0] for line in metrics.text().decode().splitlines()}
    service.drain()
    return names


def metric_names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:itemwise|process)_[a-z_]+\b", text))


def test_dashboard_shows_metrics_that_exist(exported: set[str]) -> None:
    board = json.loads((DEPLOY / "grafana" / "itemwise.json").read_text())
    queries = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    named = metric_names(" ".join(queries))
    assert len(named) > 15
    assert named - exported == set()


def test_alerts_watch_metrics_that_exist_and_are_explained(exported: set[str]) -> None:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    page = (ROOT / "docs" / "operations.md").read_text()
    for rule in group["rules"]:
        assert metric_names(rule["expr"]) - exported == set(), rule["alert"]
        assert f"| `{rule['alert']}` |" in page
    explained = set(re.findall(r"\| `(Itemwise\w+)` \|", page))
    assert explained == {rule["alert"] for rule in group["rules"]}


def test_operations_page_lists_every_metric(exported: set[str]) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    named = metric_names(page)
    ours = {name for name in exported if name.startswith("itemwise_")}
    bases = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in ours}
    assert named - exported - bases == set()
    assert bases - named == set()


@pytest.fixture(scope="module")
def flags() -> str:
    return CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output


def test_manifests_use_flags_and_paths_that_exist(flags: str) -> None:
    parts = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "itemwise.yaml").read_text()))
    assert [part["kind"] for part in parts] == ["Deployment", "Service", "PodDisruptionBudget"]
    pod = parts[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["enableServiceLinks"] is False  # a Service `itemwise` would set ITEMWISE_PORT
    for argument in container["args"]:
        assert argument.split("=")[0] in flags
    probes = {k: v["httpGet"]["path"] for k, v in container.items() if k.endswith("Probe")}
    assert probes == {
        "startupProbe": "/health",
        "readinessProbe": "/health",
        "livenessProbe": "/live",
    }
    drain = next(int(a.split("=")[1]) for a in container["args"] if "drain" in a)
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= wait + drain + EXIT_S


def test_unit_and_image_use_flags_that_exist(flags: str) -> None:
    unit = (DEPLOY / "itemwise.service").read_text()
    image = (DEPLOY / "Dockerfile").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, flags=re.MULTILINE)
    for flag in re.findall(r"--[a-z-]+", command):
        assert flag in flags
    for variable in re.findall(r"ITEMWISE_[A-Z_]+", unit + image):
        assert variable in flags, variable
    (drain,) = re.findall(r"--drain-timeout (\d+)", command)
    (stop,) = re.findall(r"TimeoutStopSec=(\d+)", unit)
    assert int(stop) >= int(drain) + EXIT_S


def test_pages_say_how_long_the_process_takes_to_end() -> None:
    assert EXIT_S == 8
    for path in ("docs/operations.md", "deploy/itemwise.service", "src/itemwise/config.py"):
        assert "eight seconds" in (ROOT / path).read_text(), path


def test_image_copies_files_that_exist() -> None:
    image = (DEPLOY / "Dockerfile").read_text()
    sources = [
        s for line in re.findall(r"^COPY (?!--)(.*) \S+$", image, re.M) for s in line.split()
    ]
    assert sources
    ignored = (ROOT / ".dockerignore").read_text()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored

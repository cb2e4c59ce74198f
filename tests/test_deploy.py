"""Files in `deploy/` name metrics, flags, paths and alerts that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import tomllib
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


def manifests() -> dict[str, Any]:
    """The parts of the Kubernetes manifest by kind."""
    text = (DEPLOY / "kubernetes" / "itemwise.yaml").read_text()
    return {part["kind"]: part for part in yaml.safe_load_all(text)}


def pod_and_container() -> tuple[dict[str, Any], dict[str, Any]]:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_manifests_use_flags_and_paths_that_exist(flags: str) -> None:
    assert [*manifests()] == ["Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"]
    pod, container = pod_and_container()
    assert pod["enableServiceLinks"] is False  # a Service `itemwise` would set ITEMWISE_PORT
    for argument in container["args"]:
        assert argument.split("=")[0] in flags
    for variable in container["env"]:
        assert variable["name"] in flags
    probes = {k: v["httpGet"]["path"] for k, v in container.items() if k.endswith("Probe")}
    assert probes == {
        "startupProbe": "/health",
        "readinessProbe": "/health",
        "livenessProbe": "/live",
    }
    drain = next(int(a.split("=")[1]) for a in container["args"] if "drain" in a)
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= wait + drain + EXIT_S


def test_probes_and_policy_use_the_port_of_the_image() -> None:
    _, container = pod_and_container()
    (port,) = container["ports"]
    assert port == {"name": "http", "containerPort": ServerConfig().port}
    assert all(v["httpGet"]["port"] == "http" for k, v in container.items() if k.endswith("Probe"))
    (exposed,) = manifests()["Service"]["spec"]["ports"]
    assert exposed["targetPort"] == "http"
    (rule,) = manifests()["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http"}]
    image = (DEPLOY / "Dockerfile").read_text()
    for pattern in (r"^EXPOSE (\d+)", r"127\.0\.0\.1:(\d+)/health", r"ITEMWISE_PORT=(\d+)"):
        assert re.findall(pattern, image, re.M) == [str(ServerConfig().port)]


def test_pod_meets_the_restricted_standard() -> None:
    """What the `restricted` Pod Security Standard asks for, and two things more."""
    pod, container = pod_and_container()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"persistentVolumeClaim", "emptyDir", "configMap", "secret", "projected"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert pod["automountServiceAccountToken"] is False
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/cache", "/tmp"}


def test_manifests_pin_the_image_and_require_the_key() -> None:
    _, container = pod_and_container()
    name, _, tag = container["image"].partition(":")
    assert name == "itemwise"
    assert tag not in ("", "latest")
    (key,) = [v for v in container["env"] if v["name"] == "ITEMWISE_API_KEY"]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "itemwise", "key": "api-key"}


def test_a_node_with_the_only_replica_can_be_drained() -> None:
    budget = manifests()["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] >= 1
    assert "minAvailable" not in budget


def test_all_selectors_find_the_pod() -> None:
    parts = manifests()
    labels = parts["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert parts["Service"]["spec"]["selector"] == labels
    for kind, field in (
        ("Deployment", "selector"),
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
    ):
        assert parts[kind]["spec"][field]["matchLabels"] == labels


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


def test_image_is_pinned_and_runs_as_a_number() -> None:
    image = (DEPLOY / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", image, re.M)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert {line.split()[0] for line in re.findall(r"^FROM (.*)$", image, re.M)} == {
        "${PYTHON_IMAGE}"
    }
    pod, _ = pod_and_container()
    (user,) = re.findall(r"^USER (.*)$", image, re.M)
    assert user == str(pod["securityContext"]["runAsUser"])
    for command in re.findall(r"pip install ([^&]*)", image):
        assert "--require-hashes" in command or "-c /src/constraints/" in command


def test_image_writes_where_any_user_number_may() -> None:
    image = (DEPLOY / "Dockerfile").read_text()
    (volume,) = re.findall(r"^VOLUME (\S+)$", image, re.M)
    for variable in ("HOME", "XDG_CACHE_HOME"):
        assert re.findall(rf"\b{variable}=(\S+)", image) == [volume]
    assert f"install -d -m 1777 {volume}\n" in image
    _, container = pod_and_container()
    assert volume in {mount["mountPath"] for mount in container["volumeMounts"]}


def requirements(name: str) -> dict[str, str]:
    """Versions by package of a file in `constraints/`."""
    text = (ROOT / "constraints" / name).read_text()
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.M)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_image_installs_the_tested_versions_by_hash() -> None:
    image, tested = requirements("image.txt"), requirements("py312.txt")
    assert {package: tested.get(package) for package in image} == image
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^A-Za-z0-9._-]", line)[0] for line in project["dependencies"]}
    assert {re.sub(r"[-_.]+", "-", package).lower() for package in needed} <= image.keys()
    text = (ROOT / "constraints" / "image.txt").read_text()
    for entry in re.split(r"^(?=\w)", text, flags=re.M)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def unit() -> dict[str, list[str]]:
    """Settings of the systemd unit; one may be given several times."""
    settings: dict[str, list[str]] = {}
    for line in (DEPLOY / "itemwise.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


def test_unit_is_confined() -> None:
    settings = unit()
    for name in (
        *("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices"),
        *("ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups"),
        *("LockPersonality", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
    ):
        assert settings[name] == ["yes"], name
    assert settings["ProtectSystem"] == ["strict"]
    assert settings["CapabilityBoundingSet"] == [""]
    assert settings["SystemCallFilter"] == ["@system-service"]
    assert settings["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX"]
    assert "MemoryMax" in settings
    cache = f"/var/cache/{settings['CacheDirectory'][0]}"
    assert settings["Environment"] == [f"XDG_CACHE_HOME={cache}"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "itemwise.service").read_text()
    copy = tmp_path / "itemwise.service"
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")

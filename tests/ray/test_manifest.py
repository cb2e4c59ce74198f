"""The manifest for KubeRay has settings, paths and ports that exist, and exposes nothing else."""

from __future__ import annotations

import importlib
from typing import Any

import yaml  # type: ignore[import-untyped]
from ray.serve.schema import ServeDeploySchema

from itemwise.ray.settings import app_config
from itemwise.server.process import EXIT_S
from tests.test_deploy import DEPLOY, requirements


def ray_parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """The RayService of KubeRay, and the configuration of Serve in it."""
    text = (DEPLOY / "kubernetes" / "rayservice.yaml").read_text()
    parts = {part["kind"]: part for part in yaml.safe_load_all(text)}
    assert [*parts] == ["RayService", "NetworkPolicy"]
    return parts["RayService"]["spec"], yaml.safe_load(parts["RayService"]["spec"]["serveConfigV2"])


def ray_pods() -> dict[str, Any]:
    """Pods of the head and of the workers, by the name of their container."""
    cluster = ray_parts()[0]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    return {pod["containers"][0]["name"]: pod for pod in pods}


def test_ray_manifest_has_settings_and_an_application_that_exist() -> None:
    spec, serve = ray_parts()
    (application,) = serve["applications"]
    module, _, name = application["import_path"].partition(":")
    config = app_config(application["args"])
    assert callable(getattr(importlib.import_module(module), name))
    assert ServeDeploySchema.model_validate(serve).applications[0].args == application["args"]
    cluster = spec["rayClusterConfig"]
    assert cluster["rayVersion"] == requirements("py311.txt")["ray"]
    (workers,) = cluster["workerGroupSpecs"]
    # An engine of each worker, and all processors of it.
    assert (workers["minReplicas"], workers["maxReplicas"]) == (
        config.replicas.min_replicas,
        config.replicas.max_replicas,
    )
    assert float(workers["rayStartParams"]["num-cpus"]) == config.replicas.num_cpus
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    worker = ray_pods()["ray-worker"]
    assert worker["terminationGracePeriodSeconds"] >= config.server.drain_timeout_s + EXIT_S
    assert spec["rayClusterDeletionDelaySeconds"] >= config.server.drain_timeout_s + EXIT_S


def test_ray_pods_are_confined_and_have_their_files() -> None:
    pods = ray_pods()
    assert [*pods] == ["ray-head", "ray-worker"]
    args = ray_parts()[1]["applications"][0]["args"]
    for pod in pods.values():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["enableServiceLinks"] is False
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {args["model_path"], "/keys", "/cache", "/tmp"} <= mounts
        assert args["api_key_file"].startswith("/keys/")
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }
        assert container["image"] == "itemwise:0.1.0-ray"
    (container,) = pods["ray-worker"]["containers"]
    port = ray_parts()[1]["http_options"]["port"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": port}


def test_only_the_cluster_reaches_the_ports_of_ray() -> None:
    text = (DEPLOY / "kubernetes" / "rayservice.yaml").read_text()
    policy = next(p for p in yaml.safe_load_all(text) if p["kind"] == "NetworkPolicy")["spec"]
    inside, outside = policy["ingress"]
    assert outside["ports"] == [{"port": ray_parts()[1]["http_options"]["port"]}]
    assert {"podSelector": policy["podSelector"]} in inside["from"]
    assert all("podSelector" in source for source in inside["from"])
    cluster = ray_parts()[0]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"]
        assert labels == policy["podSelector"]["matchLabels"]

"""Plans: what fits, how many replicas, and where each figure comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from itemwise.bench.compare.workloads import WORKLOADS
from itemwise.capacity.arrivals import Load
from itemwise.capacity.devices import DEVICES, Source, find_device
from itemwise.capacity.plan import Goal, Site, make_plan, site_of
from itemwise.capacity.replica import Clock, SimulatedCore
from itemwise.capacity.report import model_config, read_site, write_site
from itemwise.cli.app import app
from itemwise.config import EngineConfig
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.tpu.roofline import CHIPS, Workload, work_of
from itemwise.types import ScoreRequest
from tests.capacity.small import COST, ENGINE, LOAD

SESSION = Path(__file__).parents[2] / "docs" / "results" / "2026-11-27-gpu-session-h100.json"
LIGHT = replace(LOAD, num_items=1, item_tokens=80)  # the same tokens in fewer rows
SITE = Site("a model", "a device", 1, ENGINE, COST, ())


def alone_s(model: str, device: str, requests: list[ScoreRequest]) -> float:
    """Seconds of requests that are scored together, by the figures of a device."""
    load = Load(1.0, 300, 10, 20)
    site = site_of(model, model_config(model), find_device(device), load, EngineConfig())
    clock = Clock()
    core = SimulatedCore(site.engine, site.cost, clock)
    left = [work for request in requests if (work := core.open(request)) is not None]
    assert len(left) == len(requests)
    while left:
        outcome = core.step(left)
        assert not outcome.failed
        left = [work for work in left if work not in outcome.finished]
    return clock.now


def requests_of(name: str) -> list[ScoreRequest]:
    return [
        ScoreRequest(one.query, one.items, ((0, 1),) * len(one.items))
        for one in WORKLOADS[name].requests(1000)
    ]


@pytest.mark.parametrize("name", ["contract-64", "contract", "short", "mixed"])
def test_figures_of_the_h100_give_the_speeds_that_were_measured(name: str) -> None:
    found = json.loads(SESSION.read_text())["runs"][0]["stages"]["speed"]["items_per_s"]
    speed = WORKLOADS[name].num_items / alone_s("qwen3-0.6b", "h100", requests_of(name))
    assert speed == pytest.approx(found[f"{name}, query computed"], rel=0.2)


def test_figures_of_the_h100_give_the_speed_of_the_larger_model() -> None:
    speed = 500 / alone_s("qwen3-4b", "h100", requests_of("contract"))
    assert speed == pytest.approx(2400, rel=0.1)  # docs/gpu.md


def test_tpu_is_slower_than_its_roofline() -> None:
    model, load, name = model_config("qwen3-0.6b"), Load(1.0, 2000, 500, 20), "v6e"
    site = site_of("qwen3-0.6b", model, find_device(name), load, EngineConfig())
    least = work_of("exact step", model, site.engine.shapes[-1], Workload(), CHIPS[name], 1)
    assert alone_s("qwen3-0.6b", name, requests_of("contract")) > 1.2 * least.seconds


def small_model(vocab_size: int) -> ModelConfig:
    """A model of few layers, whose weights are nearly all in its vocabulary: 2 KiB a token."""
    return replace(model_config("qwen3-0.6b"), num_layers=2, vocab_size=vocab_size)


def test_model_that_needs_several_chips_gets_as_few_as_hold_it() -> None:
    model = small_model(12_000_000)  # 23 GiB
    assert site_of("a model", model, find_device("v5e"), LOAD, EngineConfig()).tp == 2
    assert site_of("a model", model, find_device("h100"), LOAD, EngineConfig()).tp == 1


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    odd = small_model(12_000_001)  # which no two chips can share
    with pytest.raises(ConfigError, match="does not fit v5e.*It fits h100 with --tp-size 1, v5p"):
        site_of("odd", odd, find_device("v5e"), LOAD, EngineConfig())
    with pytest.raises(ConfigError, match="does not fit h100.*on 8 chip.*no device"):
        site_of("huge", small_model(400_000_000), find_device("h100"), LOAD, EngineConfig())


def test_request_that_finds_no_pages_is_refused() -> None:
    with pytest.raises(ConfigError, match="a request needs 235 pages of 128 tokens.*199"):
        make_plan(SITE, replace(LOAD, query_tokens=30_000), Goal())


def test_unknown_device_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="h100, v5e, v5p, v6e, cpu"):
        find_device("abacus")


def test_more_requests_take_more_replicas_and_repeats_fewer() -> None:
    replicas = {
        (rate, share): make_plan(
            SITE, replace(LIGHT, rate=rate, repeat_share=share), Goal()
        ).replicas
        for rate, share in ((20.0, 0.0), (300.0, 0.0), (300.0, 0.9))
    }
    assert replicas[20.0, 0.0] < replicas[300.0, 0.9] < replicas[300.0, 0.0]


def test_bound_on_latency_takes_more_replicas() -> None:
    load = replace(LIGHT, rate=150.0, repeat_share=0.0)
    without = make_plan(SITE, load, Goal(0.9))
    latency = {figure.name: figure.value for figure in without.figures}["latency p99"]
    assert isinstance(latency, float)
    assert make_plan(SITE, load, Goal(0.9, 0.7 * latency)).replicas > without.replicas
    with pytest.raises(ConfigError, match="one request alone takes"):
        make_plan(SITE, load, Goal(0.9, 1.0))


def test_every_figure_says_where_it_comes_from() -> None:
    site = site_of("qwen3-0.6b", model_config("qwen3-0.6b"), DEVICES["v6e"], LOAD, EngineConfig())
    body = make_plan(site, LOAD, Goal()).to_json()
    assert {figure["source"] for figure in body["figures"]} == {*get_args(Source)} - {"measured"}
    names = [figure["name"] for figure in body["figures"]]
    assert len(names) == len(set(names))
    assert json.loads(json.dumps(body)) == body


def test_measurement_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_site(SITE, tmp_path / "site.json")
    assert read_site(tmp_path / "site.json") == SITE
    (tmp_path / "other.json").write_text('{"model": 1}')
    with pytest.raises(ConfigError, match="is no measurement"):
        read_site(tmp_path / "other.json")


def test_commands_plan_and_simulate_from_a_measurement(tmp_path: Path) -> None:
    path, out = tmp_path / "site.json", tmp_path / "out.json"
    write_site(SITE, path)
    done = CliRunner().invoke(app, ["plan", "demo", "--cost", str(path), "--qps", "5", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["replicas"] == 1
    simulate = ["bench", "simulate", "demo", "--cost", str(path), "--replicas", "1,2"]
    settings = ["--routing", "prefix", "--items", "1", "--requests", "1", "--json", str(out)]
    done = CliRunner().invoke(app, [*simulate, *settings])
    assert done.exit_code == 0, done.output
    assert [row["replicas"] for row in json.loads(out.read_text())["runs"]] == [1, 2]

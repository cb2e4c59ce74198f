"""The serving benchmarks against a server of a tiny model, and against faults."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

from itemwise.bench.serving import attack
from itemwise.bench.serving.attack import run_attack
from itemwise.bench.serving.client import Client, loopback_address
from itemwise.bench.serving.load import NO_ANSWER, closed_loop, count_wrong, open_loop
from itemwise.bench.serving.serve import run_serve
from itemwise.bench.serving.soak import run_soak
from itemwise.bench.serving.traffic import Run, Sample, Workload
from itemwise.cli.app import app
from itemwise.config import ServerConfig
from itemwise.errors import ConfigError
from itemwise.scorer import Scorer
from itemwise.server import metrics
from tests.conftest import VOCAB_SIZE
from tests.server.fakes import get, running_server, wait_until

WORKLOAD: dict[str, Any] = {"num_items": 3, "item_tokens": 4, "query_tokens": 40, "shared": 0.5}


@pytest.fixture(scope="module")
def url(make_checkpoint: Callable[[str], Path], small: dict[str, Any]) -> Iterator[str]:
    folder = str(make_checkpoint("tiny-qwen3"))
    scorer = Scorer.from_pretrained(folder, **small)
    config = ServerConfig(model_path=folder, max_queued_requests=8)
    with running_server(config, lambda: scorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


def test_workload_is_a_function_of_its_number() -> None:
    workload = Workload(VOCAB_SIZE, num_items=2, item_tokens=3, query_tokens=5, shared=0.5)
    bodies = [workload.body(n) for n in range(8)]
    assert bodies == [workload.body(n) for n in range(8)]
    assert [len(item) for item in bodies[0]["items"]] == [3, 3]
    queries = [tuple(body["query"]) for body in bodies]
    assert len(set(queries)) == 5, "four share one, four have their own"


def test_loads_answer_with_the_bits_of_items_alone(url: str, tmp_path: Path) -> None:
    out, chart = tmp_path / "report.json", tmp_path / "chart.png"
    fine = run_serve(
        url,
        clients=[1, 4],
        rates=[30.0],
        seconds=1.0,
        max_requests=12,
        workload=WORKLOAD,
        check=4,
        out_json=out,
        chart=chart,
    )
    assert fine
    report = json.loads(out.read_text())
    assert [row["clients"] for row in report["runs"]] == [1, 4, None]
    for row in report["runs"]:
        assert row["codes"] == {"ok": row["requests"]}
        assert (row["checked"], row["wrong"]) == (4, 0)
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
        assert row["items_per_s"] == pytest.approx(3 * row["achieved_per_s"])
        assert -1 < row["server_overhead_ms"]["p50"] < row["latency_ms"]["p99"]
    assert chart.stat().st_size > 1000


def test_beyond_the_limit_there_is_429_and_nothing_wrong(url: str) -> None:
    # Requests that take longer to score than to send, even on a busy machine.
    workload = Workload(VOCAB_SIZE, **{**WORKLOAD, "num_items": 50})
    run = asyncio.run(closed_loop(loopback_address(url), workload, 40, range(80), 60))
    codes = run.summary()["codes"]
    assert set(codes) == {"ok", "queue_full"}
    assert sum(codes.values()) == 80
    scored = [sample for sample in run.samples if sample.code == "ok"]
    assert asyncio.run(count_wrong(loopback_address(url), workload, scored[:5])) == 0


def test_wrong_bits_are_counted(url: str) -> None:
    workload = Workload(VOCAB_SIZE, **WORKLOAD)
    address = loopback_address(url)
    run = asyncio.run(closed_loop(address, workload, 1, range(2), 60))
    good = run.samples[0]
    moved = [[row[0] * (1 + 2**-23), *row[1:]] for row in good.scores]
    bad = Sample(good.number, "ok", 0.0, good.items, moved)
    assert asyncio.run(count_wrong(address, workload, [good, bad, run.samples[1]])) == 1


def test_open_loop_sends_at_the_rate_whether_answers_come_or_not(url: str) -> None:
    workload = Workload(VOCAB_SIZE, **WORKLOAD)
    run = asyncio.run(open_loop(loopback_address(url), workload, 100.0, range(30), 60))
    assert len(run.samples) == 30
    assert run.offered_per_s == 100


def test_server_that_is_gone_is_counted() -> None:
    workload = Workload(VOCAB_SIZE, **WORKLOAD)
    run = asyncio.run(closed_loop(loopback_address("http://127.0.0.1:1"), workload, 2, range(4), 9))
    assert run.summary()["codes"] == {NO_ANSWER: 4}


def test_latency_percentiles() -> None:
    samples = [Sample(n, "ok", n / 1000, 2, engine_s=0.0) for n in range(101)]
    summary = Run(None, 1, 2.0, [*samples, Sample(1, "queue_full", 9.0)]).summary()
    assert summary["latency_ms"] == pytest.approx({"p50": 50, "p95": 95, "p99": 99})
    assert summary["items_per_s"] == 101
    assert summary["codes"] == {"ok": 101, "queue_full": 1}


@pytest.mark.parametrize("url", ["http://192.0.2.1:80", "ftp://127.0.0.1", "http://x.invalid"])
def test_load_goes_to_this_machine_alone(url: str) -> None:
    with pytest.raises(ConfigError):
        loopback_address(url)


@pytest.mark.slow
def test_soak_ends_well(url: str, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    run_soak(url, seconds=3, load=0.5, workload=WORKLOAD, out_json=out)
    report: dict[str, Any] = json.loads(out.read_text())
    # Three seconds say nothing about memory; the rest must hold.
    failed = {name for name, held in report["checks"].items() if not held}
    assert {name for name in failed if not name.startswith("memory")} == set()
    assert {"ok", "left", "invalid_items_type"} - set(report["codes"]) <= {"invalid_items_type"}
    assert report["requests"] > 5


@pytest.mark.parametrize("fault", [None, "HEALTH_P99_S", "SMALL_P99_S", "MAX_GROWTH_BYTES"])
def test_attack_is_measured(
    fault: str | None, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack, "SETTLE_S", 0.0)
    # Client and server share this process here, so no large bodies, and memory says little.
    monkeypatch.setattr(attack, "MAX_GROWTH_BYTES", 2**40)
    if fault is not None:
        monkeypatch.setattr(attack, fault, -(2**40))
    out = tmp_path / "attack.json"
    wanted = {"slow-head", "pipelined-probes", "nested", "many-labels"}
    without = tuple(name for name in attack.ATTACKS if name not in wanted)
    fine = run_attack(url, seconds=2, without=without, out_json=out)
    report: dict[str, Any] = json.loads(out.read_text())
    failed = [name for name, held in report["checks"].items() if not held]
    assert fine is (fault is None), failed
    assert len(failed) == (0 if fault is None else 1)
    assert report["health"]["count"] > 5
    assert report["small"]["count"] > 5
    assert "nested: too_many_values" in report["codes"]


def test_unknown_attack_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        run_attack(url, seconds=1, without=("nothing",), out_json=None)


@pytest.mark.parametrize(
    "name",
    [
        "itemwise_queue_requests",
        "itemwise_open_requests",
        "itemwise_http_requests_received_total",
        "itemwise_http_requests_total",
        "itemwise_scores_received_total",
        "itemwise_scores_ended_total",
        'itemwise_pages{state="used"}',
        "process_resident_memory_bytes",
    ],
)
def test_soak_without_a_metric_fails(
    name: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metric that is renamed must not count as one that is zero."""
    renamed = re.compile(rf"^{re.escape(name)}(?=[ {{])", re.MULTILINE)

    def generate(registry: CollectorRegistry) -> bytes:
        text, count = renamed.subn("renamed", generate_latest(registry).decode())
        assert count
        return text.encode()

    monkeypatch.setattr(metrics, "generate_latest", generate)
    with pytest.raises(ConfigError, match=name.partition("{")[0]):
        run_soak(url, seconds=1, load=0.5, workload=WORKLOAD, out_json=tmp_path / "soak.json")


def test_commands_say_what_is_wrong() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["bench", "serve", "--clients", "0"]).exit_code != 0
    assert "--rates" in runner.invoke(app, ["bench", "serve", "--help"]).output
    assert "--seconds" in runner.invoke(app, ["bench", "soak", "--help"]).output


def test_client_reads_answers_one_after_the_other(url: str) -> None:
    async def twice() -> list[int]:
        client = Client(loopback_address(url))
        found = [(await client.request("GET", path)).status for path in ("/health", "/nowhere")]
        client.close()
        return found

    assert asyncio.run(twice()) == [200, 404]

"""Itemwise compared with the PyTorch ways in one run: workload by workload, in turns.

Each way has its own process from the first turn to the last, so that its peak memory can be
measured. All score the same token ids. Between turns a process is idle.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itemwise.bench.compare.ways import ITEMWISE_WAYS
from itemwise.bench.compare.workloads import Workload, find_workloads
from itemwise.bench.pictures import pyplot, wide_console
from itemwise.checkpoint.locate import locate
from itemwise.checkpoint.read import read_config
from itemwise.errors import ConfigError, ItemwiseError
from itemwise.machine import environment
from itemwise.progress import say
from itemwise.types import Float32Array

TORCH_WAYS = ("serial", "padded", "expanded", "packed", "flex", "cascade")
WAYS = (*ITEMWISE_WAYS, *(f"torch-{name}" for name in TORCH_WAYS))
GIB = 1 << 30
# By default JAX reserves most of a GPU's memory at start, but all ways share it.
ITEMWISE_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# By default glibc returns large blocks to the kernel; torch is faster if it keeps them.
TORCH_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(32 * GIB),
    "MALLOC_TOP_PAD_": str(GIB // 4),
}


class WayProcess:
    """A way in its own process, see `ways.py`.

    Attributes:
        name: of the way.
        dtype: type of its activations.
        details: its description of itself.
        ready_s: seconds until it was ready.
    """

    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self.name = name
        command = [sys.executable, "-m", "itemwise.bench.compare.ways", name, str(folder)]
        more = ITEMWISE_ENVIRONMENT if name in ITEMWISE_WAYS else TORCH_ENVIRONMENT
        self._process = subprocess.Popen(
            [*command, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | more,
        )
        try:
            hello = self._answer()
        except BaseException:
            self.stop()
            raise
        self.dtype: str = hello["dtype"]
        self.details: dict[str, Any] = hello["details"]
        self.ready_s: float = hello["ready_s"]

    def ask(self, **command: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer.

        Raises:
            ItemwiseError: the process ended instead; its own message is on stderr.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the exit status is reported below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise ItemwiseError(
                f"`{self.name}` failed with exit status {status}; its own message is above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Measured:
    """The measurements of a way on a workload.

    Attributes:
        seconds: of each turn.
        scores: label probabilities, float32 [items, labels]; only of the first items if the way
            scores no more.
        peak_bytes: peak memory since it began the workload; for Itemwise on a GPU, since it
            started.
    """

    seconds: list[float] = field(default_factory=list)
    scores: Float32Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    peak_bytes: int = 0

    @property
    def items_per_s(self) -> float:
        """Items per second in the median turn."""
        return len(self.scores) / statistics.median(self.seconds)


Results = dict[str, dict[str, Measured]]  # by workload, then by way


def run_compare(
    model: str,
    *,
    workloads: Sequence[str] = ("contract",),
    ways: Sequence[str],
    rounds: int = 3,
    warmup: int = 1,
    max_items: int | None = None,
    out_json: Path | None = None,
    chart: Path | None = None,
    **engine: Any,
) -> dict[str, Any]:
    """Measures every way on every workload, prints tables, returns and writes the figures.

    A way that cannot run here is left out, and the report says so.

    Args:
        model: a local folder or a Hugging Face Hub id.
        workloads: names in `WORKLOADS`.
        ways: of `WAYS`.
        rounds: timed turns of each way.
        warmup: turns of each way before the timed ones.
        max_items: maximum items of a workload; its first ones are scored. None for all.
        out_json: file to write the figures to.
        chart: image to draw them in; needs the `validate` extra.
        **engine: fields of `EngineConfig`.

    Raises:
        ConfigError: an argument is wrong.
        CheckpointError: the model cannot be found.
        ItemwiseError: every way failed.
    """
    chosen = find_workloads(workloads)
    _check(ways, rounds, warmup, max_items)
    if chart is not None:
        pyplot()  # raises now if matplotlib is not installed
    folder = locate(model)
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        processes = []
        for name in ways:
            _note(f"starting {name}")
            try:
                process = WayProcess(name, folder, engine)
            except ItemwiseError as error:
                failed[name] = str(error)
                continue
            stack.callback(process.stop)
            processes.append(process)
        ceilings = _probe(processes, failed)
        results: Results = {
            workload.name: _measure(workload, processes, failed, rounds, warmup, max_items)
            for workload in chosen
        }
        for name, speed in _probe(processes, failed).items():
            ceilings[name] = max(speed, ceilings.get(name, 0.0))
    if not any(results.values()):
        raise ItemwiseError("no way could be measured: " + "; ".join(failed.values()))
    report = {
        "benchmark": "compare",
        **environment(),
        "model": model,
        "rounds": rounds,
        "warmup": warmup,
        "max_items": max_items,
        "torch_environment": TORCH_ENVIRONMENT,
        "ceilings": ceilings,
        "ways": {
            one.name: {"activations": one.dtype, "ready_s": one.ready_s, **one.details}
            for one in processes
        },
        "failed": failed,
        "workloads": [
            _workload_report(workload, results[workload.name], folder) for workload in chosen
        ],
    }
    _print_report(report)
    if out_json is not None:
        out_json.parent.mkdir(parents=True, exist_ok=True)
        out_json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if chart is not None:
        _draw(report, chart)
    return report


def _check(ways: Sequence[str], rounds: int, warmup: int, max_items: int | None) -> None:
    problems = []
    if not ways or len(set(ways)) < len(ways) or set(ways) - set(WAYS):
        problems.append(f"`ways` is {','.join(ways)!r}, expected some of {','.join(WAYS)}")
    if rounds < 1:
        problems.append(f"`rounds` is {rounds}, expected 1 or more")
    if warmup < 0:
        problems.append(f"`warmup` is {warmup}, expected 0 or more")
    if max_items is not None and max_items < 1:
        problems.append(f"`max_items` is {max_items}, expected 1 or more")
    if problems:
        raise ConfigError("; ".join(problems))


def _note(text: str) -> None:
    say(f"{time.strftime('%H:%M:%S')} {text}", sys.stderr)


def _probe(processes: Sequence[WayProcess], failed: dict[str, str]) -> dict[str, float]:
    """The machine's ceilings through each library, from the first way that uses it."""
    libraries = {
        one.name.partition("-")[0]: one for one in reversed(processes) if one.name not in failed
    }
    found: dict[str, float] = {}
    for process in libraries.values():
        try:
            found |= process.ask(do="probe")
        except ItemwiseError as error:
            failed[process.name] = f"probe: {error}"
    return found


def _measure(
    workload: Workload,
    processes: Sequence[WayProcess],
    failed: dict[str, str],
    rounds: int,
    warmup: int,
    max_items: int | None,
) -> dict[str, Measured]:
    """All turns of all ways on a workload; ways that fail are named in `failed`."""
    measured = {one.name: Measured() for one in processes if one.name not in failed}
    for turn in range(warmup + rounds):
        for process in processes:
            if process.name in failed:
                continue
            try:
                answer = process.ask(do="score", workload=workload.name, max_items=max_items)
            except ItemwiseError as error:
                failed[process.name] = f"{workload.name}: {error}"
                measured.pop(process.name)
                continue
            one = measured[process.name]
            one.scores = np.asarray(answer["scores"], np.float32)
            one.peak_bytes = answer["peak_bytes"]
            kind = f"round {turn - warmup + 1} of {rounds}" if turn >= warmup else "warm-up"
            if turn >= warmup:
                one.seconds.append(answer["seconds"])
            seconds, count = answer["seconds"], len(one.scores)
            _note(f"{workload.name}, {kind}, {process.name}: {count} items in {seconds:.2f} s")
    return measured


def _workload_report(
    workload: Workload, measured: dict[str, Measured], folder: Path
) -> dict[str, Any]:
    flops = workload.useful_flops(read_config(folder))
    ours = measured.get("itemwise")
    ways = {}
    for name, one in measured.items():
        whole = len(one.scores) == workload.num_items
        ways[name] = {
            "items": len(one.scores),
            "seconds": one.seconds,
            "items_per_s": one.items_per_s,
            "itemwise_over_it": ours.items_per_s / one.items_per_s if ours else None,
            # For only some of the items it would omit the work that all share.
            "useful_gflops_per_s": flops * one.items_per_s / workload.num_items / 1e9
            if whole
            else None,
            "peak_bytes": one.peak_bytes,
            "max_probability_difference": _difference(one, ours) if ours else None,
        }
    return {
        "workload": workload.name,
        "query_tokens": workload.query_tokens,
        "items": workload.num_items,
        "requests": workload.num_requests,
        "useful_tflop": flops / 1e12,
        "ways": ways,
    }


def _difference(one: Measured, ours: Measured) -> float:
    """Largest difference of a label probability, over the items that both scored."""
    count = min(len(one.scores), len(ours.scores))
    return float(np.abs(one.scores[:count] - ours.scores[:count]).max())


def _print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    console = wide_console()
    ceilings = report["ceilings"]
    best = max((speed for name, speed in ceilings.items() if "GFLOP" in name), default=0.0)
    for part in report["workloads"]:
        most = min(part["items"], report["max_items"] or part["items"])
        title = f"{part['workload']}: {most} items"
        if most == part["items"]:
            title += f", {part['useful_tflop']:.2f} TFLOP"
        table = Table(title=title)
        table.add_column("way", no_wrap=True)
        table.add_column("type", no_wrap=True)
        for name in ("items/s", "spread", "Itemwise speed-up", "of ceiling", "peak GiB", "differs"):
            table.add_column(name, justify="right")
        for name, way in part["ways"].items():
            table.add_row(*_cells(name, way, report["ways"][name]["activations"], best))
        console.print(table)
    for name, speed in ceilings.items():
        console.print(f"ceiling, {name}: {speed:.0f}", highlight=False)
    for name, reason in report["failed"].items():
        console.print(f"left out because it failed, {name}: {reason}", highlight=False)


def _cells(name: str, way: dict[str, Any], dtype: str, best: float) -> list[str]:
    rate, seconds, useful = way["items_per_s"], way["seconds"], way["useful_gflops_per_s"]
    median = statistics.median(seconds)
    over, differs = way["itemwise_over_it"], way["max_probability_difference"]
    return [
        name,
        dtype,
        f"{rate:.3g}",
        f"{median / max(seconds) - 1:+.0%} {median / min(seconds) - 1:+.0%}",
        "-" if over is None or name == "itemwise" else f"{over:.2f}x",
        "-" if useful is None or not best else f"{useful / best:.0%}",
        f"{way['peak_bytes'] / GIB:.2f}",
        "-" if differs is None or name == "itemwise" else f"{differs:.1e}",
    ]


def _draw(report: dict[str, Any], path: Path) -> None:
    """Bars of items/s, one panel per workload."""
    plt = pyplot()
    parts = report["workloads"]
    figure, panels = plt.subplots(
        1, len(parts), figsize=(1 + 3.6 * len(parts), 3), squeeze=False, layout="constrained"
    )
    for axes, part in zip(panels[0], parts, strict=True):
        names = list(part["ways"])[::-1]
        rates = [part["ways"][name]["items_per_s"] for name in names]
        colors = ["#22a06b" if name == "itemwise" else "#9aa4b2" for name in names]
        bars = axes.barh(names, rates, color=colors)
        axes.bar_label(bars, [f"{rate:.3g}" for rate in rates], padding=3)
        axes.set_title(part["workload"])
        axes.set_xlabel("items/s")
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)

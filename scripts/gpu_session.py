"""Measures and checks Itemwise on an NVIDIA GPU, in stages, for machines that are at hand briefly.

    PYTHONPATH=src python3 scripts/gpu_session.py --out results --budget-s 500

Stages come in the order of their worth. Each runs in a process of its own with a time limit, and
its figures are in `OUT/gpu-session.json` at once: when time ends, what was measured is there.
Needs neither network nor web libraries, and makes its own random checkpoints. `--rehearse` runs
every stage with a tiny model on the device at hand, which may be a processor.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from itemwise.bench.compare.workloads import LABELS, WORKLOADS, BenchRequest
from itemwise.checkpoint.shapes import model_dict, write_named
from itemwise.machine import environment
from itemwise.types import ScoreRequest, ScoreResult

RESULTS = "gpu-session.json"
GIB = 1 << 30
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Session:
    """What a stage works with.

    Attributes:
        work: folder for checkpoints and traces.
        rehearse: whether to use tiny models and sizes.
        save: writes a stage's figures so far.
    """

    work: Path
    rehearse: bool
    save: Callable[[Figures], None]

    @property
    def model(self) -> str:
        """The model of most stages."""
        return "tiny-qwen3" if self.rehearse else "qwen3-0.6b"

    @property
    def checkpoint(self) -> Path:
        """Its folder, with random weights; written at the first use."""
        folder = self.work / self.model
        if not (folder / "config.json").exists():
            write_named(self.model, folder)
        return folder

    @property
    def settings(self) -> Figures:
        """Settings of every engine."""
        small = {"page_tokens": 32, "step_lanes": 8, "kv_cache_bytes": 1 << 24}
        return small if self.rehearse else {"kv_cache_bytes": 4 * GIB}

    def requests(self, workload: str) -> list[ScoreRequest]:
        """A workload of `itemwise bench compare`; the first items of it in a rehearsal."""
        whole = WORKLOADS[workload].requests(model_dict(self.model)["vocab_size"])
        if self.rehearse:
            whole = [BenchRequest(one.query[:100], one.items[:20]) for one in whole]
        return [
            ScoreRequest(one.query, one.items, (LABELS,) * len(one.items), apply_softmax=True)
            for one in whole
        ]


class Stage(NamedTuple):
    """A part of the session, and the seconds after which it is stopped."""

    run: Callable[[Session], None]
    limit_s: float


def ceilings(session: Session) -> None:
    """What the device reaches: products of the model's shapes by cuBLAS's choices, and a copy."""
    import jax
    import jax.numpy as jnp

    from itemwise.engine.platform import platform_of

    found: Figures = {**environment(), "device": jax.devices()[0].device_kind}
    query = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"
    found["nvidia_smi"] = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    session.save(found)
    chosen = dict(platform_of(jax.devices()[0]).compiler_options)
    options: dict[str, Figures] = {"as the engine": chosen}
    if chosen:
        options["fastest that XLA finds"] = {}
    config = model_dict(session.model)
    model, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    large = 256 if session.rehearse else 8192
    shapes = {"square": (large, large, large)}
    for rows in (64,) if session.rehearse else (4096, 8192, 16384):
        for name, outer, into in (
            ("q", heads, model),
            ("k", kv, model),
            ("out", model, heads),
            ("gate", inner, model),
            ("down", model, inner),
        ):
            shapes[f"{name} of {rows} rows"] = (rows, outer, into)
    found["tflops"] = {}
    for name, (rows, outer, into) in shapes.items():
        count = 1 if name == "square" else 16
        x = jax.random.normal(jax.random.key(0), (rows, into), jnp.bfloat16)
        weights = list(jax.random.normal(jax.random.key(1), (count, outer, into), jnp.bfloat16))

        def products(x: Any, weights: Any) -> Any:
            return [jnp.einsum("ti,oi->to", x, one) for one in weights]

        for label, flags in options.items():
            compiled = jax.jit(products).lower(x, weights).compile(compiler_options=flags)
            seconds = _median_seconds(functools.partial(compiled, x, weights))
            found["tflops"][f"{name}, {label}"] = 2 * count * rows * outer * into / seconds / 1e12
            session.save(found)
    one = jnp.ones(((1 << 20) if session.rehearse else GIB // 4,), jnp.float32)
    copy = jax.jit(lambda a: a + 1).lower(one).compile()
    found["copy_gb_per_s"] = 2 * one.nbytes / _median_seconds(lambda: copy(one)) / 1e9
    session.save(found)


def exactness(session: Session) -> None:
    """Self-check, bits in every company, a planted leak, and bits of two processes."""
    found: Figures = _bits_in_company(session)
    session.save(found)
    found["planted_leak_is_seen"] = not _leaky_engine_is_exact(session)
    session.save(found)
    digests = [_digest_of_process(session) for _ in range(2)]
    found["digests_of_processes"] = digests
    found["processes_agree"] = len(set(digests)) == 1
    session.save(found)


def _bits_in_company(session: Session) -> Figures:
    engine = _engine(session)
    info = engine.info()
    rng = np.random.default_rng(0)
    vocab_size = info["model_config"]["vocab_size"]
    page = info["step_shape"]["page_tokens"]

    def request(query: int, lengths: Sequence[int]) -> ScoreRequest:
        items = [rng.integers(0, vocab_size, n).tolist() for n in lengths]
        labels = ((0, vocab_size - 1),) * len(items)
        return ScoreRequest(rng.integers(0, vocab_size, query).tolist(), items, labels)

    requests = [
        request(query, rng.integers(0, longest, 24).tolist())
        for query in (1, page - 1, page, 5 * page // 2, 9 * page)
        for longest in (4, 40, page, 2 * page)
    ]
    together = [result.scores for result in engine.score(requests)]
    wrong: Figures = {"alone": 0, "reversed": 0, "computed again": 0}
    for one, scores in zip(requests, together, strict=True):
        wrong["computed again"] += not _same(engine.score([one])[0].scores, scores)
        backwards = ScoreRequest(one.query, list(one.items)[::-1], one.labels)
        engine.forget_prefixes()
        wrong["reversed"] += not _same(engine.score([backwards])[0].scores[::-1], scores)
        alone = [ScoreRequest(one.query, [item], one.labels[:1]) for item in list(one.items)[:6]]
        engine.forget_prefixes()
        wrong["alone"] += not _same([engine.score([a])[0].scores[0] for a in alone], scores[:6])
    return {
        "attention": info["attention"],
        "startup_s": info["startup_s"],
        "self_check": info["self_check"],
        "requests": len(requests),
        "requests_with_other_bits": wrong,
    }


def _leaky_engine_is_exact(session: Session) -> bool:
    """Whether items score alike alone and together when a row sees what lies before it."""
    from itemwise.engine import lowering
    from itemwise.models.decoder import forward

    def leaky(weights: Any, pages: Any, arrays: Any, shape: Any, options: Any) -> Any:
        index = arrays.granule_start // shape.granule_tokens
        return forward(weights, pages, arrays._replace(granule_index=index), shape, options)

    (one,) = session.requests("contract-64")
    few = ScoreRequest(one.query, list(one.items)[:8], one.labels[:8])
    with mock.patch.object(lowering, "forward", leaky):
        engine = _engine(session, skip_self_check=True, compilation_cache_dir="")
    together = engine.score([few])[0].scores
    alone = [
        engine.score([ScoreRequest(few.query, [item], few.labels[:1])])[0].scores[0]
        for item in few.items
    ]
    return _same(alone, together)


def _digest_of_process(session: Session) -> str:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import gpu_session; "
        "print(gpu_session.digest(sys.argv[2], sys.argv[3] == 'True'))"
    )
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, here, str(session.work), str(session.rehearse)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def digest(work: str, rehearse: bool) -> str:
    """The bits of a workload's scores, from an engine that finds nothing compiled."""
    session = Session(Path(work), rehearse, save=lambda _: None)
    results = _engine(session, compilation_cache_dir="").score(session.requests("contract-64"))
    return hashlib.sha256(np.asarray(results[0].scores).tobytes()).hexdigest()


def speed(session: Session) -> None:
    """Items per second through `Scorer`, cold and with the query known, and kernels of a run."""
    import jax

    from itemwise.scorer import Scorer

    scorer = Scorer.from_pretrained(str(session.checkpoint), **session.settings)
    engine = scorer.engine
    found: Figures = {"engine": scorer.info(), "items_per_s": {}}
    for workload in ("contract-64", "contract", "contract-2000", "short", "long", "mixed"):
        requests = session.requests(workload)
        count = sum(len(request.items) for request in requests)
        for state, forget in (("query computed", True), ("query known", False)):
            run = functools.partial(_score, engine, requests, forget)
            seconds = _median_seconds(run, total_s=1.0)
            found["items_per_s"][f"{workload}, {state}"] = count / seconds
            session.save(found)
    found["latency_ms"] = {}
    for query, items in ((300, 16), (1000, 16), (30, 4)):
        request = session.requests("contract")[0]
        items = min(items, len(request.items))
        small = ScoreRequest(
            request.query[:query], list(request.items)[:items], request.labels[:items]
        )
        for state, forget in (("query computed", True), ("query known", False)):
            seconds = _median_seconds(functools.partial(_score, engine, [small], forget))
            found["latency_ms"][f"{query} + {items} x 20, {state}"] = 1000 * seconds
    (contract,) = session.requests("contract")
    fields = {
        "query": contract.query.tolist(),
        "items": [item.tolist() for item in contract.items],
        "label_token_ids": list(LABELS),
        "apply_softmax": True,
    }
    for name, more in (("softmax", {}), ("log-sum-exp", {"apply_softmax": False})):

        def score(more: Figures = more) -> None:
            engine.forget_prefixes()
            scorer.score(**(fields | more))

        seconds = _median_seconds(score, total_s=1.0)
        found["items_per_s"][f"contract from Python lists, {name}"] = len(fields["items"]) / seconds
        session.save(found)
    folder = session.work / "trace"
    with jax.profiler.trace(str(folder)):
        for _ in range(3):
            _score(engine, [contract], True)
    found["trace_of_three_contracts"] = _read_trace(folder)
    session.save(found)
    folder = session.work / "small-trace"
    _score(engine, [small], False)
    with jax.profiler.trace(str(folder)):
        for _ in range(10):
            _score(engine, [small], False)
    found["trace_of_ten_small_requests"] = _read_trace(folder)
    session.save(found)


def _score(engine: Any, requests: list[ScoreRequest], forget: bool) -> list[ScoreResult]:
    if forget:
        engine.forget_prefixes()
    results: list[ScoreResult] = engine.score(requests)
    return results


def _read_trace(folder: Path) -> Figures:
    """Milliseconds and calls by kernel, and how much of the time any kernel ran."""
    from jax.profiler import ProfileData

    (path,) = sorted(folder.rglob("*.xplane.pb"))
    planes = list(ProfileData.from_file(str(path)).planes)
    device = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    times: dict[str, list[float]] = {}
    spans: list[tuple[float, float]] = []
    for plane in device or planes:
        for line in plane.lines:
            if device and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                name = re.sub(r"[._]?\d+$", "", event.name)
                times.setdefault(name, []).append(event.duration_ns / 1e6)
                spans.append((event.start_ns, event.start_ns + event.duration_ns))
    busy, end = 0.0, 0.0
    for start, stop in sorted(spans):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - min(start for start, _ in spans)
    largest = sorted(times.items(), key=lambda entry: -sum(entry[1]))[:40]
    return {
        "planes": [plane.name for plane in planes],
        "milliseconds": whole / 1e6,
        "busy_milliseconds": busy / 1e6,
        "kernels": [{"name": n, "calls": len(ms), "ms": sum(ms)} for n, ms in largest],
    }


def compare(session: Session) -> None:
    """Itemwise beside PyTorch's ways, in turns."""
    from itemwise.bench.compare.compare import run_compare

    ways = ["itemwise", "torch-packed", "torch-cascade"]
    names = ["runbook-8"] if session.rehearse else ["contract-64", "contract", "short"]
    # Each way's settings for the most memory; the engine's own defaults otherwise.
    settings = session.settings if session.rehearse else {}
    report = run_compare(
        str(session.checkpoint), workloads=names, ways=ways, rounds=5, warmup=2, **settings
    )
    session.save(report)


def attention(session: Session) -> None:
    """The step's attention alone, on a step of the contract workload, under other tiles."""
    import jax
    import jax.numpy as jnp

    from itemwise.config import EngineConfig
    from itemwise.engine.platform import PLATFORMS, step_shapes
    from itemwise.engine.step_packer import Context, RowPlan, StepPacker
    from itemwise.ops.step import gpu as gpu_step
    from itemwise.ops.step.base import Pages, to_storage

    config = model_dict(session.model)
    *_, shape = step_shapes(EngineConfig(), PLATFORMS["gpu"], 4096)
    if session.rehearse:
        shape = dataclasses.replace(shape, tokens=256, lanes=8)
    pages, lens = tuple(range(1, 17)), (128,) * 15 + (80,)
    packer, row = StepPacker(shape), list(range(20))
    while packer.fits(plan := RowPlan(row, 2000, Context(pages, lens), score_id=0)):
        packer.add(plan)
    arrays = jax.tree.map(jnp.asarray, packer.take().arrays)
    heads, kv, size = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    keys = iter(jax.random.split(jax.random.key(0), 5))

    def draw(*shape: int) -> Any:
        return jax.random.normal(next(keys), shape, jnp.bfloat16)

    q, k, v = (draw(shape.tokens, n, size) for n in (heads, kv, kv))
    pool = Pages(*(to_storage(draw(32, kv, shape.page_tokens, size)) for _ in range(2)))
    nothing = jnp.zeros((), jnp.int32)
    parts = {
        "all": arrays,
        "context": arrays._replace(num_granules=nothing),
        "own rows": arrays._replace(context_lens=jnp.zeros_like(arrays.context_lens)),
    }
    found: Figures = {"microseconds": {}}

    def run(q: Any, k: Any, v: Any, pool: Any, arrays: Any) -> Any:
        walk = gpu_step.lane_walk(arrays, shape)
        for _ in range(10):
            q = gpu_step.attend_gpu(q, k, v, pool, walk, shape, interpret=session.rehearse)
        return q

    tiles = _tiles()
    for name in list(tiles)[:1] if session.rehearse else tiles:
        try:
            with ExitStack() as stack:
                for constant, value in tiles[name].items():
                    stack.enter_context(mock.patch.object(gpu_step, constant, value))
                # A new function each time: of a known one, JAX would find the trace.
                compiled = jax.jit(functools.partial(run)).lower(q, k, v, pool, arrays).compile()
            figures = {}
            for part, changed in parts.items():
                call = functools.partial(compiled, q, k, v, pool, changed)
                figures[part] = _median_seconds(call, total_s=0.1) / 10 * 1e6
        except Exception as error:  # a choice that does not compile is a finding
            figures = {"failed": f"{type(error).__name__}: {error}"[:300]}
        found["microseconds"][name] = figures
        session.save(found)


def _tiles() -> dict[str, Figures]:
    names = ("NUM_WARPS", "NUM_STAGES", "CONTEXT_KEYS", "OWN_GRANULES")
    choices = ((8, 2, 128, 2), (8, 3, 128, 2), (8, 2, 128, 1), (8, 2, 64, 2), (4, 3, 64, 1))
    return {
        "{} warps, {} stages, {} keys, {} granules".format(*choice): dict(
            zip(names, choice, strict=True)
        )
        for choice in choices
    }


def small_steps(session: Session) -> None:
    """Items, of some two thousand, whose bits differ between the large step and smaller ones.

    As it is, with places for as many scored rows in each; and with fewer places in smaller ones.
    Small steps stay whatever the self-check says of them, which is noted.
    """
    from itemwise.engine import start

    choose, check = start.choose_platform, start.run_self_check
    found: Figures = {"sums_with_other_bits": _products_by_rows(session)}
    session.save(found)
    for name, same in (("as it is", True), ("with fewer scored rows", False)):

        def chosen(*arguments: Any, same: bool = same) -> Any:
            return dataclasses.replace(
                choose(*arguments),
                small_steps=(64, 128) if session.rehearse else (256, 1024),
                short_lanes=False,
                same_scored_rows=same,
            )

        verdicts = []

        def passing(*arguments: Any, verdicts: list[Any] = verdicts, **options: Any) -> Any:
            verdicts.append(check(*arguments, **options))
            return dataclasses.replace(verdicts[-1], status="passed", checks={})

        with (
            mock.patch.object(start, "choose_platform", chosen),
            mock.patch.object(start, "run_self_check", passing),
        ):
            engine = _engine(session, compilation_cache_dir="")  # and so no verdict
        requests = session.requests("contract-2000") + session.requests("short")
        together = [result.scores for result in engine.score(requests)]
        different = checked = 0
        for request, scores in zip(requests, together, strict=True):
            for i in range(len(scores)):
                one = ScoreRequest(
                    request.query, [request.items[i]], request.labels[:1], apply_softmax=True
                )
                different += not _same(engine.score([one])[0].scores[0], scores[i])
                checked += 1
        sizes = [one["tokens"] for one in engine.info()["small_steps"]]
        found[name] = {
            "sizes": sizes,
            "failures_of_the_self_check": verdicts[0].failures,
            "items": checked,
            "with_other_bits": different,
        }
        session.save(found)


def _products_by_rows(session: Session) -> Figures:
    """Elements of the model's products that have other bits where the product has fewer rows.

    Of float32 sums, rounded to bfloat16 where the model rounds them.
    """
    import jax
    import jax.numpy as jnp

    from itemwise.engine.platform import platform_of

    options = dict(platform_of(jax.devices()[0]).compiler_options)
    config = model_dict(session.model)
    model, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    found: Figures = {}
    for name, outer, into, kept in (
        ("q", heads, model, jnp.bfloat16),
        ("k", kv, model, jnp.bfloat16),
        ("out", model, heads, jnp.float32),
        ("gate", inner, model, jnp.bfloat16),
        ("down", model, inner, jnp.float32),
    ):
        x = jax.random.normal(jax.random.key(0), (4096, into), jnp.bfloat16)
        weight = jax.random.normal(jax.random.key(1), (outer, into), jnp.bfloat16)
        added = jax.random.normal(jax.random.key(2), (4096, outer), kept)

        def product(x: Any, weight: Any, added: Any, kept: Any = kept) -> Any:
            sums = jnp.einsum("ti,oi->to", x, weight, preferred_element_type=kept)
            return added + sums if kept == jnp.float32 else sums

        def run(rows: int, arguments: tuple[Any, ...], product: Any = product) -> Any:
            cut = arguments[0][:rows], arguments[1], arguments[2][:rows]
            return jax.jit(product).lower(*cut).compile(compiler_options=options)(*cut)

        for rows, many in ((256, 4096), (1024, 4096), (64, 1024), (256, 1024)):
            few = run(rows, (x, weight, added))
            different = int((few != run(many, (x, weight, added))[:rows]).sum())
            found[f"{name}, {rows} rows against {many}"] = different / few.size
    return found


def sweep(session: Session) -> None:
    """The contract workload under other tiles, steps and compiler options."""
    from itemwise.engine import start

    found: Figures = {"variants": {}}
    load, variants = _load_once(), _variants()
    for name in list(variants)[:2] if session.rehearse else variants:
        began = time.perf_counter()
        try:
            with mock.patch.object(start, "load_weights", load):
                figures = _run_variant(session, variants[name])
        except Exception as error:  # a choice that does not compile is a finding
            figures = {"failed": f"{type(error).__name__}: {error}"[:500]}
        found["variants"][name] = figures | {"stage_s": time.perf_counter() - began}
        session.save(found)
        gc.collect()


class Variant(NamedTuple):
    """Settings of an engine, constants of the kernel, and compiler options beside the usual."""

    settings: Figures = {}
    constants: Figures = {}
    options: Figures = {}


def _variants() -> dict[str, Variant]:
    tiles = {name: Variant(constants=constants) for name, constants in _tiles().items()}
    steps = {
        f"steps of {lanes * 128} tokens": Variant({"step_lanes": lanes}) for lanes in (16, 24, 48)
    }
    flags = {
        "command buffers off": {"xla_gpu_enable_command_buffer": ""},
        "autotuned cuBLAS": {"xla_gpu_autotune_level": 4},
        "latency hiding": {"xla_gpu_enable_latency_hiding_scheduler": True},
    }
    options = {name: Variant(options=more) for name, more in flags.items()}
    return {"as it is": Variant(), **tiles, **steps, **options}


def _load_once() -> Callable[..., Any]:
    """`load_weights`, whose later calls return what the first one read."""
    from itemwise.engine.weights import load_weights

    loaded: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        if not loaded:
            loaded.append(load_weights(*arguments, **options))
        return loaded[0]

    return load


def _run_variant(session: Session, variant: Variant) -> Figures:
    from itemwise.engine import start
    from itemwise.ops.step import gpu as gpu_step

    choose = start.choose_platform

    def chosen(*arguments: Any) -> Any:
        platform = choose(*arguments)
        options = {**platform.compiler_options, **variant.options}
        return dataclasses.replace(platform, compiler_options=options)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(start, "choose_platform", chosen))
        for name, value in variant.constants.items():
            stack.enter_context(mock.patch.object(gpu_step, name, value))
        engine = _engine(session, **variant.settings)
    requests = session.requests("contract")
    seconds = _median_seconds(lambda: _score(engine, requests, True), total_s=1.0)
    info = engine.info()
    return {
        "items_per_s": len(requests[0].items) / seconds,
        "self_check": info["self_check"]["status"],
        "compile_s": info["startup_s"]["compile"],
    }


def arrivals(session: Session) -> None:
    """Requests of 300 + 10 x 20 tokens at random times, at rising rates, through the scheduler."""
    from itemwise.bench.serving.arrivals import run_arrivals

    path = session.work / "arrivals.json"
    exact = run_arrivals(
        str(session.checkpoint),
        rate=20.0 if session.rehearse else 150.0,
        p99_ms=5.0 if session.rehearse else 100.0,
        seconds=0.5 if session.rehearse else 4.0,
        workload={"shared": 0.25, "query_tokens": 60 if session.rehearse else 300},
        check=2 if session.rehearse else 20,
        out_json=path,
        **session.settings,
    )
    session.save({"exact": exact, **json.loads(path.read_text())})


def larger_model(session: Session) -> None:
    """The contract workload with qwen3-4b, whose random weights are drawn on the device."""
    from itemwise.checkpoint.read import read_config
    from itemwise.config import EngineConfig
    from itemwise.engine import start
    from itemwise.engine.engine import Engine

    name = "tiny-llama" if session.rehearse else "qwen3-4b"
    folder = session.work / f"{name}-config"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model_dict(name)))
    with (
        mock.patch.object(start, "read_model", read_config),  # there are no tensors to look at
        mock.patch.object(start, "load_weights", _draw_weights),
    ):
        engine = Engine(folder, EngineConfig(**session.settings))
    requests = session.requests("contract")
    seconds = _median_seconds(lambda: _score(engine, requests, True), total_s=2.0)
    flops = WORKLOADS["contract"].useful_flops(engine.model_config)
    session.save(
        {
            "model": name,
            "items_per_s": len(requests[0].items) / seconds,
            "useful_tflops": flops / seconds / 1e12,
            "engine": engine.info(),
        }
    )


def _draw_weights(folder: Path, model: Any, dtypes: Any, *_: Any, **__: Any) -> Any:
    import jax

    from itemwise.models.decoder import describe_weights

    keys = iter(jax.random.split(jax.random.key(0), 4096))

    def draw(spec: Any) -> Any:
        values = jax.random.normal(next(keys), spec.shape, dtypes.weights) * spec.scale
        return values + 1 if spec.init == "gain" else values

    return jax.tree.map(draw, describe_weights(model))


def parity(session: Session) -> None:
    """Label probabilities beside transformers in float32: of Itemwise in both types."""
    import torch

    from itemwise.validation.reference import load_torch, to_scores, torch_label_logits

    (whole,) = session.requests("contract-64")
    request = ScoreRequest(
        whole.query[:300], list(whole.items)[:24], whole.labels[:24], apply_softmax=True
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        model = load_torch(session.checkpoint, dtype).to(device)
        with torch.device(device):
            items = [item.tolist() for item in request.items]
            logits = torch_label_logits(model, request.query.tolist(), items, list(LABELS))
            scores[f"transformers {dtype}"] = np.asarray(to_scores(logits, True))
        del model
        engine = _engine(session, dtype=dtype)
        scores[f"itemwise {dtype}"] = np.asarray(engine.score([request])[0].scores)
        del engine
        gc.collect()
    truth = scores["transformers float32"]
    errors = {name: float(np.abs(one - truth).max()) for name, one in scores.items()}
    session.save({"max_probability_difference": errors, "spread": float(np.ptp(truth))})


STAGES: dict[str, Stage] = {
    "ceilings": Stage(ceilings, 70),
    "exactness": Stage(exactness, 110),
    "speed": Stage(speed, 70),
    "compare": Stage(compare, 110),
    "small-steps": Stage(small_steps, 100),
    "attention": Stage(attention, 60),
    "sweep": Stage(sweep, 170),
    "arrivals": Stage(arrivals, 90),
    "larger-model": Stage(larger_model, 60),
    "parity": Stage(parity, 70),
}


def _engine(session: Session, **settings: Any) -> Any:
    from itemwise.config import EngineConfig
    from itemwise.engine.engine import Engine

    return Engine(session.checkpoint, EngineConfig(**(session.settings | settings)))


def _same(a: Any, b: Any) -> bool:
    return np.asarray(a, np.float32).tobytes() == np.asarray(b, np.float32).tobytes()


def _median_seconds(run: Callable[[], Any], total_s: float = 0.3) -> float:
    """The median time of calls until their results are ready, after two warm-up calls."""
    import jax

    seconds: list[float] = []
    for _ in range(2):
        jax.block_until_ready(run())
    while len(seconds) < 3 or (sum(seconds) < total_s and len(seconds) < 50):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@contextmanager
def _results(path: Path) -> Iterator[Figures]:
    """The figures in a file, written back at the end."""
    figures: Figures = json.loads(path.read_text()) if path.exists() else {}
    yield figures
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(figures, indent=1) + "\n")
    draft.replace(path)


def run_stage(name: str, work: Path, results: Path, rehearse: bool) -> None:
    """Runs one stage in this process; its figures go to the file as they come."""

    def save(figures: Figures) -> None:
        with _results(results) as all_figures:
            all_figures[name] |= json.loads(json.dumps(figures, default=str))

    STAGES[name].run(Session(work, rehearse, save))


def run_stages(names: Sequence[str], out: Path, budget_s: float, rehearse: bool) -> bool:
    """Runs stages one after the other within a budget; returns whether all of them succeeded."""
    out.mkdir(parents=True, exist_ok=True)
    results, began, fine = out / RESULTS, time.perf_counter(), True
    environ = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            left = budget_s - (time.perf_counter() - began)
            if left < 10:
                print(f"{name}: no time left", flush=True)
                fine = False
                continue
            with _results(results) as figures:
                figures[name] = {"status": "running"}
            command = [sys.executable, __file__, "--stage", name, "--out", str(out), "--work", work]
            start = time.perf_counter()
            status = "ok"
            try:
                subprocess.run(
                    [*command, *(["--rehearse"] if rehearse else [])],
                    timeout=left if rehearse else min(left, STAGES[name].limit_s),
                    check=True,
                    env=environ,
                    stdout=sys.stderr,
                )
            except subprocess.TimeoutExpired:
                status = "stopped at its limit"
            except subprocess.CalledProcessError as error:
                status = f"failed with exit status {error.returncode}"
            seconds = time.perf_counter() - start
            with _results(results) as figures:
                figures[name] |= {"status": status, "seconds": seconds}
            fine &= status == "ok"
            print(f"{name}: {status}, {seconds:.0f} s", flush=True)
    return fine


def run() -> int:
    """Runs what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of %(default)s")
    parser.add_argument("--budget-s", type=float, default=520, help="seconds, all in all")
    parser.add_argument("--rehearse", action="store_true", help="tiny models and sizes")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        results = arguments.out / RESULTS
        run_stage(arguments.stage, arguments.work, results, arguments.rehearse)
        return 0
    names = arguments.stages.split(",")
    unknown = set(names) - set(STAGES)
    if unknown:
        parser.error(f"--stages has {', '.join(sorted(unknown))}, expected {', '.join(STAGES)}")
    fine = run_stages(names, arguments.out, arguments.budget_s, arguments.rehearse)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(run())

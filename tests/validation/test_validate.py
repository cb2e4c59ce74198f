"""The whole runbook on a tiny model, with real servers; and its end by a signal."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from itemwise.errors import ConfigError
from itemwise.validation import torch_parity
from itemwise.validation.evaluate import Amount
from itemwise.validation.files import Json, read_json
from itemwise.validation.validate import Settings, slug, validate

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]


@pytest.fixture(scope="module")
def server_arguments(cache_folder: str) -> tuple[str, ...]:
    kept = "--compilation-cache-dir", cache_folder
    return *kept, "--kv-cache-bytes", str(1 << 22), "--skip-self-check"


def step_6_of_the_runbook(folder: Path, stamp: str) -> dict[str, bool]:
    """The original runbook's checker, over the file names that it expects."""
    multi_vs_serial = read_json(folder / f"multi_vs_serial_eval_results_{stamp}.json")
    parity = read_json(folder / f"jax_torch_parity_results_{stamp}.json")
    isolation = multi_vs_serial["isolation"]
    return {
        "same_length": isolation["same_length_mutation_max_abs_diff"] == 0.0,
        "changed_length": isolation["changed_length_mutation_max_abs_diff"] == 0.0,
        "aligned": multi_vs_serial["equivalence_query_plus_delimiter"]["max_abs_diff"] <= 0.02,
        "speed": multi_vs_serial["performance"]["32"]["speedup_vs_serial_p50"] >= 3.0,
        "parity": parity["max_abs_diff_jax_serial_vs_torch_serial"] <= 0.02,
    }


@pytest.mark.slow
def test_all_five_checks_pass_on_a_tiny_model(
    tmp_path: Path, make_checkpoint: Callable[[str], Path], server_arguments: tuple[str, ...]
) -> None:
    amount = Amount(item_counts=(32,), rounds=1, warmup=0, sweep="none")
    settings = Settings(
        amount=amount, dtype="float32", chunk_size=2, server_arguments=server_arguments
    )
    folder = tmp_path / "report"
    result = validate(str(make_checkpoint("tiny-qwen3")), settings, folder=folder, api_key="k")
    assert result["all_pass"]
    assert result["workload"] == "demo"
    assert result["checks"]["delimiter_aligned_equiv_le_0p02"]["value"] == 0.0
    assert result["strict_checks"]["jax_serial_vs_torch_serial_le_0p02"]["pass"]
    assert read_json(folder / "validation.json") == result
    assert all(step_6_of_the_runbook(folder, result["stamp"]).values())
    multi: Json = read_json(folder / result["files"]["multi"])
    assert multi["server_dtype"] == "float32"
    assert multi["probes"]["chunk_sizes"]["pass"] is True
    engine = multi["server_info"]["engine"]["engine_config"]
    assert engine["multi_item_scoring_chunk_size"] == 2
    assert engine["disable_radix_cache"]
    parity = read_json(folder / result["files"]["parity"])
    assert parity["torch_performance"]["32"]["speedup_vs_torch_serial_p50"] > 0
    assert (folder / "index.html").exists()
    assert "k" not in json.dumps(result["commands"]).split()


# Processes inherit that Ctrl-C is ignored, as it is in the background of a shell.
WITH_CTRL_C = """
import signal, sys
from itemwise.cli.app import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_server_and_keeps_what_was_measured(
    tmp_path: Path, make_checkpoint: Callable[[str], Path], server_arguments: tuple[str, ...]
) -> None:
    folder = tmp_path / "report"
    command = [sys.executable, "-c", WITH_CTRL_C, "validate", str(make_checkpoint("tiny-qwen3"))]
    command += ["--output", str(folder), "--rounds", "100000"]
    command += ["--server-args", shlex.join(server_arguments)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ),
    )
    try:
        deadline = time.monotonic() + 90
        while not (found := list(folder.glob("multi_item*.json"))) or not json.loads(
            found[0].read_text()
        ).get("sweeps"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) not in (0, None)
    finally:
        process.kill()
    assert not servers_of(folder)
    multi = json.loads(found[0].read_text())
    assert (multi["complete"], multi["error"]) == (False, "KeyboardInterrupt")
    assert multi["isolation"]["same_length_mutation"]["max_abs_diff_unchanged"] == 0.0
    assert "Ended early" in (folder / "summary.md").read_text()


def servers_of(folder: Path) -> list[int]:
    """Processes that still have a server's log of the folder open."""
    logs = {str(path) for path in folder.glob("*-server.log")}
    assert logs
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if os.readlink(entry) in logs:
                found.append(int(entry.parts[2]))
        except OSError:
            continue
    return found


def test_a_server_that_fails_to_start_is_told_with_its_log(
    tmp_path: Path, make_checkpoint: Callable[[str], Path]
) -> None:
    from itemwise.errors import EndpointError

    settings = Settings(server_arguments=("--no-such-flag",))
    with pytest.raises(EndpointError, match="no-such-flag"):
        validate(str(make_checkpoint("tiny-qwen3")), settings, folder=tmp_path)
    result = read_json(tmp_path / "validation.json")
    assert not result["complete"]
    assert "no-such-flag" in result["error"]
    assert (tmp_path / "index.html").exists()


def test_a_model_too_large_for_torch_is_refused_before_servers_start(
    tmp_path: Path, make_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_parity, "available_memory_bytes", lambda: 1)
    with pytest.raises(ConfigError, match="GiB are free"):
        validate(str(make_checkpoint("tiny-qwen3")), folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_without_the_extra_nothing_starts(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=f"`{library}` is not installed"):
        validate("demo", folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [("Qwen/Qwen3-0.6B", "Qwen3-0.6B"), ("/models/a b/", "a-b"), ("..", "model"), (".", "model")],
)
def test_slug(model: str, name: str) -> None:
    assert slug(model) == name

"""Command lines of other servers give a server, or one message that names every problem."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from itemwise.cli.app import app
from itemwise.cli.command_line import CommandLine, Option, ServeCommand, find_rule, read
from itemwise.cli.foreign_flags import RULES, SAME_AS, SameAs
from itemwise.config import EngineConfig
from itemwise.errors import ConfigError
from tests.cli.pasted import LINES, NO_EFFECT, REFUSED, SAME, Line
from tests.cli.test_app import Server, invoke
from tests.server.fakes import get, post
from tests.server.test_process import line as next_line
from tests.server.test_process import listening_url, process

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX finds no accelerator, whatever the machine."""
    monkeypatch.setattr("itemwise.engine.platform.default_platform", lambda: "cpu")


@pytest.fixture(scope="module")
def options() -> list[Option]:
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    assert isinstance(serve, ServeCommand)
    return serve.options(typer.Context(serve))


def rows(table: str) -> list[list[str]]:
    """The columns of a table, which stand at least two spaces apart."""
    return [re.split(r"\s{2,}", row) for row in table.strip().splitlines()]


@pytest.mark.parametrize(("flag", "option"), rows(SAME))
def test_flag_sets_an_option(flag: str, option: str, options: list[Option]) -> None:
    for arguments in (flag.split(), [flag.replace(" ", "=")]):
        line = read(arguments, options)
        assert line.arguments == [option]
        assert line.problems == []
        value = flag.partition(" ")[2]
        replaced = flag.split()[0] in option and not option.endswith(value)
        assert line.notice == (
            f"Replaced: {flag} by {option.partition('=')[2]}." if replaced else None
        )


@pytest.mark.parametrize("flag", [row[0] for row in rows(NO_EFFECT)])
def test_flag_has_no_effect_and_is_named(flag: str, options: list[Option]) -> None:
    line = read([*flag.split(), "--port", "1"], options)
    assert line.arguments == ["--port=1"]
    assert line.problems == []
    start = f"Accepted for compatibility, without effect: {flag.split()[0]}"
    assert line.notice is not None
    assert line.notice.startswith((f"{start}.", f"{start} ("))


@pytest.mark.parametrize(("flag", "reason"), rows(REFUSED))
def test_flag_is_refused_with_a_reason(flag: str, reason: str, options: list[Option]) -> None:
    line = read([*flag.split(), "--port", "1"], options)
    assert line.arguments == ["--port=1"]
    (problem,) = line.problems
    assert problem.startswith(f"`{flag.split()[0]}")
    assert reason in problem
    assert line.notice is None


def test_device_that_is_there_is_accepted(
    options: list[Option], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itemwise.engine.platform.default_platform", lambda: "gpu")
    for name in ("cuda", "cuda:0", "gpu", "CUDA"):
        assert read(["--device", name], options).problems == []
    for name in ("cpu", "tpu"):
        (problem,) = read(["--device", name], options).problems
        assert "only gpu" in problem


def test_machine_without_any_device_is_a_problem_like_others(
    options: list[Option], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr("itemwise.engine.platform.default_platform", fail)
    (problem,) = read(["--device", "cuda"], options).problems
    assert "cannot use any device (Unable to initialize backend 'cuda');" in problem


@pytest.mark.parametrize("line", LINES, ids=[line.name for line in LINES])
@pytest.mark.parametrize("device", ["cpu", "tpu"])
def test_command_line_gives_settings_or_one_message(
    line: Line, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(monkeypatch)
    monkeypatch.setattr("itemwise.engine.platform.default_platform", lambda: device)
    problems = (*line.problems, *(["--device"] if line.needs not in (None, device) else []))
    if problems:
        with pytest.raises(ConfigError) as caught:
            invoke(f"serve {line.text}")
        assert {*re.findall(r"`(--[a-z-]+)[^`]*`:", str(caught.value))} == {*problems}
        assert server.config is None
        return
    output = invoke(f"serve {line.text}")
    assert server.config is not None
    assert (server.config.model_path, server.config.port) == ("Qwen/Qwen3-0.6B", 30000)
    assert EngineConfig(**server.engine) == EngineConfig(**line.engine)
    notice = output.splitlines()
    assert len(notice) <= 1
    named = {*re.findall(r"--[a-z_-]+", output)}
    assert named <= {*re.findall(r"--[a-z_-]+", line.text)}


PROGRAMS = (["-m", "itemwise", "serve"], ["-m", "itemwise.launch_server"])
STARTED = [
    pytest.param(
        line,
        PROGRAMS[number % 2],
        id=line.name,
        marks=[] if line.name == "multi-item" else pytest.mark.slow,
    )
    for number, line in enumerate(LINES)
    if not line.problems
]


@pytest.mark.parametrize(("line", "program"), STARTED)
def test_command_line_starts_a_server(line: Line, program: list[str], cache_folder: str) -> None:
    """With the demo model, its delimiter and this machine in the place of those of the line."""
    text = line.text.replace("Qwen/Qwen3-0.6B", "itemwise/demo").replace("151643", "4000")
    text = re.sub(r"(mem-fraction-static|gpu-memory-utilization) \S+", r"\1 0.02", text)
    text = text.replace("--port 30000", "--port 0").replace("--device tpu", "--device cpu")
    text = text.replace("0.0.0.0", "127.0.0.1")
    with process(*program, *text.split(), f"--compilation-cache-dir={cache_folder}") as made:
        url = listening_url(made)
        assert "self-check passed" in next_line(made)
        assert get(f"{url}/health").status_code == 200
        body = {"query": [1, 2], "items": [[3], [4, 5]], "label_token_ids": [6, 7]}
        assert len(post(url, body).json()["scores"]) == 2


def test_all_problems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    with pytest.raises(ConfigError) as caught:
        invoke(
            "serve --enable-lora --lora-paths a b --port abc --dtype int3 --page_size 64 --foo 3 "
            "--max-model-length 4 --enable-mis=maybe --max-connections 0 --tp-size 0 "
            "--dp-size 2 --max-body-bytes"
        )
    head, *told = str(caught.value).splitlines()
    assert head == "the command line has 9 problems:"
    assert server.config is None
    text = "\n".join(told)
    assert "`--enable-lora`, `--lora-paths`: LoRA adapters are not served" in text
    assert "unknown: --foo, --max-model-length (did you mean --max-model-len?)" in text
    for start in (
        "`--port abc`:",
        "`--dtype int3`: 'int3' is not one of 'auto', 'bfloat16', 'float32'",
        "`--enable-mis`: 'maybe' is neither true nor false",
        "`--dp-size 2`:",
        "`--max-body-bytes`: a value is missing",
        "`max_connections` is 0",
        "`tp_size` is 0",
    ):
        assert f"  {start}" in text
    assert "--page" not in text


def test_a_wrong_command_line_ends_the_process_at_once() -> None:
    command = [sys.executable, "-m", "itemwise.launch_server", "--enable-lora", "--no-such"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "Error: the command line has 2 problems:",
        "  `--enable-lora`: LoRA adapters are not served; merge the adapter into the model, then "
        "serve the result",
        "  unknown: --no-such",
    ]


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("--served-model", "--served-model-name"),  # argparse takes the beginning of a name
        ("--max-runing-requests", "--max-running-requests"),
        ("--modle-path", "--model-path"),
        ("--frobnicate", None),
    ],
)
def test_unknown_flags_get_a_close_name(
    typed: str, suggested: str | None, options: list[Option]
) -> None:
    (problem,) = read([typed, "3"], options).problems
    hint = f" (did you mean {suggested}?)" if suggested else ""
    assert problem == f"unknown: {typed}{hint}"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("--disable-radix-cache", ["--disable-radix-cache"]),
        ("--disable-radix-cache true", ["--disable-radix-cache"]),
        ("--disable_radix_cache=True", ["--disable-radix-cache"]),
        ("--disable-radix-cache=false", []),
        ("--disable-radix-cache false", []),
        ("--no-disable-radix-cache", []),
        ("--no-disable-radix-cache=false", ["--disable-radix-cache"]),
        ("--enable-lora=false", []),
        ("--no-enable-lora", []),
        ("--no-enable-mis", []),
        ("--port 1 --port 2", ["--port=2"]),
        ("--context-length 4096 --max-multi-item-seq-len 32768", ["--max-multi-item-seq-len=4096"]),
        ("--max-multi-item-seq-len 32768 --max-model-len 4K", ["--max-multi-item-seq-len=4096"]),
        ("--max-model-len auto", []),
        ("--max-model-len 1.5k", ["--max-multi-item-seq-len=1500"]),
        ("--kv-cache-memory-bytes 1G", [f"--kv-cache-bytes={2**30}"]),
        ("--kv-cache-memory-bytes 2m", ["--kv-cache-bytes=2000000"]),
        ("--log-level CRITICAL", ["--log-level=error"]),
        ("org/model --enforce-eager", ["--model-path=org/model"]),
        ("--enforce-eager org/model --port 1", ["--model-path=org/model", "--port=1"]),
        ("--precompile-bs-paddings 1 4 8 --port 1", ["--port=1"]),
        ("-tp 2 -O3 --help", ["--tp-size=2", "--help"]),
        ("", []),
    ],
)
def test_ways_to_write_a_flag(text: str, arguments: list[str], options: list[Option]) -> None:
    line = read(text.split(), options)
    assert sorted(line.arguments) == sorted(arguments)
    assert line.problems == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("--model-path a b", "`b`: belongs to no flag"),
        ("a b", "`a, b`: belongs to no flag"),
        ("--port --host x", "`--port`: a value is missing"),
        ("--api-key secret other", "`--api-key`: takes one value"),
        ("--no-port 3", "unknown: --no-port (did you mean --port?)"),
        ("--enable-lora=maybe", "`--enable-lora`: 'maybe' is neither true nor false"),
    ],
)
def test_what_is_no_flag_is_named(text: str, problem: str, options: list[Option]) -> None:
    assert read(text.split(), options).problems == [problem]


def test_rules_leave_options_of_itemwise_alone(options: list[Option]) -> None:
    """An option that comes to be must be taken out of the rules, or be translated by one."""
    own = {name for option in options for name in option.names}
    for rule in RULES:
        for flag in rule.flags.split():
            name = flag.partition("=")[0]
            assert name not in own or (isinstance(rule, SameAs) and rule.option == name), name
    assert {rule.option for rule in SAME_AS} <= own


def test_the_most_exact_rule_holds() -> None:
    def why(name: str) -> str:
        found = find_rule(name)
        assert found is not None
        assert not isinstance(found[1], SameAs)
        return found[1].why

    assert why("--disaggregation-mode") == "The server always computes whole scores itself."
    assert why("--disaggregation-anything") == why("--pd-disaggregation")
    assert find_rule("--anything") is None


def test_page_shows_the_rules() -> None:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "flag_tables.py"))
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    assert page.partition(script["BEGIN"])[2].strip() == script["tables"](), (
        "run scripts/flag_tables.py --write"
    )


def test_page_shows_what_is_printed(options: list[Option]) -> None:
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    command, refused = re.findall(r"^(?:itemwise serve|Error:)(.*?)```", page, re.M | re.S)
    line: CommandLine = read(command.replace("\\", "").split(), options)
    assert line.problems == []
    assert f"```text\n{line.notice}\n```" in page
    line = read(["--enable-lora", "--dp-size", "2", "--max-model-length", "1"], options)
    assert refused.splitlines()[1:] == [f"  {problem}" for problem in line.problems]

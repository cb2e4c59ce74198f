"""The command line: other servers' flags, and options that name fields of the settings."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from itemwise import __version__
from itemwise.cli.app import app
from itemwise.cli.foreign_flags import RULES
from itemwise.cli.options import numbers
from itemwise.config import EngineConfig, ServerConfig, SourceConfig
from itemwise.errors import ConfigError

ROOT = Path(__file__).parents[2]
MULTI = """--model-path Qwen/Qwen3-0.6B --host 0.0.0.0 --port 30010 --trust-remote-code
  --dtype bfloat16 --tp-size 1 --multi-item-scoring-delimiter 151643
  --multi-item-scoring-chunk-size 2 --disable-radix-cache --chunked-prefill-size -1
  --attention-backend fa"""
SERIAL = """--model-path Qwen/Qwen3-0.6B --host 0.0.0.0 --port 30011 --trust-remote-code
  --dtype bfloat16 --tp-size 1 --attention-backend fa"""


class Server:
    """Stands in for the server and for the model; notes their settings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config: ServerConfig | None = None
        self.engine: dict[str, Any] = {}
        self.source = SourceConfig()
        self.prompt_template: Path | None = None
        self.decision_profile: Path | None = None
        monkeypatch.setattr("itemwise.server.process.serve", self._serve)
        monkeypatch.setattr("itemwise.scorer.Scorer.from_pretrained", self._load)

    def _serve(self, config: ServerConfig, load: Any) -> int:
        self.config = config
        load()
        return 0

    def _load(
        self,
        model: str,
        prompt_template: Path | None,
        decision_profile: Path | None,
        **engine: Any,
    ) -> None:
        self.prompt_template, self.decision_profile = prompt_template, decision_profile
        parts = {field.name: engine.pop(field.name) for field in fields(SourceConfig)}
        self.source, self.engine = SourceConfig(**parts), engine


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def invoke(line: str, **environment: str) -> str:
    """The output, with no setting in the environment but these."""
    unset = dict.fromkeys(name for name in os.environ if name.startswith("ITEMWISE_"))
    env = {**unset, **environment}
    done = CliRunner().invoke(app, shlex.split(line), env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_multi_item_command_line_carries_over(server: Server) -> None:
    output = invoke(f"serve {MULTI}")
    assert server.config == ServerConfig("Qwen/Qwen3-0.6B", host="0.0.0.0", port=30010)
    assert EngineConfig(**server.engine) == EngineConfig(
        dtype="bfloat16",
        multi_item_scoring_delimiter=151643,
        multi_item_scoring_chunk_size=2,
        disable_radix_cache=True,
        attention_backend="fa",
    )
    (note,) = output.splitlines()
    for flag in ("trust-remote-code", "chunked-prefill-size"):
        assert f"--{flag}" in note


def test_serial_command_line_carries_over(server: Server) -> None:
    invoke(f"serve {SERIAL}")
    assert server.config == ServerConfig("Qwen/Qwen3-0.6B", host="0.0.0.0", port=30011)
    assert EngineConfig(**server.engine) == EngineConfig(dtype="bfloat16", attention_backend="fa")


def test_defaults_are_those_of_the_settings(server: Server) -> None:
    assert invoke("serve") == ""
    assert server.config == ServerConfig() == ServerConfig("itemwise/demo")
    assert EngineConfig(**server.engine) == EngineConfig()
    assert server.prompt_template is None


def test_environment_twins(server: Server) -> None:
    twins = {"ITEMWISE_MODEL_PATH": "m", "ITEMWISE_API_KEY": "k", "ITEMWISE_DTYPE": "float32"}
    invoke("serve", **twins)
    assert server.config == ServerConfig("m", api_key="k")
    assert server.engine["dtype"] == "float32"


@pytest.mark.parametrize(
    ("flag", "value", "field"),
    [
        ("model-path", "m", "model_path"),
        ("model", "m", "model_path"),
        ("tp-size", 2, "tp_size"),
        ("tp", 2, "tp_size"),
        ("max-timeout-s", 5.0, "max_timeout_s"),
        ("max-timeout", 5.0, "max_timeout_s"),
        ("drain-timeout-s", 5.0, "drain_timeout_s"),
        ("drain-timeout", 5.0, "drain_timeout_s"),
        ("step-lanes", 32, "step_lanes"),
        ("page-tokens", 64, "page_tokens"),
    ],
)
def test_each_name_of_a_flag_and_its_twin_set_the_same_field(
    server: Server, flag: str, value: Any, field: str
) -> None:
    twin = {f"ITEMWISE_{flag.upper().replace('-', '_')}": str(value)}
    for line, environment in ((f"serve --{flag} {value}", {}), ("serve", twin)):
        invoke(line, **environment)
        assert server.config is not None
        assert {**vars(server.config), **server.engine}[field] == value


def test_wrong_settings_of_engine_and_server_are_told_at_once(server: Server) -> None:
    with pytest.raises(ConfigError) as caught:
        invoke("serve --port 70000 --max-connections 0 --tp-size 0 --mem-fraction-static 2")
    for name in ("port", "max_connections", "tp_size", "mem_fraction_static"):
        assert f"`{name}` is" in str(caught.value)
    assert server.config is None


def test_prompt_template_is_passed_on(server: Server) -> None:
    invoke("serve --prompt-template t.json")
    assert server.prompt_template == Path("t.json")


def test_decision_profile_is_passed_on(server: Server) -> None:
    invoke("serve --decision-profile d.json")
    assert server.decision_profile == Path("d.json")


def test_parts_of_a_model_and_the_log_level_are_passed_on(server: Server) -> None:
    line = "--revision v1 --download-dir /models --tokenizer-path org/t --log-level warning"
    invoke(f"serve {line}")
    assert server.source == SourceConfig("org/t", "v1", "/models")
    assert server.config == ServerConfig(log_level="warning")


def test_every_option_has_a_twin_and_a_help_text() -> None:
    text = invoke("serve --help")
    groups = (ServerConfig, EngineConfig, SourceConfig)
    names = [name for group in groups for name in group.__dataclass_fields__]
    for name in names:
        assert re.search(rf"--{name.replace('_', '-')}\b", text), name
        assert f"ITEMWISE_{name.upper()}" in "".join(text.split()), name


def options(command: Any) -> Iterator[str]:
    """The flags of a command and of those below it."""
    for parameter in command.params:
        yield from parameter.opts
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


def test_flags_in_the_documentation_exist() -> None:
    known = {*options(get_command(app)), "--help"}
    known |= {"--build-arg", "--from-file"}  # of docker and kubectl
    known |= {"--no-build-isolation", "--no-deps", "--no-index"}  # of pip
    foreign = " ".join(rule.flags for rule in RULES)
    known |= {*re.findall(r"--[a-z0-9-]+", foreign)}
    session = (ROOT / "scripts" / "gpu_session.py").read_text(encoding="utf-8")
    known |= {*re.findall(r'"(--[a-z-]+)"', session)}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    pages.remove(ROOT / "docs" / "migrating.md")  # shows mistakes; its tables are tested elsewhere
    unknown = {
        f"{page.name}: {flag}"
        for page in pages
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8"))
        if flag not in known
    }
    assert unknown == set()


def test_version() -> None:
    assert invoke("--version") == f"itemwise {__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("version", __version__) == __version__


def test_numbers_are_read_in_order() -> None:
    assert numbers("1, 4,16", "clients") == (1, 4, 16)
    assert numbers("0.5,20", "rates", float) == (0.5, 20.0)


@pytest.mark.parametrize("text", ["", "1,,2", "1,x", "0", "-1", "1.5", "nan", "inf"])
def test_numbers_above_0_are_expected(text: str) -> None:
    with pytest.raises(ConfigError, match=f"`--clients` is '{text}', expected numbers above 0"):
        numbers(text, "clients", int if text == "1.5" else float)

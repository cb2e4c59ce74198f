"""The commands of the runbook: its command lines as they stand, exit statuses, printed verdicts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from itemwise.cli.app import app, main
from itemwise.cli.validation import AmountOptions, ValidateOptions
from itemwise.validation.evaluate import Amount
from itemwise.validation.files import write_json
from itemwise.validation.validate import Settings
from tests.validation.planted import PlantedScorer, planted_server, scripted_server, truth
from tests.validation.test_check import BOTH, PARITY

FEW = ("--item-counts", "1,32", "--rounds", "1", "--warmup", "0", "--sweep", "none")


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_steps_3_to_5_of_the_runbook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    multi, serial, both = (str(tmp_path / name) for name in ("multi", "serial", "both"))
    with planted_server(PlantedScorer(151643)) as url:
        line = ("evaluate", "--mode", "multi", "--url", f"{url}/v1/score", "--output-json", multi)
        assert run(*line, "--model", "planted", *FEW) == 0
    printed = capsys.readouterr().out
    assert re.search(r"same length +│ +0\.0 ", printed)
    assert "a leak made on purpose" in printed
    with planted_server(PlantedScorer(None)) as url:
        line = ("evaluate", "--mode", "serial", "--url", f"{url}/v1/score", "--output-json", serial)
        assert run(*line, "--model", "planted", *FEW) == 0
    compare = ("compare", "--multi-json", multi, "--serial-json", serial)
    assert run(*compare, "--output-multi-vs-serial-json", both) == 0
    assert "with the delimiter in the query" in capsys.readouterr().out
    assert json.loads(Path(both).read_text())["performance"]["32"]["speedup_vs_serial_p50"] > 1


def check(tmp_path: Path, both: Any, *flags: str) -> int | str | None:
    write_json(tmp_path / "both.json", both)
    write_json(tmp_path / "parity.json", PARITY)
    paths = ("--multi-vs-serial-json", str(tmp_path / "both.json"))
    return run("check", *paths, "--jax-torch-parity-json", str(tmp_path / "parity.json"), *flags)


def test_check_ends_with_0_only_if_all_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, BOTH) == 0
    printed = capsys.readouterr().out
    assert "pass  speedup_n32_ge_3x: 4.69, expected >= 3" in printed
    assert "all_pass= True" in printed
    assert check(tmp_path, BOTH, "--strict") == 1
    assert "all_pass= False" in capsys.readouterr().out
    assert check(tmp_path, {}, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["all_pass"] is False
    assert set(found["checks"]["speedup_n32_ge_3x"]) >= {"pass", "value", "bound"}


def test_a_server_that_dies_ends_evaluate_with_2_and_a_usable_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(number: int, body: Any) -> tuple[int, Any] | None:
        if number > 4:
            return None
        rows = [truth(body["query"], item, body["label_token_ids"]) for item in body["items"]]
        return 200, {"scores": rows}

    path = tmp_path / "partial.json"
    with scripted_server(die) as url:
        line = ("evaluate", "--mode", "multi", "--url", url, "--output-json", str(path))
        assert run(*line, *FEW, "--timeout", "5") == 2
    assert "was lost during a request" in capsys.readouterr().err
    assert json.loads(path.read_text())["isolation"]["base_scores"]


def test_wrong_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "evaluate",
        "--mode",
        "multi",
        "--url",
        "http://x",
        "--output-json",
        str(tmp_path / "o"),
    )
    assert run(*line, "--item-counts", "1,x") == 2
    assert "`--item-counts` is '1,x'" in capsys.readouterr().err
    assert run(*line, "--workload", str(tmp_path / "none.json")) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_defaults_are_those_of_the_settings() -> None:
    assert AmountOptions().amount() == Amount()
    assert ValidateOptions().settings(AmountOptions()) == Settings()


@pytest.mark.parametrize("command", ["evaluate", "compare", "check", "matrix", "validate"])
def test_every_option_says_its_twin_in_the_environment(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"]).output
    flags = set(re.findall(r"^  --([\w-]+)", text, flags=re.MULTILINE)) - {"json", "help"}
    assert flags
    squeezed = "".join(text.split())
    for flag in flags:
        assert f"ITEMWISE_{flag.upper().replace('-', '_')}" in squeezed, flag

"""The command `decide`: typed questions about one state."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from itemwise.cli.options import DecisionProfile, expand_options, fail
from itemwise.config import DEMO_MODEL, EngineConfig, SourceConfig

BAR_WIDTH = 20


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked."""

    state: Annotated[
        str | None, typer.Option("--state", help="Text that the questions are about.")
    ] = None
    yes_no: Annotated[
        list[str] | None,
        typer.Option("--yes-no", help="Something that may be true; repeat it for more."),
    ] = None
    choice: Annotated[str | None, typer.Option("--choice", help="Which of the --option it is.")] = (
        None
    )
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of --choice; repeat it for each."),
    ] = None
    rate: Annotated[str | None, typer.Option("--rate", help="Which --level it has.")] = None
    level: Annotated[
        list[str] | None,
        typer.Option("--level", help="A level of --rate, the lowest first; repeat it for each."),
    ] = None
    request: Annotated[
        Path | None,
        typer.Option(
            "--request",
            help="JSON file with the body of a POST /v1/systemone, instead of the options above. "
            "- reads standard input.",
        ),
    ] = None
    rotations: Annotated[
        int | None,
        typer.Option(
            "--rotations",
            help="In how many rotations the options of a choice are shown.",
            min=1,
            max=255,
            show_default="1",
        ),
    ] = None
    label_mass: Annotated[
        bool,
        typer.Option(
            "--label-mass", help="Also say which share the labels have of all possible answers."
        ),
    ] = False

    def body(self) -> dict[str, Any]:
        """The body of a POST /v1/systemone."""
        from itemwise.cli.output import read_json

        asked = (self.state, self.yes_no, self.choice, self.option, self.rate, self.level)
        if self.request is not None:
            if any(asked):
                fail("--request replaces the options that ask; use one or the other")
            body = read_json(self.request)
        else:
            body = {"state": self._state(), "questions": self._questions()}
        if self.rotations is not None:
            body["x_rotations"] = self.rotations
        if self.label_mass:
            body["x_label_mass"] = True
        return body

    def _state(self) -> str:
        if self.state is None:
            fail("there is no state; give --state or --request")
        return self.state

    def _questions(self) -> dict[str, Any]:
        asked = [*(self.yes_no or []), *(text for text in (self.choice, self.rate) if text)]
        for texts, what in ((asked, "question"), (self.option or [], "option")):
            if twice := [text for text in texts if texts.count(text) > 1]:
                fail(f"the {what} {twice[0]!r} is given twice; give different texts")
        questions: dict[str, Any] = {
            text: {"type": "noul", "instructions": text} for text in self.yes_no or []
        }
        for name, text, answers in (
            ("choice", self.choice, self.option),
            ("rate", self.rate, self.level),
        ):
            if (text is None) != (not answers):
                of = {"choice": "--option", "rate": "--level"}[name]
                fail(f"--{name} and {of} belong together; give both or neither")
        if self.choice is not None:
            criteria = dict.fromkeys(self.option or [])
            questions[self.choice] = {
                "type": "choice",
                "instructions": self.choice,
                "criteria": criteria,
            }
        if self.rate is not None:
            questions[self.rate] = {
                "type": "score",
                "instructions": self.rate,
                "criteria": self.level,
            }
        if not questions:
            fail("nothing is asked; give --yes-no, --choice, --rate or --request")
        return questions


@expand_options
def decide(
    *,
    model: Annotated[
        str,
        typer.Argument(help="Folder of a checkpoint, or its Hub id; by default the demo model."),
    ] = DEMO_MODEL,
    questions: QuestionOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer of POST /v1/systemone.")
    ] = False,
    decision_profile: DecisionProfile = None,
    source: SourceConfig,
    engine: EngineConfig,
) -> None:
    """Answer typed questions about a state, and print how probable each answer is.

    For example: itemwise decide MODEL --state "I was charged twice." --yes-no "Is it a complaint?"
    --choice "Which team?" --option billing --option sales
    """
    body = questions.body()
    from itemwise.dialects.systemone import read
    from itemwise.progress import progress
    from itemwise.scorer import Scorer

    exchange = read(body)
    assert exchange.call is not None
    settings = {**asdict(engine), **asdict(source), "decision_profile": decision_profile}
    with progress() as on_progress:
        scorer = Scorer.from_pretrained(model, on_progress=on_progress, **settings)
        answer = exchange.answer(scorer.run_call(exchange.call, on_progress), model)
    if as_json:
        import orjson

        sys.stdout.write(orjson.dumps(answer).decode() + "\n")
        return
    _print_table(answer)


def _print_table(answer: dict[str, Any]) -> None:
    """Prints a row for each answer of each question, with its probability as a bar."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("question", "answer"):
        table.add_column(column)
    table.add_column("probability", justify="right")
    table.add_column("", width=BAR_WIDTH)
    table.add_column("result")
    for name, found in answer["answers"].items():
        for place, (label, probability) in enumerate(_rows(found)):
            bar = Bar(1.0, 0.0, probability, width=BAR_WIDTH, color="green")
            question, result = (name, _result(found)) if place == 0 else ("", "")
            table.add_row(Text(question), Text(label), f"{probability:.3f}", bar, Text(result))
        table.add_section()
    Console().print(table)


def _rows(found: dict[str, Any]) -> list[tuple[str, float]]:
    """The answers to a question and how probable they are."""
    if found["type"] == "noul":
        return [("yes", found["noul"])]
    if found["type"] == "choice":
        return list(found["probabilities"].items())
    return [(f"{level} {found['legend'][level]}", p) for level, p in found["probabilities"].items()]


def _result(found: dict[str, Any]) -> str:
    parts = [found["choice"]] if found["type"] == "choice" else []
    if found["type"] == "score":
        parts.append(f"level {found['score']:.2f}")
    if "confidence" in found:
        parts.append(f"confidence {found['confidence']:.2f}")
    if "x_label_mass" in found:
        parts.append(f"label mass {found['x_label_mass']:.3g}")
    return ", ".join(parts)

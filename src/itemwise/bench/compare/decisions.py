"""What many questions about one state cost: together, one by one, and with PyTorch.

All ways take turns in one run and compute the same prompts, in token ids. Nothing is cached from
one turn to the next.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from itemwise.bench.compare.compare import TORCH_WAYS, WayProcess
from itemwise.bench.pictures import wide_console
from itemwise.checkpoint.locate import locate
from itemwise.errors import ConfigError
from itemwise.machine import environment
from itemwise.progress import say
from itemwise.request.decide.call import DecideCall
from itemwise.request.decide.questions import Choice, Question, Rating, YesNo
from itemwise.scorer import Scorer
from itemwise.types import Float32Array, ScoreRequest

WAYS = tuple(f"torch-{name}" for name in TORCH_WAYS)
# They compute the state for each question, so a few questions tell their speed.
REPEATING = ("torch-serial", "torch-padded")
_SENTENCE = "Parcel {number} left the warehouse late and arrived with a note of the driver. "


def make_state(scorer: Scorer, num_tokens: int) -> str:
    """A state whose shared part has close to `num_tokens` tokens."""
    sentences: list[str] = []
    found = 0
    while found < num_tokens:
        missing = max(1, (num_tokens - found) // 60)  # a sentence has fewer tokens
        start = len(sentences)
        sentences += [_SENTENCE.format(number=start + more) for more in range(missing)]
        call = DecideCall("".join(sentences), {"q": YesNo("Is it late?")})
        found = len(scorer.prepare_call(call).request.query)
    return "".join(sentences)


def make_questions(count: int) -> dict[str, Question]:
    """Questions of all types in turn, each about something else."""
    made: dict[str, Question] = {}
    for number in range(count):
        what = f"parcel {number}"
        made[f"q{number}"] = (
            YesNo(f"The note of {what} was read."),
            Choice(("late", "early", "lost", "broken"), f"What happened to {what}?"),
            Rating(("calm", "annoyed", "angry"), f"How does the owner of {what} feel?"),
        )[number % 3]
    return made


class Case:
    """A state and questions about it, as prompts."""

    def __init__(self, scorer: Scorer, state: str, questions: Mapping[str, Question]) -> None:
        self.scorer = scorer
        self.together = DecideCall(state, questions)
        self.alone = [DecideCall(state, {name: each}) for name, each in questions.items()]
        request = scorer.prepare_call(self.together).request
        self.state_tokens = len(request.query)
        self.query: list[int] = request.query.tolist()
        self.items: list[list[int]] = [item.tolist() for item in request.items]
        self.labels = sorted({label for each in request.labels for label in each})

    def ask_together(self) -> dict[str, Any]:
        """Seconds, computed tokens and answers of one call."""
        return self._timed([self.together])

    def ask_alone(self, count: int) -> dict[str, Any]:
        """The same for the first `count` questions, each in a call of its own."""
        return self._timed(self.alone[:count])

    def reference(self) -> Float32Array:
        """Float32 [questions, labels], the softmax over the labels of all questions."""
        request = self.scorer.prepare_call(self.together).request
        same = (tuple(self.labels),) * len(self.items)
        same_labels: ScoreRequest = replace(request, labels=same)
        self.scorer.engine.forget_prefixes()
        return np.asarray(self.scorer.run([same_labels])[0].scores)

    def _timed(self, calls: Sequence[DecideCall]) -> dict[str, Any]:
        engine = self.scorer.engine
        before = engine.info()["computed_tokens"]
        answers: dict[str, Any] = {}
        start = time.perf_counter()
        for call in calls:
            engine.forget_prefixes()  # as if others had asked in between
            answers |= self.scorer.run_call(call).answers
        seconds = time.perf_counter() - start
        tokens = engine.info()["computed_tokens"] - before
        return {"seconds": seconds, "tokens": tokens, "answers": answers}


def run_decisions(
    model: str,
    *,
    state_tokens: Sequence[int] = (300, 2000),
    questions: Sequence[int] = (1, 8, 64, 255),
    ways: Sequence[str] = ("torch-serial", "torch-expanded"),
    rounds: int = 3,
    most_alone: int = 16,
    out_json: Path | None = None,
    **engine: Any,
) -> bool:
    """Measures every case, prints a table and writes the figures.

    Args:
        model: a local folder or a Hugging Face Hub id.
        state_tokens: lengths of the state, about.
        questions: numbers of questions.
        ways: of `WAYS`, beside Itemwise.
        rounds: timed turns of each way, after one for warm-up.
        most_alone: questions that are asked one by one at most; their time stands for all.
        out_json: file to write the figures to.
        **engine: fields of `EngineConfig`.

    Returns:
        Whether answers had the same bits together and alone.

    Raises:
        ConfigError: an argument is wrong.
        ItemwiseError: the model or a way cannot be used.
    """
    if unknown := set(ways) - set(WAYS):
        raise ConfigError(f"`ways` has {min(unknown)}, expected some of {', '.join(WAYS)}")
    folder = locate(model)
    with ExitStack() as stack:
        processes = []
        for name in ways:
            _note(f"starting {name}")
            process = WayProcess(name, folder, {})
            stack.callback(process.stop)
            processes.append(process)
        scorer = Scorer.from_pretrained(model, **engine)
        rows = []
        for size in state_tokens:
            state = make_state(scorer, size)
            for count in questions:
                case = Case(scorer, state, make_questions(count))
                rows.append(_measure(case, processes, rounds, most_alone))
                _note(f"{rows[-1]['state_tokens']} tokens of state, {count} questions: done")
        report = {
            "benchmark": "decisions",
            **environment(),
            "model": model,
            "rounds": rounds,
            "activations": {
                "itemwise": scorer.info()["activations"],
                **{one.name: one.dtype for one in processes},
            },
            "cases": rows,
        }
    _print(report)
    if out_json is not None:
        out_json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return all(row["same_bits"] for row in rows)


def _note(text: str) -> None:
    say(f"{time.strftime('%H:%M:%S')} {text}", sys.stderr)


def _measure(
    case: Case, processes: Sequence[WayProcess], rounds: int, most_alone: int
) -> dict[str, Any]:
    """All turns of a case."""
    count = len(case.items)
    few = min(count, most_alone)
    turns: dict[str, list[dict[str, Any]]] = {}
    reference = case.reference()
    for _ in range(1 + rounds):
        turns.setdefault("together", []).append(case.ask_together())
        turns.setdefault("alone", []).append(case.ask_alone(few))
        for process in processes:
            number = few if process.name in REPEATING else count
            items = case.items[:number]
            asked = {"query": case.query, "items": items, "labels": case.labels}
            found = process.ask(do="score_tokens", **asked)
            found["questions"] = number
            turns.setdefault(process.name, []).append(found)
    together, alone = turns.pop("together"), turns.pop("alone")
    one_by_one = alone[-1]["answers"]
    return {
        "state_tokens": case.state_tokens,
        "questions": count,
        "question_tokens": sum(map(len, case.items)),
        "together": {**_times(together), "tokens": together[-1]["tokens"]},
        "alone": {
            **_times(alone, count / few),
            "tokens": round(alone[-1]["tokens"] * count / few),
            "questions_asked": few,
        },
        "ways": {
            name: {
                **_times(found, count / found[-1]["questions"]),
                "questions_asked": found[-1]["questions"],
                "max_probability_difference": _difference(found[-1]["scores"], reference),
            }
            for name, found in turns.items()
        },
        "same_bits": all(together[-1]["answers"][name] == one_by_one[name] for name in one_by_one),
    }


def _times(turns: Sequence[Mapping[str, Any]], times: float = 1.0) -> dict[str, Any]:
    """Median and all seconds of the turns after the first, for all questions."""
    seconds = [turn["seconds"] * times for turn in turns[1:]]
    return {"seconds": statistics.median(seconds), "all_seconds": seconds}


def _difference(scores: Sequence[Sequence[float]], reference: Float32Array) -> float:
    found = np.asarray(scores, np.float32)
    return float(np.abs(found - reference[: len(found)]).max())


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table()
    for name in ("state", "questions", "tokens", "ms", "alone: tokens", "alone: ms"):
        table.add_column(name, justify="right")
    rows = report["cases"]
    for name in rows[0]["ways"]:
        table.add_column(f"{name}: ms", justify="right")
    table.add_column("bits", justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    wide_console().print(table)


def _cells(row: dict[str, Any]) -> Iterator[str]:
    ours, alone = row["together"], row["alone"]
    yield from (str(row["state_tokens"]), str(row["questions"]))
    yield from (str(ours["tokens"]), f"{1000 * ours['seconds']:.0f}")
    yield f"{alone['tokens']} ({alone['tokens'] / ours['tokens']:.1f}x)"
    for way in (alone, *row["ways"].values()):
        yield f"{1000 * way['seconds']:.0f} ({way['seconds'] / ours['seconds']:.1f}x)"
    yield "same" if row["same_bits"] else "DIFFER"

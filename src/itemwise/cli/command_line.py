"""Reads the command line of `serve`: options of Itemwise, and flags of other servers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import typer
from typer.core import TyperCommand

from itemwise.cli.foreign_flags import RULES, SAME_AS, NoEffect, Refused, Rule, SameAs

PROBLEMS = "itemwise.problems"  # key of a context's `meta`: list of what is wrong
NOTICE = "itemwise.notice"  # key of a context's `meta`: what was accepted without effect, or None
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True)
class Option:
    """An option of Itemwise.

    Attributes:
        names: its flags; the first stands for it.
        switch: takes no value.
        repeats: may be given several times.
        check: what is wrong with a value, or None.
    """

    names: Sequence[str]
    switch: bool
    repeats: bool
    check: Callable[[str], str | None]


@dataclass(frozen=True)
class CommandLine:
    """A command line that was read.

    Attributes:
        arguments: the same in options of Itemwise alone, without what has problems.
        problems: everything that is wrong, one text for each kind.
        notice: one line that names what was accepted without effect or replaced; None if nothing.
    """

    arguments: list[str]
    problems: list[str]
    notice: str | None


class ServeCommand(TyperCommand):
    """A command that also takes the flags of other servers.

    Its context's `meta` has the `NOTICE`, and the `PROBLEMS`, which the command must raise.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replaces the flags of other servers, then parses what remains."""
        line = read(args, self.options(ctx))
        ctx.meta[PROBLEMS], ctx.meta[NOTICE] = line.problems, line.notice
        return super().parse_args(ctx, line.arguments)

    def options(self, context: Any) -> list[Option]:
        """The command's own options."""
        return [_as_option(parameter, context) for parameter in self.get_params(context)]


def _as_option(parameter: Any, context: Any) -> Option:
    def check(value: str) -> str | None:
        try:
            parameter.process_value(context, [value] if parameter.multiple else value)
        except typer.BadParameter as error:
            text = error.message.removeprefix("Value error, ")
            return " ".join(text.split()).rstrip(".")
        return None

    return Option(parameter.opts, bool(parameter.is_flag), bool(parameter.multiple), check)


def read(arguments: Sequence[str], options: Iterable[Option]) -> CommandLine:
    """Understands a command line of `itemwise serve`, SGLang, sglang-jax or vLLM.

    Values follow a flag or an `=`. A switch is written `--flag`, `--flag true`, `--flag=false` or
    `--no-flag`. The model may stand alone, without a flag, as vLLM takes it.
    """
    reader = _Reader(options)
    for flag in _split(arguments):
        reader.take(flag)
    return reader.result()


def find_rule(name: str) -> tuple[str, Rule] | None:
    """What a flag of other servers takes (nothing, `=` or `=*`) and its rule; None if unknown."""
    if name in _TABLE:
        return _TABLE[name]
    return next((_TABLE[pattern] for pattern in _PATTERNS if fnmatchcase(name, pattern)), None)


def _table() -> dict[str, tuple[str, Rule]]:
    table: dict[str, tuple[str, Rule]] = {}
    for rule in RULES:
        for flag in rule.flags.split():
            name, equals, many = flag.partition("=")
            assert name not in table, f"{name} has two rules"
            table[name] = (equals + many, rule)
    return table


_TABLE = _table()
_PATTERNS = sorted((name for name in _TABLE if "*" in name), key=len, reverse=True)


@dataclass
class _Flag:
    """A flag as it was typed, the value behind its `=`, and the words that follow it.

    The words before the first flag are those of a flag without a name.
    """

    typed: str
    attached: list[str]
    words: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name as tables have it: `--max_model_len` is `--max-model-len`, `--x.y` is `--x`."""
        return self.typed.partition(".")[0].replace("_", "-")

    def divided(self, takes: str) -> tuple[list[str], list[str]]:
        """Its values, if it takes nothing, `=` or `=*`; and the words that are left over."""
        given = [*self.attached, *self.words]
        if takes == "=*":
            return given, []
        is_word = bool(given) and given[0].lower() in _TRUE + _FALSE
        num_values = 1 if takes == "=" or self.attached or is_word else 0
        return given[:num_values], given[num_values:]


def _split(arguments: Sequence[str]) -> list[_Flag]:
    flags = [_Flag("", [])]
    for argument in arguments:
        if level := re.fullmatch(r"-O(\d)", argument):  # as vLLM and compilers have it
            flags.append(_Flag("-O", [level[1]]))
        elif re.match(r"--?[A-Za-z]", argument):
            typed, equals, value = argument.partition("=")
            flags.append(_Flag(typed, [value] if equals else []))
        else:
            flags[-1].words.append(argument)
    return flags


class _Reader:
    """Collects what flags mean, one after the other."""

    def __init__(self, options: Iterable[Option]) -> None:
        self._options = {name: option for option in options for name in option.names}
        self._values: dict[str, list[str]] = {}  # by the first name of an option
        self._lowest: set[str] = set()  # options whose lowest value holds
        self._alone: list[str] = []  # words that belong to no flag
        self._problems: dict[str, list[str]] = {}  # flags, by what is wrong with them
        self._unknown: list[str] = []
        self._without_effect: list[str] = []
        self._replaced: list[str] = []

    def take(self, flag: _Flag) -> None:
        """Understands one flag."""
        found, on = self._find(flag.name)
        if found is None:
            if flag.typed:
                self._unknown.append(flag.typed + self._suggestion(flag.name))
            else:
                self._alone += flag.words
            return
        takes, rule = found
        values, alone = flag.divided(takes)
        if alone and "key" in flag.name:
            self._wrong(flag.typed, "takes one value")  # the others are secrets, too: not shown
        else:
            self._alone += alone
        if takes == "=" and not values:
            self._wrong(flag.typed, "a value is missing")
        elif takes == "" and values and values[0].lower() not in _TRUE + _FALSE:
            self._wrong(flag.typed, f"{values[0]!r} is neither true nor false")
        elif takes == "" and values:
            self._apply(rule, flag, [], on is (values[0].lower() in _TRUE))
        else:
            self._apply(rule, flag, values, on)

    def result(self) -> CommandLine:
        """All that was taken."""
        model = self._options.get("--model-path")
        if len(self._alone) == 1 and model and model.names[0] not in self._values:
            self._set(model, "the model", self._alone[0])
        elif self._alone:
            self._wrong(", ".join(self._alone), "belongs to no flag")
        problems = [f"{', '.join(flags)}: {why}" for why, flags in self._problems.items()]
        if self._unknown:
            problems.append(f"unknown: {', '.join(self._unknown)}")
        return CommandLine(self._arguments(), problems, self._notice())

    def _find(self, name: str) -> tuple[tuple[str, Rule] | None, bool]:
        """A flag's rule and what it takes; and whether the flag turns on, not off, a switch."""
        found = self._rule(name)
        if found is None and name.startswith("--no-"):
            negated = self._rule("--" + name.removeprefix("--no-"))
            if negated is not None and negated[0] == "":
                return negated, False
        return found, True

    def _rule(self, name: str) -> tuple[str, Rule] | None:
        found = find_rule(name)
        option = self._options.get(name)
        if option is None or (found and found[1] in SAME_AS):
            return found
        return "" if option.switch else "=", SameAs(name, "")

    def _apply(self, rule: Rule, flag: _Flag, values: list[str], on: bool) -> None:
        shown = " ".join([flag.typed, *values])
        if not on and not isinstance(rule, SameAs):
            self._without_effect.append(shown)
        elif isinstance(rule, Refused):
            self._wrong(flag.typed, rule.why)
        elif isinstance(rule, NoEffect):
            why = rule.check(" ".join(values)) if values else None
            if why:
                self._wrong(shown, why)
            else:
                remark = f" ({rule.remark})" if rule.remark else ""
                self._without_effect.append(flag.typed + remark)
        elif on:
            self._translate(rule, flag.typed, values)

    def _translate(self, rule: SameAs, typed: str, values: list[str]) -> None:
        option = self._options[rule.option]
        if rule.lowest:
            self._lowest.add(option.names[0])
        if not values:
            self._values[option.names[0]] = []
            return
        try:
            value = rule.convert(values[0])
        except ValueError as error:
            self._wrong(typed, str(error))
            return
        if value is None:
            return
        if typed in option.names and value != values[0]:
            self._replaced.append(f"{typed} {values[0]} by {value}")
        self._set(option, typed, value)

    def _set(self, option: Option, typed: str, value: str) -> None:
        problem = option.check(value)
        if problem:
            self._wrong(f"{typed} {value}", problem)
        else:
            self._values.setdefault(option.names[0], []).append(value)

    def _arguments(self) -> list[str]:
        arguments = []
        for name, values in self._values.items():
            option = self._options[name]
            if option.switch:
                arguments.append(name)
            elif name in self._lowest:
                arguments.append(f"{name}={min(values, key=int)}")
            else:
                kept = values if option.repeats else values[-1:]
                arguments += [f"{name}={value}" for value in kept]
        return arguments

    def _notice(self) -> str | None:
        parts = []
        if self._without_effect:
            names = ", ".join(dict.fromkeys(self._without_effect))
            parts.append(f"Accepted for compatibility, without effect: {names}.")
        if self._replaced:
            parts.append(f"Replaced: {', '.join(self._replaced)}.")
        return " ".join(parts) or None

    def _wrong(self, flag: str, why: str) -> None:
        self._problems.setdefault(why, []).append(f"`{flag}`")

    def _suggestion(self, name: str) -> str:
        names = [known for known in (*self._options, *_TABLE) if "*" not in known]
        begin = [known for known in names if known.startswith(name)]
        near = begin if len(begin) == 1 else difflib.get_close_matches(name, names, 1, 0.7)
        return f" (did you mean {near[0]}?)" if near else ""

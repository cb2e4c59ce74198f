"""Shared by commands: options with their environment variables, and errors."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_type_hints

import typer

from itemwise.cli.command_line import PROBLEMS
from itemwise.config import Setting
from itemwise.errors import ConfigError

_Number = TypeVar("_Number", int, float)


def option(flag: str, text: str, *aliases: str, **settings: Any) -> Any:
    """An option `--flag`; each of its names has an environment variable, as `ITEMWISE_FLAG`."""
    names = (flag, *aliases)
    twins = ["ITEMWISE_" + name.upper().replace("-", "_") for name in names]
    envvar = twins if aliases else twins[0]  # errors show a list as a list
    return typer.Option(*(f"--{name}" for name in names), help=text, envvar=envvar, **settings)


def numbers(text: str, flag: str, kind: Callable[[str], _Number] = int) -> tuple[_Number, ...]:
    """Numbers above 0 from a comma-separated text, at least one.

    Raises:
        ConfigError: the text is something else.
    """
    try:
        found = tuple(map(kind, text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < number < math.inf for number in found):
        raise ConfigError(f"`--{flag}` is {text!r}, expected numbers above 0, like 1,8,32")
    return found


def fail(message: str) -> NoReturn:
    """Prints one red line on stderr and exits with status 2."""
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)
    sys.exit(2)


PromptTemplate = Annotated[
    Path | None,
    option(
        "prompt-template",
        "File with a prompt template, which puts query and item into the form that the model "
        "was trained on.",
        show_default="the checkpoint's prompt_template.json",
    ),
]


ApplySoftmax = Annotated[
    bool,
    typer.Option(
        "--apply-softmax", help="Softmax over the labels; otherwise over the whole vocabulary."
    ),
]
DecisionProfile = Annotated[
    Path | None,
    option(
        "decision-profile",
        "File with a decision profile, which says how typed questions are asked and read.",
        show_default="the checkpoint's decision_profile.json",
    ),
]


_Command = TypeVar("_Command", bound=Callable[..., Any])


def expand_options(command: _Command) -> _Command:
    """Lets a command take whole groups of options.

    A parameter whose type is a dataclass becomes one option per field of it; the command gets
    the dataclass built from them. One ConfigError has the problems of all groups, and those that
    a `ServeCommand` found.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {
        name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _fields_as_parameters(groups[name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[name], kind=kind))

    @functools.wraps(command)
    def expanded(**values: Any) -> Any:
        context = values.get("context")
        built, problems = {}, list(context.meta.get(PROBLEMS, ())) if context else []
        for name, group in groups.items():
            fields = {field.name: values.pop(field.name) for field in dataclasses.fields(group)}
            try:
                built[name] = group(**fields)
            except ConfigError as error:
                problems.append(str(error))
        if len(problems) > 1:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise ConfigError(f"the command line has {len(problems)} problems:{lines}")
        if problems:
            raise ConfigError(problems[0])
        return command(**values, **built)

    signature = inspect.Signature(parameters)
    expanded.__signature__ = signature  # type: ignore[attr-defined]
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    return expanded  # type: ignore[return-value]


def _fields_as_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
            annotation=_with_option(field.name, hints[field.name]),
        )
        for field in dataclasses.fields(group)
    ]


def _with_option(name: str, hint: Any) -> Any:
    """A field's type with its option; if it is a `Setting`, the option that it describes."""
    kind, said = get_args(hint)
    if not isinstance(said, Setting):
        return hint
    aliases = (said.alias,) if said.alias else ()
    more = {"show_default": said.unset} if said.unset else {}
    return Annotated[kind, option(name.replace("_", "-"), said.help, *aliases, **more)]


@dataclass(frozen=True)
class LoadOptions:
    """Options of the requests of the serving benchmarks."""

    num_items: Annotated[int, typer.Option("--items", help="Items of a request.", min=1)] = 10
    item_tokens: Annotated[
        int, typer.Option("--item-tokens", help="Tokens of each item.", min=1)
    ] = 20
    query_tokens: Annotated[
        int, typer.Option("--query-tokens", help="Tokens of the query.", min=1)
    ] = 300
    shared: Annotated[
        float,
        typer.Option("--shared", help="Share of requests that have the same query.", min=0, max=1),
    ] = 0.5


@dataclass(frozen=True)
class WorkloadOptions:
    """Options of one request: a query and many short items."""

    query_tokens: Annotated[
        int, typer.Option("--query-tokens", help="Tokens of the query.", min=1)
    ] = 2000
    num_items: Annotated[int, typer.Option("--items", help="Items.", min=1)] = 500
    item_tokens: Annotated[
        int, typer.Option("--item-tokens", help="Tokens of each item.", min=1)
    ] = 20

"""What the formats of decisions have in common: values that become text, and fields of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from itemwise.request.check import MAX_TEMPERATURE, MIN_TEMPERATURE
from itemwise.request.decide.answers import Answer, Decisions
from itemwise.request.decide.call import Options
from itemwise.request.decide.questions import MAX_OPTIONS
from itemwise.types import TokenLists

ANY_MODEL = "jev-latest"  # what clients of TypeSafe ask for by default


def _plain(value: Any) -> Any:
    """Lists of numbers in a large body are arrays; here they are values like others."""
    return [row.tolist() for row in value] if isinstance(value, TokenLists) else value


# Text as it is; an object or a list as JSON.
Content = Annotated[str | dict[str, Any] | list[Any], BeforeValidator(_plain)]
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]


class OwnFields(BaseModel):
    """Fields of a request that other servers lack; all are off by default."""

    x_rotations: int = Field(
        1,
        ge=1,
        le=MAX_OPTIONS,
        strict=True,
        description="In how many cyclic rotations the options of a choice are shown, at most as "
        "many as it has; the probabilities are the mean of their logs.",
    )
    x_label_mass: bool = Field(
        False,
        strict=True,
        description="Also say which share the labels have of all that the model might answer, as "
        "`x_label_mass`.",
    )
    x_case_forms: bool | None = Field(
        None,
        strict=True,
        description="Count `yes` and `Yes` as one answer; by default as the model's decision "
        "profile says.",
    )
    x_usage: bool = Field(
        False,
        strict=True,
        description="Also count the tokens that questions share and those that were computed, as "
        "`x_usage`.",
    )
    priority: int = Field(0, strict=True, description="A lower number always runs first.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds after which to give up.")

    def options(self) -> Options:
        """How questions are asked and read."""
        return Options(
            self.x_rotations, with_label_mass=self.x_label_mass, case_forms=self.x_case_forms
        )


class OwnUsage(BaseModel):
    """Where the tokens of a request came from."""

    shared_tokens: int = Field(description="Tokens that all questions share.")
    cached_tokens: int = Field(description="Those of them that were there already.")
    computed_tokens: int


class OwnAnswer(BaseModel):
    """Fields of an answer that other servers lack."""

    x_label_mass: float | None = Field(None, description="With `x_label_mass`.")


def own_usage(fields: OwnFields, found: Decisions) -> dict[str, Any]:
    """`x_usage`, if it was asked for."""
    if not fields.x_usage:
        return {}
    computed = found.prompt_tokens - found.cached_tokens
    usage = OwnUsage(
        shared_tokens=found.shared_tokens,
        cached_tokens=found.cached_tokens,
        computed_tokens=computed,
    )
    return {"x_usage": usage.model_dump()}


def own_answer(answer: Answer) -> dict[str, Any]:
    """`x_label_mass`, if it was asked for."""
    return {} if answer.label_mass is None else {"x_label_mass": answer.label_mass}


def model_of(body: Mapping[str, Any]) -> Any:
    """The model that a body asks for; None for any."""
    model = body.get("model")
    return None if model == ANY_MODEL else model

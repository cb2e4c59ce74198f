"""Answers about the server itself, as OpenAPI documents them at `/docs`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    """Answer of `GET /health` when the server can score."""

    status: Literal["ok"]


class ModelCard(BaseModel):
    """A model, in the format of OpenAI's API."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    profile: dict[str, Any] | None = Field(
        None, description="How the model is asked and read in rankings, and why so; once loaded."
    )
    decision_profile: dict[str, Any] | None = Field(None, description="The same for decisions.")


class NamedModel(BaseModel):
    """A model, in the format of TypeSafe's API."""

    name: str
    description: str
    release_date: str = Field(description="When the server started.")


class ModelList(BaseModel):
    """Answer of `GET /v1/models`: the same model in two formats."""

    object: Literal["list"]
    data: list[ModelCard]
    models: list[NamedModel]


class ModelInfo(BaseModel):
    """Answer of `GET /model_info`."""

    model_path: str
    tokenizer_path: str
    is_generation: bool


class ServerInfo(BaseModel):
    """Answer of `GET /server_info`."""

    version: str
    state: str = Field(description="loading, ready, failed or draining.")
    server: dict[str, Any] = Field(description="Settings of the server, without the API key.")
    scheduler: dict[str, int] | None = Field(description="Counts of requests, once loaded.")
    engine: dict[str, Any] | None = Field(
        description="The model, device, settings and counters, once loaded."
    )
    reports: list[str] = Field(description="Reports of validations, at `/reports/NAME/`.")
    model_path: str = Field(description="As far as clients may see it.")
    served_model_name: str
    internal_states: list[dict[str, Any]] = Field(description="Always empty.")

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


class ModelList(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class ServerInfo(BaseModel):
    """Answer of `GET /server_info`."""

    version: str
    state: str = Field(description="loading, ready, failed or draining.")
    server: dict[str, Any] = Field(description="Settings of the server, without the API key.")
    scheduler: dict[str, int] | None = Field(description="Counts of requests, once loaded.")
    engine: dict[str, Any] | None = Field(
        description="The model, device, settings and counters, once loaded."
    )

"""Routes that say something about the server, by our own names and by SGLang's."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import time
from typing import Any

from fastapi import Depends, FastAPI, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from itemwise import __version__
from itemwise.dialects.base import ErrorBody
from itemwise.errors import RequestError
from itemwise.server.api_page import HEADERS as API_PAGE_HEADERS
from itemwise.server.api_page import api_page
from itemwise.server.errors import error_response, json_response
from itemwise.server.metrics import CONTENT_TYPE, Metrics
from itemwise.server.reports import report_names
from itemwise.server.schemas import Health, ModelCard, ModelInfo, ModelList, ServerInfo
from itemwise.server.service import Service


def keyed(service: Service) -> list[Any]:
    """Documents the API key in the API's schema; `Edge` checks it."""
    return [Depends(HTTPBearer(auto_error=False))] if service.config.has_key else []


def add_information(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """Adds health, models, settings, counters and the emptying of the cache."""
    _add_health(app, service)
    _add_models(app, service)
    _add_server(app, service)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(api_page(app.openapi()), media_type="text/html", headers=API_PAGE_HEADERS)

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(await run_in_threadpool(metrics.text), media_type=CONTENT_TYPE)


def _add_health(app: FastAPI, service: Service) -> None:
    unwell: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody}}

    @app.get("/health_generate", include_in_schema=False)
    @app.get("/health", response_model=Health, responses=unwell)
    async def health() -> Response:
        """200 once the model is loaded, compiled and self-checked; 503 otherwise."""
        service.check_ready()
        return json_response({"status": "ok"})

    @app.get("/live", response_model=Health, responses=unwell)
    async def live() -> Response:
        """503 if only a restart can help, otherwise 200, even while it loads or drains."""
        if service.state == "failed":
            service.check_ready()
        return json_response({"status": "ok"})


def _add_models(app: FastAPI, service: Service) -> None:
    started = int(time.time())

    def card() -> dict[str, Any]:
        info = service.scorer.info() if service.scorer else {}
        return {
            "id": service.config.model_name,
            "object": "model",
            "created": started,
            "owned_by": "itemwise",
            "profile": info.get("profile"),
            "decision_profile": info.get("decision_profile"),
        }

    @app.get("/v1/models", response_model=ModelList, dependencies=keyed(service))
    async def models() -> Response:
        """The one model that is served, and how it ranks and decides."""
        date = datetime.datetime.fromtimestamp(started, datetime.UTC).date().isoformat()
        found = await run_in_threadpool(card)
        named = {"name": found["id"], "description": "", "release_date": date}
        return json_response({"object": "list", "data": [found], "models": [named]})

    @app.get("/v1/models/{name:path}", response_model=ModelCard, dependencies=keyed(service))
    async def model(name: str) -> Response:
        """The model, by any of its names."""
        try:
            service.check_model(name)
        except RequestError as error:
            return error_response(error.code, str(error), error.param, status=404)
        return json_response(await run_in_threadpool(card))

    @app.get("/get_model_info", include_in_schema=False)
    @app.get("/model_info", response_model=ModelInfo, dependencies=keyed(service))
    async def model_info() -> Response:
        """The model, in the format of SGLang."""
        shown = service.config.shown_model_path
        return json_response({"model_path": shown, "tokenizer_path": shown, "is_generation": False})


def _add_server(app: FastAPI, service: Service) -> None:
    @app.get("/get_server_info", include_in_schema=False)
    @app.get("/server_info", response_model=ServerInfo, dependencies=keyed(service))
    async def server_info() -> Response:
        """Version, state, settings and counters of the server and its engine."""
        return json_response(await run_in_threadpool(_server_info, service))

    @app.post("/flush_cache", dependencies=keyed(service), response_class=PlainTextResponse)
    async def flush_cache() -> Response:
        """Empties the cache of queries, apart from what running requests use."""
        service.check_ready()
        assert service.scheduler is not None
        await asyncio.wrap_future(service.scheduler.forget_prefixes())
        return PlainTextResponse("Cache flushed.\n")


def _server_info(service: Service) -> dict[str, Any]:
    settings = dataclasses.asdict(service.config)
    del settings["api_key"], settings["api_key_file"], settings["reports_dir"]
    shown = service.config.shown_model_path
    settings["model_path"] = shown
    scheduler, scorer = service.scheduler, service.scorer
    return {
        "version": __version__,
        "state": service.state,
        "server": settings,
        "scheduler": dataclasses.asdict(scheduler.counters()) if scheduler else None,
        "engine": scorer.info() if scorer else None,
        "reports": report_names(service.config.reports_dir),
        # Where SGLang has them.
        "model_path": shown,
        "served_model_name": service.config.model_name,
        "internal_states": [],
    }

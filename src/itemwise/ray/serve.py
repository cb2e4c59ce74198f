"""The HTTP API of `itemwise serve` by Ray Serve: engines behind a front door.

serve run itemwise.ray.serve:app model_path=/models/my-model min_replicas=2
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from itemwise.config import ServerConfig
from itemwise.errors import QueueFullError, RefusedError
from itemwise.ray.router import PolicyRouter
from itemwise.ray.scaling import QUEUED_TOKENS, QueuedTokensPolicy
from itemwise.ray.settings import AppConfig, actor_options, app_config
from itemwise.server.app import app_of
from itemwise.server.front import front_app
from itemwise.server.process import EXIT_S
from itemwise.server.replica import Answer, Ask, ReplicaLostError, answer
from itemwise.server.service import AnyScorer, Service

ENGINE, FRONT = "Engine", "Front"
HEALTH_PERIOD_S = 5.0
FRONT_REQUESTS = 10_000  # at a time; bodies are bounded in bytes, and engines in requests


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """An application of Ray Serve: engines and a front door.

    Args:
        arguments: settings by their names in `config.py` and `ray/settings.py`.

    Raises:
        ConfigError: names are unknown, or values wrong.
    """
    config = app_config(arguments)

    def build() -> Any:
        engines = _ServeReplicas(serve.get_deployment_handle(ENGINE))
        return front_app(config.server, engines, named=False)  # Serve's proxy adds the request id

    engines = serve.deployment(name=ENGINE, **engine_options(config))(EngineReplica)
    front = serve.deployment(
        name=FRONT,
        num_replicas=config.replicas.front_replicas,
        max_ongoing_requests=FRONT_REQUESTS,
        # It waits for the answers that engines still have to give, and rides along beside them.
        graceful_shutdown_timeout_s=config.server.drain_timeout_s + EXIT_S,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress(build)())
    made: serve.Application = front.bind(
        engines.bind(_of_replica(config.server), config.scorer_arguments())
    )
    return made


def engine_options(config: AppConfig) -> dict[str, Any]:
    """Options of the engines' deployment."""
    server, replicas = config.server, config.replicas
    options: dict[str, Any] = {
        # What is beyond that waits at the front door, and what is twice beyond gets 429.
        "max_ongoing_requests": server.max_queued_requests,
        "max_queued_requests": server.max_queued_requests,
        "graceful_shutdown_timeout_s": server.drain_timeout_s + EXIT_S,
        "health_check_period_s": HEALTH_PERIOD_S,
        "ray_actor_options": actor_options(
            replicas.device, replicas.num_cpus, config.engine.tp_size
        ),
        "request_router_config": RequestRouterConfig(
            request_router_class=PolicyRouter,  # type: ignore[arg-type]  # a class is fine
            request_router_kwargs={"policy": replicas.routing},
        ),
    }
    if replicas.max_replicas is None:
        return {**options, "num_replicas": replicas.min_replicas}
    options["autoscaling_config"] = AutoscalingConfig(
        min_replicas=replicas.min_replicas,
        max_replicas=replicas.max_replicas,
        policy=AutoscalingPolicy(
            policy_function=QueuedTokensPolicy,
            policy_kwargs={"target": replicas.target_queued_tokens},
        ),
    )
    return options


def _of_replica(server: ServerConfig) -> ServerConfig:
    """The settings of a server that only the front door reaches."""
    return dataclasses.replace(
        server, api_key_file=None, allowed_origins=None, root_path="", disable_access_log=True
    )


class EngineReplica:
    """An engine behind the HTTP API, without a socket.

    Args:
        config: of the server.
        arguments: of `Scorer.from_pretrained`.
    """

    def __init__(self, config: ServerConfig, arguments: dict[str, Any]) -> None:
        loaded = threading.Event()

        def load() -> AnyScorer:
            from itemwise.scorer import Scorer

            return Scorer.from_pretrained(config.model_path, **arguments)

        self._service = Service(config, load, lambda _: loaded.set(), on_lost=_end_process)
        self._app = app_of(self._service)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._service.start()
        loaded.wait()
        if self._service.failure is not None:
            raise self._service.failure

    async def answer(self, ask: Ask) -> Answer:
        """What the API answers."""
        return await answer(self._app, ask)

    async def named_answer(self, ask: Ask) -> tuple[str, Answer]:
        """The name of this replica, and what the API answers."""
        return self._name, await self.answer(ask)

    def check_health(self) -> None:
        """Called by Serve, which starts another replica in place of one where this raises."""
        self._service.check_ready()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: the tokens that wait or are under way."""
        scheduler = self._service.scheduler
        return {QUEUED_TOKENS: float(scheduler.backlog().tokens if scheduler else 0)}

    async def __del__(self) -> None:
        """Called by Serve once this replica has no requests and gets no more."""
        await asyncio.to_thread(self._service.drain)


def _end_process() -> None:
    """Ends a replica whose device is lost at once, so that its requests go to others.

    Until health checks notice it, it would be the one with the fewest requests, and get all.
    """
    os._exit(1)


class _ServeReplicas:
    """See `server.replica.Replicas`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def ask(self, ask: Ask, key: str) -> Answer:
        asked = self._handle.options(session_id=key).answer.remote(ask)
        try:
            found: Answer = await asked
        except asyncio.CancelledError:
            asked.cancel()  # type: ignore[no-untyped-call]
            raise
        except RayActorError as error:
            raise ReplicaLostError from error
        except BackPressureError:
            raise QueueFullError(
                "too many requests wait for an engine; try again later", retry_after_s=1.0
            ) from None
        except DeploymentUnavailableError:
            raise RefusedError(
                "unhealthy", "no engine could be started; see the log of Ray Serve"
            ) from None
        return found

    async def ask_all(self, ask: Ask) -> list[tuple[str, Answer]]:
        asked = self._handle.broadcast("named_answer", ask)
        answers = await asked.results_async(return_exceptions=True)
        return [each for each in answers if not isinstance(each, BaseException)]

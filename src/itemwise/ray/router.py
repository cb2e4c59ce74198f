"""Serve's request router by the rule of `itemwise.routing`."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from itemwise.routing import POLICIES, PolicyName


class PolicyRouter(RequestRouter):
    """Sends a request to the replica that a policy chooses by the request's session.

    The session is the key of what the request's items share (`server.front.shared_key`). Loads are
    the requests that each replica has, as far as the process of this router knows.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve with the `request_router_kwargs`: `policy`, the name of one."""
        name: PolicyName = kwargs["policy"]
        self._policy = POLICIES[name](random.getrandbits(31))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The policy's choice; then two at random, which get the request if that one is full."""
        if not candidate_replicas:
            return []
        key = None
        if pending_request is not None:
            key = pending_request.metadata.session_id.encode() or None
            pending_request.routing_context.should_backoff = True  # after a round without success
        replicas = sorted(candidate_replicas, key=lambda each: each.replica_id.unique_id)
        loads = [self.replica_queue_len_cache.get(each.replica_id) or 0 for each in replicas]
        names = [each.replica_id.unique_id for each in replicas]
        chosen = replicas[self._policy.choose(key, names, loads)]
        return [[chosen], random.sample(replicas, min(2, len(replicas)))]

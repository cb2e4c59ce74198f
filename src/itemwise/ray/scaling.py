"""How many engines run: as many as the tokens that wait need."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

QUEUED_TOKENS = "queued_tokens"  # by this name, replicas report them


class QueuedTokensPolicy:
    """An autoscaling policy of Serve, which itself applies its delays and the bounds of replicas.

    Args:
        target: tokens that may wait at each replica, on average.
    """

    def __init__(self, target: int) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number of replicas that it wants, maybe with a fraction, and no state."""
        reported = (context.aggregated_metrics or {}).get(QUEUED_TOKENS, {})
        return max(1.0, sum(reported.values()) / self._target), {}

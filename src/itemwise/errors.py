"""Every exception that Itemwise raises on purpose.

    ItemwiseError
    ├── RequestError          (ValueError) the request is invalid; `code` and `param` say where
    ├── ConfigError           (ValueError) an engine or server setting is wrong
    ├── CheckpointError       (ValueError) the model folder cannot be read
    │   └── UnsupportedModelError          the model is intact, but of an unsupported kind
    ├── QueueFullError        too many requests are waiting; try again after `retry_after_s`
    ├── NotFiniteError        the model gives NaN or infinity for an item
    ├── DeadlineExceededError the request was not finished in time
    ├── ShuttingDownError     the server is draining
    ├── EngineLostError       the device can no longer run steps
    ├── RefusedError          the server refuses a request; `code` says why
    ├── SelfCheckError        scores change with batch composition, or are not finite
    ├── EndpointError         a server under validation is unreachable, slow, or broken
    │   └── RequestRefusedError            it works, but refuses this request
    ├── ResultsError          (ValueError) a file of validation results is missing or invalid
    └── BatchError            a job over files stopped; it goes on where it was

Each class has a stable `code`; `server/errors.py` maps codes to HTTP statuses.
"""

from __future__ import annotations


class ItemwiseError(Exception):
    """Base of all of Itemwise's exceptions; `code` is stable across versions."""

    code = "internal_error"


class RequestError(ItemwiseError, ValueError):
    """The request is invalid. `code` names the fault, `param` the request field at fault."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class ConfigError(ItemwiseError, ValueError):
    """An engine or server setting is wrong, or does not fit the machine or the model."""

    code = "invalid_config"


class CheckpointError(ItemwiseError, ValueError):
    """A checkpoint is missing, damaged, incomplete or not safetensors."""

    code = "invalid_checkpoint"


class UnsupportedModelError(CheckpointError):
    """A checkpoint is of an architecture, or uses a feature, that Itemwise does not serve."""

    code = "unsupported_model"


class QueueFullError(ItemwiseError):
    """As many requests are waiting as the server allows."""

    code = "queue_full"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFiniteError(ItemwiseError):
    """The model gives NaN or infinity for an item, which the message names."""

    code = "score_not_finite"


class DeadlineExceededError(ItemwiseError):
    """The request took longer than its `timeout_s` or the server's limit."""

    code = "deadline_exceeded"


class EngineLostError(ItemwiseError):
    """A step failed and the device cannot run another one; the process must be restarted."""

    code = "unhealthy"


class ShuttingDownError(ItemwiseError):
    """The server is finishing accepted requests and refuses new ones."""

    code = "shutting_down"


class RefusedError(ItemwiseError):
    """The server refuses a request, whatever its fields; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SelfCheckError(ItemwiseError):
    """The self-check found scores that change with batch composition, or are not finite."""

    code = "self_check_failed"


class EndpointError(ItemwiseError):
    """A server under validation is unreachable, too slow, or sends an unreadable answer."""

    code = "endpoint_failed"


class RequestRefusedError(EndpointError):
    """A server under validation refuses a request; `status` and `reason` are the server's."""

    def __init__(self, message: str, status: int, reason: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class ResultsError(ItemwiseError, ValueError):
    """A file of validation results is missing, damaged, or does not match another one."""

    code = "invalid_results"


class BatchError(ItemwiseError):
    """A job over files stopped: a file cannot be read or written, or too many rows failed."""

    code = "batch_failed"


def brief(error: Exception) -> str:
    """The first line of an error's text, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

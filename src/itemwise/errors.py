"""Every exception that Itemwise raises on purpose.

    ItemwiseError
    ├── RequestError          (ValueError) the request is wrong; `code` and `param` say where
    ├── ConfigError           (ValueError) an engine or server setting is wrong
    ├── CheckpointError       (ValueError) the model folder cannot be read
    │   └── UnsupportedModelError          the model is whole, but of a kind not served
    ├── QueueFullError        too many requests wait; try again after `retry_after_s`
    ├── DeadlineExceededError the answer was not there in time
    ├── ShuttingDownError     the server is draining
    ├── EngineLostError       the device runs no more steps
    ├── RefusedError          the server does not take a request; `code` says why
    ├── SelfCheckError        the engine's scores depend on their company: do not serve
    ├── EndpointError         a server under validation is lost, slow, or answers nonsense
    │   └── RequestRefusedError            it is well, but does not take this request
    └── ResultsError          (ValueError) a file of validation results is missing or unfit

Each class has a stable `code`; `server/errors.py` maps codes to HTTP statuses.
"""

from __future__ import annotations


class ItemwiseError(Exception):
    """Base of all of Itemwise's exceptions; `code` is stable across versions."""

    code = "internal_error"


class RequestError(ItemwiseError, ValueError):
    """The request is wrong. `code` names the fault, `param` the request field at fault."""

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
    """As many requests wait as the server allows."""

    code = "queue_full"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(ItemwiseError):
    """The request took longer than its `timeout_s`, or than the server allows."""

    code = "deadline_exceeded"


class EngineLostError(ItemwiseError):
    """A step failed and the device does not run another one; the process must be started anew."""

    code = "unhealthy"


class ShuttingDownError(ItemwiseError):
    """The server is finishing what runs and takes nothing new."""

    code = "shutting_down"


class RefusedError(ItemwiseError):
    """The server does not take a request, whatever it asks for; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SelfCheckError(ItemwiseError):
    """The start-up self-check found scores that depend on their company."""

    code = "self_check_failed"


class EndpointError(ItemwiseError):
    """A server that is being validated is lost, too slow, or answers what cannot be read."""

    code = "endpoint_failed"


class RequestRefusedError(EndpointError):
    """A server that is being validated refuses a request; `status` and `reason` are its own."""

    def __init__(self, message: str, status: int, reason: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class ResultsError(ItemwiseError, ValueError):
    """A file of validation results is missing, damaged, or does not go with another."""

    code = "invalid_results"


def brief(error: Exception) -> str:
    """The first line of an error's text, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""The server's log: lines for people, or one JSON object per line for collectors."""

from __future__ import annotations

import logging
import time

import orjson

from itemwise.config import LogFormat, LogLevel
from itemwise.server.record import Record

access_logger = logging.getLogger("itemwise.access")
_PROBES = ("/health", "/live", "/metrics")


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object: time, level, logger, message, and the values in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("request_id", "access"):
            value = getattr(record, name, None)
            if isinstance(value, dict):
                line |= value
            elif value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def set_up_logs(log_format: LogFormat, log_level: LogLevel = "info") -> None:
    """Sends logs of a level and above to stderr."""
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=log_level.upper(), handlers=[handler], force=True)
    # At INFO, jax logs the backends that it did not find; at DEBUG, each step of a compilation.
    for noisy in ("uvicorn", "jax"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.root.level))


def log_access(record: Record) -> None:
    """Logs one line per finished request, except for successful probes."""
    if record.path in _PROBES and record.status == 200:
        return
    facts = {
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path[:200],
        "status": record.status,
        "code": record.code,
        "ms": round(record.seconds() * 1e3, 3),
        "items": record.items,
        "tokens": record.tokens,
        "cached_tokens": record.cached_tokens,
        **{f"{name}_ms": round(s * 1e3, 3) for name, s in record.stages.items()},
    }
    # The client chooses the path, so it is quoted: it must not forge a log line.
    shown = {**facts, "path": ascii(facts["path"])}
    text = " ".join(f"{name}={value}" for name, value in shown.items())
    access_logger.info("%s", text, extra={"access": facts})

"""The server's log: lines for people, or one JSON object per line for collectors."""

from __future__ import annotations

import logging
import re
import threading
import time

import orjson

from itemwise.config import LogFormat, LogLevel
from itemwise.server.output import Lines
from itemwise.server.record import Record

logger = logging.getLogger("itemwise.server")
access_logger = logging.getLogger("itemwise.access")
_PROBES = ("/health", "/live", "/metrics")
# Characters that end a line for some reader, or steer a terminal, or are no text.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_REPEAT_S = 10.0  # a line of asyncio is not logged again sooner


def safe(text: str) -> str:
    """`text` on one line, with escapes for what could forge another one."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """A log record as one line for people; a traceback follows on lines of its own, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and those of the traceback."""
        line = f"{self.formatTime(record)} {record.levelname} {safe(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info).split("\n")
            line = "\n".join([line, *(f"  {safe(part)}" for part in trace)])
        return line


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
        encodable = {name: _encodable(value) for name, value in line.items()}
        # JSON may hold these as they are, but some readers take them for ends of lines.
        return _UNSAFE.sub(
            lambda found: f"\\u{ord(found[0]):04x}", orjson.dumps(encodable, default=str).decode()
        )


def _encodable(value: object) -> object:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


class LinesHandler(logging.Handler):
    """Writes log records as lines that never hold the server up."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Queues the record."""
        self._lines.write(self.format(record))


class Repeats(logging.Filter):
    """Drops a message that was logged moments ago: the event loop repeats some without end."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        now, text = time.monotonic(), record.getMessage()[:100]
        if now - self._last.get(text, float("-inf")) < _REPEAT_S:
            return False
        if len(self._last) > 100:
            self._last.clear()
        self._last[text] = now
        return True


def set_up_logs(log_format: LogFormat, lines: Lines, log_level: LogLevel = "info") -> None:
    """Sends logs of a level and above, and Python's warnings, to `lines`."""
    handler = LinesHandler(lines)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    threading.excepthook = _log_lost_thread
    # At INFO, jax logs the backends that it did not find; at DEBUG, each step of a compilation.
    for noisy in ("uvicorn", "jax"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.root.level))
    logging.getLogger("asyncio").addFilter(Repeats())


def _log_lost_thread(lost: threading.ExceptHookArgs) -> None:
    name = lost.thread.name if lost.thread else "a thread"
    logger.critical(
        "%s failed",
        name,
        exc_info=(lost.exc_type, lost.exc_value or lost.exc_type(), lost.exc_traceback),
    )


def log_access(record: Record) -> None:
    """Logs one line per finished request, except for successful probes and files of the page."""
    quiet = record.path in _PROBES or record.path.startswith("/playground/")
    if quiet and record.status in (200, 304):
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

"""Logs: one line per event, as JSON or as key=value, with an error id for every fault.

What a line may hold is decided here, not at each call: the message (a constant of our code), and fields
given as `extra={"fields": {...}}` that are numbers, booleans or short text. Frames cannot get in, since
bytes and arrays show only as their type, and the text of foreign exceptions, which may quote a prompt, is
left out: an exception shows as its type and where it happened. Only our own error types, assertions and
errors of the system and of torch keep their text.

Whose work is under way is known where it begins (`concerns`, `concerning`), and is in every line from there
on, `session_id` and `tenant`, in tasks that are started too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal, TextIO

from rearview.errors import ConfigError, RearviewError
from rearview.telemetry_config import LogsConfig

__all__ = [
    "JsonFormatter",
    "TextFormatter",
    "concerning",
    "concerns",
    "configure_logging",
    "log_as",
    "log_fault",
    "new_error_id",
]

MAX_TEXT_LENGTH = 200
"""Longer text in a field or an exception is cut."""
_OWN_TEXT = (RearviewError, ConfigError, AssertionError, OSError, RuntimeError)
_HANDLER_NAME = "rearview"
_concern: ContextVar[Mapping[str, str]] = ContextVar("concern")


def configure_logging(
    level: str = "INFO", style: Literal["json", "text"] = "json", stream: TextIO | None = None
) -> None:
    """Send what `rearview.*` logs to `stream` (default: standard error). May be called again.

    Other libraries' loggers are left alone: what they write is theirs.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logger = logging.getLogger("rearview")
    for former in [h for h in logger.handlers if h.get_name() == _HANDLER_NAME]:
        logger.removeHandler(former)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def concerns(*, session_id: str = "", tenant: str = "") -> None:
    """What the running task logs from now on is about these; empty: as before."""
    _concern.set(_with(session_id, tenant))


@contextlib.contextmanager
def concerning(*, session_id: str = "", tenant: str = "") -> Iterator[None]:
    """What is logged inside is about these; empty: as outside."""
    before = _concern.set(_with(session_id, tenant))
    try:
        yield
    finally:
        _concern.reset(before)


def _with(session_id: str, tenant: str) -> Mapping[str, str]:
    told = {"session_id": session_id, "tenant": tenant}
    return {**_concern.get({}), **{name: value for name, value in told.items() if value}}


def log_as(config: LogsConfig, style: Literal["json", "text"]) -> None:
    """`configure_logging` as the configuration says; `style` if it says none."""
    configure_logging(config.level, config.format or style)


def new_error_id() -> str:
    """A short random id that a client can quote and an operator can search for."""
    return uuid.uuid4().hex[:12]


def log_fault(logger: logging.Logger, message: str, error: BaseException, **fields: object) -> str:
    """Log a fault of ours with its stack. Returns the error id, the only thing to tell the client."""
    error_id = new_error_id()
    logger.error(message, exc_info=error, extra={"fields": {"error_id": error_id, **fields}})
    return error_id


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the fields, and `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        return json.dumps(_content(record))


class TextFormatter(logging.Formatter):
    """One `time level logger message key=value …` line, then the lines of the exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines, without the last newline."""
        content = _content(record)
        exception = content.pop("exception", None)
        head = " ".join(_escape(str(content.pop(key))) for key in ("time", "level", "logger", "message"))
        pairs = "".join(f" {_escape(key)}={json.dumps(value)}" for key, value in content.items())
        return head + pairs + (f"\n{exception}" if exception is not None else "")


def _content(record: logging.LogRecord) -> dict[str, Any]:
    content: dict[str, Any] = dict(_concern.get({}))
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping):
        content |= {str(key): _plain(value) for key, value in fields.items()}
    content = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    } | {
        key: value
        for key, value in content.items()
        if key not in {"time", "level", "logger", "message", "exception"}
    }
    if record.exc_info and record.exc_info[1] is not None:
        content["exception"] = _describe(record.exc_info[1])
    return content


def _plain(value: object) -> str | int | float | bool | None:
    """Numbers, booleans and short text as they are; of anything else only its type."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cut(value) if isinstance(value, str) else f"<{type(value).__name__}>"


def _describe(error: BaseException) -> str:
    """Type, allowed text and stack of `error` and of its causes, the first cause first."""
    lines: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        text = f": {_cut(str(current))}" if isinstance(current, _OWN_TEXT) else ""
        stack = "".join(traceback.format_list(traceback.extract_tb(current.__traceback__)))
        lines.insert(0, f"{stack}{type(current).__qualname__}{text}")
        hidden = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or hidden
    return "\nand then\n".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else text[:MAX_TEXT_LENGTH] + "…"


def _escape(text: str) -> str:
    """Line breaks and control characters escaped, so that nobody can forge a line."""
    return text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text

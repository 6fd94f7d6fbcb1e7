"""How a command ends: 0 done, 1 with one clear line, 2 wrong usage (by typer), 130 by Ctrl-C, 143 by TERM."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

import typer

__all__ = ["fails_in_one_line", "interrupt_on_sigterm"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def fails_in_one_line(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turn every error of `command` into one line on stderr, with its notes, and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt as error:
            typer.secho("; ".join(("interrupted", *_notes(error))), err=True)
            raise typer.Exit(128 + _signal_of(error)) from None
        except Exception as error:  # the process's edge
            if _wants_traceback():
                raise
            typer.secho("; ".join((f"error: {_line(error)}", *_notes(error))), fg="red", err=True)
            raise typer.Exit(1) from None

    return wrapped


class Terminated(KeyboardInterrupt):
    """SIGTERM."""


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does, so that it stops what it has started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with contextlib.suppress(ValueError):  # signals belong to the main thread
        signal.signal(signal.SIGTERM, interrupt)


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def _signal_of(error: KeyboardInterrupt) -> int:
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def _line(error: Exception) -> str:
    from rearview.errors import ConfigError, RearviewError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, RearviewError):
        retry = f"; try again in {error.retry_after_s:g} s" if error.retry_after_s else ""
        return f"{text} ({error.reason.name}){retry}"
    if isinstance(error, (ConfigError, OSError)) or type(error).__module__.startswith("rearview."):
        return text
    return f"{type(error).__name__}: {text} (REARVIEW_TRACEBACK=1 shows where)"


def _wants_traceback() -> bool:
    from rearview.environment import environment

    return bool(environment("TRACEBACK"))

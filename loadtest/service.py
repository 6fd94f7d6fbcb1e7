"""The configurations that are measured, and the service on this machine under one of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, Protocol

from rearview.config import ServiceConfig, load_config
from rearview.contract.card import ModelCard
from rearview.errors import ConfigError

__all__ = [
    "NULL_CUT",
    "RunningService",
    "fail",
    "fused_config",
    "parse_cut",
    "pipeline_config",
    "running",
    "with_method",
]

NULL_CUT = "encode|denoise-0+denoise-1|decode"


class RunningService(Protocol):
    """What a started service tells."""

    address: str
    """host:port of its gRPC port."""
    ready_s: float
    """Seconds from start to READY."""


def fail(message: str) -> NoReturn:
    """End the command with one line."""
    print(f"loadtest: {message}", file=sys.stderr)
    raise SystemExit(2)


def fused_config(checkpoint: str, *, threads: int, max_steps: int = 2) -> ServiceConfig:
    """One span, one replica. Raises ConfigError."""
    operators = ["encode", *(f"denoise-{step}" for step in range(max_steps)), "decode"]
    span = {"name": "fused", "operators": operators, "num_threads": threads}
    return load_config(_common(checkpoint, max_steps) | {"topology": "fused", "spans": [span]})


def pipeline_config(
    checkpoint: str, cut: str, *, threads: int = 1, max_steps: int = 2, slots: int = 16
) -> ServiceConfig:
    """One replica per span of the cut. Raises ConfigError."""
    spans = [
        {"name": name, "operators": list(operators), "num_threads": threads, "slots": slots}
        for name, operators in parse_cut(cut).items()
    ]
    return load_config(_common(checkpoint, max_steps) | {"topology": "pipeline", "spans": spans})


def with_method(config: ServiceConfig, method: str) -> ServiceConfig:
    """`config` whose sessions use `streamv2v`, `live2diff`, or with "" neither. Raises ConfigError."""
    content = config.model_dump(mode="json")
    if method == "streamv2v":
        content["bank"] = {**ModelCard.read(config.model.checkpoint).bank, "default": True}
    elif method == "live2diff":
        content["cache"] = {"default": True}
    elif method:
        raise ConfigError(f"there is no method {method!r}: use streamv2v or live2diff")
    return load_config(content)


def parse_cut(cut: str) -> Mapping[str, tuple[str, ...]]:
    """Span names to operators: `encode|denoise-0+denoise-1|decode`. Raises ConfigError."""
    spans: dict[str, tuple[str, ...]] = {}
    for part in cut.split("|"):
        operators = tuple(name.strip() for name in part.split("+"))
        if not all(operators):
            raise ConfigError(f"cut {cut!r}: write operators with + inside a span and | between spans")
        name = operators[0] if len(operators) == 1 else f"{operators[0]}-to-{operators[-1]}"
        spans[name] = operators
    return spans


def _common(checkpoint: str, max_steps: int) -> dict[str, Any]:
    return {
        "name": "loadtest",
        "model": {"name": "loadtest", "checkpoint": checkpoint, "max_steps": max_steps},
        "ingress": {"port": 0},
    }


@contextmanager
def running(config: ServiceConfig) -> Iterator[RunningService]:
    """The service, started and stopped. Ends the command with one line if it cannot start."""
    try:
        from rearview.local import RayService
    except ImportError as error:
        fail(f"the service cannot be imported ({error}): install the project first (make test does)")
    with ExitStack() as stack:
        try:
            service = stack.enter_context(RayService(config, on_progress=lambda *_: None))
        except Exception as error:  # The edge of a command: whatever Ray or a socket says, in one line.
            first_line = (str(error).splitlines() or [""])[0]
            fail(f"the service did not start: {type(error).__name__}: {first_line}")
        yield service

"""To whom an ingress tells what happens: its metrics, and what `telemetry` of its configuration names."""

from __future__ import annotations

from typing import Any

import grpc

from rearview.config import ServiceConfig
from rearview.contract.events import Events, told_to
from rearview.environment import everything
from rearview.errors import ConfigError
from rearview.telemetry.listener import MetricsListener
from rearview.telemetry.metrics import Metrics, new_registry
from rearview.telemetry.traces import TraceListener, open_traces
from rearview.telemetry_config import TracesConfig

__all__ = ["Telling"]


class Telling:
    """The listeners of one ingress."""

    def __init__(self, config: ServiceConfig, ingress_id: str) -> None:
        """Raises ConfigError for what cannot be told."""
        self.metrics = Metrics(new_registry())
        self._traces: TraceListener | None = None
        sinks: list[Events] = [MetricsListener(self.metrics)]
        if (traces := config.telemetry.traces) is not None:
            names = config.name, ingress_id
            self._traces = open_traces(traces, *names, everything(), _credentials(traces))
            sinks.append(self._traces)
        self.events: Events = told_to(*sinks)

    async def stop(self) -> None:
        """Hand over what waits."""
        if self._traces is not None:
            await self._traces.stop()


def _credentials(config: TracesConfig) -> Any:
    """None: none is needed."""
    if config.endpoint.startswith("http://"):
        return None
    try:
        authority = None if config.ca_file is None else config.ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"telemetry.traces.ca_file: {error}") from None
    return grpc.ssl_channel_credentials(authority)

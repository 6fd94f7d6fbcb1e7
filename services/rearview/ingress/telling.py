"""To whom an ingress tells what happens: its metrics, and what `telemetry` of its configuration names."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc

from rearview.config import ServiceConfig
from rearview.contract.events import Events, told_to
from rearview.environment import everything
from rearview.errors import ConfigError
from rearview.telemetry.listener import MetricsListener
from rearview.telemetry.metrics import Metrics, new_registry
from rearview.telemetry.traces import TraceListener, open_traces
from rearview.telemetry.usage import UsageListener
from rearview.telemetry_config import TracesConfig, UsageConfig

__all__ = ["Telling"]

logger = logging.getLogger(__name__)


class Telling:
    """The listeners of one ingress."""

    def __init__(self, config: ServiceConfig, ingress_id: str) -> None:
        """Raises ConfigError for what cannot be told."""
        self.metrics = Metrics(new_registry())
        self._traces: TraceListener | None = None
        self._usage: UsageListener | None = None
        self._usage_s = 0.0
        sinks: list[Events] = [MetricsListener(self.metrics)]
        if (traces := config.telemetry.traces) is not None:
            names = config.name, ingress_id
            self._traces = open_traces(traces, *names, everything(), _credentials(traces))
            sinks.append(self._traces)
        if (usage := config.telemetry.usage) is not None:
            self._usage, self._usage_s = _begun(usage, ingress_id), usage.interval_s
            sinks.append(self._usage)
        self.events: Events = told_to(*sinks)

    async def run(self) -> None:
        """Write what was used, from time to time, until cancelled."""
        while self._usage is not None:
            await asyncio.sleep(self._usage_s)
            await self._write(self._usage)

    async def stop(self) -> None:
        """Hand over what waits."""
        if self._usage is not None:
            await self._write(self._usage)
        if self._traces is not None:
            await self._traces.stop()

    async def _write(self, usage: UsageListener) -> None:
        records = usage.due()
        try:
            await asyncio.shield(asyncio.to_thread(usage.write, records))
        except OSError as error:
            logger.error("usage cannot be written, it is kept: %s", error)
        else:
            usage.written(records)


def _begun(config: UsageConfig, ingress_id: str) -> UsageListener:
    try:
        return UsageListener(config.folder, ingress_id)
    except OSError as error:
        raise ConfigError(f"telemetry.usage.folder: {error}") from None


def _credentials(config: TracesConfig) -> Any:
    """None: none is needed."""
    if config.endpoint.startswith("http://"):
        return None
    try:
        authority = None if config.ca_file is None else config.ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"telemetry.traces.ca_file: {error}") from None
    return grpc.ssl_channel_credentials(authority)

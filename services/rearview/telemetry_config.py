"""What a service tells of itself beside its metrics: the section `telemetry` of a configuration."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rearview.contract.traces import NO_SAMPLING, Sampling
from rearview.errors import ConfigError

__all__ = ["LogsConfig", "TelemetryConfig", "TracesConfig", "UsageConfig", "check_traces"]

STRICT = ConfigDict(extra="forbid", frozen=True)
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


class TracesConfig(BaseModel):
    """Where traces go. Needs the extra `traces`."""

    model_config = STRICT

    endpoint: str
    """`http://host:port` or `https://host:port` of an OTLP receiver that speaks gRPC (port 4317, mostly)."""
    ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of frames that are traced of streams whose caller says nothing of traces."""
    asked_ratio: float = Field(default=1.0, ge=0, le=1)
    """The same, of streams that come with a `traceparent` whose `sampled` flag is set. Where the flag is not
    set no frame is traced. 0: callers cannot ask for traces."""
    headers_env: dict[str, str] = Field(default_factory=dict)
    """Headers of each export: their names, and the environment variables of the ingress with their values."""
    ca_file: Path | None = None
    """PEM certificate of the receiver's authority, for `https`. None: those of the system."""
    timeout_s: float = Field(default=10.0, gt=0)
    """How long one export may take, repetitions included."""
    max_queue: int = Field(default=8192, ge=512)
    """Spans that wait to be exported; beyond it the oldest are dropped. A frame has some fifteen."""

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError("an endpoint is http://host:port or https://host:port")
        if parts.username or parts.password:
            raise ValueError("an endpoint holds no secrets: headers_env names where they are")
        return value


class LogsConfig(BaseModel):
    """What ingress and replicas log to standard error."""

    model_config = STRICT

    format: Literal["json", "text"] | None = None
    """`json`: one object per line. `text`: for people. None: `json` under Ray, `text` without."""
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """What is less than that is not logged."""


class UsageConfig(BaseModel):
    """Records of what tenants use."""

    model_config = STRICT

    folder: Path
    """Where each ingress appends to a file of its own for each day (UTC). One that outlasts its machine, or
    from which something ships lines."""
    interval_s: float = Field(default=10.0, gt=0)
    """Seconds from one writing to the next: a crash loses what was counted since."""


class TelemetryConfig(BaseModel):
    """The section."""

    model_config = STRICT

    traces: TracesConfig | None = None
    """None: frames are not traced, and OpenTelemetry is not imported."""
    logs: LogsConfig = LogsConfig()
    usage: UsageConfig | None = None
    """None: nothing is recorded but the metrics `rearview_usage_*`, which end with their process."""

    @property
    def sampling(self) -> Sampling:
        """Which frames are traced."""
        return NO_SAMPLING if self.traces is None else Sampling(self.traces.ratio, self.traces.asked_ratio)


def check_traces(config: TracesConfig | None) -> None:
    """Raises ConfigError for what this installation cannot do."""
    if config is not None and not all(map(_is_installed, _NEEDED)):
        raise ConfigError("telemetry.traces needs OpenTelemetry: pip install 'rearview[traces]'")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # Of a package around it.
        return False

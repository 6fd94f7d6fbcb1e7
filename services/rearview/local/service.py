"""What a service on this machine tells and does, however its processes are kept."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rearview.config import ServiceConfig
from rearview.local.checks import check
from rearview.local.interrupts import uninterrupted
from rearview.scratch import remove_leftovers

__all__ = ["LocalService"]


class LocalService(ABC):
    """`with ... as service:` serves at `service.address` until the block ends."""

    def __init__(self, config: ServiceConfig, on_progress: Callable[[str], None] | None = None) -> None:
        """`on_progress` is told in a few words what is going on."""
        self._config = config
        self._on_progress = on_progress or (lambda text: None)
        self.ready_s = 0.0
        """Seconds from start to READY."""

    def __enter__(self) -> Self:
        """Start, and wait until all is ready. Raises ConfigError: within two seconds for what can be known
        before anything is started.
        """
        started_s = time.monotonic()
        check(self._config)
        if removed := remove_leftovers():
            self._on_progress(f"removed what {removed} killed services had left")
        try:
            self._start()
        except BaseException:
            with uninterrupted():
                self.stop()
            raise
        self.ready_s = time.monotonic() - started_s
        self._on_progress(f"ready at {self.address} after {self.ready_s:.1f} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_progress("stopping the service")
        self.stop()

    @property
    @abstractmethod
    def address(self) -> str:
        """`host:port` of the gRPC service."""

    @property
    @abstractmethod
    def metrics_urls(self) -> Sequence[str]:
        """`/metrics` of every ingress and of every replica."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[Mapping[str, Any]]:
        """What every replica says of itself (`Stage.describe`)."""

    @abstractmethod
    def stop(self) -> None:
        """Stop what was started. Idempotent."""

    @abstractmethod
    def _start(self) -> None:
        """Start, and return when it serves. Raises ConfigError. What it leaves half done, `stop` stops."""

"""The whole service on this machine through a private Ray: for `rearview up`, and load tests of it.

It joins no cluster that may run here, and ends only what it has started.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from typing import Any

from rearview.config import ServiceConfig
from rearview.errors import ConfigError, RearviewError
from rearview.local.quiet_ray import quiet_ray
from rearview.local.ray_access import token_header
from rearview.local.service import LocalService
from rearview.scratch import Scratch

__all__ = ["RayService", "deploy"]

OBJECT_STORE_BYTES = 128 << 20
"""Frames do not pass through Ray's object store; this is close to its least."""
MIN_CPUS = 4
"""Logical: replicas reserve fractions."""


class RayService(LocalService):
    """`with RayService(config) as service:` serves at `service.address` until the block ends."""

    def __init__(self, config: ServiceConfig, on_progress: Callable[[str], None] | None = None) -> None:
        super().__init__(config, on_progress)
        self._scratch: Scratch | None = None
        self._handle: Any = None
        self._description: Mapping[str, Any] = {}

    @property
    def address(self) -> str:
        """`host:port` of the gRPC service."""
        return str(self._description["address"])

    @property
    def gcs_address(self) -> str:
        """`host:port` of Ray's control service."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    @property
    def metrics_urls(self) -> list[str]:
        """`/metrics` of the ingress and of every stage replica."""
        return list(self._description["metrics_urls"])

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        """What every stage replica says of itself now (`Stage.describe`)."""
        return list(self._describe()["stages"])

    def stop(self) -> None:
        """Stop what was started. Idempotent."""
        import ray
        from ray import serve

        if self._scratch is None:
            return
        # Ray reports on standard output that its own actors were killed, as they are meant to be.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if ray.is_initialized():  # Else `serve.shutdown` would start a cluster to shut down.
                with contextlib.suppress(Exception):  # A cluster that is broken is ended all the same.
                    serve.shutdown()
            ray.shutdown()
        self._scratch.remove()
        self._scratch = None

    def _start(self) -> None:
        try:
            self._try_start()
        except (ConfigError, RearviewError):
            raise
        except Exception as error:  # On a busy machine parts of Ray miss deadlines that it sets itself.
            self._on_progress(f"Ray did not start, trying once more: {_reason(error)}")
            self.stop()
            self._try_start()

    def _try_start(self) -> None:
        self._on_progress("starting Ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Serve's controller reads it: a replica that fails its health check has nothing left to finish.
        os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
        # Ray's own is 15: beside other work replicas would starve until they are taken for dead.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray

        quiet_ray()
        token_header()
        self._scratch = Scratch()
        ray.init(
            address="local",
            num_cpus=max(MIN_CPUS, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
            _temp_dir=str(self._scratch.path),
        )
        spans = ", ".join(span.name for span in self._config.spans)
        self._on_progress(f"loading the model ({spans})")
        self._handle = deploy(self._config)
        self._description = self._describe()

    def _describe(self) -> Mapping[str, Any]:
        description: Mapping[str, Any] = self._handle.describe.remote().result(timeout_s=30)
        return description


def deploy(config: ServiceConfig) -> Any:
    """Serve on the Ray to which this process is connected; the handle of the ingress. Raises ConfigError."""
    from ray import serve

    from rearview.app import build_app

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="Disabled", logging_config=quiet)
    try:
        return serve.run(build_app(config), name=config.name, route_prefix=None, logging_config=quiet)
    except RuntimeError as error:
        raise ConfigError(f"the service did not start: {_cause(serve.status(), config.name)}") from error


def _reason(error: Exception) -> str:
    """In one line; Ray's errors have many."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _cause(status: Any, application: str) -> str:
    """The last line of what a deployment that did not start has said."""
    deployments = status.applications[application].deployments.values()
    messages = [deployment.message.strip() for deployment in deployments if deployment.message]
    return messages[0].splitlines()[-1] if messages else "no deployment says why"

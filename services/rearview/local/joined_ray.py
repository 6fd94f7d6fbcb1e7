"""The service on a Ray that runs already: for `rearview up --ray ADDRESS`.

The cluster stays as it is: at the end this one application is deleted from it. Replicas run the `rearview`
that their nodes have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from rearview.config import ServiceConfig
from rearview.errors import ConfigError, RearviewError, Reason
from rearview.local.quiet_ray import quiet_ray
from rearview.local.ray_access import check_access
from rearview.local.ray_service import RayService, deploy

__all__ = ["JoinedRayService"]


class JoinedRayService(RayService):
    """`with JoinedRayService(config, "10.0.0.1:6379") as service:` serves until the block ends."""

    def __init__(
        self, config: ServiceConfig, ray_address: str, on_progress: Callable[[str], None] | None = None
    ) -> None:
        """`ray_address`: `host:port` of the head's GCS; this process runs on a node of that cluster."""
        super().__init__(config, on_progress)
        self._ray_address = ray_address
        self._is_connected = self._is_ours = False

    def stop(self) -> None:
        """Delete the application if this has started it, and leave the cluster. Idempotent."""
        if not self._is_connected:
            return
        import ray
        from ray import serve

        if self._is_ours:
            with contextlib.suppress(Exception):  # The cluster may be gone, and the application with it.
                serve.delete(self._config.name)
        ray.shutdown()
        self._is_connected = self._is_ours = False

    def _start(self) -> None:
        import ray
        from ray import serve

        self._on_progress(f"joining the Ray at {self._ray_address}")
        check_access(self._ray_address)
        quiet_ray()
        try:
            ray.init(self._ray_address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            message = f"the Ray at {self._ray_address} was not joined: run this on a node of its cluster"
            raise RearviewError(Reason.UNREACHABLE, message) from error
        self._is_connected = True
        if self._config.name in serve.status().applications:
            raise ConfigError(f"name: that Ray serves a {self._config.name} already; choose another")
        self._on_progress("loading the model")
        self._is_ours = True
        self._handle = deploy(self._config)
        self._description = self._describe()

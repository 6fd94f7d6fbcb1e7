"""A private Ray whose Serve is told what to run by a file, as an operator of Kubernetes tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rearview.app import INGRESS
from rearview.scratch import Scratch

__all__ = ["Declared", "declared"]

DESCRIBE_S = 60


class Declared:
    """What is deployed, and who it is."""

    def __init__(self) -> None:
        self._application = ""

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Run, or change what runs to, this `serveConfigV2`. Returns when every replica is of it."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        client = _get_global_client()
        assert client is not None
        self._application = config["applications"][0]["name"]
        client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)

    def describe(self) -> Mapping[str, Any]:
        """What one of the ingresses says."""
        from ray import serve

        handle = serve.get_deployment_handle(INGRESS, self._application)
        described: Mapping[str, Any] = handle.describe.remote().result(timeout_s=DESCRIBE_S)
        return described


@contextmanager
def declared(resources: Mapping[str, float], num_gpus: int | None = None) -> Iterator[Declared]:
    """`resources`: what the pods of a manifest would bring. `num_gpus`: that Ray is to believe in; None:
    those that it finds.
    """
    import ray
    from ray import serve

    try:
        scratch = _started(resources, num_gpus)
    except Exception:  # On a busy machine parts of Ray miss deadlines that it sets itself.
        scratch = _started(resources, num_gpus)
    try:
        serve.start(proxy_location="Disabled")
        yield Declared()
    finally:
        serve.shutdown()
        ray.shutdown()
        scratch.remove()


def _started(resources: Mapping[str, float], num_gpus: int | None) -> Scratch:
    import ray

    scratch = Scratch()
    try:
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=num_gpus,
            resources=dict(resources),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(scratch.path),
        )
    except BaseException:
        ray.shutdown()
        scratch.remove()
        raise
    return scratch

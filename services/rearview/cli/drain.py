"""`rearview drain`: move every session off a replica, which Serve then replaces."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rearview.cli.failure import fails_in_one_line
from rearview.errors import ConfigError

__all__ = ["drain"]

POLL_S = 0.5
WAIT_S = 300.0
"""For a service that answers nothing: a replica leaves as soon as its last session has."""


@fails_in_one_line
def drain(
    replica: Annotated[str, typer.Argument(help="Its id, or enough of its beginning to tell it.")],
    address: Annotated[
        str, typer.Option(envvar="RAY_ADDRESS", help="Of the Ray cluster; auto: the one on this machine.")
    ] = "auto",
    application: Annotated[str, typer.Option("--app", help="Name of the Serve application.")] = "rearview",
    wait: Annotated[bool, typer.Option(help="Return when the replica is gone.")] = True,
) -> None:
    """Move all sessions off a replica; then it fails its health check, and Serve starts another one.

    Run it where the Ray cluster is, such as in the head pod.
    """
    import ray
    from ray import serve

    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    try:
        ingress: Any = serve.get_app_handle(application)
        found = _find(replica, ingress)
        span: Any = serve.get_deployment_handle(found["span"], application)
        replica_id = found["replica_id"]
        span.broadcast("leave", replica_id).results(timeout_s=30)
        typer.echo(f"{replica_id} of {found['span']} leaves: {len(found['sessions'])} sessions move off")
        gives_up_s = time.monotonic() + WAIT_S
        while wait and any(stage["replica_id"] == replica_id for stage in _stages(ingress)):
            if time.monotonic() > gives_up_s:
                raise ConfigError(f"{replica_id} still holds sessions: is there room for them elsewhere?")
            time.sleep(POLL_S)
    finally:
        ray.shutdown()
    if wait:
        typer.echo(f"{replica_id} is gone")


def _find(replica: str, ingress: Any) -> Mapping[str, Any]:
    """The replica that is meant. Raises ConfigError if none is, or several are."""
    stages = _stages(ingress)
    meant = [stage for stage in stages if stage["replica_id"].startswith(replica)]
    if len(meant) != 1:
        known = ", ".join(sorted(f"{stage['replica_id']} ({stage['span']})" for stage in stages))
        raise ConfigError(f"{len(meant)} replicas begin with {replica!r}; there are: {known}")
    return meant[0]


def _stages(ingress: Any) -> list[Mapping[str, Any]]:
    return list(ingress.describe.remote().result(timeout_s=30)["stages"])

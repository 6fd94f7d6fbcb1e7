"""`rearview drain`: move every session off a replica, which Serve then replaces."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from rearview.cli.failure import fails_in_one_line
from rearview.cli.printing import JsonOption, print_json
from rearview.cli.words import counted
from rearview.errors import ConfigError, NotFound, Reason, Refused

__all__ = ["drain"]

POLL_S = 0.5
ANSWER_S = 30.0
WAIT_S = 300.0
"""For a service that answers nothing: a replica leaves as soon as its last session has."""


@fails_in_one_line
def drain(
    replica: Annotated[str, typer.Argument(help="Its id, or enough of its beginning to tell it.")],
    address: Annotated[
        str, typer.Option(envvar="RAY_ADDRESS", help="Of the Ray cluster; auto: one on this machine.")
    ] = "auto",
    application: Annotated[str, typer.Option("--app", help="Name of the Serve application.")] = "rearview",
    wait: Annotated[bool, typer.Option(help="Return when the replica is gone.")] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Also if no other replica of its span has a free slot.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Move all sessions off a replica; then it fails its health check, and Serve starts another one.

    Run it where the Ray cluster is, such as in the head pod.
    """
    import ray
    from ray import serve

    from rearview.local.quiet_ray import quiet_ray

    quiet_ray()
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    typer.echo(f"in the Ray at {ray.get_runtime_context().gcs_address}", err=as_json)
    try:
        ingress = _ingress(application)
        stages = _stages(ingress)
        found = _find(replica, stages)
        if not force and not found["draining"]:
            _check_room(found, stages)
        replica_id = found["replica_id"]
        _tell_to_leave(replica_id, serve.get_deployment_handle(found["span"], application))
        moving = counted(len(found["sessions"]), "session")
        typer.echo(f"{replica_id} of {found['span']} leaves: {moving} to be moved off", err=as_json)
        gives_up_s = time.monotonic() + WAIT_S
        while wait and any(stage["replica_id"] == replica_id for stage in _stages(ingress)):
            if time.monotonic() > gives_up_s:
                raise ConfigError(f"{replica_id} still holds sessions: is there room for them elsewhere?")
            time.sleep(POLL_S)
    finally:
        ray.shutdown()
    if as_json:
        moved = len(found["sessions"])
        print_json({"replica_id": replica_id, "span": found["span"], "sessions": moved, "is_gone": wait})
    elif wait:
        typer.echo(f"{replica_id} is gone")


def _ingress(application: str) -> Any:
    """Of the service that is to be drained. Raises ConfigError if it is not there."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return serve.get_app_handle(application)
    except RayServeException as error:
        raise ConfigError(f"--app {application}: {error}") from None


def _find(replica: str, stages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The replica that is meant. Raises ConfigError if none is, or several are."""
    meant = [stage for stage in stages if stage["replica_id"].startswith(replica)]
    if len(meant) != 1:
        known = ", ".join(sorted(f"{stage['replica_id']} ({stage['span']})" for stage in stages))
        raise ConfigError(f"{len(meant)} replicas begin with {replica!r}; there are: {known}")
    return meant[0]


def _check_room(found: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> None:
    """Raise Refused if a session that comes or moves would find no replica of this span.

    One that is draining says that it has no free slot.
    """
    if not any(
        stage["span"] == found["span"]
        and stage["replica_id"] != found["replica_id"]
        and stage["free_slots"] > 0
        for stage in stages
    ):
        held = counted(len(found["sessions"]), "session")
        text = (
            f"no other replica of {found['span']} has a free slot: {held} could"
            " not move off, and none could be opened until another replica is there; --force drains it anyway"
        )
        raise Refused(Reason.NO_CAPACITY, text)


def _tell_to_leave(replica_id: str, span: Any) -> None:
    """Tell the replica, whatever its siblings answer: one may be dead or stopped.

    Raises an error of a replica that did not answer, or NotFound, if the one that is meant did not.
    """
    answers = span.broadcast("leave", replica_id).results(timeout_s=ANSWER_S, return_exceptions=True)
    if any(answer is True for answer in answers):
        return
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    raise NotFound(Reason.REPLICA_LOST, f"{replica_id} is gone already")


def _stages(ingress: Any) -> list[Mapping[str, Any]]:
    return list(ingress.describe.remote().result(timeout_s=30)["stages"])

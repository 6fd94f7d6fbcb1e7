"""Autoscaling by sessions, live on a real Ray Serve: 1 → 2 → 1; live sessions move off what goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rearview.config import load_config
from rearview.local import RayService
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.waiting import eventually

from .conftest import Stream

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CONFIG: dict[str, Any] = {
    "model": {"checkpoint": "null"},
    "topology": "fused",
    "spans": [
        {
            "name": "fused",
            "operators": ["encode", "denoise-0", "denoise-1", "decode"],
            "replicas": 1,
            "max_replicas": 2,
            "sessions_per_replica": 2,
        }
    ],
    # Streams say nothing while a replica starts, which may take longer than the default on a busy machine.
    "ingress": {"port": 0, "drain_grace_s": 20, "idle_timeout_s": 120},
}


@pytest.fixture(scope="module")
def service() -> Iterator[RayService]:
    with RayService(load_config(CONFIG)) as running:
        yield running


def open_four(service: RayService, open_stream: Callable[[str, pb.Open], Stream]) -> list[Stream]:
    """Streams on two replicas, of which the second is new."""
    request = pb.Open(settings=settings_pb2.Settings(prompt="x"), drop_policy=pb.DROP_POLICY_LOSSLESS)
    assert len(service.stages) == 1
    streams = [open_stream(service.address, request) for _ in range(3)]
    eventually(lambda: len(service.stages) == 2, within_s=60)
    return [*streams, open_stream(service.address, request)]


def test_live_sessions_move_off_whichever_replica_goes(
    service: RayService, open_stream: Callable[[str, pb.Open], Stream]
) -> None:
    streams = open_four(service, open_stream)
    for stream in streams:
        assert stream.translate([b"payload"] * 3, pb.IMAGE_FORMAT_OPAQUE) == [b"payload"] * 3
    held = {stage["replica_id"]: list(stage["sessions"]) for stage in service.stages}
    assert sum(map(len, held.values())) == 4
    assert all(held.values()), "the new replica got no session"
    staying = {sessions[0] for sessions in held.values()}  # One live session on each replica.
    for stream in streams:
        if stream.opened.session_id not in staying:
            stream.finish()
    eventually(lambda: len(service.stages) == 1, within_s=60)
    for stream in streams:
        if stream.opened.session_id in staying:
            answers = stream.translate([b"payload"] * 3, pb.IMAGE_FORMAT_OPAQUE, first=3)
            assert answers == [b"payload"] * 3
            stream.finish()

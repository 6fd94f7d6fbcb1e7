"""Autoscaling by sessions, live on a real Ray Serve: 1 → 2 → 1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import ray
from rearview.config import load_config
from rearview.local import LocalService
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
    "ingress": {"port": 0, "drain_grace_s": 1, "idle_timeout_s": 120},
}


def test_replicas_follow_the_number_of_sessions_up_and_down(
    open_stream: Callable[[str, pb.Open], Stream],
) -> None:
    request = pb.Open(settings=pb.Settings(prompt="x"), drop_policy=pb.DROP_POLICY_LOSSLESS)
    with LocalService(load_config(CONFIG)) as service:
        assert len(service.stages) == 1
        streams = [open_stream(service.address, request) for _ in range(3)]
        eventually(lambda: len(service.stages) == 2, within_s=60)
        streams.append(open_stream(service.address, request))
        for stream in streams:
            assert stream.translate([b"payload"] * 3, pb.IMAGE_FORMAT_OPAQUE) == [b"payload"] * 3
        newest = {s["replica_id"]: s["sessions"] for s in service.stages}
        assert sum(map(len, newest.values())) == 4
        assert all(newest.values()), "the new replica got no session"
        for stream in streams:
            stream.finish()
        eventually(lambda: len(service.stages) == 1, within_s=60)


def test_live_sessions_move_off_whichever_replica_goes(open_stream: Callable[[str, pb.Open], Stream]) -> None:
    request = pb.Open(settings=pb.Settings(prompt="x"), drop_policy=pb.DROP_POLICY_LOSSLESS)
    ingress = {"port": 0, "drain_grace_s": 20, "idle_timeout_s": 120}
    with LocalService(load_config({**CONFIG, "ingress": ingress})) as service:
        streams = [open_stream(service.address, request) for _ in range(3)]
        eventually(lambda: len(service.stages) == 2, within_s=60)
        streams.append(open_stream(service.address, request))
        held = {stage["replica_id"]: list(stage["sessions"]) for stage in service.stages}
        assert all(held.values()), "a replica got no session"
        staying = {sessions[0] for sessions in held.values()}  # One live session on each replica.
        for stream in streams:
            if stream.opened.session_id not in staying:
                stream.finish()
        eventually(lambda: len(service.stages) == 1, within_s=60)
        for stream in streams:
            if stream.opened.session_id in staying:
                assert stream.translate([b"payload"] * 3, pb.IMAGE_FORMAT_OPAQUE) == [b"payload"] * 3
                stream.finish()


def test_a_replica_that_is_drained_by_hand_is_replaced_and_its_sessions_go_on(
    open_stream: Callable[[str, pb.Open], Stream],
) -> None:
    request = pb.Open(settings=pb.Settings(prompt="x"), drop_policy=pb.DROP_POLICY_LOSSLESS)
    fused = {**CONFIG["spans"][0], "replicas": 2, "max_replicas": None}
    ingress = {"port": 0, "idle_timeout_s": 120}
    with LocalService(load_config({**CONFIG, "spans": [fused], "ingress": ingress})) as service:
        stream = open_stream(service.address, request)
        assert stream.translate([b"payload"] * 3, pb.IMAGE_FORMAT_OPAQUE) == [b"payload"] * 3
        (holder,) = (stage["replica_id"] for stage in service.stages if stage["sessions"])
        command = [sys.executable, "-m", "rearview.cli.main", "drain", holder[:8]]
        address = ray.get_runtime_context().gcs_address
        subprocess.run([*command, "--address", address], check=True, timeout=120)
        assert holder not in {stage["replica_id"] for stage in service.stages}
        assert stream.translate([b"payload"] * 3, pb.IMAGE_FORMAT_OPAQUE, first=3) == [b"payload"] * 3
        eventually(lambda: len(service.stages) == 2, within_s=60)
        stream.finish()

"""Autoscaling live on a real Ray Serve: a pipeline from one to three replicas of each span and back, while
streams run; and a span that goes to none and comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from rearview.config import load_config
from rearview.local import RayService
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.waiting import eventually

from loadtest.scaling import STAYING, perform, scaling_config

from .conftest import Stream

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

WITHIN_S = 150.0
"""Starts of replicas on a busy machine included."""
IDLE: dict[str, Any] = {
    "model": {"checkpoint": "null"},
    "spans": [
        {
            "name": "fused",
            "operators": ["encode", "denoise-0", "denoise-1", "decode"],
            "min_replicas": 0,
            "replicas": 1,
            "max_replicas": 2,
        }
    ],
    "scaling": {"idle_s": 4.0, "hold_s": 1.0},
    "ingress": {"port": 0, "idle_timeout_s": 120},
}


@pytest.mark.load
def test_one_to_three_to_one_while_streams_run_loses_and_resets_nothing(tmp_path: Path) -> None:
    with RayService(scaling_config(tmp_path)) as service:
        found = asyncio.run(perform(service))
    assert found.violations == [], "a frame lost, doubled, out of order, or of another past"
    assert found.dropped == 0
    assert set(found.moved) == {"exact"}
    assert sum(found.spread.values()) == 2 * STAYING, "each has a replica of both spans"
    assert sum(count > 0 for count in found.spread.values()) > 2, "they were together before any had to go"
    assert found.gaps_s["going"] < 5.0


def test_a_span_without_demand_has_no_replica_until_a_session_is_asked_for(
    open_stream: Callable[[str, pb.Open], Stream],
) -> None:
    request = pb.Open(settings=settings_pb2.Settings(prompt="x"), drop_policy=pb.DROP_POLICY_LOSSLESS)
    with RayService(load_config(IDLE)) as service:
        eventually(lambda: not service.stages, within_s=WITHIN_S)
        found: list[Stream] = []
        codes: set[grpc.StatusCode] = set()

        def is_open() -> bool:
            try:
                found.append(open_stream(service.address, request))
            except grpc.RpcError as error:
                codes.add(error.code())
            return bool(found)

        assert not is_open(), "there is no replica"
        eventually(is_open, within_s=WITHIN_S)
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert found[0].translate([b"payload"] * 3, pb.IMAGE_FORMAT_OPAQUE) == [b"payload"] * 3
        found[0].finish()
        eventually(lambda: not service.stages, within_s=WITHIN_S)

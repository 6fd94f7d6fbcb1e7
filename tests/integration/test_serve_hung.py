"""A replica that is stopped, over a real Ray Serve: nobody waits for it, and Serve kills and replaces it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rearview.config import load_config
from rearview.local import LocalService
from rearview.v1 import translation_service_pb2 as pb
from support.waiting import eventually

from .conftest import Stream

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CONFIG = {
    "model": {"checkpoint": "null"},
    "topology": "fused",
    "spans": [
        {"name": "fused", "operators": ["encode", "denoise-0", "denoise-1", "decode"], "replicas": 2},
    ],
    "ingress": {"port": 0, "drain_grace_s": 60, "idle_timeout_s": 120},
}


def test_a_stopped_replica_is_killed_and_replaced(open_stream: Callable[[str, pb.Open], Stream]) -> None:
    request = pb.Open(settings=pb.Settings(prompt="x"), drop_policy=pb.DROP_POLICY_LOSSLESS)
    with LocalService(load_config(CONFIG)) as service:
        stream = open_stream(service.address, request)
        assert stream.translate([b"payload"], pb.IMAGE_FORMAT_OPAQUE) == [b"payload"]
        victim = next(s for s in service.stages if stream.opened.session_id in s["sessions"])
        os.kill(victim["pid"], signal.SIGSTOP)
        stopped_s = time.monotonic()
        other = open_stream(service.address, request)
        assert other.translate([b"payload"], pb.IMAGE_FORMAT_OPAQUE) == [b"payload"]
        print(f"another session has its picture after {time.monotonic() - stopped_s:.2f} s")
        eventually(lambda: not Path(f"/proc/{victim['pid']}").exists(), within_s=60)
        print(f"killed after {time.monotonic() - stopped_s:.2f} s")

        def is_replaced() -> bool:
            replicas = {stage["replica_id"] for stage in service.stages}
            return len(replicas) == 2 and victim["replica_id"] not in replicas

        eventually(is_replaced, within_s=120)
        print(f"replaced after {time.monotonic() - stopped_s:.2f} s")

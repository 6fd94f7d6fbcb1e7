"""A client whose process was stopped: its connection stays, and nothing comes of it any more."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Any

import pytest
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import RawStream, eventually, running

pytestmark = pytest.mark.integration

CLIENT = """
import json, queue, sys
import grpc
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from rearview.v1.translation_service_pb2_grpc import TranslationServiceStub

requests = queue.SimpleQueue()
requests.put(pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"))))
call = TranslationServiceStub(grpc.insecure_channel(sys.argv[1])).Translate(iter(requests.get, None))
opened = next(call).opened
for number in range(int(sys.argv[2])):
    frame = pb.Frame(frame_index=number, format=pb.IMAGE_FORMAT_OPAQUE, image=bytes(20_000))
    requests.put(pb.TranslateRequest(frame=frame))
    assert next(call).frame.image
print(json.dumps([opened.session_id, opened.resume_token]), flush=True)
for response in call:
    pass
"""
FREE_S = 12.0
"""What is promised of the defaults."""
QUICK: dict[str, Any] = {"ingress": {"idle_timeout_s": 3.0}, "recovery": {"park_after_s": 0.1}}
"""Clients are asked for a sign of life every second or so."""


@pytest.mark.parametrize(
    ("frames", "sections"), [(0, QUICK), (8, {})], ids=["before its frames", "in mid-stream, by the defaults"]
)
async def test_fault_17_a_frozen_client_gives_its_slot_back_and_may_go_on(
    frames: int, sections: dict[str, Any]
) -> None:
    async with running(**sections) as service:
        (stage,) = service.stages
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, service.address, str(frames), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert client.stdout is not None
            session_id, token = json.loads(await client.stdout.readline())
            assert stage.num_sessions == 1
            client.send_signal(signal.SIGSTOP)
            began_s = time.monotonic()
            await eventually(lambda: stage.num_sessions == 0)
            assert time.monotonic() - began_s < FREE_S
            assert service.sessions[session_id].session.past.is_parked
            async with RawStream(service.address) as stream:
                await stream.resume(pb.Opened(session_id=session_id, resume_token=token), frames)
                await stream.frame(frames)
                await stream.read_answers(1)
        finally:
            client.kill()
            await client.wait()

"""Quotas of a tenants file that has changed hold for what is opened from then on; nothing is restarted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from rearview.errors import Reason
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import End, RawStream, eventually, running
from support.service import InProcessService
from support.tokens import Registry, replace, sha256

pytestmark = pytest.mark.integration

TOKEN = "alpha-token"


def allow(registry: Registry, **limits: Any) -> None:
    """What the tenant may from now on."""
    entry = {"name": "alpha", "token_sha256": sha256(TOKEN), **limits}
    replace(registry.path, yaml.safe_dump([entry]))


async def is_read(service: InProcessService, times: int) -> None:
    labels = {"file": "tenants", "outcome": "good"}
    await eventually(lambda: service.counted("rearview_file_reloads_total", **labels) >= times)


async def refused(service: InProcessService, **fields: Any) -> End:
    async with RawStream(service.address, TOKEN) as stream:
        request = pb.Open(settings={"prompt": "a"}, **fields)
        await stream.write(pb.TranslateRequest(open=request))
        return await stream.read_to_end()


@pytest.mark.one_ingress("a file is counted by each")
async def test_a_changed_quota_holds_for_what_is_opened_then_and_ends_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path, {"alpha": TOKEN})
    allow(registry, max_streams=1)
    async with running(**registry.sections) as service, RawStream(service.address, TOKEN) as first:
        await first.start(frame_rate=10.0)
        assert (await refused(service)).reason is Reason.TENANT_STREAMS_EXHAUSTED
        allow(registry, max_streams=2, max_frames_per_s=15.0)
        await is_read(service, 1)
        assert (await refused(service, frame_rate=10.0)).reason is Reason.TENANT_RATE_EXHAUSTED
        allow(registry, max_streams=2, max_frames_per_s=40.0)
        await is_read(service, 2)
        async with RawStream(service.address, TOKEN) as second:
            await second.start(frame_rate=10.0)
            allow(registry, max_streams=1)
            await is_read(service, 3)
            assert (await refused(service)).reason is Reason.TENANT_STREAMS_EXHAUSTED
            for stream in (first, second):  # They go on, though there are more than may be opened.
                await stream.frame(0, b"0")
                await stream.read_answers(1)
                assert stream.drops == []

"""The client on the stubs alone, `clients/python_raw`, against a server that refuses and ends its calls."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest
import simplejpeg
from rearview.errors import Reason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.fake_server import SIZE, FakeServer, Faults

from clients.python_raw.resume import translate

pytestmark = [pytest.mark.integration, pytest.mark.timeout(30)]

START = pb.Open(settings=settings_pb2.Settings(prompt="a"), drop_policy=pb.DROP_POLICY_LOSSLESS)
JPEG = simplejpeg.encode_jpeg(np.zeros((SIZE, SIZE, 3), np.uint8))


async def frame_indices(server: FakeServer) -> list[int]:
    """Of the answers to six frames."""
    frames = [pb.Frame(frame_index=n, format=pb.IMAGE_FORMAT_JPEG, image=JPEG) for n in range(6)]
    return [answer.frame_index async for answer in translate([server.address], START, frames)]


def test_it_is_as_short_as_the_readme_says(root: Path) -> None:
    assert len((root / "clients/python_raw/resume.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("refusal", [(Reason.NO_CAPACITY, 0.1), (Reason.TAKEN_OVER, None)])
async def test_a_resume_that_is_refused_for_now_is_tried_again(refusal: tuple[Reason, float | None]) -> None:
    async with FakeServer(Faults(cut_after_answers=[2], refuse_resume=[refusal])) as server:
        assert await frame_indices(server) == list(range(6))
    assert server.log.num_resumes == 2


class Failing(FakeServer):
    """One whose every call fails without a reason."""

    calls = 0

    async def Translate(self, requests: object, context: object) -> None:  # noqa: N802  # type: ignore[override]
        self.calls += 1
        raise ZeroDivisionError


async def test_a_server_that_only_fails_is_left_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.python_raw.resume.TRIES", 3)
    async with Failing() as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await frame_indices(server)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert server.calls == 1 + 3


async def test_an_opening_that_is_refused_is_not_tried_again() -> None:
    async with FakeServer(Faults(refuse=[(Reason.NO_CAPACITY, 0.1)])) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await frame_indices(server)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.log.num_opens == 1

"""Messages in any order, images of any bytes, metadata of any kind: a right status, and nothing is left."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from rearview.config import LimitsConfig
from rearview.contract.stream import ImageFormat
from rearview.errors import STATUS_OF_REASON, Reason
from rearview.ingress.codec import BadImage, decode_image
from rearview.ingress.image_gate import check_image
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.fuzz import few, mutants, tries
from support.raw_stream import RawStream, assert_nothing_held, running
from support.service import InProcessService

pytestmark = pytest.mark.integration

SIDE = 64
STATUSES = {"OK", *STATUS_OF_REASON.values()} - {"INTERNAL"}
QUICK = {"idle_timeout_s": 0.5, "open_timeout_s": 0.3, "resume_grace_s": 0.05}
MAX_MESSAGES = 12
CLIENTS_OWN = "Internal error from Core"
"""What this client says of a call that has ended while it was writing; the server has sent something else."""


@dataclass(frozen=True)
class Act:
    """One thing that a client does."""

    name: str
    message: pb.TranslateRequest | None = None


def _open(**fields: Any) -> pb.TranslateRequest:
    return pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"), **fields))


def _frame(index: int, size: int) -> Act:
    frame = pb.Frame(frame_index=index, format=pb.IMAGE_FORMAT_OPAQUE, image=bytes(size))
    return Act("frame", pb.TranslateRequest(frame=frame))


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the service has logged. gRPC's poller complains of loops of former tests."""
    return [record.getMessage() for record in caplog.records if record.name.startswith(("rearview", "grpc"))]


NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 1 << 31, (1 << 32) - 1])
INDICES = st.sampled_from([0, 1, 2, 3, 5, 4, 1 << 40, (1 << 64) - 1])
ACTS = st.one_of(
    st.builds(_frame, INDICES, st.sampled_from([0, 1, 100, 5000])),
    st.just(Act("open", _open())),
    st.builds(lambda n: Act("open", _open(answer_credit=n)), NUMBERS),
    st.builds(lambda n: Act("open", _open(width=n, height=n)), NUMBERS),
    st.builds(
        lambda n: Act(
            "resume", pb.TranslateRequest(resume=pb.Resume(session_id="0" * 32, received_answers=n))
        ),
        NUMBERS,
    ),
    st.builds(
        lambda a, b: Act(
            "credit", pb.TranslateRequest(credit=pb.Credit(answer_credit=a, received_answers=b))
        ),
        NUMBERS,
        NUMBERS,
    ),
    st.builds(
        lambda n, s: Act(
            "control",
            pb.TranslateRequest(control=pb.Control(control_id=n, settings=settings_pb2.Settings(strength=s))),
        ),
        NUMBERS,
        st.floats(width=32),
    ),
    st.just(Act("nothing", pb.TranslateRequest())),
    st.just(Act("half-close")),
    st.just(Act("read")),
    st.just(Act("silence")),
)


async def perform(service: InProcessService, acts: list[Act]) -> str:
    """How the call ends: the name of its status, or `cancelled` where the client had to hang up."""
    async with RawStream(service.address) as stream:
        for act in acts:
            if stream.call.done():
                break
            if act.message is not None:
                await stream.write(act.message)
            elif act.name == "half-close":
                await stream.half_close()
                break
            elif act.name == "silence":
                await asyncio.sleep(0.01)
        end = await stream.read_to_end()
        if end.message == CLIENTS_OWN:
            return end.message
        assert end.code.name in STATUSES, (end, acts)
        if end.code is not grpc.StatusCode.OK:
            assert end.reason is not None, (end, acts)
        return end.code.name


def test_messages_in_any_order_end_with_a_right_status_and_hold_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    with asyncio.Runner() as runner:
        context = running(ingress=QUICK, slots=8)
        service = runner.run(context.__aenter__())

        @few(30)
        @given(st.lists(ACTS, max_size=MAX_MESSAGES), st.booleans())
        def attempt(acts: list[Act], opens: bool) -> None:
            runner.run(perform(service, [Act("open", _open()), *acts] if opens else acts))

        try:
            attempt()
            runner.run(assert_nothing_held(service))
        finally:
            runner.run(context.__aexit__(None, None, None))
    assert faults(caplog) == []


KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=20).filter(
    lambda key: (
        not key.startswith(("grpc-", ":"))
        and not key.endswith("-bin")
        and key not in ("te", "host", "connection")
    )
)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)
METADATA = st.lists(
    st.one_of(
        st.tuples(KEYS, VALUES),
        st.tuples(KEYS.map(lambda key: key + "-bin"), st.binary(max_size=200)),
        st.tuples(st.just("authorization"), VALUES),
        st.tuples(st.just("authorization"), VALUES.map(lambda value: f"Bearer {value}")),
        st.tuples(st.just("authorization"), st.just("Bearer " + "x" * 5000)),
        st.tuples(st.just("huge"), st.just("x" * 9000)),
    ),
    max_size=6,
)


def test_metadata_of_any_kind_is_refused_or_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(f"- {{name: alpha, token_sha256: {'a' * 64}}}\n")
    with asyncio.Runner() as runner:
        context = running(ingress=QUICK, tenants_file=str(tenants))
        service = runner.run(context.__aenter__())

        async def call(metadata: list[tuple[str, str | bytes]]) -> None:
            async with grpc.aio.insecure_channel(service.address) as channel:
                listing = channel.unary_unary("/rearview.v1.SessionService/ListSessions")
                code = await listing(b"", metadata=metadata, timeout=10).code()
                # gRPC itself refuses more than 8 KiB of metadata.
                assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED), metadata

        @few(60)
        @given(METADATA)
        def attempt(metadata: list[tuple[str, str | bytes]]) -> None:
            runner.run(call(metadata))

        try:
            attempt()
        finally:
            runner.run(context.__aexit__(None, None, None))
    assert faults(caplog) == []


def test_bytes_of_images_are_refused_with_a_reason_or_are_an_image_of_the_sessions_size(
    images: dict[str, bytes],
) -> None:
    limits = LimitsConfig(max_pixels=SIDE * SIDE, max_image_bytes=1 << 16)
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    originals = [*images.values(), simplejpeg.encode_jpeg(picture, 90), simplejpeg.encode_jpeg(picture, 10)]
    passed = 0
    for image in mutants([image for image in originals if image], tries(2000)):
        if check_image(image, ImageFormat.JPEG, SIDE, SIDE, limits) is not None:
            continue
        try:
            pixels = decode_image(image, ImageFormat.JPEG, SIDE, SIDE)
        except BadImage:
            continue
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.dtype == np.uint8
        passed += 1
    assert passed > 10


@few(100)
@given(
    st.binary(max_size=200),
    st.sampled_from([*ImageFormat]),
    st.integers(1, 4096),
    st.integers(1, 4096),
)
def test_the_gate_answers_any_bytes_of_any_format(
    image: bytes, kind: ImageFormat, width: int, height: int
) -> None:
    check_image(image, kind, width, height, LimitsConfig())


def test_every_reason_that_a_client_can_cause_is_no_fault_of_ours() -> None:
    assert [reason for reason, status in STATUS_OF_REASON.items() if status == "INTERNAL"] == [
        Reason.INTERNAL
    ]

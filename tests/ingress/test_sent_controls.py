"""Pictures that clients send for ControlNets, beside the frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from rearview.client import (
    Client,
    Dropped,
    DropPolicy,
    Frame,
    ImageFormat,
    SettingsChange,
    SimilarityOptions,
    Translated,
    WeightedControl,
)
from rearview.client.wire import encode_jpeg
from rearview.config import ServiceConfig, load_config
from rearview.contract.controls import MAX_CONTROLS
from rearview.errors import DropReason, Reason
from rearview.ingress.messages import frame_in
from rearview.v1 import model_service_pb2, model_service_pb2_grpc, settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import OPERATORS, RawStream, quickly_stopped
from support.service import in_process_service
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_control import write_tiny_control

pytestmark = pytest.mark.integration

FRAMES = [frame.numpy() for frame in random_frames(6)]
POSES = [frame.numpy() for frame in random_frames(6, seed=50)]
FUSED, CUT = (OPERATORS,), (OPERATORS[:1], OPERATORS[1:2], OPERATORS[2:])
POSE, EDGES = WeightedControl("pose"), WeightedControl("edges")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sent")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    shown = {"edges": "soft_edges", "pose": "sent"}
    controls = {
        name: {
            "path": str(write_tiny_control(folder / name, checkpoint, seed, gain=6.0)),
            "picture": picture,
        }
        for seed, (name, picture) in enumerate(shown.items())
    }
    return {
        "checkpoint": str(checkpoint),
        "controls": controls,
        "device": "cpu",
        "dtype": "float32",
        "compiled": False,
        "width": SIZE,
        "height": SIZE,
    }


def test_of_a_flood_of_pictures_no_more_are_looked_at_than_tell_that_they_are_too_many() -> None:
    flood = pb.Frame(format=pb.IMAGE_FORMAT_RGB, controls=[pb.ControlPicture()] * 100_000)
    found = frame_in(flood, 0.0)
    assert found is not None
    assert len(found.controls) == MAX_CONTROLS + 1


def config_of(model: dict[str, Any], spans: Sequence[Sequence[str]] = FUSED) -> ServiceConfig:
    """Forwards have one row, so that pictures are bit-equal."""
    return load_config(
        {
            "topology": "fused" if len(spans) == 1 else "pipeline",
            "spans": [
                {"name": f"s{i}", "operators": list(operators), "slots": 2, "max_batch": 1, "num_threads": 1}
                for i, operators in enumerate(spans)
            ],
            "model": model,
            "ingress": {"port": 0},
        }
    )


Sent = Mapping[int, Mapping[str, Any]]
"""By number of the frame, what is sent with it for controls."""


async def answers(
    address: str,
    sent: Sent,
    controls: Sequence[WeightedControl],
    changes: Mapping[int, Sequence[WeightedControl]] | None = None,
    **options: Any,
) -> list[bytes | DropReason]:
    """What became of all frames."""
    items: list[Frame | SettingsChange] = []
    for number, frame in enumerate(options.pop("frames", FRAMES)):
        if number in (changes or {}):
            items.append(SettingsChange(controls=tuple((changes or {})[number])))
        items.append(Frame(frame, index=number, controls=sent.get(number, {})))
    how: Any = {"send_quality": 0, "answer_format": ImageFormat.RGB, "drop_policy": DropPolicy.LOSSLESS}
    async with Client(address) as client:
        found = client.translate_frames(items, prompt="a", controls=tuple(controls), **how, **options)
        told = [answer async for answer in found if isinstance(answer, Translated | Dropped)]
    return [answer.data if isinstance(answer, Translated) else answer.reason for answer in told]


@pytest.mark.parametrize("spans", [FUSED, CUT], ids=["fused", "pipeline"])
async def test_a_sent_control_acts_on_the_frames_that_bring_its_picture(
    model: dict[str, Any], spans: Sequence[Sequence[str]]
) -> None:
    sent = {number: {"pose": POSES[number]} for number in (1, 2, 4)}
    with quickly_stopped():
        async with in_process_service(config_of(model, spans)) as service:
            never = await answers(service.address, sent, [])
            found = await answers(service.address, sent, [POSE])
            other = await answers(service.address, {1: {"pose": POSES[0]}}, [POSE])
            live = await answers(service.address, sent, [], {2: [POSE], 4: []})
    assert [one == two for one, two in zip(never, found, strict=True)] == [
        True, False, False, True, False, True,
    ]  # fmt: skip
    assert other[1] not in (never[1], found[1])
    assert live == [*never[:2], found[2], *never[3:]]


async def test_a_sent_picture_takes_the_place_of_what_would_be_drawn(model: dict[str, Any]) -> None:
    """For that frame; a JPEG of it is decoded as a frame's is."""
    with quickly_stopped():
        async with in_process_service(config_of(model)) as service:
            drawn = await answers(service.address, {}, [EDGES])
            found = await answers(service.address, {1: {"edges": POSES[1]}}, [EDGES])
            jpeg = [encode_jpeg(each, 90) for each in (FRAMES[1], POSES[1])]
            async with (
                Client(service.address) as client,
                client.open(prompt="a", controls=(EDGES,), answer_format=ImageFormat.RGB) as session,
            ):
                for shown in ({}, {"edges": jpeg[1]}):
                    await session.send(jpeg[0], controls=shown)
                await session.finish()
                both = [answer.data async for answer in session if isinstance(answer, Translated)]
    assert [one == two for one, two in zip(drawn, found, strict=True)] == [True, False, *[True] * 4]
    assert len(set(both)) == 2


def picture(name: str, image: bytes, format: int = pb.IMAGE_FORMAT_RGB) -> pb.ControlPicture:
    return pb.ControlPicture(name=name, format=pb.ImageFormat.ValueType(format), image=image)


GOOD = POSES[0].tobytes()
TRUNCATED = encode_jpeg(POSES[0], 90)[:-200] + b"\xff\xd9"
BAD: dict[str, tuple[list[pb.ControlPicture], DropReason]] = {
    "unknown": ([picture("lines", GOOD)], DropReason.CONTROL_UNKNOWN),
    "no name": ([picture("", GOOD)], DropReason.CONTROL_UNKNOWN),
    "twice": ([picture("pose", GOOD)] * 2, DropReason.CONTROLS_TOO_MANY),
    "too many": ([picture(f"p{n}", b"") for n in range(MAX_CONTROLS + 1)], DropReason.CONTROLS_TOO_MANY),
    "empty": ([picture("pose", b"")], DropReason.CONTROL_INVALID),
    "no format": ([picture("pose", GOOD, 0)], DropReason.CONTROL_INVALID),
    "another format": ([picture("pose", GOOD, 77)], DropReason.CONTROL_INVALID),
    "opaque": ([picture("pose", GOOD, pb.IMAGE_FORMAT_OPAQUE)], DropReason.CONTROL_INVALID),
    "no JPEG": ([picture("pose", b"GIF89a", pb.IMAGE_FORMAT_JPEG)], DropReason.CONTROL_INVALID),
    "cut short": ([picture("pose", TRUNCATED, pb.IMAGE_FORMAT_JPEG)], DropReason.CONTROL_INVALID),
    "another size": ([picture("pose", GOOD[:-3])], DropReason.CONTROL_SIZE_MISMATCH),
    "a JPEG of another size": (
        [picture("pose", encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90), pb.IMAGE_FORMAT_JPEG)],
        DropReason.CONTROL_SIZE_MISMATCH,
    ),
    "too large": (
        [picture("pose", encode_jpeg(POSES[0], 90) + bytes(1 << 20), pb.IMAGE_FORMAT_JPEG)],
        DropReason.CONTROL_INVALID,
    ),
    "the second": ([picture("edges", GOOD), picture("pose", GOOD[:9])], DropReason.CONTROL_SIZE_MISMATCH),
}


async def test_a_picture_that_cannot_be_shown_drops_its_frame_with_the_reason(model: dict[str, Any]) -> None:
    with quickly_stopped():
        async with in_process_service(config_of(model)) as service, RawStream(service.address) as stream:
            controls = settings_pb2.Controls(controls=[settings_pb2.WeightedControl(name="pose")])
            await stream.start(
                settings=settings_pb2.Settings(prompt="a", controls=controls),
                drop_policy=pb.DROP_POLICY_LOSSLESS,
                width=SIZE,
                height=SIZE,
            )
            for number, (name, (sent, reason)) in enumerate(BAD.items()):
                for index, pictures in enumerate((sent, [picture("pose", GOOD)])):
                    image = FRAMES[0].tobytes()
                    await stream.frame(2 * number + index, image, pb.IMAGE_FORMAT_RGB, pictures)
                bad, fine = await stream.read_answers(2)
                assert bad.dropped.reason == reason.value, name
                assert fine.frame.frame_index == 2 * number + 1, name
            for index in range(1000, 1010):
                await stream.frame(index, FRAMES[0].tobytes(), pb.IMAGE_FORMAT_RGB, BAD["unknown"][0])
            assert (await stream.read_to_end()).reason is Reason.TOO_MANY_BAD_FRAMES


async def test_a_still_frame_with_another_picture_for_its_control_is_not_unchanged(
    model: dict[str, Any],
) -> None:
    """With the same it is, and so it is if the picture does not act."""
    options = {
        "frames": [FRAMES[0]] * 4,
        "similarity_filter": SimilarityOptions(threshold=0.5, max_skip_frames=9),
    }
    sent = {0: {"pose": POSES[0]}, 1: {"pose": POSES[0]}, 2: {"pose": POSES[1]}, 3: {}}
    with quickly_stopped():
        async with in_process_service(config_of(model)) as service:
            found = await answers(service.address, sent, [POSE], **options)
            idle = await answers(service.address, sent, [EDGES], **options)
    assert [one is DropReason.UNCHANGED for one in found] == [False, True, False, False]
    assert [one is DropReason.UNCHANGED for one in idle] == [False, True, True, True]


async def test_what_is_sent_is_told_and_fits_a_message(model: dict[str, Any]) -> None:
    """As large as frames may be, for as many controls as there are."""
    config = config_of({**model, "width": 64, "height": 64})
    assert config.max_message_bytes > 3 * 3 * config.limits.max_pixels
    plain = load_config({**config.model_dump(mode="json", include={"limits"}), "ingress": {"port": 0}})
    assert plain.max_message_bytes < 2 * 3 * plain.limits.max_pixels
    with quickly_stopped():
        async with in_process_service(config) as service, RawStream(service.address) as stream:
            models = model_service_pb2_grpc.ModelServiceStub(stream.channel)
            told = await models.DescribeModel(model_service_pb2.DescribeModelRequest())
            assert (list(told.model.controls), list(told.model.sent_controls)) == (
                ["edges", "pose"],
                ["pose"],
            )

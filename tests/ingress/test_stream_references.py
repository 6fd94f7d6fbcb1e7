"""Reference images as a client meets them: what is taken, what is refused, and from which frame on."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from rearview.client import Client
from rearview.contract.chain import OperatorKind
from rearview.contract.reference import MAX_MASK_BYTES, MAX_PICTURE_BYTES
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.model import Forward, Model, NullModel
from rearview.engine.rows import Row
from rearview.errors import Reason
from rearview.v1 import error_reason_pb2 as errors_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.frames import content, planes_of
from support.raw_stream import OPERATORS, RawStream, running
from support.tiny_reference import half_mask, pixels, reference_file
from torch import Tensor

pytestmark = pytest.mark.integration

ADAPTER = {"reference": {"path": "owner/name/ip-adapter_sd15.safetensors", "image_encoder": "owner/name/it"}}
"""Of a model that loads nothing."""
SPANS = pytest.mark.parametrize(
    "spans", [(OPERATORS,), tuple((operator,) for operator in OPERATORS)], ids=["fused", "pipeline"]
)


class Shown(NullModel):
    """A picture is what its row refers to: the size of the file, the scale, and the size of the mask."""

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        return Forward([planes_of(self._run(row)) for row in rows])

    def _run(self, row: Row) -> Tensor:
        if row.operator.kind is not OperatorKind.DENOISE:
            return content(row)
        under = row.settings
        sizes = under.reference.num_bytes, under.reference_mask.num_bytes
        text = f"{sizes[0]} {under.reference_scale:g} {sizes[1]}" if under.refers else "none"
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def encoded(levels: np.ndarray, format: str = "JPEG", **more: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format, **more)
    return file.getvalue()


FACE, STYLE = encoded(pixels(1, 224, 224)), encoded(pixels(2, 100, 180), "PNG")
MASK = encoded(half_mask(64, 64), "PNG")
STILL = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8).tobytes()


def bare_png(width: int, height: int) -> bytes:
    """One that says that it is that large, and has no pixels."""
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@SPANS
async def test_a_change_is_seen_in_the_first_frame_after_it(
    plant_model: Callable[[Model], None], spans: tuple[tuple[str, ...], ...]
) -> None:
    plant_model(Shown())
    changes: dict[int, dict[str, Any]] = {
        2: {"reference": STYLE, "reference_scale": 0.5},
        3: {"reference_scale": 1.5},
        4: {"reference_mask": MASK},
        6: {"reference_scale": 0.0},
        7: {"reference_scale": 1.0, "reference_mask": b""},
        8: {"reference": b""},
    }
    async with running(spans=spans, model=ADAPTER) as service, RawStream(service.address) as stream:
        settings = settings_pb2.Settings(prompt="a", reference=FACE)
        await stream.start(settings=settings, drop_policy=pb.DROP_POLICY_LOSSLESS)
        assert stream.opened.settings.reference == FACE
        for number in range(9):
            if number in changes:
                await stream.control(number, **changes[number])
            await stream.frame(number)
            await stream.read_answers(1)
        shown = [answer.frame.image.decode() for answer in stream.answers]
    style = f"{len(STYLE)}"
    assert shown == [
        *[f"{len(FACE)} 1 0"] * 2,
        f"{style} 0.5 0",
        f"{style} 1.5 0",
        *[f"{style} 1.5 {len(MASK)}"] * 2,
        "none",
        f"{style} 1 0",
        "none",
    ]


def large(size: int) -> bytes:
    """A picture that can be decoded, and has so many bytes."""
    return FACE + bytes(size - len(FACE))


REFUSED: dict[str, tuple[dict[str, bytes], Reason, str]] = {
    "no picture": ({"reference": b"hello"}, Reason.REFERENCE_INVALID, "reference"),
    "progressive": (
        {"reference": encoded(pixels(1, 64, 64), progressive=True)},
        Reason.REFERENCE_INVALID,
        "reference",
    ),
    "cut short": ({"reference": FACE[:-200]}, Reason.REFERENCE_INVALID, "reference"),
    "a PNG cut short": ({"reference": STYLE[: len(STYLE) // 2]}, Reason.REFERENCE_INVALID, "reference"),
    "a PNG without pixels": ({"reference": bare_png(64, 64)}, Reason.REFERENCE_INVALID, "reference"),
    "a GIF": ({"reference": encoded(pixels(1), "GIF")}, Reason.REFERENCE_INVALID, "reference"),
    "many pixels": (
        {"reference": encoded(np.zeros((513, 512, 3), np.uint8))},
        Reason.REFERENCE_TOO_LARGE,
        "reference",
    ),
    "a PNG of many pixels": ({"reference": bare_png(65535, 65535)}, Reason.REFERENCE_TOO_LARGE, "reference"),
    "many bytes": ({"reference": large(MAX_PICTURE_BYTES + 1)}, Reason.REFERENCE_TOO_LARGE, "reference"),
    "a mask of many bytes": (
        {"reference": FACE, "reference_mask": large(MAX_MASK_BYTES + 1)},
        Reason.REFERENCE_TOO_LARGE,
        "reference_mask",
    ),
    "no mask": ({"reference_mask": b"\xff\xd8"}, Reason.REFERENCE_INVALID, "reference_mask"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_decoded_is_refused_by_its_field(
    plant_model: Callable[[Model], None], name: str
) -> None:
    """At a control the stream goes on as it was, and at the open there is none."""
    plant_model(Shown())
    asked, reason, field = REFUSED[name]
    async with running(model=ADAPTER) as service:
        async with RawStream(service.address) as stream:
            await stream.start(settings=settings_pb2.Settings(prompt="a", reference=STYLE))
            await stream.control(1, **asked)
            await stream.frame(0)
            await stream.read_answers(1)
            applied = next(
                each for each in stream.received if each.HasField("control_applied")
            ).control_applied
            number = errors_pb.ErrorReason.Value(f"ERROR_REASON_{reason.name}")
            assert applied.rejected_reason == number
            assert applied.settings.reference == STYLE
            assert stream.answers[0].frame.image.decode() == f"{len(STYLE)} 1 0"
        async with RawStream(service.address) as stream:
            settings = settings_pb2.Settings(prompt="a", **asked)
            await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings)))
            end = await stream.end()
            assert (end.code, end.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
            assert end.metadata["field"] == field


async def test_a_deployment_without_an_adapter_says_so(plant_model: Callable[[Model], None]) -> None:
    plant_model(Shown())
    async with running() as service, RawStream(service.address) as stream, Client(service.address) as client:
        assert not (await client.describe_model()).takes_reference
        settings = settings_pb2.Settings(prompt="a", reference=FACE)
        await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings)))
        end = await stream.end()
        assert (end.code, end.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.REFERENCE_UNSUPPORTED)
    async with running(model=ADAPTER) as service, Client(service.address) as client:
        assert (await client.describe_model()).takes_reference


async def test_an_adapter_that_a_deployment_names_is_followed_on_every_span(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """With real networks: from the third frame on, and what is cut into pieces gives the same pictures."""
    file = reference_file(tmp_path, tiny_checkpoint, "plus")
    adapter = {"path": file.path, "image_encoder": file.image_encoder}
    model = {"checkpoint": str(tiny_checkpoint), "reference": adapter, "dtype": "float64", "device": "cpu"}
    found = []
    for spans in ((OPERATORS,), (OPERATORS[:2], OPERATORS[2:])):
        async with running(spans=spans, model=model) as service, RawStream(service.address) as stream:
            await stream.start(
                settings=settings_pb2.Settings(prompt="a", strength=0.9),
                width=64,
                height=64,
                drop_policy=pb.DROP_POLICY_LOSSLESS,
                answer_format=pb.IMAGE_FORMAT_RGB,
            )
            for number in range(6):
                if number in (2, 4):
                    await stream.control(number, reference=FACE if number == 2 else b"")
                await stream.frame(number, STILL, pb.IMAGE_FORMAT_RGB)
                await stream.read_answers(1)
            found.append([answer.frame.image for answer in stream.answers])
    first, _, third, *_ = found[0]
    assert found[0] == found[1] == [first, first, third, third, first, first]
    assert first != third

"""ControlNets as a client meets them: seen in the first frame after `ControlApplied`, and never before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import grpc
import pytest
from rearview.config import ServiceConfig, load_config
from rearview.contract.controls import ControlPicture
from rearview.errors import ConfigError, Reason
from rearview.model_config import ControlConfig
from rearview.v1 import model_service_pb2, model_service_pb2_grpc, settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import OPERATORS, RawStream, quickly_stopped
from support.service import in_process_service
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_control import write_tiny_control

pytestmark = pytest.mark.integration

FRAMES = [frame.numpy().tobytes() for frame in random_frames(6)]
FUSED, CUT = (OPERATORS,), (OPERATORS[:2], OPERATORS[2:])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("controlled")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    control = write_tiny_control(folder / "edges", checkpoint, gain=6.0)
    return {
        "checkpoint": str(checkpoint),
        "controls": {"edges": {"path": str(control), "picture": "soft_edges"}},
        "device": "cpu",
        "dtype": "float32",
        "compiled": False,
        "width": SIZE,
        "height": SIZE,
    }


def config_of(model: dict[str, Any], spans: Sequence[Sequence[str]]) -> ServiceConfig:
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


def controls(*pairs: tuple[str, float]) -> settings_pb2.Controls:
    return settings_pb2.Controls(
        controls=[settings_pb2.WeightedControl(name=name, weight=weight) for name, weight in pairs]
    )


async def pictures(
    address: str, first: settings_pb2.Controls | None, changes: dict[int, settings_pb2.Controls]
) -> tuple[list[bytes], list[pb.TranslateResponse]]:
    """Of all frames, sent without waiting; a change goes before the frame of its number."""
    async with RawStream(address) as stream:
        await stream.start(
            settings=settings_pb2.Settings(prompt="a", controls=first),
            drop_policy=pb.DROP_POLICY_LOSSLESS,
            answer_format=pb.IMAGE_FORMAT_RGB,
            width=SIZE,
            height=SIZE,
        )
        for number, frame in enumerate(FRAMES):
            if number in changes:
                await stream.control(number, controls=changes[number])
            await stream.frame(number, frame, pb.IMAGE_FORMAT_RGB)
        answers = await stream.read_answers(len(FRAMES))
        return [answer.frame.image for answer in answers], stream.received


@pytest.mark.parametrize("spans", [FUSED, CUT], ids=["fused", "pipeline"])
async def test_a_control_is_seen_in_the_first_frame_after_it_was_applied(
    model: dict[str, Any], spans: Sequence[Sequence[str]]
) -> None:
    with quickly_stopped():
        async with in_process_service(config_of(model, spans)) as service:
            edges, off = controls(("edges", 1.0)), controls(("edges", 0.0))
            never, _ = await pictures(service.address, None, {})
            always, _ = await pictures(service.address, edges, {})
            live, received = await pictures(service.address, None, {2: edges, 4: off, 5: controls()})
    assert all(one != other for one, other in zip(never, always, strict=True))
    assert live == [*never[:2], *always[2:4], *never[4:]]
    applied = [one.control_applied for one in received if one.HasField("control_applied")]
    assert [(one.control_id, one.received_frames) for one in applied] == [(2, 2), (4, 4), (5, 5)]
    assert [one.settings.controls for one in applied] == [edges, off, controls()]


async def test_controls_are_told_and_others_are_refused_by_name(model: dict[str, Any]) -> None:
    with quickly_stopped():
        async with in_process_service(config_of(model, FUSED)) as service:
            async with RawStream(service.address) as stream:
                models = model_service_pb2_grpc.ModelServiceStub(stream.channel)
                told = await models.DescribeModel(model_service_pb2.DescribeModelRequest())
                assert list(told.model.controls) == ["edges"]
                await stream.start()
                await stream.control(1, controls=controls(("pose", 1.0)))
                await stream.control(2, controls=controls(("edges", 2.5)))
                found = [(await stream.read(), await stream.read())]
                for response in found[0]:
                    assert response is not None
                    assert response.control_applied.rejected_reason == Reason.SETTING_OUT_OF_RANGE.value
                    assert response.control_applied.settings.controls == controls()
            async with RawStream(service.address) as stream:
                await stream.write(
                    pb.TranslateRequest(
                        open=pb.Open(
                            settings=settings_pb2.Settings(prompt="a", controls=controls(("pose", 1.0)))
                        )
                    )
                )
                end = await stream.read_to_end()
    assert end.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "there is no such control; there are: edges" in end.message


def test_a_configuration_names_what_each_is_shown() -> None:
    pictures = ControlConfig.model_fields["picture"].annotation
    assert get_args(pictures) == tuple(each.value for each in ControlPicture)
    for wrong in ({"picture": "pose"}, {"picture": "depth"}, {"picture": "tile", "depth": "owner/dpt"}):
        with pytest.raises(ConfigError, match=r"model\.controls\.edges"):
            config_of({"checkpoint": "null", "controls": {"edges": {"path": "owner/it", **wrong}}}, FUSED)

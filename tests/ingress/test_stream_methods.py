"""Methods over the wire: the feature bank in a session, through ingress, links and stages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rearview.config import ServiceConfig, load_config
from rearview.errors import InvalidRequest
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from rearview.v1.translation_service_pb2_grpc import TranslationServiceStub
from support.raw_stream import quickly_stopped
from support.service import InProcessService, in_process_service
from support.tiny import SIZE, random_frames, write_tiny_checkpoint

pytestmark = pytest.mark.integration

FRAMES = 6
SPLIT = [("first", ["encode", "denoise-0"]), ("second", ["denoise-1", "decode"])]


@pytest.fixture(autouse=True)
def stops_quickly() -> Iterator[None]:
    with quickly_stopped():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def config(checkpoint: Path | str, *, bank: dict[str, object] | None, pipeline: bool) -> ServiceConfig:
    return load_config(
        {
            "model": {"checkpoint": str(checkpoint), "dtype": "float64", "width": SIZE, "height": SIZE},
            "topology": "pipeline" if pipeline else "fused",
            "spans": [{"name": name, "operators": ops} for name, ops in SPLIT] if pipeline else [],
            "bank": bank,
            "ingress": {"port": 0},
            "link": {"secret": "s"},
        }
    )


@pytest.fixture
async def service(checkpoint: Path) -> AsyncIterator[InProcessService]:
    async with in_process_service(config(checkpoint, bank={}, pipeline=False)) as running:
        yield running


async def translate(
    address: str, request: pb.Open, frames: list[torch.Tensor]
) -> tuple[pb.Opened, list[bytes]]:
    async with grpc.aio.insecure_channel(address) as channel:
        call = TranslationServiceStub(channel).Translate()
        await call.write(pb.TranslateRequest(open=request))
        opened = (await call.read()).opened
        pictures = []
        for index, frame in enumerate(frames):
            message = pb.Frame(frame_index=index, format=pb.IMAGE_FORMAT_RGB, image=frame.numpy().tobytes())
            await call.write(pb.TranslateRequest(frame=message))
            pictures.append((await call.read()).frame.image)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        return opened, pictures


def request(method: pb.Method.ValueType, **bank: object) -> pb.Open:
    return pb.Open(
        settings=settings_pb2.Settings(prompt="a", strength=0.9),
        drop_policy=pb.DROP_POLICY_LOSSLESS,
        answer_format=pb.IMAGE_FORMAT_RGB,
        method=method,
        feature_bank=pb.FeatureBank(**bank),  # type: ignore[arg-type]
    )


async def test_the_feature_bank_changes_pictures_after_the_first_and_only_where_it_is_asked_for(
    service: InProcessService,
) -> None:
    frames = random_frames(FRAMES)
    _, plain = await translate(service.address, request(pb.METHOD_UNSPECIFIED), frames)
    opened, banked = await translate(service.address, request(pb.METHOD_STREAMV2V, interval=1), frames)
    _, again = await translate(service.address, request(pb.METHOD_PER_FRAME), frames)
    assert opened.method == pb.METHOD_STREAMV2V
    assert plain == again
    assert plain[0] == banked[0], "an empty bank is plain attention"


async def test_pipeline_and_fused_give_the_same_pictures_with_the_bank_on(checkpoint: Path) -> None:
    frames = random_frames(FRAMES)
    results = []
    for pipeline in (False, True):
        async with in_process_service(config(checkpoint, bank={"interval": 2}, pipeline=pipeline)) as running:
            wanted = request(pb.METHOD_STREAMV2V, fusion_threshold=-1.0)
            results.append((await translate(running.address, wanted, frames))[1])
    assert results[0] == results[1]


async def test_every_default_of_the_bank_in_the_configuration_changes_pictures(checkpoint: Path) -> None:
    frames, seen = random_frames(FRAMES), []
    base: dict[str, object] = {"interval": 1, "fusion_threshold": -1.0}
    for own in ({}, {"layers": ["mid_block"]}, {"metric": "outputs"}, {"merge_ratio": 0.4}):
        async with in_process_service(config(checkpoint, bank=base | own, pipeline=False)) as running:
            seen.append((await translate(running.address, request(pb.METHOD_STREAMV2V), frames))[1])
    assert len({tuple(pictures) for pictures in seen}) == len(seen)
    assert len({pictures[0] for pictures in seen}) == 1, "an empty bank is plain attention"


async def test_a_service_whose_banks_layers_lead_nowhere_does_not_start(checkpoint: Path) -> None:
    wrong = config(checkpoint, bank={"layers": ["middle"]}, pipeline=False)
    with pytest.raises(InvalidRequest, match=r"bank\.layers"):
        async with in_process_service(wrong):
            pass


BAD_BANKS: list[dict[str, object]] = [
    {"interval": 0},
    {"fusion_strength": float("nan")},
    {"max_frames": 4, "policy": pb.FeatureBank.POLICY_QUEUE},
]


@pytest.mark.parametrize(
    ("bank", "asked", "reason"),
    [(None, [{}], "METHOD_UNSUPPORTED"), ({}, BAD_BANKS, "SETTING_OUT_OF_RANGE")],
)
async def test_a_bank_that_cannot_be_served_is_refused_with_its_reason(
    checkpoint: Path, bank: dict[str, object] | None, asked: list[dict[str, object]], reason: str
) -> None:
    async with in_process_service(config(checkpoint, bank=bank, pipeline=True)) as running:
        for wanted in asked:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await translate(running.address, request(pb.METHOD_STREAMV2V, **wanted), [])
            status = rpc_status.from_call(caught.value)
            info = error_details_pb2.ErrorInfo()
            assert status is not None
            assert status.details[0].Unpack(info)
            assert info.reason == reason
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert all(stage.num_sessions == 0 for stage in running.stages)

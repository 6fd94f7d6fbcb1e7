"""Live2Diff over the wire: motion modules and a temporal cache, through ingress, links and stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from rearview.config import ServiceConfig, load_config
from rearview.errors import ConfigError, Reason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import RawStream, quickly_stopped
from support.service import in_process_service
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_depth import write_tiny_depth
from support.tiny_motion_files import depth_branch, original_motion, write_motion_file

pytestmark = pytest.mark.integration

W = 3
CACHE = {"sink_frames": W, "ring_frames": 2}
FRAMES = 2 * W + 3
SPLIT = [("first", ["encode", "denoise-0"]), ("second", ["denoise-1", "decode"])]
LIVE2DIFF = {"method": pb.METHOD_LIVE2DIFF}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Section `model`: a tiny random checkpoint and motion modules for it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "checkpoint": str(write_tiny_checkpoint(folder / "checkpoint")),
        "motion": str(write_motion_file(folder / "motion.safetensors", original_motion())),
        "dtype": "float64",
        "width": SIZE,
        "height": SIZE,
    }


def config(model: Mapping[str, Any], *, pipeline: bool = False, **sections: Any) -> ServiceConfig:
    content: dict[str, Any] = {
        "model": dict(model),
        "topology": "pipeline" if pipeline else "fused",
        "spans": [{"name": name, "operators": ops} for name, ops in SPLIT] if pipeline else [],
        "cache": CACHE,
        "bank": {"interval": 2},
        "ingress": {"port": 0},
        "link": {"secret": "s"},
    }
    return load_config({**content, **sections})


async def translated(
    address: str, frames: int = FRAMES, change_at: int | None = None, **fields: Any
) -> list[bytes]:
    """The pictures of so many frames, with another prompt from `change_at` on."""
    async with RawStream(address) as stream:
        await stream.start(
            settings=settings_pb2.Settings(prompt="a", strength=0.9),
            drop_policy=pb.DROP_POLICY_LOSSLESS,
            answer_format=pb.IMAGE_FORMAT_RGB,
            **fields,
        )
        for number, frame in enumerate(random_frames(frames)):
            while number >= stream.frame_credit:
                assert await stream.read() is not None, await stream.end()
            if number == change_at:
                await stream.control(1, prompt="another")
            await stream.frame(number, frame.numpy().tobytes(), pb.IMAGE_FORMAT_RGB)
        await stream.half_close()
        end = await stream.read_to_end()
        assert end.code is grpc.StatusCode.OK, end
        assert not stream.drops
        assert stream.indices == list(range(frames))
        return [answer.frame.image for answer in stream.answers]


async def test_pipeline_and_fused_give_the_same_pictures_through_every_kind_of_change(
    model: dict[str, Any],
) -> None:
    asked = [
        {"temporal_cache": pb.TemporalCache(prompt_change=kind)}
        for kind in (
            pb.TemporalCache.REWARM_RESET,
            pb.TemporalCache.REWARM_SHADOW,
            pb.TemporalCache.REWARM_KEEP,
        )
    ]
    asked.append({"feature_bank": pb.FeatureBank(fusion_threshold=-1.0)})
    results = []
    with quickly_stopped():
        for pipeline in (False, True):
            async with in_process_service(config(model, pipeline=pipeline)) as service:
                seen = [
                    await translated(service.address, change_at=W + 1, **LIVE2DIFF, **options)
                    for options in asked
                ]
                plain = await translated(service.address, change_at=W + 1)
                results.append((*seen, plain))
    assert results[0] == results[1]
    assert len({tuple(pictures) for pictures in results[0]}) == len(asked) + 1


async def test_sessions_with_and_without_a_cache_do_not_disturb_each_other(model: dict[str, Any]) -> None:
    with quickly_stopped():
        async with in_process_service(config({k: v for k, v in model.items() if k != "motion"})) as service:
            without = await translated(service.address)
        async with in_process_service(config(model)) as service:
            first = await translated(service.address, **LIVE2DIFF)
            assert await translated(service.address) == without, "motion modules are skipped"
            assert await translated(service.address, **LIVE2DIFF) == first


@pytest.mark.parametrize("frames", [1, W, W + 1])
async def test_streams_of_any_length_get_all_pictures(model: dict[str, Any], frames: int) -> None:
    instant = {"temporal_cache": pb.TemporalCache(instant_start=True)}
    with quickly_stopped():
        async with in_process_service(config(model)) as service:
            short = await translated(service.address, frames, **LIVE2DIFF)
            at_once = await translated(service.address, frames, **LIVE2DIFF, **instant)
            whole = await translated(service.address, **LIVE2DIFF)
    if frames >= W:
        assert short == whole[:frames]
    assert short != at_once


async def test_a_default_makes_live2diff_the_method_of_sessions_that_name_none(model: dict[str, Any]) -> None:
    with quickly_stopped():
        async with (
            in_process_service(config(model, cache={**CACHE, "default": True})) as service,
            RawStream(service.address) as stream,
        ):
            opened = await stream.start()
            assert (opened.method, opened.warm_up_frames) == (pb.METHOD_LIVE2DIFF, W)


async def test_a_model_without_motion_modules_serves_other_methods(model: dict[str, Any]) -> None:
    without = {name: value for name, value in model.items() if name != "motion"}
    with quickly_stopped():
        async with in_process_service(config(without)) as service:
            await translated(service.address, 1, method=pb.METHOD_STREAMV2V)
            async with RawStream(service.address) as stream:
                request = pb.Open(settings=settings_pb2.Settings(prompt="a"), method=pb.METHOD_LIVE2DIFF)
                await stream.write(pb.TranslateRequest(open=request))
                end = await stream.read_to_end()
                assert end.reason is Reason.METHOD_UNSUPPORTED
                assert "motion modules" in end.message
        with pytest.raises(ConfigError, match=r"cache\.default"):
            async with in_process_service(config(without, cache={"default": True})):
                pass


async def test_a_window_longer_than_the_motion_modules_know_is_refused_at_the_start(
    model: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"cache\.sink_frames, cache\.ring_frames"), quickly_stopped():
        async with in_process_service(config(model, cache={"sink_frames": 20, "ring_frames": 20})):
            pass


async def test_a_size_that_the_levels_do_not_divide_is_refused_at_the_start(model: dict[str, Any]) -> None:
    odd = {**model, "width": SIZE + 8}
    with (
        pytest.raises(ConfigError, match=r"model\.width and model\.height .* multiples of 16"),
        quickly_stopped(),
    ):
        async with in_process_service(config(odd)):
            pass


async def test_a_cache_of_fewer_bits_serves_pictures_that_are_close(model: dict[str, Any]) -> None:
    served = {}
    with quickly_stopped():
        for storage in ("auto", "bfloat16", "float8"):
            async with in_process_service(config(model, cache={**CACHE, "storage": storage})) as service:
                served[storage] = await translated(service.address, **LIVE2DIFF)
    exact = served["auto"]
    errors = {storage: mean_difference(pictures, exact) for storage, pictures in served.items()}
    assert 0 < errors["bfloat16"] < errors["float8"] < 2.0
    assert all(pictures[:W] == exact[:W] for pictures in served.values()), "a warm-up reads what is fresh"


def mean_difference(left: list[bytes], right: list[bytes]) -> float:
    """In levels."""
    a, b = (np.frombuffer(b"".join(pictures), np.uint8).astype(int) for pictures in (left, right))
    return float(np.abs(a - b).mean())


async def test_depth_is_served_and_a_cut_changes_no_picture(
    model: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Motion modules with a depth branch, and a tiny DPT network, through links and stages."""
    folder = tmp_path_factory.mktemp("depth")
    weights = {**original_motion(), **depth_branch()}
    deep = {
        **model,
        "motion": str(write_motion_file(folder / "live2diff.safetensors", weights)),
        "depth": str(write_tiny_depth(folder / "dpt")),
    }
    results = []
    with quickly_stopped():
        for spans in (None, [("first", ["encode"]), ("second", ["denoise-0", "denoise-1", "decode"])], SPLIT):
            cut = {} if spans is None else {"spans": [{"name": n, "operators": ops} for n, ops in spans]}
            async with in_process_service(config(deep, pipeline=spans is not None, **cut)) as service:
                cached = await translated(service.address, change_at=W + 1, **LIVE2DIFF)
                results.append((cached, await translated(service.address)))
    assert results[0] == results[1] == results[2]
    assert len(set(map(tuple, results[0]))) == 2


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({"cache": {"sink_frames": 0}}, "cache.sink_frames"),
        ({"cache": {"ring_frames": 0}}, "cache.ring_frames"),
        ({"cache": {"storage": "int8"}}, "cache.storage"),
        ({"cache": {"prompt_change": "fade"}}, "cache.prompt_change"),
        ({"cache": {"frames": 8}}, "cache.frames"),
        ({"cache": {"default": True}, "bank": {"default": True}}, "bank.default and cache.default"),
    ],
)
def test_a_cache_that_cannot_be_configured_is_named(sections: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        load_config(sections)

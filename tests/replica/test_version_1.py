"""Lanes in which a replica, or the owner, is of the release before: same pictures, without places."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from rearview.config import ServiceConfig, load_config
from rearview.contract.frame import NO_PLACE, PICTURE, Frame
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings
from rearview.ingress.lane import LaneSender
from rearview.ingress.lanes import Lanes
from rearview.replica import outflow
from rearview.replica.stage import Stage
from rearview.transport import links
from rearview.transport.codec import SPOKEN, Versions
from rearview.transport.wire import Kind
from support.owner import Owner, spec, started
from support.raw_stream import OPERATORS, eventually, null_config, quickly_stopped
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_depth import write_tiny_depth
from support.tiny_motion_files import depth_branch, original_motion, write_motion_file

pytestmark = pytest.mark.integration

OLD = Versions(1, 1)
SPANS = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))


def old_stage(config: ServiceConfig, index: int) -> Stage:
    """A replica that speaks version 1 alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "SPOKEN", OLD)
        return Stage(config, index, f"stage-{index}", "node")


@pytest.mark.parametrize("old", [*range(len(SPANS)), None])
async def test_a_lane_speaks_the_version_of_its_oldest_replica(old: int | None) -> None:
    config = null_config(spans=SPANS)
    stages = [
        old_stage(config, i) if i == old else Stage(config, i, f"stage-{i}", "node")
        for i in range(len(SPANS))
    ]
    came: list[Any] = []
    lanes = Lanes(
        [span.name for span in config.spans],
        config.link,
        "node",
        on_frame=came.append,
        on_lane_lost=lambda *lost: pytest.fail(f"{lost}"),
        on_lane_drains=lambda *lane: pytest.fail(f"{lane}"),
        source=lambda *_: pytest.fail("nothing is pulled"),
    )
    with quickly_stopped():
        await asyncio.gather(lanes.start(), *(stage.start() for stage in stages))
        lanes.update([stage.describe() for stage in stages])
        session = spec()
        lane = await lanes.open(session, 1, lanes.choose({}))
        assert lane.codec.version == (1 if old is not None else SPOKEN.newest)
        assert len({link.version for link in lane.links}) == (1 if old is None else 2)
        for ordinal in range(2 * outflow.ACK_EVERY):
            if ordinal == 3:
                LaneSender().send_settings(lane, 1, Settings("b"))
            planes = {PICTURE: np.full(3, ordinal, np.uint8)}
            version = int(ordinal >= 3)
            LaneSender().send_frame(lane, Frame(session.session_id, ordinal, planes, version, epoch=1))
        await eventually(lambda: len(came) == 2 * outflow.ACK_EVERY)
        assert [frame.ordinal for frame in came] == list(range(2 * outflow.ACK_EVERY))
        assert [frame.planes[PICTURE].tolist() for frame in came] == [[n] * 3 for n in range(len(came))]
        assert all([t.span for t in frame.timings] == [s.name for s in config.spans] for frame in came)
        lanes.close(lane)
        await eventually(lambda: [stage.num_sessions for stage in stages] == [0, 0, 0])
        await lanes.stop()
        await asyncio.gather(*(stage.stop() for stage in stages))


async def test_an_owner_of_the_release_before_says_no_version_and_hears_no_new_kinds() -> None:
    config = null_config()
    async with started(config, owners=0) as ((stage,), _):
        owner = Owner(config, OLD)
        await owner.start([stage])
        request = owner.link.request

        async def as_before(kind: Kind, content: dict[str, Any]) -> dict[str, Any]:
            return await request(kind, {name: value for name, value in content.items() if name != "version"})

        owner.link.request = as_before  # type: ignore[method-assign]
        session = spec()
        assert await owner.open(session) is None
        for ordinal in range(2 * outflow.ACK_EVERY):
            owner.send(session, ordinal)
        await eventually(lambda: len(owner.frames) == 2 * outflow.ACK_EVERY)
        assert {(frame.place, frame.frame_index) for frame in owner.frames} == {(NO_PLACE, 0)}
        assert owner.acks == []
        assert not owner.link.closed
        await owner.stop()


async def test_a_lane_of_a_version_that_is_not_spoken_is_refused() -> None:
    async with started(null_config()) as ((stage,), (owner,)):
        await owner.settle()
        object.__setattr__(owner.codec, "version", SPOKEN.newest + 1)
        assert await owner.open(spec()) == "REPLICA_LOST"
        assert stage.num_sessions == 0


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> ServiceConfig:
    """Motion modules that want depth, cut into three spans."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("deep")
    motion = write_motion_file(folder / "motion.ckpt", {**original_motion(), **depth_branch()})
    return load_config(
        {
            "model": {
                "checkpoint": str(write_tiny_checkpoint(folder / "checkpoint")),
                "motion": str(motion),
                "depth": str(write_tiny_depth(folder / "dpt")),
                "dtype": "float64",
                "width": SIZE,
                "height": SIZE,
            },
            "topology": "pipeline",
            "spans": [
                {"name": name, "operators": operators}
                for name, operators in (("a", OPERATORS[:1]), ("b", OPERATORS[1:2]), ("c", OPERATORS[2:]))
            ],
            "cache": {"sink_frames": 2, "ring_frames": 2},
            "link": {"secret": "s"},
        }
    )


async def test_depth_and_guidance_cross_a_lane_of_version_1_bit_by_bit(deep: ServiceConfig) -> None:
    """Every kind of stack: one latent, with depth, with an anchor, with both."""
    frames = random_frames(5)
    plain = Settings("a", 0.9, 2)
    guided = Settings("a", 0.9, 2, guidance=Guidance.SELF, guidance_scale=1.4, delta=0.5)
    cases = [(cache, settings) for cache in (None, CacheSettings()) for settings in (plain, guided)]
    pictures: dict[Versions, list[bytes]] = {SPOKEN: [], OLD: []}
    async with started(deep, owners=0) as (stages, _):
        for versions, seen in pictures.items():
            owner = Owner(deep, versions)
            await owner.start(stages)
            for cache, settings in cases:
                owner.frames.clear()
                session = SessionSpec(spec().session_id, SIZE, SIZE, 2, settings, cache=cache)
                assert await owner.open(session) is None
                for ordinal, frame in enumerate(frames):
                    owner.send(session, ordinal, planes={PICTURE: frame.numpy()})
                await eventually(lambda o=owner: len(o.frames) == len(frames))
                by_ordinal = sorted(owner.frames, key=lambda frame: frame.ordinal)
                assert not any(frame.is_lost for frame in by_ordinal)
                seen += [frame.planes[PICTURE].tobytes() for frame in by_ordinal]
                owner.close(session)
            await owner.stop()
    assert pictures[OLD] == pictures[SPOKEN]
    assert len(set(pictures[OLD])) == len(cases) * len(frames)

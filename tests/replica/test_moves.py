"""A session moves from replicas to replicas over real links; its pictures are those of one that stayed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from rearview.config import ServiceConfig, load_config
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.memories import BankPolicy, BankSettings, CacheSettings, Rewarm
from rearview.contract.session import SessionSpec
from rearview.contract.settings import NoiseRule, Settings
from rearview.replica.stage import Stage
from rearview.transport.wire import encode_settings
from support.owner import Owner, engine_holds, spec, started
from support.raw_stream import OPERATORS, eventually
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_motion_files import original_motion, write_motion_file

pytestmark = pytest.mark.integration

W = 3
FRAMES = [frame.numpy() for frame in random_frames(14)]
BASE = Settings("a", 0.9)
CHANGES = {5: replace(BASE, prompt="b")}
"""Version 1 holds from this frame on."""
SPLIT = (OPERATORS[:2], OPERATORS[2:])
MERGED = BankSettings(interval=2, fusion_threshold=-1.0)
QUEUE = BankSettings(policy=BankPolicy.QUEUE, max_frames=2, interval=1, fusion_threshold=-1.0)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "merged": {"bank": MERGED},
    "queue": {"bank": QUEUE},
    "cache": {"cache": CacheSettings(prompt_change=Rewarm.SHADOW)},
    "reset": {"cache": CacheSettings(prompt_change=Rewarm.RESET)},
    "both": {"cache": CacheSettings(), "bank": MERGED},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Section `model`: a tiny random checkpoint, and motion modules for it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "checkpoint": str(write_tiny_checkpoint(folder / "checkpoint")),
        "motion": str(write_motion_file(folder / "motion.safetensors", original_motion())),
        "dtype": "float64",
        "width": SIZE,
        "height": SIZE,
    }


def config(model: Mapping[str, Any], cut: Sequence[Sequence[str]] = (OPERATORS,)) -> ServiceConfig:
    return load_config(
        {
            "model": dict(model),
            "topology": "fused" if len(cut) == 1 else "pipeline",
            "spans": [{"name": f"span-{i}", "operators": list(ops)} for i, ops in enumerate(cut)],
            "cache": {"sink_frames": W, "ring_frames": 2},
            "bank": {"policy": "queue", "max_frames": 2},
            "link": {"secret": "s"},
        }
    )


def banked(**fields: Any) -> SessionSpec:
    return SessionSpec(spec().session_id, SIZE, SIZE, 2, BASE, **fields)


def left(session: SessionSpec, legs: Sequence[Owner]) -> list[Frame[Any]]:
    """What came of the session, over all its lanes."""
    return [frame for owner in set(legs) for frame in owner.frames if frame.session_id == session.session_id]


def send(owner: Owner, session: SessionSpec, ordinal: int, epoch: int) -> None:
    if ordinal in CHANGES:
        owner.announce(session, 1, CHANGES[ordinal], epoch)
    owner.send(session, ordinal, epoch, int(ordinal >= min(CHANGES)), {PICTURE: FRAMES[ordinal]})


async def play(session: SessionSpec, legs: Sequence[Owner], at: Sequence[int]) -> list[bytes]:
    """The clip through lanes, from each of them on to the next from the first ordinal on at which it can be
    frozen, not before `at`. It is frozen with frames in flight, and later ones have come before it has moved.
    """
    sent, begins = 0, None
    for epoch, (owner, until) in enumerate(zip(legs, [*at, len(FRAMES)], strict=True), 1):
        assert await owner.open(session, epoch, begins=begins) is None
        if epoch > 1:
            legs[epoch - 2].close(session, epoch - 1)
        while sent < until:
            send(owner, session, sent, epoch)
            sent += 1
        if until == len(FRAMES):
            break
        while (last := await owner.freeze(session, epoch)) >= sent:
            send(owner, session, sent, epoch)
            sent += 1
        for held in range(last + 1, min(last + 3, len(FRAMES))):
            send(owner, session, held, epoch)
        sent, begins = last + 1, owner.sources(session, epoch)
    await eventually(lambda: len(left(session, legs)) == len(FRAMES))
    legs[-1].close(session, len(legs))
    frames = {frame.ordinal: frame for frame in left(session, legs)}
    assert sorted(frames) == list(range(len(FRAMES)))
    return [shown(frames[ordinal]) for ordinal in range(len(FRAMES))]


def shown(frame: Frame[Any]) -> bytes:
    assert frame.planes is not None, f"frame {frame.ordinal} is lost"
    return bytes(frame.planes[PICTURE].tobytes())


@asynccontextmanager
async def house(model: Mapping[str, Any]) -> AsyncIterator[tuple[list[Stage], dict[str, Owner]]]:
    """Two whole replicas, "one" and "other", and one per span, "cut"; each with an owner of its own."""
    async with AsyncExitStack() as stack:
        stages, owners = [], {}
        for name, cut in (("one", (OPERATORS,)), ("other", (OPERATORS,)), ("cut", SPLIT)):
            replicas, (owners[name],) = await stack.enter_async_context(started(config(model, cut)))
            stages += replicas
        yield stages, owners


async def test_a_session_that_moves_is_one_that_stayed(model: dict[str, Any]) -> None:
    async with house(model) as (stages, owners):
        one, other, cut = (owners[name] for name in ("one", "other", "cut"))
        for kind, fields in KINDS.items():
            expected = await play(banked(**fields), [one], [])
            assert len(set(expected)) == len(FRAMES)
            for legs, at in (
                ([one, other], [7]),
                ([cut, other], [1]),
                ([one, cut, one], [4, 9]),
            ):
                found = await play(banked(**fields), legs, at)
                differing = [n for n in range(len(FRAMES)) if found[n] != expected[n]]
                assert not differing, f"{kind}, moved at {at}"
        for stage in stages:
            await eventually(lambda stage=stage: stage.num_sessions == 0)
            assert await engine_holds(stage) == 0


async def test_a_checkpoint_leaves_the_stream_as_it_was(model: dict[str, Any]) -> None:
    """Every third frame; and what was kept of it goes on elsewhere as the stream itself did."""
    async with house(model) as (_, owners):
        one, other = owners["one"], owners["other"]
        for fields in (KINDS["both"], KINDS["queue"]):
            expected = await play(banked(**fields), [one], [])
            session = banked(**fields)
            assert await one.open(session) is None
            kept: dict[int, bytes] = {}
            for ordinal in range(len(FRAMES)):
                send(one, session, ordinal, 1)
                if ordinal % 3 == 2:
                    last = await one.freeze(session)
                    kept[last] = await one.pulled(session, thaw=True)
            await eventually(lambda session=session: len(left(session, [one])) == len(FRAMES))
            found = {frame.ordinal: shown(frame) for frame in left(session, [one])}
            assert [found[n] for n in range(len(FRAMES))] == expected
            one.close(session)
            for last, content in kept.items():
                async with other.keeping(session, content) as begins:
                    assert await other.open(session, last + 2, begins=begins) is None
                other.frames.clear()
                for ordinal in range(last + 1, len(FRAMES)):
                    send(other, session, ordinal, last + 2)
                await eventually(lambda n=last: len(other.frames) == len(FRAMES) - n - 1)
                assert [shown(frame) for frame in other.frames] == expected[last + 1 :]
                other.close(session, last + 2)


async def test_a_session_that_begins_at_an_ordinal_is_one_whose_first_frames_these_are(
    model: dict[str, Any],
) -> None:
    """Without a past to the bit, whatever the noise; a cache warms up with the next frames, as at a start."""
    first = 6
    under = {1: CHANGES[5]}
    async with house(model) as (_, owners):
        for name, kind, noise in (
            ("one", "plain", NoiseRule.FRESH),
            ("cut", "plain", NoiseRule.FRESH),
            ("one", "cache", NoiseRule.FIXED),
            ("cut", "cache", NoiseRule.FIXED),
        ):
            owner = owners[name]
            settings = {1: replace(under[1], noise_rule=noise)}
            begun = replace(banked(**KINDS[kind]), settings=replace(BASE, noise_rule=noise))
            start = {"ordinal": first, "settings": {"1": encode_settings(settings[1])}}
            assert await owner.open(begun, 1, begins={"start": start}) is None
            owner.frames.clear()
            for ordinal in range(first, len(FRAMES)):
                owner.send(begun, ordinal, 1, 1, {PICTURE: FRAMES[ordinal]})
            await eventually(lambda owner=owner: len(owner.frames) == len(FRAMES) - first)
            found = [(frame.ordinal, shown(frame)) for frame in owner.frames]
            owner.close(begun)
            owner.frames.clear()
            anew = replace(banked(**KINDS[kind]), settings=settings[1])
            assert await owner.open(anew) is None
            since = 0 if kind == "plain" else first
            for ordinal in range(len(FRAMES) - since):
                owner.send(anew, ordinal, 1, 0, {PICTURE: FRAMES[ordinal + since]})
            await eventually(lambda owner=owner, n=since: len(owner.frames) == len(FRAMES) - n)
            expected = [(frame.ordinal + since, shown(frame)) for frame in owner.frames]
            owner.close(anew)
            owner.frames.clear()
            assert found == expected[first - since :], f"{kind} at {name}"

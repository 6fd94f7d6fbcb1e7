"""Labels have few values: what a service says does not grow with what it has served."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry
from rearview.contract.beat import Cause
from rearview.contract.events import (
    BatchRun,
    CallEnded,
    Coding,
    Direction,
    Event,
    FileReloaded,
    FirstPicture,
    FrameAnswered,
    FrameDropped,
    FrameLeftSpan,
    FrameUsed,
    ImageCoded,
    LinkBytes,
    OpenRefused,
    OutputsForgotten,
    Played,
    ReplicaCondemned,
    SessionClosed,
    SessionMoved,
    SessionOpened,
    SlotsOffered,
    SlotsTaken,
)
from rearview.contract.failure import Failure
from rearview.contract.frame import Timing
from rearview.contract.stream import Continuity
from rearview.errors import DropReason, Reason
from rearview.telemetry.counted import CountedGauge
from rearview.telemetry.listener import MetricsListener
from rearview.telemetry.metrics import Metrics, new_registry
from rearview.v1 import translation_service_pb2 as pb
from support.pocket_sessions import FUSED, lose, play, pocket, session_of, start
from support.raw_stream import RawStream, eventually, null_config, quickly_stopped
from support.service import InProcessService, in_process_service

pytestmark = pytest.mark.integration

TENANTS = [f"tenant-{number}" for number in range(50)]
SPANS = ["encode", "denoise-0", "denoise-1", "decode"]
MOST_OF_A_TENANT = 50
MOST_OF_A_SPAN = 100
MOST_BESIDES = 400


def label_sets(registry: CollectorRegistry) -> Counter[str]:
    """Series by metric."""
    return Counter(family.name for family in registry.collect() for _ in family.samples)


def everything(tenants: list[str], spans: list[str]) -> list[Event]:
    """An event for every value that a label can have."""
    outcomes = ["translated", *(each.name.lower() for each in DropReason)]
    frames = (
        FrameUsed(t, "a", "pocket", 0, outcome, 1, 0.1) for t, outcome in itertools.product(tenants, outcomes)
    )
    forwards = (
        BatchRun(span, 4, 0.1, 0.1, failure, is_accelerated=True, is_fallback=True)
        for span, failure in itertools.product(spans, Failure)
    )
    moves = itertools.product(Continuity, (True, False))
    lost = itertools.product(spans, Cause)
    links = itertools.product([*spans, "ingress"], Direction)
    return [
        *frames,
        *forwards,
        *(FrameDropped(each) for each in DropReason),
        *(CallEnded(each) for each in Reason),
        *(OpenRefused(each, tenant, 1.0) for each in Reason for tenant in tenants),
        *(Played(tenant, 1.0, 1.0, 1.0) for tenant in tenants),
        *(event(tenant) for tenant in tenants for event in (SessionOpened, SessionClosed)),
        *(ImageCoded(each, 0.1) for each in Coding),
        *(SessionMoved(continuity, 1.0, planned) for continuity, planned in moves),
        *(ReplicaCondemned(*each) for each in lost),
        *(LinkBytes(*each, 1) for each in links),
        *(OutputsForgotten(span, 1) for span in spans),
        *(SlotsOffered(span, 1, 1) for span in spans),
        *(SlotsTaken(span, 1) for span in spans),
        *(FrameLeftSpan(Timing(span, 0.1, 0.1)) for span in spans),
        *(FileReloaded("tenants", is_good) for is_good in (True, False)),
        FrameAnswered("pocket", 0.1, True, 0.1),
        FirstPicture("pocket", 0.1),
    ]


def most(tenants: int, spans: int) -> int:
    """Series of a process that has met all there is."""
    metrics = Metrics(new_registry())
    listener = MetricsListener(metrics)
    for event in everything(TENANTS[:tenants], SPANS[:spans]):
        listener(event)
    states = ("streaming", "detached", "moving", "parked")
    metrics.sessions.count = lambda: dict.fromkeys(itertools.product(TENANTS[:tenants], states), 1)
    return label_sets(metrics.registry).total()


def test_series_are_as_many_as_tenants_and_spans_allow_and_no_more() -> None:
    least = most(1, 1)
    assert most(11, 1) - least <= 10 * MOST_OF_A_TENANT
    assert most(1, 4) - least <= 3 * MOST_OF_A_SPAN
    assert least <= MOST_OF_A_TENANT + MOST_OF_A_SPAN + MOST_BESIDES
    for tenants, spans in ((50, 1), (50, 4)):
        known = tenants * MOST_OF_A_TENANT + spans * MOST_OF_A_SPAN + MOST_BESIDES
        assert most(tenants, spans) <= known


async def test_sessions_frames_and_prompts_add_no_series() -> None:
    with quickly_stopped():
        async with in_process_service(null_config(), 1) as service:
            await serve(service, 1)
            before = said(service)
            await serve(service, 12)
            assert said(service) == before


async def serve(service: InProcessService, sessions: int) -> None:
    for number in range(sessions):
        async with RawStream(service.address) as stream:
            await stream.start(f"prompt {number}", drop_policy=pb.DROP_POLICY_LOSSLESS)
            for index in range(4):
                await stream.frame(index, b"frame %d of %d" % (index, number))
            await stream.read_answers(4)
            await stream.half_close()
            await stream.read_to_end()


def said(service: InProcessService) -> Counter[str]:
    registries = [
        *(i.metrics.registry for i in service.ingresses),
        *(s._metrics.registry for s in service.stages),
    ]
    return sum(map(label_sets, registries), Counter[str]())


@pytest.mark.parametrize(("park_after_s", "state"), [(1000.0, "detached"), (0.0, "parked")])
async def test_sessions_are_counted_by_state(park_after_s: float, state: str) -> None:
    async with pocket(FUSED, 1, park_after_s=park_after_s) as service:
        assert standing(service) == {}
        stream = await start(service.address, "per-frame")
        assert standing(service) == {"streaming": 1}
        other = await start(service.address, "per-frame")
        assert standing(service) == {"streaming": 2}
        await other.__aexit__()
        await eventually(lambda: standing(service) == {"streaming": 1, state: 1})
        await play(stream, range(2), answers=2)
        await lose(service, session_of(service, stream).lane.replicas[0])
        await eventually(lambda: standing(service).get("moving", 0) >= 1)
        assert sum(standing(service).values()) == 2
        await stream.__aexit__()


def standing(service: InProcessService) -> dict[str, int]:
    states = ("streaming", "detached", "moving", "parked")
    counted = {each: int(service.counted("rearview_sessions", tenant="local", state=each)) for each in states}
    return {state: number for state, number in counted.items() if number}


def test_what_is_gone_is_told_as_none() -> None:
    registry = CollectorRegistry()
    gauge = CountedGauge("there", "What there is.", ["what"], registry=registry)
    assert registry.get_sample_value("there", {"what": "a"}) is None
    gauge.count = lambda: {("a",): 2}
    assert registry.get_sample_value("there", {"what": "a"}) == 2
    gauge.count = lambda: {("b",): 1}
    assert [registry.get_sample_value("there", {"what": each}) for each in "ab"] == [0, 1]

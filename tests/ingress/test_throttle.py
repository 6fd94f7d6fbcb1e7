"""When a stream is read again, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from rearview.access import TenantConfig
from rearview.config import LimitsConfig, ModelConfig
from rearview.contract.card import ModelCard
from rearview.control.admission import Admission, Served
from rearview.control.methods import Offer
from rearview.ingress import throttle
from rearview.ingress.callers import ReadingContext
from rearview.ingress.throttle import HEAVY_FRAME_S, Throttle
from support.toy import Clock

pytestmark = pytest.mark.unit

RATE = 4.0
BURST = 4
SMALL, LARGE = bytes(1000), bytes(1 << 20)


class Sent:
    """A connection in which everything has come already."""

    def __init__(self, message: bytes) -> None:
        self._message = message

    async def read(self) -> bytes:
        return self._message


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sleeping moves it, and takes no time."""
    clock = Clock(100.0)

    async def sleep(seconds: float) -> None:
        clock.now_s += seconds

    monkeypatch.setattr(throttle.asyncio, "sleep", sleep)
    return clock


async def read_s(clock: Clock, message: bytes, frame_s: float) -> list[float]:
    """When each of a burst of frames that a tenant may send at once is read, from the first on."""
    served = Served(
        ModelConfig(checkpoint="null"), LimitsConfig(), ModelCard(), Offer(None, None, has_motion=False)
    )
    tenant = TenantConfig.model_validate({"name": "a", "token_sha256": "0" * 64, "max_frames_per_s": RATE})
    context: Any = ReadingContext(Sent(message), bytes, None)  # type: ignore[arg-type]
    subject, times_s = Throttle(context, Admission(served), tenant, clock), []
    subject.frame_s = frame_s
    for _ in range(BURST):
        assert await subject.read() == message
        times_s.append(clock.now_s - 100.0)
        assert subject.takes_frame(clock.now_s)  # None of them is dropped.
    return times_s


@pytest.mark.parametrize(
    ("message", "frame_s"), [(LARGE, 0.0), (SMALL, HEAVY_FRAME_S), (LARGE, 2 * HEAVY_FRAME_S)]
)
async def test_a_burst_of_large_or_heavy_frames_is_read_one_by_one(
    clock: Clock, message: bytes, frame_s: float
) -> None:
    # A frame counts as one at most, and one may come before its time.
    assert await read_s(clock, message, frame_s) == pytest.approx([0.0, 0.0, 1 / RATE, 2 / RATE])


async def test_a_burst_of_small_and_light_frames_is_read_at_once(clock: Clock) -> None:
    assert await read_s(clock, SMALL, HEAVY_FRAME_S / 10) == [0.0] * BURST

"""Glass to glass: numbers survive codecs, each frame counts once, and both ways measure a real studio."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import simplejpeg
from rearview.studio.webrtc.ice import Ice
from support.raw_stream import running
from support.require import skip_or_fail
from support.studio import studio

from loadtest.glass import GlassPlan, Seen, marked, number_of
from loadtest.glass_browser import in_chromium
from loadtest.webrtc import WAYS, figures

pytestmark = pytest.mark.integration

NOISE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)


@pytest.mark.parametrize("number", [0, 1, 0x5555, 0xAAAA, 0xFFFF, 1234])
def test_a_number_in_the_pixels_survives_a_codec(number: int) -> None:
    jpeg = simplejpeg.encode_jpeg(marked(NOISE, number), 30, "RGB", "420")
    assert number_of(simplejpeg.decode_jpeg(jpeg, "RGB")) == number


def test_a_frame_counts_once_and_the_first_ones_not_at_all() -> None:
    seen = Seen(GlassPlan(30.0, 4, 1, [NOISE]))
    sent = [seen.sends(number, float(number), number - 0.01) for number in range(5)]
    for picture, now in ((sent[0], 0.1), (sent[1], 1.25), (sent[1], 1.5), (sent[3], 3.5), (sent[4], 4.1)):
        seen.sees(picture, now)
    assert seen.latencies_ms == pytest.approx([250.0, 500.0])
    assert seen.shown == pytest.approx(2 / 3)
    assert seen.late_s == pytest.approx(0.01)


def test_only_webrtc_has_a_target() -> None:
    plan = GlassPlan(30.0, 100, 0, [NOISE])
    found = figures({way: Seen(plan, latencies_ms=[151.0] * 100) for way in WAYS})
    assert {one.what: one.met for one in found if one.target} == {"WebRTC, glass to glass, p95": False}


@pytest.mark.parametrize("play", [*WAYS.values(), in_chromium])
async def test_a_studio_is_measured(play: Any) -> None:
    if play is in_chromium and shutil.which("chromium") is None:
        skip_or_fail("chromium is missing (Debian: apt install chromium)")
    async with running() as service, studio(service.address, ice=Ice()) as under:
        seen = await play(under.url + "/", GlassPlan(20.0, 40, 10, [NOISE]))
    assert seen.latencies_ms
    assert all(1.0 < latency < 5000.0 for latency in seen.latencies_ms)

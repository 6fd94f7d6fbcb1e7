"""A tab that nobody looks at goes on: frames are taken, encoded and decoded where nothing is throttled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from support.browser_tab import Gateway
from support.plain_tab import plain_tab

pytestmark = pytest.mark.load

SHOWN_S, HIDDEN_S = 20, 60
SHARE = 0.9


@pytest.mark.timeout(240)
@pytest.mark.parametrize("source", ["Camera", "Sample clip"])
async def test_a_hidden_tab_keeps_its_frame_rate(
    chromium: str, chromium_arguments: Sequence[str], gateway: Gateway, source: str
) -> None:
    async def frames_in(seconds: int) -> int:
        before = len(gateway.fake.painted)
        await asyncio.sleep(seconds)
        return len(gateway.fake.painted) - before

    button = f"[...document.querySelectorAll('button')].find(one => one.textContent.includes('{source}'))"
    arguments = [*chromium_arguments, "--use-fake-ui-for-media-stream"]
    async with plain_tab(chromium, arguments, gateway.url) as tab:
        await tab.until(f"Boolean({button})")
        await tab.value(f"{button}.click()")
        await tab.until("document.querySelector('.pill')?.textContent === 'Live'")
        shown = await frames_in(SHOWN_S) / SHOWN_S
        await tab.hide()
        hidden = await frames_in(HIDDEN_S) / HIDDEN_S
    assert shown > 1
    assert hidden >= SHARE * shown

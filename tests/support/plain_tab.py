"""A tab of Chromium that nobody pretends to look at.

Playwright says of every tab that it is looked at, and starts Chromium with its throttling off: no tab is
hidden there. This one is driven by the DevTools protocol alone.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp

from support.browser_tab import WITHIN_MS

__all__ = ["PlainTab", "plain_tab"]


class PlainTab:
    """One tab; what it does is done by scripts."""

    def __init__(
        self, http: aiohttp.ClientSession, base: str, socket: aiohttp.ClientWebSocketResponse
    ) -> None:
        self._http, self._base, self._socket = http, base, socket
        self._count = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Of the DevTools protocol."""
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        while True:
            answer = json.loads((await self._socket.receive()).data)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    async def value(self, script: str) -> Any:
        """What a script comes to, as one that someone at the page has asked for."""
        answer = await self.call("Runtime.evaluate", expression=script, userGesture=True, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait for a script to be true. Raises AssertionError."""
        began_s = time.monotonic()
        while not await self.value(script):
            assert time.monotonic() - began_s < WITHIN_MS / 1000, f"not within {WITHIN_MS} ms: {script}"
            await asyncio.sleep(0.05)

    async def hide(self) -> None:
        """Open another tab before it."""
        async with self._http.put(f"{self._base}/json/new?about:blank") as answer:
            other = await answer.json()
        async with self._http.get(f"{self._base}/json/activate/{other['id']}"):
            pass
        await self.until("document.visibilityState === 'hidden'")


@contextmanager
def _chromium(executable: str, arguments: Sequence[str]) -> Iterator[str]:
    """The address of its DevTools."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [executable, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [*command, *arguments, "about:blank"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        try:
            said = next(line for line in process.stderr if "DevTools listening" in line)
            yield "http://" + said.split()[-1].split("/")[2]
        finally:
            process.kill()
            process.communicate()


@asynccontextmanager
async def plain_tab(executable: str, arguments: Sequence[str], url: str) -> AsyncIterator[PlainTab]:
    """A tab that shows `url`, in a browser of its own."""
    with _chromium(executable, arguments) as base:
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{base}/json") as answer:
                tabs = await answer.json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with http.ws_connect(address, max_msg_size=0) as socket:
                tab = PlainTab(http, base, socket)
                await tab.call("Page.navigate", url=url)
                yield tab

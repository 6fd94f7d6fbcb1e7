"""Visible survival: lanes are drawn, one is killed from the page, and the pictures go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from rearview.contract.watermark import Watermark
from rearview.errors import InvalidRequest, Reason
from rearview.studio.lanes import Span
from support.raw_stream import running
from support.service import InProcessService
from support.studio import studio

pytestmark = pytest.mark.integration

CHAIN = {"name": "chain", "checkpoint": "chain"}


@dataclass(frozen=True)
class Drawn:
    id: str
    state: str
    sessions: Sequence[str]


@dataclass(frozen=True)
class DrawnSpan:
    name: str
    replicas: Sequence[Drawn]


class InProcessLanes:
    """The stages of a service in this process, as a page is to see them."""

    def __init__(self, service: InProcessService) -> None:
        self._service, self._loop = service, asyncio.get_running_loop()
        self._names = [str(stage.describe()["replica_id"]) for stage in service.stages]

    def lanes(self) -> Sequence[Span]:
        up = {str(card["replica_id"]): card for card in (stage.describe() for stage in self._service.stages)}
        drawn = [
            Drawn(name, "up" if name in up else "down", list(up[name]["sessions"]) if name in up else [])
            for name in self._names
        ]
        return [DrawnSpan("span-0", drawn)]

    def kill(self, span_name: str) -> str:
        stage = max(self._service.stages, key=lambda each: each.num_sessions)
        self._service.stages.remove(stage)
        asyncio.run_coroutine_threadsafe(stage.stop(), self._loop).result(20)
        return str(stage.describe()["replica_id"])


async def test_a_killed_replica_is_seen_to_go_and_the_pictures_go_on() -> None:
    async with running(model=CHAIN, replicas=2) as service:
        lanes = InProcessLanes(service)
        async with studio(service.address, lanes=lanes) as under, under.page() as page:
            opened = await page.open(0, drop_policy="lossless")

            def drawn(state: str) -> list[list[int]]:
                said = page.said("lanes")
                return (
                    [one["tiles"] for one in said[-1]["spans"][0]["replicas"] if one["state"] == state]
                    if said
                    else []
                )

            await page.wait(lambda: sorted(drawn("up")) == [[], [0]])
            for index in range(20):
                await page.frame(index)
            await page.wait(lambda: len(page.pictures) == 20)
            await page.say({"type": "kill", "span": "span-0"})
            await page.wait(lambda: drawn("down") == [[]] and drawn("up") == [[0]])
            for index in range(20, 40):
                await page.frame(index)
            await page.wait(lambda: page.num_answers == 40)
            notice = await page.until("notice", kind="moved")
            assert notice["continuity"] in ("exact", "approximate", "reset")
            assert page.said("dropped") == []
            marks = [Watermark.read(each.picture)[1] for each in page.pictures]
            assert [mark.ordinal for mark in marks if mark is not None] == list(range(40))
            assert {mark.session_id for mark in marks if mark is not None} == {opened["session_id"]}


async def test_only_a_page_of_this_machine_kills_and_only_what_the_gateway_has_started() -> None:
    async with running(replicas=2) as service:
        async with studio(service.address, lanes=InProcessLanes(service)) as under, under.page() as page:
            await page.until("lanes")
            for span, is_local in (("span-0", False), ("nothing", True)):
                with pytest.raises(InvalidRequest):
                    under.gateway.kill(span, is_local=is_local)
        async with studio(service.address) as under, under.page() as page:
            await page.say({"type": "kill", "span": "span-0"})
            assert (await page.until("error"))["reason"] == Reason.METHOD_UNSUPPORTED.name
        assert len(service.stages) == 2

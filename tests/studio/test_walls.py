"""Walls over a real service and real sockets: frames return, what is asked holds, nobody sees another's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from rearview.contract.opening import OpenRequest
from rearview.contract.settings import Settings
from rearview.contract.watermark import Watermark, settings_digest
from rearview.studio.gateway import Gateway
from rearview.studio.outbox import Outbox
from rearview.studio.protocol import FrameIn, Hello, Open
from rearview.studio.rights import Rights
from rearview.studio.service import Endpoint, Service
from rearview.studio.wall import Wall
from support.raw_stream import assert_nothing_held, running
from support.studio import Page, studio
from support.tokens import Registry

pytestmark = pytest.mark.integration

CHAIN = {"name": "chain", "checkpoint": "chain"}
LOSSLESS = {"drop_policy": "lossless"}


def marked(picture: bytes) -> Watermark:
    """What the chain model says of a picture."""
    mark = Watermark.read(picture)[1]
    assert mark is not None
    return mark


async def test_frames_come_back_with_their_numbers_times_and_content() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        opened = await page.open(**LOSSLESS, width=64, height=64)
        assert (opened["width"], opened["frame"], opened["settings"]["prompt"]) == (64, 0, "a")
        for index in range(20):
            await page.frame(index, f"frame {index}".encode())
        await page.wait(lambda: len(page.pictures) == 20)
        assert [(each.tile, each.frame, each.captured_ms, each.picture) for each in page.pictures] == [
            (0, index, float(index), f"frame {index}".encode()) for index in range(20)
        ]
        assert all(0.0 < each.service_ms <= each.server_ms for each in page.pictures)
        assert page.said("dropped") == []


async def test_a_control_holds_from_the_frame_that_it_names() -> None:
    async with running(model=CHAIN) as service, studio(service.address) as under, under.page() as page:
        opened = await page.open(**LOSSLESS)
        digests: dict[int, int] = {settings_digest(Settings("a", steps=opened["settings"]["steps"])): 0}
        for index in range(30):
            if index and index % 10 == 0:
                await page.say({"type": "control", "tile": 0, "id": index, "settings": {"seed": index}})
            await page.frame(2 * index)
        await page.wait(lambda: len(page.pictures) == 30)
        applied = page.said("applied")
        assert [each["id"] for each in applied] == [10, 20]
        for each in applied:
            settings = Settings("a", steps=each["settings"]["steps"], seed=each["settings"]["seed"])
            digests[settings_digest(settings)] = each["frame"]
        for picture in page.pictures:
            begins = digests[marked(picture.picture).settings]
            later = [frame for frame in digests.values() if frame > begins]
            assert begins <= picture.frame < min(later, default=1000)
        # The number of the next frame if it has come already, else the one after the last.
        assert [(each["frame"] + 1) // 2 for each in applied] == [10, 20]


async def test_one_camera_feeds_nine_tiles_and_each_is_a_session_of_its_own() -> None:
    async with (
        running(model=CHAIN, slots=9) as service,
        studio(service.address) as under,
        under.page() as page,
    ):
        sessions = {}
        for tile in range(9):
            sessions[tile] = (await page.open(tile, **LOSSLESS))["session_id"]
        assert len(set(sessions.values())) == 9
        for index in range(12):
            await page.frame(index, b"%d" % index)
        await page.wait(lambda: len(page.pictures) == 9 * 12)
        for picture in page.pictures:
            assert Watermark.read(picture.picture)[0] == b"%d" % picture.frame
            assert marked(picture.picture).session_id == sessions[picture.tile]
        assert page.answers() == {tile: list(range(12)) for tile in range(9)}
        assert page.sent == 12, "a frame is sent once"


async def test_two_walls_never_see_each_others_pictures() -> None:
    async def play(name: str, page: Page) -> None:
        for tile in range(3):
            await page.open(tile, **LOSSLESS, settings={"prompt": name})
        for index in range(15):
            await page.frame(index, f"{name} {index}".encode())
        await page.wait(lambda: len(page.pictures) == 45)
        mine = {each["session_id"] for each in page.said("opened")}
        for picture in page.pictures:
            assert Watermark.read(picture.picture)[0] == f"{name} {picture.frame}".encode()
            assert marked(picture.picture).session_id in mine

    async with (
        running(model=CHAIN, slots=9) as service,
        studio(service.address) as under,
        under.page() as one,
        under.page() as other,
    ):
        await asyncio.gather(play("one", one), play("other", other))


async def test_a_page_that_is_loaded_again_goes_on_with_its_sessions() -> None:
    async with running(model=CHAIN) as service, studio(service.address) as under:
        async with under.page() as page:
            opened = await page.open(**LOSSLESS, frame_rate=12.5, max_steps=1)
            key = page.said("welcome")[0]["wall"]
            for index in range(5):
                await page.frame(index)
            await page.wait(lambda: len(page.pictures) == 5)
        async with under.page(wall=key) as again:
            welcome = again.said("welcome")[0]
            assert (welcome["resumed"], welcome["wall"]) == (True, key)
            assert [each["session_id"] for each in welcome["tiles"]] == [opened["session_id"]]
            options = {**LOSSLESS, "frame_rate": 12.5, "max_steps": 1}
            assert options.items() <= welcome["tiles"][0]["options"].items(), "it can be opened anew"
            await again.until("state", tile=0, state="live")
            await again.say({"type": "control", "tile": 0, "id": 1, "settings": {"seed": 3}})
            assert (await again.until("applied"))["frame"] == 0
            for index in range(5):
                await again.frame(index)
            await again.wait(lambda: len(again.pictures) == 5)
            marks = [marked(each.picture) for each in again.pictures]
            assert [mark.ordinal for mark in marks] == [5, 6, 7, 8, 9], "the past is still there"
            assert [each.frame for each in again.pictures] == [0, 1, 2, 3, 4]


async def test_no_two_sockets_share_a_wall_and_a_wrong_key_gives_a_new_one() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        welcome = page.said("welcome")[0]
        for key in (welcome["wall"], welcome["viewer"], "x" * 32, "", "ä"):
            async with under.page(wall=key) as other:
                found = other.said("welcome")[0]
                assert not found["resumed"]
                assert found["wall"] != welcome["wall"]


async def test_a_wall_without_a_page_ends_and_lets_its_sessions_go() -> None:
    async with running() as service, studio(service.address, keep_s=0.0) as under:
        async with under.page() as page:
            await page.open()
            assert len(list(service.sessions)) == 1
        await assert_nothing_held(service)


async def test_bye_and_close_let_sessions_go_at_once() -> None:
    async with running(slots=2) as service, studio(service.address) as under:
        async with under.page() as page:
            await page.open(0)
            await page.open(1)
            await page.say({"type": "close", "tile": 0})
            await page.say({"type": "control", "tile": 0, "id": 1, "settings": {}})
            assert (await page.until("applied"))["rejected"]["reason"] == "NOT_OPEN"
            await page.open(0)
            await page.until("opened", count=2, tile=0)
            await page.say({"type": "bye"})
            await page.ended()
        await assert_nothing_held(service)


async def test_a_refused_session_is_told_with_its_reason_and_tried_again_while_there_is_no_room() -> None:
    async with running(slots=1) as service, studio(service.address) as under, under.page() as page:
        await page.say({"type": "open", "tile": 0, "options": {"settings": {"prompt": " "}}})
        assert (await page.until("state", state="refused"))["reason"] == "PROMPT_EMPTY"
        await page.open(0)
        await page.say({"type": "open", "tile": 1, "options": {"settings": {"prompt": "a"}}})
        queued = await page.until("state", state="queued", tile=1)
        assert (queued["reason"], queued["retry_ms"] > 0) == ("NO_CAPACITY", True)
        await page.frame(0)
        await page.until("dropped", tile=1, frame=0, reason="queued")
        await page.say({"type": "close", "tile": 0})
        await page.until("opened", tile=1)


async def test_frames_that_wait_when_their_tile_is_closed_are_dropped() -> None:
    async def connect(model: str) -> Service:
        await asyncio.Event().wait()
        raise AssertionError

    wall, outbox = Wall(connect, None, Rights.STUDIO), Outbox()
    wall.attach(outbox, Hello(), resumed=False)
    wall.open(Open(tile=0, options=OpenRequest()))
    wall.take(FrameIn(0, 0.0, b"x"))
    wall.close_tile(0)
    await wall.close()
    said = []
    while (text := await outbox.next()) is not None:
        said.append(json.loads(text))
    assert [each["frame"] for each in said if each["type"] == "dropped"] == [0]


async def test_a_page_with_a_token_is_its_own_tenant(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    async with running(**registry.sections, slots=4) as service, studio(service.address) as under:
        async with under.page(token="alpha-token") as alpha, under.page(token="beta-token") as beta:
            await alpha.open()
            await beta.open()
            tenants = {record.session.tenant.name for record in service.sessions}
            assert tenants == {"alpha", "beta"}
            key = alpha.said("welcome")[0]["wall"]
            await alpha.socket.close()
            for token in (None, "beta-token"):
                async with under.page(token=token, wall=key) as thief:
                    assert not thief.said("welcome")[0]["resumed"]
        async with under.page() as nobody:
            assert (await nobody.until("error"))["reason"] == "TOKEN_INVALID"
            await nobody.say({"type": "open", "tile": 0, "options": {"settings": {"prompt": "a"}}})
            assert (await nobody.until("state", state="refused"))["reason"] == "TOKEN_INVALID"
        async with under.http.get(under.url + "/api/info") as response:
            info = await response.json()
        assert (info["needs_token"], info["model"]) == (True, None)


async def test_a_page_that_pauses_keeps_its_session() -> None:
    async with (
        running(ingress={"idle_timeout_s": 1.2}) as service,
        studio(service.address) as under,
        under.page() as page,
    ):
        opened = await page.open(**LOSSLESS)
        await page.frame(0)
        await page.until("stats", count=5)  # 2.5 s
        await page.frame(1)
        await page.wait(lambda: len(page.pictures) == 2)
        assert [each["state"] for each in page.said("state")] == ["opening", "live"]
        held = [record.session.spec.session_id for record in service.sessions]
        assert held == [opened["session_id"]]


async def test_a_tile_that_nobody_feeds_lets_its_session_go_and_opens_again_with_the_next_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.studio.tile.REST_AFTER_S", 0.0)
    async with running(model=CHAIN) as service, studio(service.address) as under, under.page() as page:
        first = await page.open(**LOSSLESS)
        await page.say({"type": "control", "tile": 0, "id": 1, "settings": {"seed": 7}})
        await page.until("applied")
        await page.until("state", state="ended", reason="IDLE")
        await assert_nothing_held(service)
        await page.frame(3)
        second = await page.until("opened", count=2)
        assert second["session_id"] != first["session_id"]
        assert (second["settings"]["seed"], second["frame"]) == (7, 3), "what was asked still holds"
        await page.wait(lambda: len(page.pictures) == 1)
        assert page.pictures[0].frame == 3


async def test_a_tile_that_rests_opens_for_a_change_and_answers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that changes the size holds its frames until the answer."""
    monkeypatch.setattr("rearview.studio.tile.REST_AFTER_S", 0.0)
    async with running() as service, studio(service.address) as under, under.page() as page:
        await page.open(**LOSSLESS)
        await page.until("state", state="ended", reason="IDLE")
        monkeypatch.setattr("rearview.studio.tile.REST_AFTER_S", 60.0)
        await page.say({"type": "control", "tile": 0, "id": 1, "settings": {"width": 72}})
        applied = await page.until("applied", id=1)
        assert (applied["rejected"], applied["settings"]["width"]) == (None, 72)
        states = [each["state"] for each in page.said("state")]
        assert states == ["opening", "live", "ended", "opening", "live"]


async def test_a_wall_that_is_being_closed_is_closed_before_the_gateway_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []
    close = Wall.close

    async def slowly(wall: Wall) -> None:
        await asyncio.sleep(0.05)
        await close(wall)
        ended.append(wall.key)

    monkeypatch.setattr(Wall, "close", slowly)
    async with running() as service:
        async with Gateway(Endpoint(service.address)) as gateway:
            walls = [gateway.enter(Hello())[0] for _ in range(2)]
            gateway.leave(walls[0])
            await asyncio.sleep(0)
        assert sorted(ended) == sorted(wall.key for wall in walls)

"""WHIP and WHEP over a real service, real HTTP and real UDP: who may, what comes back, what outlives what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rearview.studio.doors import Doors, own_origins
from rearview.studio.webrtc.ice import Ice
from support.raw_stream import eventually, running
from support.studio import StudioUnderTest, studio
from support.tokens import Registry
from support.webrtc import Lamp, bearer, camera, watcher

pytestmark = pytest.mark.integration

RED, BLUE = (200, 40, 40), (40, 60, 210)
CHAIN = {"name": "chain", "checkpoint": "chain"}
SMALL = '{"width": 64, "height": 64}'


def whip(under: StudioUnderTest, name: str = "cam", **query: str) -> str:
    asked = {"options": SMALL, "prompt": "a", **query}
    more = "&".join(f"{key}={value}" for key, value in asked.items())
    return f"{under.url}/whip/{name}?{more}"


async def test_watchers_see_what_a_camera_sends_and_delete_ends_both() -> None:
    async with running() as service, studio(service.address, ice=Ice()) as under:
        async with camera(under.http, whip(under), Lamp(RED)) as cam:
            (wall,) = under.gateway._walls.values()
            assert wall.tiles[0].said.settings.prompt == "a"
            key = wall.viewer_key
            assert f"</whep/{key}>" in cam.links
            async with (
                watcher(under.http, f"{under.url}/whep/cam") as one,
                watcher(under.http, f"{under.url}/whep/{key}") as other,
            ):
                await one.sees(RED)
                await other.sees(RED)
                assert await one.delete() == 200
                await one.ended()
                assert await cam.delete() == 200
                await other.ended()
            assert under.gateway._walls == {}
            assert await cam.delete() == 404
        await eventually(lambda: not list(service.sessions))


async def test_a_watcher_keeps_its_picture_when_a_replica_is_lost_and_when_the_camera_comes_again() -> None:
    async with running(model=CHAIN, replicas=2) as service, studio(service.address, ice=Ice()) as under:
        lamp = Lamp(RED)
        async with (
            camera(under.http, whip(under), lamp),
            watcher(under.http, f"{under.url}/whep/cam") as seen,
        ):
            await seen.sees(RED)
            lost = max(service.stages, key=lambda each: each.num_sessions)
            service.stages.remove(lost)
            await lost.stop()
            lamp.colour = BLUE
            await seen.sees(BLUE)
            (wall,) = under.gateway._walls.values()
            session = wall.tiles[0].session_id
            # Another connection under the name takes the place of the one that is still there.
            async with camera(under.http, whip(under), Lamp(RED)):
                await seen.sees(RED)
                assert list(under.gateway._walls.values()) == [wall]
                assert wall.tiles[0].session_id == session
            await eventually(lambda: not wall.is_attached)
            num_frames = seen.num_frames
            await seen.until(lambda: seen.num_frames > num_frames + 1)
            async with camera(under.http, whip(under), Lamp(BLUE)):
                await seen.sees(BLUE)
                assert list(under.gateway._walls.values()) == [wall]


async def test_a_name_belongs_to_a_token_and_no_token_or_a_wrong_one_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    async with running(tenants_file=registry.path) as service, studio(service.address, ice=Ice()) as under:
        for headers in ({}, bearer("nobody's"), {"Authorization": "Basic abc"}):
            asked = camera(under.http, whip(under), Lamp(), **headers)
            assert await asked.refused() == (401, "TOKEN_INVALID")
        assert under.gateway._walls == {}
        alpha, beta = bearer("alpha-token"), bearer("beta-token")
        async with (
            camera(under.http, whip(under), Lamp(RED), **alpha),
            camera(under.http, whip(under), Lamp(BLUE), **beta),
        ):
            assert len(under.gateway._walls) == 2
            for headers, colour in ((alpha, RED), (beta, BLUE)):
                async with watcher(under.http, f"{under.url}/whep/cam", **headers) as seen:
                    await seen.sees(colour)
            for headers in ({}, bearer("nobody's")):
                asked = watcher(under.http, f"{under.url}/whep/cam", **headers)
                assert await asked.refused() == (404, "SESSION_UNKNOWN")
            url, change = f"{under.url}/whip/cam/settings", {"prompt": "b"}
            async with under.http.post(url, json=change) as response:
                assert response.status == 409, "no token, no camera"
            async with under.http.post(url, json=change, headers=alpha) as response:
                applied = await response.json()
            assert (response.status, applied["rejected"]) == (200, None)
            prompts = [wall.tiles[0].said.settings.prompt for wall in under.gateway._walls.values()]
            assert prompts == ["b", "a"]


async def test_what_is_no_offer_or_no_live_camera_is_refused_and_holds_nothing() -> None:
    async with running() as service, studio(service.address, ice=Ice()) as under:
        offers = {"Content-Type": "application/sdp"}
        for data, headers, status in ((b"x", {}, 415), (b"v=0", offers, 400), (b"no offer", offers, 400)):
            async with under.http.post(whip(under), data=data, headers=headers) as response:
                assert response.status == status
        for query in ({"seed": "1"}, {"options": "[]"}, {"options": json.dumps({"drop_policy": "lossless"})}):
            status, _ = await camera(under.http, whip(under, **query), Lamp()).refused()
            assert status == 400, query
        assert (await watcher(under.http, whip(under)).refused())[0] == 400, "it sends nothing"
        assert (await watcher(under.http, f"{under.url}/whep/nobody").refused())[0] == 404
        async with camera(under.http, whip(under), Lamp()) as cam:
            for method in ("PATCH", "GET", "PUT"):
                async with under.http.request(method, cam.resource) as response:
                    assert (response.status, "DELETE" in response.headers["Allow"]) == (405, True)
        assert len(under.gateway._walls) == 1


async def test_pages_of_other_origins_are_refused_unless_allowed() -> None:
    mine, evil = {"Origin": "https://mine.example"}, {"Origin": "https://evil.example"}

    def doors(port: int) -> Doors:
        return Doors(frozenset(own_origins(port, None, (), [mine["Origin"]])))

    async with (
        running() as service,
        studio(service.address, ice=Ice(), doors=doors) as under,
        camera(under.http, whip(under), Lamp(), **mine) as cam,
    ):
        async with under.http.options(cam.resource, headers=mine) as response:
            assert response.headers["Access-Control-Allow-Origin"] == mine["Origin"]
            assert "DELETE" in response.headers["Access-Control-Allow-Methods"]
        for path in ("/whip/cam", "/whep/cam"):
            async with under.http.post(under.url + path, headers=evil) as refused:
                assert refused.status == 403


async def test_a_studio_without_webrtc_says_how_to_have_it() -> None:
    async with studio("127.0.0.1:9") as under, under.http.post(f"{under.url}/whip/cam") as response:
        assert (response.status, await response.text()) == (404, "start the studio with --webrtc\n")

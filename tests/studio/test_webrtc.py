"""WHIP and WHEP over a real service, real HTTP and real UDP: who may, what comes back, what outlives what."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import trustme
from aiohttp import ClientSession, TCPConnector
from aioice import stun
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection
from rearview.contract.opening import OpenRequest
from rearview.contract.settings import SettingsChange
from rearview.errors import Reason, Refused, StreamEnded
from rearview.studio import lan
from rearview.studio.camera import Camera
from rearview.studio.doors import Doors, own_origins
from rearview.studio.gateway import Gateway
from rearview.studio.protocol import Hello
from rearview.studio.service import Endpoint
from rearview.studio.serving import Ports, serve
from rearview.studio.webrtc.ice import Ice
from rearview.studio.webrtc.peers import Peer
from support.pages import blocks
from support.raw_stream import eventually, running
from support.require import skip_or_fail
from support.studio import StudioUnderTest, studio
from support.tokens import Registry
from support.webrtc import Lamp, Remote, bearer, camera, watcher

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
                assert (wall.tiles[0].session_id, wall.page.is_there) == (session, True)
            await eventually(lambda: not wall.page.is_there)
            num_frames = seen.num_frames
            await seen.until(lambda: seen.num_frames > num_frames + 1)
            async with camera(under.http, whip(under), Lamp(BLUE)):
                await seen.sees(BLUE)
                assert list(under.gateway._walls.values()) == [wall]


async def test_a_session_that_has_ended_is_opened_again_under_what_was_asked_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.studio.camera.REOPEN_S", 0.05)
    async with running() as service, studio(service.address, ice=Ice()) as under:
        lamp = Lamp(RED)
        async with (
            camera(under.http, whip(under), lamp),
            watcher(under.http, f"{under.url}/whep/cam") as seen,
        ):
            await seen.sees(RED)
            (wall,) = under.gateway._walls.values()
            change = {"prompt": "b", "width": 128}
            async with under.http.post(f"{under.url}/whip/cam/settings", json=change) as response:
                assert (await response.json())["rejected"] is None
            ended = wall.tiles[0]
            ended._feed._session.abort(StreamEnded(Reason.REPLICA_LOST, "all are gone"))
            lamp.colour = BLUE
            await seen.sees(BLUE)
            again = wall.tiles[0].said
            assert wall.tiles[0] is not ended
            assert (again.settings.prompt, again.width, again.height) == ("b", 128, 64)


async def test_a_tile_that_cannot_be_opened_again_at_once_is_opened_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.studio.camera.REOPEN_S", 0.05)
    async with running() as service, studio(service.address) as under:
        wall, _ = under.gateway.enter(Hello())
        cam = Camera(wall, OpenRequest(settings=SettingsChange(prompt="a")), resumed=False)
        await cam.opened()
        with monkeypatch.context() as while_all_close:
            while_all_close.setattr("rearview.studio.wall.MAX_CLOSING", 0)
            wall.tiles[0]._feed._session.abort(StreamEnded(Reason.REPLICA_LOST, "all are gone"))
            await eventually(lambda: wall.tiles[0].is_over)
            cam._reopen()
        await eventually(lambda: wall.tiles[0].session_id != "")
        await cam.close()


async def test_a_camera_that_comes_again_reopens_what_the_one_before_had_agreed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.studio.camera.REOPEN_S", 0.0)
    async with running() as service, studio(service.address) as under:
        wall, _ = under.gateway.enter(Hello())
        asked = OpenRequest(settings=SettingsChange(prompt="a", width=64, height=64), jpeg_quality=70)
        first = Camera(wall, asked, resumed=False)
        await first.opened()
        assert (await first.change(SettingsChange(prompt="b")))["rejected"] is None
        await first.close()
        refused = OpenRequest(settings=SettingsChange(seed=3, height=100_000))
        second = Camera(wall, refused, resumed=True)
        await second.opened()
        ended = wall.tiles[0]
        ended._feed._session.abort(StreamEnded(Reason.REPLICA_LOST, "all are gone"))
        await eventually(lambda: wall.tiles[0] is not ended and wall.tiles[0].session_id != "")
        opened = wall.tiles[0]
        assert (opened.said.settings.prompt, opened.said.height, opened.asked.jpeg_quality) == ("b", 64, 70)
        await second.close()


async def test_an_answer_to_the_camera_before_is_none_to_the_next_one() -> None:
    async with running() as service, studio(service.address) as under:
        wall, _ = under.gateway.enter(Hello())
        first = Camera(wall, OpenRequest(settings=SettingsChange(prompt="a")), resumed=False)
        await first.opened()
        asked = asyncio.create_task(first.change(SettingsChange(seed=1)))
        await asyncio.sleep(0)
        asked.cancel()
        await first.close()
        second = Camera(wall, OpenRequest(), resumed=True)
        assert (await second.change(SettingsChange(seed=2)))["settings"]["seed"] == 2
        await second.close()


async def test_cameras_that_come_at_once_under_one_name_have_one_wall() -> None:
    async with (
        running() as service,
        studio(service.address, ice=Ice()) as under,
        camera(under.http, whip(under), Lamp()),
    ):
        (wall,) = under.gateway._walls.values()
        statuses = await statuses_of([camera(under.http, whip(under), Lamp()) for _ in range(3)])
        assert statuses[0] == 201
        assert set(statuses) <= {201, 409}
        assert list(under.gateway._walls.values()) == [wall]


async def test_peers_count_before_they_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rearview.studio.webrtc.endpoints.MAX_PEERS", 2)
    async with running() as service, studio(service.address, ice=Ice()) as under:
        assert (await camera(under.http, whip(under, options="[]"), Lamp()).refused())[0] == 400
        assert (await watcher(under.http, whip(under)).refused())[0] == 400
        cameras = [camera(under.http, whip(under, f"cam{number}"), Lamp()) for number in range(4)]
        assert await statuses_of(cameras) == [201, 201, 503, 503]
        assert len(under.gateway._walls) == 2


async def test_an_offer_whose_addresses_cannot_be_found_in_time_may_be_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.studio.webrtc.peers.GATHER_S", 0.0)
    caller, peer = RTCPeerConnection(RTCConfiguration([])), Peer(Ice())
    caller.addTransceiver("video", "sendonly")
    await caller.setLocalDescription(await caller.createOffer())
    with pytest.raises(Refused, match="does not answer") as caught:
        await peer.receive(caller.localDescription.sdp)
    assert caught.value.retry_after_s == 0.0
    await asyncio.gather(peer.close(), caller.close())


async def statuses_of(cameras: list[Remote]) -> list[int]:
    """Of the answers to their offers, which are posted at once, in order; then they are gone."""
    answers = await asyncio.gather(*(each.ask() for each in cameras))
    await asyncio.gather(*(each._connection.close() for each in cameras))
    return sorted(status for status, _ in answers)


async def test_a_size_acts_once_it_is_agreed() -> None:
    async with running() as service, studio(service.address) as under:
        wall, _ = under.gateway.enter(Hello())
        asked = OpenRequest(settings=SettingsChange(prompt="a", width=64, height=64))
        cam = Camera(wall, asked, resumed=False)
        await cam.opened()
        refused, agreed = SettingsChange(height=100_000), SettingsChange(width=128)
        for change, size in ((refused, (64, 64)), (agreed, (128, 64))):
            changing = asyncio.create_task(cam.change(change))
            await asyncio.sleep(0)
            assert cam._size == (64, 64)
            assert not cam._may_send, "frames wait for the answer"
            assert ((await changing)["rejected"] is None) == (change is agreed)
            assert cam._size == size
            assert cam._may_send
        await cam.close()


class Broken(MediaStreamTrack):
    """Gives one frame, then waits; None: it fails instead."""

    kind = "video"

    def __init__(self, frame: av.VideoFrame | None) -> None:
        super().__init__()
        self._frames = [frame]

    async def recv(self) -> av.VideoFrame:
        if not self._frames:
            await asyncio.Event().wait()
        frame = self._frames.pop()
        if frame is None:
            raise OSError("the decoder fails")
        return frame


@pytest.mark.parametrize("frame", [None, av.VideoFrame(0, 0)], ids=["no frame", "an empty frame"])
async def test_a_camera_whose_frames_cannot_be_had_or_scaled_is_over(frame: av.VideoFrame | None) -> None:
    async with running() as service, studio(service.address) as under:
        wall, _ = under.gateway.enter(Hello())
        broken = Camera(wall, OpenRequest(settings=SettingsChange(prompt="a")), resumed=False)
        await broken.opened()
        broken.show(Broken(frame))
        async with asyncio.timeout(10):
            await broken.over.wait()
        await broken.close()


async def test_a_camera_that_rested_or_was_closed_before_harms_no_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.studio.tile.REST_AFTER_S", 0.0)
    async with running() as service, studio(service.address) as under:
        wall, _ = under.gateway.enter(Hello())
        asked = OpenRequest(settings=SettingsChange(prompt="a"))
        first = Camera(wall, asked, resumed=False)
        await first.opened()
        await eventually(lambda: wall.tiles[0].session_id == "")
        await first.close()
        second = Camera(wall, asked, resumed=True)
        await second.opened()
        await first.close()
        assert wall.page.is_there
        await second.close()
        assert not wall.page.is_there


async def test_other_machines_come_with_the_key(tmp_path: Path) -> None:
    ports = Ports.bind(0, key_folder=tmp_path / "keys")
    others = lan.addresses()
    if not others:
        skip_or_fail("this machine has no address but loopback's")
    async with (
        Gateway(Endpoint("127.0.0.1:9")) as gateway,
        serve(gateway, ports, ice=Ice()) as link,
        ClientSession(connector=TCPConnector(ssl=False)) as http,
    ):
        base = f"https://{others[0]}:{ports.lan.getsockname()[1]}"
        key = link.partition("?key=")[2]
        # 415: let in, and told that this is no offer.
        for path, status in (("", 403), ("?key=wrong", 403), (f"?key={key}", 415)):
            async with http.post(f"{base}/whip/cam{path}") as response:
                assert response.status == status
        async with http.post(f"{base}/whep/cam") as response:
            assert response.status == 403
        wall, _ = gateway.enter(Hello())
        async with http.post(f"{base}/whep/{wall.viewer_key}") as response:
            assert response.status == 415


async def test_who_was_let_in_with_the_key_ends_a_resource_by_its_location_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clients of WHIP and WHEP send DELETE to the Location as it is, which names no key."""
    monkeypatch.setattr("rearview.studio.doors.is_loopback", lambda remote: False)

    def doors(port: int) -> Doors:
        return Doors(frozenset(own_origins(port, None, (), ())), "secret")

    async with (
        running() as service,
        studio(service.address, ice=Ice(), doors=doors) as under,
        camera(under.http, whip(under, key="secret"), Lamp(RED)) as cam,
        watcher(under.http, f"{under.url}/whep/cam?key=secret") as seen,
    ):
        await seen.sees(RED)
        for remote in (cam, seen):
            evil = {"Origin": "https://evil.example"}
            async with under.http.delete(remote.resource, headers=evil) as response:
                assert response.status == 403
            async with under.http.delete(remote.resource + "x") as response:
                assert response.status == 404, "another id ends nothing"
        assert await seen.delete() == 200
        await seen.ended()
        assert await cam.delete() == 200
        assert under.gateway._walls == {}


class Stun(asyncio.DatagramProtocol):
    """Tells who asks which address it has."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        asked = stun.parse_message(data)
        said = stun.Message(asked.message_method, stun.Class.RESPONSE, asked.transaction_id)
        said.attributes["XOR-MAPPED-ADDRESS"] = address
        self._transport.sendto(bytes(said), address)


async def test_cameras_and_watchers_are_told_of_the_stun_server() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Stun, ("127.0.0.1", 0))
    url = f"stun:127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    async with (
        running() as service,
        studio(service.address, ice=Ice.of([url])) as under,
        camera(under.http, whip(under), Lamp()) as cam,
        watcher(under.http, f"{under.url}/whep/cam") as seen,
    ):
        assert cam.links.endswith(f', <{url}>; rel="ice-server"')
        assert seen.links == f'<{url}>; rel="ice-server"'
    transport.close()


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
                reason = (await response.json())["reason"]
                assert (response.status, reason) == (404, "SESSION_UNKNOWN"), "no token, no camera"
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
                assert "Access-Control-Allow-Origin" not in refused.headers
            # What is refused without a word of JSON can be read all the same.
            async with under.http.post(under.url + path, headers=mine) as told:
                assert (told.status, told.headers["Access-Control-Allow-Origin"]) == (415, mine["Origin"])


async def test_the_program_of_the_docs_sends_a_file_by_the_muxer_of_pyav(root: Path, tmp_path: Path) -> None:
    if "whip" not in av.formats_available:
        skip_or_fail("this PyAV has no whip muxer")
    (program,) = blocks(root / "docs" / "webrtc.md")
    certificate = trustme.CA().issue_cert("camera")
    paths = [tmp_path / name for name in ("blue.mp4", "cert.pem", "key.pem")]
    certificate.cert_chain_pems[0].write_to_path(str(paths[1]))
    certificate.private_key_pem.write_to_path(str(paths[2]))
    await asyncio.to_thread(film, paths[0], BLUE)
    async with running() as service, studio(service.address, ice=Ice()) as under:
        arguments = [paths[0], whip(under), *paths[1:]]
        muxer = await asyncio.create_subprocess_exec(sys.executable, "-c", program.code, *arguments)
        try:
            await eventually(lambda: bool(under.gateway._walls))
            async with watcher(under.http, f"{under.url}/whep/cam") as seen:
                await seen.sees(BLUE)
        finally:
            muxer.kill()
            await muxer.wait()


async def test_the_curl_lines_of_the_docs_are_answered(root: Path) -> None:
    if shutil.which("curl") is None:
        skip_or_fail("curl is missing")
    text = (root / "docs" / "webrtc.md").read_text(encoding="utf-8")
    offer, change = re.findall(r"^curl .*$", text, re.MULTILINE)
    async with running() as service, studio(service.address, ice=Ice()) as under:

        async def said_to(line: str) -> str:
            command = shlex.split(line.replace("http://127.0.0.1:8600", under.url))
            process = await asyncio.create_subprocess_exec(*command, "-s", stdout=asyncio.subprocess.PIPE)
            return (await process.communicate())[0].decode()

        assert "400 Bad Request" in await said_to(offer)
        async with camera(under.http, whip(under), Lamp()):
            applied = json.loads(await said_to(change))
            assert (applied["rejected"], applied["settings"]["prompt"]) == (None, "pencil sketch")


def film(path: Path, colour: tuple[int, int, int]) -> None:
    """Ten seconds of one colour, 320 x 240."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        picture = np.full((240, 320, 3), colour, np.uint8)
        for _ in range(200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


async def test_a_studio_without_webrtc_says_how_to_have_it() -> None:
    async with studio("127.0.0.1:9") as under, under.http.post(f"{under.url}/whip/cam") as response:
        assert (response.status, await response.text()) == (404, "start the studio with --webrtc\n")

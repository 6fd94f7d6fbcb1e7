"""Who is let in: by origin, by name, and from other machines by key; and what every answer carries."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import aiohttp
import pytest
from aiohttp import ClientSession, TCPConnector, WSServerHandshakeError
from rearview.errors import ConfigError
from rearview.samples import sample_clip_path
from rearview.studio import lan
from rearview.studio.doors import Doors, is_loopback, origin_of, own_origins
from rearview.studio.gateway import Gateway
from rearview.studio.said import ServiceSaid
from rearview.studio.service import Endpoint
from rearview.studio.serving import Ports, serve
from support.raw_stream import running
from support.studio import StudioUnderTest, studio

pytestmark = pytest.mark.integration

NOBODY = "127.0.0.1:9"
"""An address at which no service answers: pages come all the same."""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    for name in ("index.html", "view.html", "app.js"):
        (tmp_path / name).write_text(f"<p>{name}</p>")
    return tmp_path


async def refused(under: StudioUnderTest, path: str, **headers: str) -> int:
    with pytest.raises(WSServerHandshakeError) as caught:
        await under.http.ws_connect(under.url + path, headers=headers)
    return caught.value.status


async def test_a_socket_needs_the_gateways_own_origin(page: Path) -> None:
    async with studio(NOBODY, page=page) as under:
        for origin in (
            "https://evil.example",
            "null",
            f"https://127.0.0.1:{under.port}",
            under.url + ".evil",
        ):
            assert await refused(under, "/wall", Origin=origin) == 403
        assert await refused(under, "/wall") == 403, "no page's"
        for origin in (under.url, f"http://localhost:{under.port}", f"HTTP://LOCALHOST:{under.port}"):
            async with under.page() as one:
                await one.socket.close()
            await (await under.http.ws_connect(under.url + "/wall", headers={"Origin": origin})).close()


async def test_an_origin_that_is_allowed_comes_in(page: Path) -> None:
    def doors(port: int) -> Doors:
        return Doors(frozenset(own_origins(port, None, (), ["https://Studio.example/"])))

    async with studio(NOBODY, page=page, doors=doors) as under:
        headers = {"Origin": "https://studio.example"}
        await (await under.http.ws_connect(under.url + "/wall", headers=headers)).close()
        assert await refused(under, "/wall", Origin="http://studio.example") == 403


async def test_a_foreign_name_for_this_host_sees_nothing(page: Path) -> None:
    async with studio(NOBODY, page=page) as under:
        for path in ("/", "/api/info", "/static/app.js", "/sample.mp4", "/view/x"):
            async with under.http.get(under.url + path, headers={"Host": "rebound.example"}) as response:
                assert response.status == 403, path


@pytest.mark.parametrize(
    ("host", "is_known"),
    [("studio.example", True), ("studio.example:443", True), ("Studio.example", True),
     ("plain.example", True), ("studio.example:80", False), ("studio.example:8600", False),
     ("127.0.0.1:8600", True), ("127.0.0.1", False), ("rebound.example", False),
     ("rebound.example:443", False), ("", False)],
)  # fmt: skip
def test_a_name_without_a_port_is_one_of_either_default_port(host: str, is_known: bool) -> None:
    allowed = ["https://studio.example", "http://plain.example"]
    assert Doors(frozenset(own_origins(8600, None, (), allowed))).knows_host(host) is is_known


async def test_every_answer_carries_the_policies_and_files_have_tags(page: Path) -> None:
    async with studio(NOBODY, page=page) as under:
        for path, status in (("/", 200), ("/static/app.js", 200), ("/api/info", 200), ("/nothing", 404)):
            async with under.http.get(under.url + path) as response:
                assert response.status == status
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'self'" in policy
                assert "http" not in policy
                assert "unsafe" not in policy
                assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                tag = response.headers.get("ETag")
            if path.startswith("/static"):
                assert tag
                async with under.http.get(under.url + path, headers={"If-None-Match": tag}) as again:
                    assert again.status == 304
        for path in ("/static/../test_doors.py", "/static/%2e%2e/pyproject.toml", "/static//etc/passwd"):
            async with under.http.get(f"{under.url}{path}") as response:
                assert response.status in (403, 404), path
        async with under.http.get(under.url + "/sample.mp4", headers={"Range": "bytes=0-99"}) as response:
            assert (response.status, len(await response.read())) == (206, 100)


async def test_info_says_what_is_served_once_it_is() -> None:
    async with running() as service, studio(service.address) as under:
        async with under.page() as one:
            serving = await one.until("serving")
            await one.until("service", state="ready")
        async with under.http.get(under.url + "/api/info") as response:
            info = await response.json()
    assert info["service"] == {"state": "ready", "message": ""}
    assert info["model"] == serving["model"]
    assert (info["model"]["name"], info["model"]["formats"]) == (
        service.config.model.name,
        ["opaque"],
    )
    assert (info["local"], info["secure"], info["needs_token"], info["lan"]) == (False, False, False, None)
    assert info["sample"] == str(sample_clip_path())
    assert info["limits"] == {"tiles": 9, "frame_bytes": 1 << 20}


@pytest.mark.one_ingress("it has the port that it had before")
async def test_a_service_is_ready_when_it_has_answered_and_away_while_nobody_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    told: asyncio.Queue[ServiceSaid] = asyncio.Queue()
    async with studio(f"127.0.0.1:{port}", on_service=told.put_nowait) as under, asyncio.timeout(30):
        assert under.gateway.info(secure=False, lan=None)["service"]["state"] == "starting"
        away = await told.get()
        assert away.state == "unreachable"
        assert f"127.0.0.1:{port}: nobody listens there" in away.message
        async with running(ingress={"port": port}):
            assert await told.get() == ServiceSaid(state="ready")
            async with under.page() as one:
                await one.until("service", state="ready")
        async with under.page() as one:
            await one.until("service", state="unreachable")


async def test_a_socket_that_says_no_hello_is_told_so(page: Path) -> None:
    async with studio(NOBODY, page=page) as under:
        for first in ('{"type":"bye"}', "nonsense", b"\x01"):
            headers = {"Origin": under.url}
            async with under.http.ws_connect(under.url + "/wall", headers=headers) as socket:
                await (socket.send_bytes(first) if isinstance(first, bytes) else socket.send_str(first))
                assert (await socket.receive_json())["type"] == "error"
                assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
                assert socket.close_code == 1008


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://a.example", "https://a.example:443"),
        ("HTTP://A.example:80/", "http://a.example:80"),
        ("http://[::1]:8600", "http://[::1]:8600"),
    ],
)
def test_origins_are_compared_with_their_ports(text: str, origin: str) -> None:
    assert origin_of(text) == origin


@pytest.mark.parametrize(
    "text", ["", "null", "a.example", "ftp://a", "http://", "http://a/b", "http://a:b", "http://u@a"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        origin_of(text)
    assert not Doors(frozenset({"http://a:80"})).knows_origin(text)


@pytest.mark.parametrize(
    ("remote", "is_local"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False),
     ("::ffff:10.0.0.1", False), ("", False), (None, False), ("localhost", False)],
)  # fmt: skip
def test_only_this_machine_is_this_machine(remote: str | None, is_local: bool) -> None:
    assert is_loopback(remote) is is_local
    assert Doors(frozenset()).admits(remote, None) is is_local
    assert Doors(frozenset(), key="k").admits(remote, "k")


def test_the_certificate_and_the_key_stay_until_they_no_longer_serve(tmp_path: Path) -> None:
    hosts = ("192.168.7.5", "localhost")
    key = lan.kept_key(tmp_path)
    lan.tls_context(tmp_path, hosts)
    first = (tmp_path / "cert.pem").read_bytes()
    lan.tls_context(tmp_path, hosts[:1])
    assert (tmp_path / "cert.pem").read_bytes() == first
    assert lan.kept_key(tmp_path) == key
    lan.tls_context(tmp_path, (*hosts, "192.168.7.6"))
    assert (tmp_path / "cert.pem").read_bytes() != first
    (tmp_path / "cert.pem").write_text("damaged")
    lan.tls_context(tmp_path, hosts)
    for name in ("cert.key", "key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert all(not address.startswith("127.") for address in lan.addresses())


def test_the_link_is_drawn() -> None:
    link = "https://192.168.7.5:8601/?key=0123456789"
    assert lan.qr_svg(link).startswith("<?xml")
    assert len(lan.qr_text(link).splitlines()) > 10


async def test_other_machines_come_by_tls_and_with_the_key(page: Path, tmp_path: Path) -> None:
    """From an address that is not loopback's, where the machine has one; the key counts there alone."""
    ports = Ports.bind(0, key_folder=tmp_path / "keys")
    others = lan.addresses()
    async with Gateway(Endpoint(NOBODY)) as gateway, serve(gateway, ports, page=page) as link:
        assert link is not None
        assert ports.lan is not None
        lan_port = ports.lan.getsockname()[1]
        key = link.partition("?key=")[2]
        async with ClientSession(
            connector=TCPConnector(ssl=False), cookie_jar=aiohttp.CookieJar(unsafe=True)
        ) as http:
            base = f"https://{next(iter(others), '127.0.0.1')}:{lan_port}"
            if others:
                for path in ("/", "/api/info", "/api/qr.svg", "/sample.mp4", "/?key=wrong"):
                    async with http.get(base + path) as response:
                        assert response.status == 403, path
                with pytest.raises(WSServerHandshakeError) as caught:
                    await http.ws_connect(base + "/wall", headers={"Origin": base})
                assert caught.value.status == 403
            async with http.get(f"{base}/static/app.js") as response:
                assert response.status == 200
            async with http.get(
                link.replace(link.partition("/?")[0], base), allow_redirects=False
            ) as response:
                assert (response.status, response.headers["Location"]) == (302, "/")
                cookie = response.headers["Set-Cookie"]
                assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=Strict"))
                assert key in cookie
            async with http.get(base + "/api/info") as response:
                info = await response.json()
                assert (response.status, info["secure"], info["lan"]) == (200, True, link)
            async with http.get(base + "/api/qr.svg") as response:
                assert "<svg" in await response.text()
            await (await http.ws_connect(base + "/wall", headers={"Origin": base})).close()


async def test_a_port_that_is_taken_is_told_before_anything_is_started() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="is in use; --port chooses another one, --port 0 a free one"),
    ):
        Ports.bind(taken.getsockname()[1])
    with socket.create_server(("0.0.0.0", 0)) as taken:
        below = taken.getsockname()[1] - 1
        with pytest.raises(ConfigError, match=f"--port {below}: --lan takes {below + 1} too"):
            Ports.bind(below, key_folder=Path("unused"))
    with pytest.raises(ConfigError, match="no origin"):
        Ports.bind(0, allowed=["nonsense"])
    await asyncio.sleep(0)

"""The web client as users get it, packed, in Chromium, before real studios and services: every frame is
answered once and in order, whatever is cut or moved meanwhile; refusals come with their reason.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright
from rearview.studio.doors import Doors, own_origins
from rearview.studio.protocol import MAX_FRAME_BYTES, MAX_TEXT_BYTES
from support.ingresses import cut_at, several
from support.raw_stream import assert_nothing_held, eventually, null_config, quickly_stopped, running
from support.require import skip_or_fail
from support.service import in_process_service
from support.studio import StudioUnderTest, studio
from support.tokens import sha256
from support.web_package import packed
from support.wire import Wire, wire

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
]

FRAMES = 14
OPTIONS = {"dropPolicy": "lossless", "settings": {"prompt": "a"}, "queue": False}
ITEMS: Sequence[Mapping[str, Any]] = [
    item
    for number in range(FRAMES)
    for item in (
        *([{"control": {"seed": number}}] if number in (3, 6) else []),
        {"frame": f"{number}"},
    )
]
WHOLE = [[number, f"{number}"] for number in range(FRAMES)]
APPLIED = [[3, 3], [6, 6]]


@pytest.fixture(scope="module")
def package(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(root, tmp_path_factory.mktemp("web"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        skip_or_fail("chromium is missing (Debian: apt install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        await browser.close()


@dataclass
class Shop:
    """Somebody else's site: its page, and its backend, which has the tenant's token."""

    port: int = 0
    bearer: str | None = None
    under: StudioUnderTest | None = None
    """The studio at which its backend asks for tokens."""
    minted: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def mint(self, **body: Any) -> str:
        assert self.under is not None
        headers = {} if self.bearer is None else {"Authorization": f"Bearer {self.bearer}"}
        answer = await self.under.http.post(f"{self.under.url}/api/tokens", json=body, headers=headers)
        self.minted.append((await answer.json())["token"])
        return self.minted[-1]

    async def token(self, _: web.Request) -> web.Response:
        return web.json_response({"token": await self.mint()})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(root: Path, package: Path) -> AsyncIterator[Shop]:
    shop = Shop()

    async def page(_: web.Request) -> web.Response:
        script = '<script type="module" src="/web_session.mjs"></script>'
        return web.Response(text=f"<!doctype html><title>a page</title>{script}", content_type="text/html")

    async def script(_: web.Request) -> web.Response:
        text = (root / "tests/client/web_session.mjs").read_text(encoding="utf-8")
        return web.Response(text=text, content_type="text/javascript")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/web_session.mjs", script)
    app.router.add_get("/token", shop.token)
    app.router.add_static("/package/", package)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    shop.port = runner.addresses[0][1]
    yield shop
    await runner.cleanup()


@dataclass
class Stage:
    """A site's page before a studio, by a wire that a test may cut."""

    chromium: Browser
    site: Shop
    under: StudioUnderTest
    wire: Wire

    async def page(self) -> Page:
        page = await self.chromium.new_page()
        await page.goto(self.site.origin)
        await page.wait_for_function("window.begin")
        return page

    async def begin(self, page: Page, **asked: Any) -> Any:
        told = {"url": self.wire.url, "options": OPTIONS, **asked}
        if "token" not in asked and "asks" not in asked:
            told["token"] = await self.site.mint()
        return await page.evaluate("asked => window.begin(asked)", told)

    async def go(self, page: Page, **asked: Any) -> Any:
        return await page.evaluate("asked => window.go(asked)", {"items": ITEMS, **asked})

    async def session(self, **asked: Any) -> Any:
        """What one whole session came to."""
        page = await self.page()
        try:
            begun = await self.begin(page, **asked)
            return begun if "error" in begun else await self.go(page)
        finally:
            await page.close()


@asynccontextmanager
async def stage(
    chromium: Browser, site: Shop, address: str, bearer: str | None = None
) -> AsyncIterator[Stage]:
    async with wire() as carried:

        def doors(port: int) -> Doors:
            return Doors(frozenset(own_origins(port, None, (), (site.origin, carried.url))))

        async with studio(address, doors=doors) as under:
            carried.target = under.port
            site.under, site.bearer = under, bearer
            yield Stage(chromium, site, under, carried)


def whole(found: Mapping[str, Any], connections: int = 1) -> None:
    assert "error" not in found, found
    assert found["frames"] == WHOLE
    assert found["applied"] == APPLIED
    assert found["dropped"] == []
    assert found["connections"] == connections


async def test_every_frame_is_answered_in_order_and_controls_say_from_where(
    chromium: Browser, site: Shop
) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        whole(await on.session())
        await assert_nothing_held(service)


async def test_a_page_that_is_told_of_a_search_is_told_of_its_end(chromium: Browser, site: Shop) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        on.wire.cut_after(10)
        await on.begin(page)
        found = await on.go(page)
        whole(found)
        *told, _ = found["events"]  # The last one is the end.
        assert told == [
            {"name": "reconnecting", "where": "gateway", "attempt": 1},
            {"name": "reconnected", "continuity": "exact"},
        ]


@pytest.mark.parametrize("how", [{}, {"asks": True}], ids=["a token", "a function that mints anew"])
async def test_wherever_the_connection_is_cut_nothing_is_lost_or_doubled(
    chromium: Browser, site: Shop, how: Mapping[str, Any]
) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        await on.begin(page, **how)
        on.wire.cut_after(None)
        whole(await on.go(page))
        most = on.wire.passed
        for part in (0.05, 0.2, 0.4, 0.6, 0.8):
            await on.begin(page, **how)
            on.wire.cut_after(round(part * most))
            found = await on.go(page)
            whole(found, connections=2)
            again = [each for each in found["events"] if each["name"] == "reconnected"]
            assert again == [{"name": "reconnected", "continuity": "exact"}]
        for count in (200, 700, 1200, 1700):
            on.wire.cut_after(count)
            assert "error" not in await on.begin(page, **how), f"cut while it opens, after {count} bytes"
            on.wire.cut_after(None)
            found = await on.go(page)
            whole(found, found["connections"])
        assert on.wire.cuts == 9
        await page.close()
        await assert_nothing_held(service)


PAINTED = """async ({ url, token, kind }) => {
    const drawn = Object.assign(document.createElement("canvas"), { width: 90, height: 60 });
    const brush = drawn.getContext("2d");
    const tick = setInterval(() => {
        brush.fillStyle = `rgb(200, 40, ${(performance.now() / 10) % 40})`;
        brush.fillRect(0, 0, 90, 60);
    }, 20);
    const stream = drawn.captureStream();
    const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true });
    await video.play();
    const options = { url, token, width: 64, height: 64, settings: { prompt: "a" } };
    const session = await window.connect({ canvas: drawn, video, stream }[kind], options);
    const seen = Object.assign(document.createElement("video"), { srcObject: session.stream, muted: true });
    seen.play();
    await new Promise((resolve) =>
        session.addEventListener("frame", ({ detail }) => detail.frame > 5 && resolve()));
    await new Promise((resolve) => seen.requestVideoFrameCallback(resolve));
    const one = new OffscreenCanvas(1, 1).getContext("2d");
    one.drawImage(seen, 0, 0, 1, 1);
    const found = [...one.getImageData(0, 0, 1, 1).data, seen.videoWidth, session.canvas.width];
    await session.finish();
    clearInterval(tick);
    return [...found, stream.getVideoTracks()[0].readyState];
}"""


@pytest.mark.parametrize("kind", ["canvas", "video", "stream"])
async def test_a_source_of_each_kind_comes_back_as_a_stream(chromium: Browser, site: Shop, kind: str) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        told = {"url": on.wire.url, "token": await site.mint(), "kind": kind}
        red, green, blue, _, *rest = await page.evaluate(PAINTED, told)
        assert (abs(red - 200) < 12, abs(green - 40) < 12, blue < 60) == (True, True, True)
        assert rest == [64, 64, "live"], "the source goes on"
        await page.close()
        await assert_nothing_held(service)


async def test_a_gateway_that_has_gone_is_followed_by_another_one(chromium: Browser, site: Shop) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        assert "error" not in await on.begin(page, asks=True)
        going = asyncio.create_task(on.go(page, pauseMs=20))
        await eventually(lambda: any(stage.num_sessions for stage in service.stages))
        origins = (site.origin, on.wire.url)
        async with studio(
            service.address, doors=lambda port: Doors(frozenset(own_origins(port, None, (), origins)))
        ) as other:
            await page.wait_for_function("window.begun.told.frames.length > 3")
            on.wire.target, site.under = other.port, other
            on.wire.cut()
            found = await going
        assert found["frames"] == WHOLE
        assert [each[0] for each in found["applied"]] == [3, 6]
        again = [each for each in found["events"] if each["name"] == "reconnected"]
        assert again == [{"name": "reconnected", "continuity": "reset"}]
        assert len(site.minted) >= 2
        await page.close()


@pytest.mark.one_ingress
async def test_wherever_its_ingress_dies_nothing_is_lost_or_doubled(chromium: Browser, site: Shop) -> None:
    async with several(1) as service:
        for number in (5, 19):
            doomed = await service.add()
            addresses = f"{doomed.address},{service.addresses[0]}"
            with cut_at(doomed, number) as cut:
                async with stage(chromium, site, addresses) as on:
                    found = await on.session()
            assert cut.is_dead, number
            whole(found)


async def test_a_session_that_moves_goes_on_and_says_so(chromium: Browser, site: Shop) -> None:
    async with running(replicas=2) as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        await on.begin(page)
        going = asyncio.create_task(on.go(page, pauseMs=30))
        await eventually(lambda: any(stage.num_sessions for stage in service.stages))
        (old,) = (stage for stage in service.stages if stage.num_sessions)
        await old.drain(20.0)
        found = await going
        whole(found)
        moved = [each for each in found["events"] if each["name"] == "moved"]
        assert [each["continuity"] for each in moved] == ["exact"]
        await page.close()


async def test_a_service_without_room_refuses_and_says_when_to_ask_again(
    chromium: Browser, site: Shop
) -> None:
    async with running(slots=1) as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        await on.begin(page)
        refused = (await on.session())["error"]
        assert (refused["name"], refused["reason"]) == ("RearviewError", "NO_CAPACITY")
        assert refused["retryAfterS"] > 0
        whole(await on.go(page))
        await page.close()


WAITS = """({ url, token }) => {
    const settings = { prompt: "a" };
    const onqueued = () => (window.isQueued = true);
    const begun = window.connect(null, { url, token, settings, openTimeoutS: 1, onqueued });
    window.waits = begun.catch(({ reason }) => reason);
}"""


async def test_a_studio_that_goes_before_it_has_opened_is_not_waited_for(
    chromium: Browser, site: Shop
) -> None:
    async with running(slots=1) as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        await on.begin(page)
        await page.evaluate(WAITS, {"url": on.wire.url, "token": await site.mint()})
        await page.wait_for_function("window.isQueued")
        on.wire.target = 1
        on.wire.cut()
        async with asyncio.timeout(20):
            assert await page.evaluate("window.waits") == "UNREACHABLE"
        await page.close()


async def test_quota_and_tokens_that_are_wrong_or_over_are_told_apart(
    chromium: Browser, site: Shop, tmp_path: Path
) -> None:
    tenant = {"name": "alpha", "token_sha256": sha256("alpha"), "max_streams": 1}
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump([tenant]))
    with quickly_stopped():
        async with (
            in_process_service(null_config(tenants_file=str(path))) as service,
            stage(chromium, site, service.address, "alpha") as on,
        ):
            page = await on.page()
            token = await site.mint()
            await on.begin(page, token=token)
            assert (await on.session())["error"]["reason"] == "TENANT_STREAMS_EXHAUSTED"
            assert (await on.session(token="alpha"))["error"]["reason"] == "TOKEN_INVALID"
            await site.mint(token=token, minutes=0)
            found = await on.go(page)
            assert found["error"]["reason"] == "TOKEN_REVOKED"
            # A change that was on its way then is refused for the same reason, and may hear it later.
            refused = {"name": "refused", "reason": "TOKEN_REVOKED"}
            ended = {**refused, "name": "ended", "message": "the token was taken back"}
            assert [each for each in found["events"] if each != refused] == [ended]
            assert (await on.session(token=token))["error"]["reason"] == "TOKEN_REVOKED"
            await page.close()
            await assert_nothing_held(service)


async def test_a_control_that_makes_no_sense_is_refused_and_the_session_goes_on(
    chromium: Browser, site: Shop
) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        await on.begin(page)
        refused = """change => window.begun.session.change(change).catch(
            ({ name, reason, message }) => `${reason ?? name}: ${message}`)"""
        said = await page.evaluate(refused, {"seed": "one"})
        assert said.startswith("MESSAGE_INVALID: control.settings.seed"), said
        assert (await page.evaluate(refused, {"strength": 7})).startswith("SETTING_OUT_OF_RANGE")
        assert await page.evaluate(refused, {"guide": "self"}) == "TypeError: there is no setting guide"
        said = await page.evaluate(refused, {"prompt": "a" * MAX_TEXT_BYTES})
        assert said.startswith("MESSAGE_TOO_LARGE: a message of more than 65536 characters"), said
        sent = "size => window.begun.session.send(new Uint8Array(size)).catch(({ reason }) => reason)"
        assert await page.evaluate(sent, 3 * MAX_FRAME_BYTES) == "MESSAGE_TOO_LARGE"
        found = await on.go(page)
        assert found["frames"] == WHOLE
        assert ("error" in found, found["connections"]) == (False, 1)
        await page.close()


async def test_a_connection_on_which_nothing_comes_is_lost_though_nobody_ends_it(
    chromium: Browser, site: Shop
) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        await page.clock.install()
        await on.begin(page)
        going = asyncio.create_task(on.go(page, pauseMs=200))
        await page.wait_for_function("window.begun.told.stats > 0")
        on.wire.hold()
        await page.wait_for_function("window.begun.session.unansweredFrames > 0")
        await page.clock.run_for(15_000)
        async with asyncio.timeout(30):
            whole(await going, connections=2)
        await page.close()
        await assert_nothing_held(service)


TAKES_SIZES = """async ({ url, token }) => {
    const said = [];
    const { send } = WebSocket.prototype;
    WebSocket.prototype.send = function (data) {
        said.push(data);
        return send.call(this, data);
    };
    const drawn = Object.assign(document.createElement("canvas"), { width: 90, height: 60 });
    const brush = drawn.getContext("2d");
    const tick = setInterval(() => {
        brush.fillStyle = `rgb(200, 40, ${(performance.now() / 10) % 40})`;
        brush.fillRect(0, 0, 90, 60);
    }, 10);
    const options = { url, token, width: 64, height: 64, frameRate: 60, settings: { prompt: "a" } };
    const session = await window.connect(drawn.captureStream(), options);
    const after = (frame) => new Promise((resolve) =>
        session.addEventListener("frame", ({ detail }) => detail.frame > frame && resolve()));
    await after(3);
    for (const width of [96, 72]) await after((await session.change({ width })).frame + 3);
    await session.change({ width: 80, strength: 7 }).catch(() => {});
    await after(session.capture.frame);
    clearInterval(tick);
    await session.finish();
    const runs = [new Set()];
    for (const data of said) {
        if (typeof data === "string" && JSON.parse(data).type === "control") runs.push(new Set());
        if (typeof data === "string") continue;
        runs.at(-1).add((await createImageBitmap(new Blob([data.slice(16)]))).width);
    }
    return runs.map((widths) => [...widths]);
}"""


async def test_frames_of_a_source_have_the_size_of_the_change_before_them(
    chromium: Browser, site: Shop
) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        on.wire.delay_s = 0.05
        page = await on.page()
        told = {"url": on.wire.url, "token": await site.mint()}
        assert await page.evaluate(TAKES_SIZES, told) == [[64], [96], [72], [72]]
        await page.close()


GIVES_ALL_AT_ONCE = """async ({ url, token }) => {
    const options = { url, token, dropPolicy: "lossless", settings: { prompt: "a" } };
    const session = await window.connect(null, options);
    const given = (text) => session.send(new Blob([text]));
    const [first, second] = [given("0"), given("1")];
    const change = session.change({ seed: 3 });
    const numbers = [await first, await second, (await change).frame, await given("2")];
    await session.finish();
    return numbers;
}"""


async def test_a_change_waits_for_the_frames_that_were_given_before_it(chromium: Browser, site: Shop) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        told = {"url": on.wire.url, "token": await site.mint()}
        assert await page.evaluate(GIVES_ALL_AT_ONCE, told) == [0, 1, 2, 2]
        await page.close()


async def test_a_change_after_a_long_silence_is_answered_before_another_frame(
    chromium: Browser, site: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running() as service, stage(chromium, site, service.address) as on:
        page = await on.page()
        await on.begin(page)
        monkeypatch.setattr("rearview.studio.tile.REST_AFTER_S", 0.0)
        await assert_nothing_held(service)
        monkeypatch.setattr("rearview.studio.tile.REST_AFTER_S", 60.0)
        changed = "window.begun.session.change({ width: 72 }).then(({ settings }) => settings.width)"
        async with asyncio.timeout(20):
            assert await page.evaluate(changed) == 72
        assert (await on.go(page))["frames"] == WHOLE
        await page.close()

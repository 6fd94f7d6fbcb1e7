"""What the web client does with frames and pictures, in Chromium and without a studio."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright
from support.require import skip_or_fail

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

HERE = "http://localhost/"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        skip_or_fail("chromium is missing (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, root: Path) -> Iterator[Page]:
    """A page that may import the client's modules, with `painted`: a stream of a canvas that changes."""
    page = chromium.new_page()

    def served(route: Route) -> None:
        name = route.request.url.removeprefix(HERE)
        if name:
            route.fulfill(path=root / "clients/web/src" / name, content_type="text/javascript")
        else:
            route.fulfill(body="<!doctype html><title>a page</title>", content_type="text/html")

    page.route(f"{HERE}**", served)
    page.goto(HERE)
    page.evaluate(PAINTED)
    yield page
    page.close()


PAINTED = """() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
    const brush = canvas.getContext("2d");
    setInterval(() => {
        brush.fillStyle = `hsl(${(performance.now() / 10) % 360} 80% 50%)`;
        brush.fillRect(0, 0, 64, 64);
    }, 20);
    window.painted = Object.assign(canvas.captureStream(), { canvas });
    window.until = async (isSo) => {
        while (!isSo()) await new Promise(requestAnimationFrame);
    };
}"""

COPIES = """async () => {
    const { Session } = await import("/session.js");
    const { feed } = await import("/source.js");
    const { clone } = VideoFrame.prototype;
    let copies = 0;
    VideoFrame.prototype.clone = function () {
        copies += 1;
        return clone.call(this);
    };
    const { capture } = new Session(painted, {});
    const stop = feed(painted, 30, capture, () => {});
    await until(() => capture.seen > 5);
    stop();
    return copies;
}"""


def test_no_frame_of_a_camera_is_held_twice(page: Page) -> None:
    """A camera has few buffers: a copy of a frame keeps one of them."""
    assert page.evaluate(COPIES) == 0


DECODES = """async () => {
    const { Decoding } = await import("/decoding.js");
    const canvas = new OffscreenCanvas(8, 8);
    canvas.getContext("2d");
    const jpeg = new Uint8Array(await (await canvas.convertToBlob({ type: "image/jpeg" })).arrayBuffer());
    const told = { decoded: [], taken: [] };
    const decoding = new Decoding({
        decoded: (bitmap, { frame }) => told.decoded.push([frame, bitmap.width]),
        taken: (page) => told.taken.push(page),
    });
    for (const frame of [0, 1, 2]) decoding.add({ jpeg, frame }, frame);
    await until(() => told.taken.length === 3);
    decoding.add({ jpeg: new Uint8Array([1, 2, 3]), frame: 3 }, 3);
    await until(() => told.taken.length === 4);
    decoding.add({ jpeg, frame: 4 }, 4);
    await until(() => told.taken.length === 5);
    return told;
}"""


def test_each_picture_is_taken_once_though_it_is_passed_over_or_none(page: Page) -> None:
    told = page.evaluate(DECODES)
    assert told["decoded"] == [[0, 8], [2, 8], [4, 8]]
    assert told["taken"] == [1, 0, 2, 3, 4]


REFUSES = """async (kind) => {
    const { connect } = await import("/index.js");
    const source = { sound: new MediaStream(), name: "camera", image: document.createElement("img") }[kind];
    return connect(source, { url: "http://localhost:9", openTimeoutS: 2 }).catch((error) => error.name);
}"""


@pytest.mark.parametrize("kind", ["sound", "name", "image"])
def test_what_gives_no_frames_is_refused_at_once(page: Page, kind: str) -> None:
    assert page.evaluate(REFUSES, kind) == "TypeError"


FORGETS = """async () => {
    const { Session } = await import("/session.js");
    const settings = { prompts: [{ prompt: "a", weight: 1 }], seed: undefined };
    const session = new Session(painted, { width: undefined, frameRate: 10, settings });
    settings.prompts[0].prompt = "b";
    return [Object.keys(session.options), session.asked];
}"""


def test_what_is_asked_for_is_kept_as_it_was_said(page: Page) -> None:
    assert page.evaluate(FORGETS) == [["frameRate"], {"prompts": [{"prompt": "a", "weight": 1}]}]


WATCHED = """async () => {
    const { Session } = await import("/session.js");
    const watched = (value) => new Proxy(value, {
        get: (from, name) => (typeof from[name] === "object" ? watched(from[name]) : from[name]),
    });
    const prompts = watched([{ prompt: "a", weight: 1 }]);
    const options = { settings: watched({ prompts }), featureBank: watched({ interval: 2 }) };
    const session = new Session(null, options);
    session.change({ prompts }).catch(() => {});
    await Promise.resolve();
    return [session.asked, session.options, [...session.changes.values()].map(({ settings }) => settings)];
}"""


def test_settings_may_be_what_a_framework_watches(page: Page) -> None:
    prompts = {"prompts": [{"prompt": "a", "weight": 1}]}
    assert page.evaluate(WATCHED) == [prompts, {"featureBank": {"interval": 2}}, [prompts]]


SENDS_AFTER_A_CHANGE = """async (rejected) => {
    const { Session } = await import("/session.js");
    const session = new Session(null, {});
    const said = [];
    session.conversation.say = (message) => said.push(message);
    session.outgoing.isLive = true;
    session.capture.setSize({ width: 64, height: 64 });
    session.change({ width: 96, height: 80 }).catch(() => {});
    session.send(painted.canvas);
    await until(() => said.length > 0);
    const early = session.outgoing.items.length;
    const settings = rejected ? null : { width: 96, height: 80 };
    session.said({ type: "applied", tile: 0, id: said[0].id, frame: 0, settings, rejected }, []);
    await until(() => session.outgoing.items.length > 0);
    const [{ message }] = session.outgoing.items;
    const { width, height } = await createImageBitmap(new Blob([message.slice(16)]));
    return { early, width, height };
}"""


@pytest.mark.parametrize(
    ("rejected", "size"), [(None, (96, 80)), ({"reason": "RESOLUTION_UNSUPPORTED", "message": ""}, (64, 64))]
)
def test_what_is_given_after_a_change_of_the_size_is_cut_to_what_comes_of_it(
    page: Page, rejected: object, size: tuple[int, int]
) -> None:
    width, height = size
    found = page.evaluate(SENDS_AFTER_A_CHANGE, rejected)
    assert found == {"early": 0, "width": width, "height": height}


STANDS_STILL = """async ({ isSent, rejected, stops }) => {
    const { Session } = await import("/session.js");
    const session = new Session(painted, {});
    const { capture } = session;
    const said = [];
    const sent = [];
    session.conversation.say = (message) => said.push(message);
    session.outgoing.isLive = true;
    capture.outlet = { maySend: true, send: (frame, ms, jpeg) => sent.push(jpeg), say() {} };
    capture.setSize({ width: 64, height: 64 });
    session.feedIfSized();
    const image = new VideoFrame(painted.canvas, { timestamp: 0 });
    const sending = capture.offer(image, 0);
    if (isSent) await sending;
    session.change({ width: 96, height: 80 }).catch(() => {});
    await sending;
    await until(() => said.length > 0);
    if (!stops) {
        const settings = rejected ? null : { width: 96, height: 80 };
        session.said({ type: "applied", tile: 0, id: said[0].id, frame: 0, settings, rejected }, []);
        await until(() => sent.length > (isSent ? 1 : 0) && !capture.isBusy);
    }
    session.close();
    const sizes = await Promise.all(sent.map((jpeg) => createImageBitmap(new Blob([jpeg]))));
    return { widths: sizes.map(({ width }) => width), isHeld: image.format !== null };
}"""


@pytest.mark.parametrize(
    ("how", "widths"),
    [
        ({"isSent": True}, [64, 96]),
        ({"isSent": False}, [96]),
        ({"isSent": False, "rejected": {"reason": "RESOLUTION_UNSUPPORTED", "message": ""}}, [64]),
        ({"isSent": False, "stops": True}, []),
    ],
    ids=["sent before", "being encoded", "being encoded, refused", "being encoded, left"],
)
def test_a_frame_that_no_other_follows_has_the_size_of_a_change_after_it(
    page: Page, how: dict[str, object], widths: list[int]
) -> None:
    """A window in which nothing moves gives no other."""
    assert page.evaluate(STANDS_STILL, how) == {"widths": widths, "isHeld": False}


LEFT_WHILE_ENCODING = """async () => {
    const { Capture } = await import("/capture.js");
    const capture = new Capture({ maySend: true, send: () => true, say() {} });
    Object.assign(capture, { isWanted: true });
    capture.setSize({ width: 64, height: 64 });
    const image = new VideoFrame(painted.canvas, { timestamp: 0 });
    const sending = capture.offer(image, 0);
    capture.stop();
    await sending;
    return image.format;
}"""


def test_a_frame_that_is_encoded_when_its_source_is_left_goes_with_it(page: Page) -> None:
    assert page.evaluate(LEFT_WHILE_ENCODING) is None


GOES_ON = """async (notices) => {
    const { Session } = await import("/session.js");
    const told = [];
    const onreconnected = ({ continuity }) => told.push(continuity);
    const session = new Session(null, { onreconnected });
    for (const given of [notices, []]) {
        session.said({ type: "state", state: "reconnecting" }, []);
        for (const continuity of given) session.said({ type: "notice", kind: "resumed", continuity }, []);
        session.said({ type: "state", state: "live" }, []);
    }
    session.close();
    return told;
}"""


@pytest.mark.parametrize(
    ("notices", "continuity"),
    [
        ([], "exact"),
        (["exact"], "exact"),
        (["approximate"], "approximate"),
        (["reset", "exact"], "reset"),
        (["reset", None], "reset"),
    ],
)
def test_who_is_connected_again_is_told_how_much_of_the_past_is_left(
    page: Page, notices: list[str | None], continuity: str
) -> None:
    assert page.evaluate(GOES_ON, notices) == [continuity, "exact"]


WAITS = """async () => {
    const { connect } = await import("/index.js");
    let attempts = 0;
    const onreconnecting = () => (attempts += 1);
    const begun = connect(null, { url: "http://localhost:9", openTimeoutS: Infinity, onreconnecting });
    const ended = begun.then(() => "open", ({ reason }) => reason);
    return Promise.race([ended, until(() => attempts > 1).then(() => "waits")]);
}"""


def test_a_wait_without_end_does_not_end_at_once(page: Page) -> None:
    assert page.evaluate(WAITS) == "waits"


STOPS = """async () => {
    const { Session } = await import("/session.js");
    const { feed } = await import("/source.js");
    delete globalThis.MediaStreamTrackProcessor;
    const made = [];
    const { createElement } = document;
    document.createElement = (name) => {
        made.push(createElement.call(document, name));
        return made.at(-1);
    };
    const { capture } = new Session(painted, { canvas: document.createElement("canvas") });
    const stop = feed(painted, 60, capture, () => {});
    await until(() => capture.seen > 2);
    let halt = () => {};
    const making = new Promise((resolve) => {
        const { createImageBitmap } = globalThis;
        globalThis.createImageBitmap = async (image) => {
            const bitmap = await createImageBitmap(image);
            resolve(bitmap);
            await new Promise((resolve) => (halt = resolve));
            return bitmap;
        };
    });
    const late = await making;
    stop();
    const { seen } = capture;
    halt();
    await until(() => late.width === 0 || capture.seen > seen);
    const [video] = made.filter((one) => one instanceof HTMLVideoElement);
    const plays = video.srcObject !== null;
    return { seen: capture.seen - seen, width: late.width, waits: capture.newest !== null, plays };
}"""


def test_a_source_that_is_stopped_leaves_nothing_behind(page: Page) -> None:
    """Where frames have to be asked for, as in Firefox: one that is being made goes, and the video."""
    assert page.evaluate(STOPS) == {"seen": 0, "width": 0, "waits": False, "plays": False}

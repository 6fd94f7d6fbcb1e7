"""A gateway without a service: it speaks the studio's protocol to the page, and paints by arithmetic.

Each prompt has a tint; a picture is the frame in that tint, so a test sees in the pixels which settings
painted it. What a service rarely does on demand (a queue, a refusal, a pause, a cut connection) is done
when a test asks.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web
from PIL import Image
from rearview.errors import RearviewError
from rearview.studio.dials import dials_said
from rearview.studio.folders import CLIENT, PAGE
from rearview.studio.protocol import picture_out, read_frame, read_message
from rearview.studio.server import HEADERS

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "services/rearview/samples/pan.mp4"
CARD = ROOT / "services/rearview/checkpoints/pocket/rearview.json"
CREDIT = 4
READY = {"state": "ready", "message": ""}
SETTINGS: dict[str, Any] = {
    "prompt": "",
    "prompts": [],
    "strength": 0.4,
    "steps": 2,
    "seed": 0,
    "noise_rule": "fixed",
    "guidance": "none",
    "guidance_scale": 1.0,
    "delta": 1.0,
    "negative_prompt": "",
    "blend_frames": 0,
    "adapters": "",
    "jpeg_quality": 85,
}

SAID_OF_IT = {"settings", "width", "height", "method"}
"""Of what was asked, what `opened` says itself."""


def tint_of(prompt: str) -> tuple[int, int, int]:
    """The colour of a prompt: two are far apart unless their hashes are near."""
    red, green, blue = hashlib.sha256(prompt.encode()).digest()[:3]
    return red, green, blue


def paint(jpeg: bytes, prompt: str) -> bytes:
    """The frame, a third of its contrast, in the prompt's tint."""
    picture = np.asarray(Image.open(BytesIO(jpeg)).convert("RGB"), np.float32)
    painted = picture * 0.45 + np.array(tint_of(prompt), np.float32) * 0.55
    out = BytesIO()
    Image.fromarray(painted.astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


def reason_of_refusal(message: dict[str, Any]) -> str | None:
    """Why the gateway's own reader refuses a message; None: it does not."""
    try:
        read_message(json.dumps(message))
    except RearviewError as error:
        return error.reason.name
    return None


@dataclass
class Tile:
    """One session that is none."""

    opened: dict[str, Any]
    settings: dict[str, Any]
    answered: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    since_s: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its frames."""
        return self.opened["width"], self.opened["height"]


@dataclass
class Wall:
    """What outlives a socket."""

    key: str = field(default_factory=lambda: secrets.token_hex(16))
    viewer: str = field(default_factory=lambda: secrets.token_hex(8))
    tiles: dict[int, Tile] = field(default_factory=dict)
    program: dict[str, Any] = field(
        default_factory=lambda: {"a": None, "b": None, "mix": 0.0, "fade_ms": 0, "start": None}
    )
    socket: web.WebSocketResponse | None = None
    viewers: set[web.WebSocketResponse] = field(default_factory=set)
    next_frame: int = 0
    frames: int = 0
    received: int = 0


def file_of(path: Path) -> Callable[[web.Request], Awaitable[web.FileResponse]]:
    async def answer(_: web.Request) -> web.FileResponse:
        return web.FileResponse(path)

    return answer


class FakeGateway:
    """The server. What tests turn: `refuse`, `full`, `queue`, `paused_until_s`, `service`."""

    def __init__(self) -> None:
        self.walls: dict[str, Wall] = {}
        self.refuse: str | None = None
        self.full: str | None = None
        """Why nobody gets a wall, or may look on."""
        self.keeps_size: int | None = None
        """The tile that is refused another size."""
        self.queue = False
        self.service = READY
        self.local = True
        self.others = 0
        self.paused_until_s = 0.0
        self.pause_s = 2.0
        self.delay_s = 0.0
        self.asked: list[dict[str, Any]] = []
        self.painted: list[tuple[int, int, str]] = []
        """Tile, frame and prompt of every picture."""
        self.misfits: list[tuple[int, int]] = []
        """Tile and frame, where the frame was not of the tile's size."""
        self.app = web.Application()
        self.app.add_routes(
            [
                web.get("/", file_of(PAGE / "index.html")),
                web.get("/view/{key}", self.view),
                web.get("/view/{key}/feed", self.feed),
                web.get("/api/info", self.info),
                web.get("/api/qr.svg", self.code),
                web.get("/sample.mp4", file_of(SAMPLE)),
                web.get("/wall", self.wall),
                web.static("/static/client", CLIENT),
                web.static("/static", PAGE),
            ]
        )
        self.app.on_response_prepare.append(self.seal)

    async def seal(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers["Content-Security-Policy"] = HEADERS["Content-Security-Policy"]
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"

    async def info(self, _: web.Request) -> web.Response:
        styles = json.loads(CARD.read_text(encoding="utf-8"))["styles"]
        model = {
            "name": "pocket",
            "title": "Pocket",
            "width": 256,
            "height": 256,
            "multiple": 8,
            "motion_multiple": 32,
            "max_steps": 4,
            "steps": 2,
            "strength": 0.4,
            "default_method": "streamv2v",
            "methods": ["per_frame", "streamv2v", "live2diff"],
            "takes_any_prompt": False,
            "takes_reference": True,
            "styles": [{"name": name, **style} for name, style in styles.items()],
            "adapters": ["ink"],
            "dials": dials_said(4),
        }
        turbo = {
            "id": "sd-turbo",
            "title": "SD-Turbo",
            "licence": "Stability AI Community License",
            "bytes": 2_580_000_000,
            "state": "absent",
            "note": "Follows any prompt. One step; wants a GPU for live rates.",
        }
        about = {
            "version": "0.1.0",
            "model": model if self.service == READY else None,
            "models": [{"id": "pocket", "title": "pocket", "state": "ready"}, turbo],
            "service": self.service,
            "needs_token": False,
            "local": self.local,
            "secure": False,
            "osc": None,
            "sample": str(SAMPLE) if self.local else None,
            "limits": {"tiles": 9, "frame_bytes": 1 << 20},
        }
        return web.json_response(about)

    async def code(self, request: web.Request) -> web.Response:
        shape = '<path d="M0 0h4v4H0zM6 6h4v4H6z"/>'
        square = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">{shape}</svg>'
        return web.Response(text=square, content_type="image/svg+xml")

    async def view(self, request: web.Request) -> web.StreamResponse:
        if not any(one.viewer == request.match_info["key"] for one in self.walls.values()):
            raise web.HTTPNotFound
        return web.FileResponse(PAGE / "view.html")

    async def feed(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        wall = next((one for one in self.walls.values() if one.viewer == request.match_info["key"]), None)
        if wall is None:
            await socket.close(code=4404)
            return socket
        await socket.receive()
        if self.full:
            return await self.turn_away(socket)
        await socket.send_json({"type": "program", **wall.program})
        wall.viewers.add(socket)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                break
        wall.viewers.discard(socket)
        await socket.close(code=4403)
        return socket

    async def turn_away(self, socket: web.WebSocketResponse) -> web.WebSocketResponse:
        await socket.send_json({"type": "error", "reason": "NO_CAPACITY", "message": self.full})
        await socket.close(code=1008)
        return socket

    async def wall(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=2 << 20)
        await socket.prepare(request)
        hello = json.loads((await socket.receive()).data)
        if self.full:
            return await self.turn_away(socket)
        wall = self.walls.get(hello.get("wall") or "")
        resumed = wall is not None and wall.socket is None
        if wall is None or wall.socket is not None:
            wall = Wall()
            self.walls[wall.key] = wall
        wall.socket, wall.frames, wall.received, wall.next_frame = socket, 0, 0, 0
        tiles = [{**tile.opened, "settings": tile.settings, "frame": 0} for tile in wall.tiles.values()]
        await socket.send_json(
            {
                "type": "welcome",
                "wall": wall.key,
                "viewer": wall.viewer,
                "resumed": resumed,
                "credit": CREDIT,
                "tiles": tiles,
                "program": {"type": "program", **wall.program},
            }
        )
        await self.lanes(wall)
        beat = asyncio.create_task(self.beat(wall, socket))
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    await self.frame(wall, socket, message.data)
                elif message.type is WSMsgType.TEXT:
                    await self.said(wall, socket, json.loads(message.data))
        except ConnectionError:
            pass
        finally:
            beat.cancel()
            wall.socket = None
        return socket

    async def beat(self, wall: Wall, socket: web.WebSocketResponse) -> None:
        while not socket.closed:
            await asyncio.sleep(0.5)
            for index, tile in wall.tiles.items():
                fps = tile.answered / max(0.1, time.monotonic() - tile.since_s)
                spans = [
                    {"name": "encode", "queue_ms": 1.2, "work_ms": 4.1},
                    {"name": "denoise-0", "queue_ms": 2.0, "work_ms": 11.5},
                    {"name": "decode", "queue_ms": 0.4, "work_ms": 5.3},
                ]
                await socket.send_json(
                    {
                        "type": "stats",
                        "tile": index,
                        "fps": fps,
                        "p50_ms": 25,
                        "p95_ms": 40,
                        "spans": spans,
                        "drops": tile.drops,
                    }
                )

    async def lanes(self, wall: Wall, down: str = "") -> None:
        if wall.socket is None or not self.local:
            return
        spans = []
        for name in ("encode", "denoise", "decode"):
            first = {
                "state": "down" if name == down else "up",
                "sessions": len(wall.tiles) + self.others,
                "tiles": [*wall.tiles],
            }
            spare = {"id": f"{name}#1", "state": "up", "sessions": 0, "tiles": []}
            spans.append({"name": name, "replicas": [{"id": f"{name}#0", **first}, spare]})
        await wall.socket.send_json({"type": "lanes", "spans": spans})

    async def said(self, wall: Wall, socket: web.WebSocketResponse, message: dict[str, Any]) -> None:
        self.asked.append(message)
        kind = message["type"]
        if kind == "open":
            await self.open(wall, socket, message)
        elif kind == "control":
            tile = wall.tiles[message["tile"]]
            change = message["settings"]
            is_refused = message["tile"] == self.keeps_size and "width" in change
            change = {} if is_refused else change
            tile.settings = {**tile.settings, **change}
            if "prompt" in change:
                tile.settings["prompts"] = []
            tile.opened |= {name: change[name] for name in ("width", "height") if name in change}
            answer = {
                "type": "applied",
                "tile": message["tile"],
                "id": message["id"],
                "frame": wall.next_frame,
                "settings": {**tile.settings, **{name: tile.opened[name] for name in ("width", "height")}},
                "rejected": {"reason": "TENANT_RATE_EXHAUSTED", "message": ""} if is_refused else None,
                "advice": "",
                "unknown_words": [],
            }
            await socket.send_json(answer)
        elif kind == "close":
            wall.tiles.pop(message["tile"], None)
        elif kind == "received":
            wall.received = message["answers"]
        elif kind == "program":
            start = {name: wall.program[name] for name in ("a", "b", "mix")} if message["fade_ms"] else None
            wall.program = {**{name: message[name] for name in ("a", "b", "mix", "fade_ms")}, "start": start}
            for each in wall.viewers:
                await each.send_json({"type": "program", **wall.program})
        elif kind == "kill":
            self.paused_until_s = time.monotonic() + self.pause_s
            await self.lanes(wall, down=message["span"])
        elif kind == "model":
            total = 2_580_000_000
            if message["action"] == "use" and self.refuse:
                await socket.send_json({"type": "error", "reason": self.refuse, "message": "not now"})
                return
            state = {"fetch": "fetching", "cancel": "absent", "use": "in_use"}[message["action"]]
            done = total // 3 if state == "fetching" else 0
            about = {"id": message["id"], "state": state, "bytes_done": done, "bytes_total": total}
            await socket.send_json({"type": "model", **about, "licence": "Stability AI Community License"})

    async def open(self, wall: Wall, socket: web.WebSocketResponse, message: dict[str, Any]) -> None:
        index, options = message["tile"], message["options"]
        state = {"type": "state", "tile": index, "reason": None, "message": "", "retry_ms": None}
        refusal = self.refuse or reason_of_refusal(message)
        if refusal:
            await socket.send_json({**state, "state": "refused", "reason": refusal})
            return
        if self.queue:
            await socket.send_json({**state, "state": "queued", "reason": "NO_CAPACITY", "retry_ms": 3000})
            return
        opened = {
            "type": "opened",
            "tile": index,
            "session_id": secrets.token_hex(16),
            "width": options["width"],
            "height": options["height"],
            "settings": {**SETTINGS, **options["settings"]},
            "options": {
                name: options[name] for name in options.keys() - {"settings", "width", "height", "method"}
            },
            "method": options["method"],
            "advice": "",
            "unknown_words": [],
            "warm_up_frames": 1,
            "continuity": "exact",
            "frame": wall.next_frame,
            "model": "pocket",
        }
        wall.tiles[index] = Tile(opened, opened["settings"])
        if wall.program["a"] is None:
            wall.program["a"] = index
        await socket.send_json(opened)
        await socket.send_json({**state, "state": "live"})
        await self.lanes(wall)

    @property
    def sizes_asked(self) -> list[tuple[int, int]]:
        """By openings, and by controls of sessions that run."""
        named = [one.get("options") or one.get("settings") or {} for one in self.asked]
        return [(said["width"], said["height"]) for said in named if "width" in said]

    async def frame(self, wall: Wall, socket: web.WebSocketResponse, data: bytes) -> None:
        taken = read_frame(data)
        frame = taken.frame
        assert frame >= wall.next_frame, "frame indices rise"
        wall.next_frame = frame + 1
        wall.frames += 1
        started_s = time.monotonic()
        await asyncio.sleep(max(self.delay_s, self.paused_until_s - started_s))
        size = Image.open(BytesIO(taken.picture)).size
        for index, tile, settings in [(index, tile, tile.settings) for index, tile in wall.tiles.items()]:
            prompt = settings["prompt"] or repr(settings["prompts"])
            if size != tile.size:
                self.misfits.append((index, frame))
            jpeg = await asyncio.to_thread(paint, taken.picture, prompt)
            self.painted.append((index, frame, prompt))
            took_ms = 1000 * (time.monotonic() - started_s)
            picture = picture_out(index, taken, took_ms, took_ms * 0.9, jpeg)
            await socket.send_bytes(picture)
            if index in wall.tiles:
                wall.tiles[index].answered += 1
            if index in (wall.program["a"], wall.program["b"]):
                for viewer in wall.viewers:
                    await viewer.send_bytes(picture)
        await socket.send_json({"type": "credit", "frames": wall.frames + CREDIT})

    async def end(self, wall: str) -> None:
        """End a wall, as a minute after its page."""
        for viewer in list(self.walls.pop(wall).viewers):
            await viewer.close()

    async def cut_all(self) -> None:
        """End every connection; the walls stay."""
        for wall in self.walls.values():
            for socket in (*wall.viewers, *([] if wall.socket is None else [wall.socket])):
                await socket.close(code=1012)


@contextmanager
def serving(gateway: FakeGateway, port: int = 0) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """Its address, and the loop that it runs in, of a thread of its own."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(gateway.app, shutdown_timeout=0.1)

    async def end() -> None:
        await gateway.cut_all()
        await runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def begin() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        bound = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
        yield f"http://127.0.0.1:{bound}", loop
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8100)
    with serving(FakeGateway(), parser.parse_args().port) as (url, _):
        print(url, flush=True)
        threading.Event().wait()

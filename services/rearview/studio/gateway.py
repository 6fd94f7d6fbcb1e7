"""All walls of one studio, and what they share: the service behind them, other models, and time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from importlib.metadata import version
from typing import Any

from rearview.client import Model
from rearview.errors import InvalidRequest, RearviewError, Reason, Refused
from rearview.studio.backing import Backing, Start
from rearview.studio.lanes import LocalLanes, Span
from rearview.studio.models import Models, NoModels, Source
from rearview.studio.protocol import MAX_FRAME_BYTES, MAX_TILES, Hello, ModelAsked
from rearview.studio.rights import Rights
from rearview.studio.said import Said, ServiceSaid, Trouble
from rearview.studio.secrecy import same_secret
from rearview.studio.service import Endpoint, Service, described
from rearview.studio.sessions import Sessions
from rearview.studio.wall import Wall

__all__ = ["Gateway"]

logger = logging.getLogger(__name__)

KEEP_S = 60.0
"""How long a wall outlives its socket."""
MAX_WALLS = 64
TICK_S = 0.5
LANES_S = 0.25
DESCRIBE_EVERY_S = 2.0
_REFUSALS = (Reason.TOKEN_INVALID, Reason.TOKEN_EXPIRED, Reason.TOKEN_REVOKED)


class Gateway:
    """For one event loop. `async with` starts and ends it."""

    def __init__(
        self,
        service: Start | Endpoint,
        *,
        models: Source | None = None,
        lanes: LocalLanes | None = None,
        keep_s: float = KEEP_S,
        on_service: Callable[[ServiceSaid], None] = lambda said: None,
    ) -> None:
        """`service`: one that was named, or how to start one. `lanes`: of a service of this machine alone.
        `on_service` hears what pages are told of the service.
        """
        self._backing = Backing(service, self._service_changed)
        self._is_own = not isinstance(service, Endpoint)
        self._models = Models(models or NoModels(), self._tell_all)
        self._lanes, self._keep_s, self._on_service = lanes, keep_s, on_service
        self._spans: Sequence[Span] = ()
        self._walls: dict[str, Wall] = {}
        """By viewer key."""
        self._model: Model | None = None
        self._needs_token = False
        self.osc: str | None = None
        """Where OSC is heard, as `127.0.0.1:9000`."""
        begin = partial(self._begin, rights=Rights.ONE_SESSION)
        self.sessions = Sessions(self._describe_as, begin, self._is_there, self.leave)
        """Of pages that come with a token of one session."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[Any]] = set()
        """Walls that are being closed: to an end, also when the gateway itself ends."""

    async def __aenter__(self) -> Gateway:
        for work in (self._tick(), self._describe(), self._watch_lanes()):
            self._keep(work)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for wall in list(self._walls.values()):
            self.leave(wall)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._models.stop()
        await self._backing.stop()

    def info(self, *, secure: bool, lan: str | None) -> dict[str, Any]:
        """What a page must know before it opens a wall."""
        said = self._backing.said
        return {
            "version": version("rearview"),
            "service": {"state": said.state, "message": said.message},
            "model": None if self._model is None else described(self._model),
            "models": [*self._own_model(), *self._models.listed()],
            "needs_token": self._needs_token,
            "local": self._lanes is not None,
            "secure": secure,
            "lan": lan,
            "osc": self.osc,
            "limits": {"tiles": MAX_TILES, "frame_bytes": MAX_FRAME_BYTES},
        }

    def _own_model(self) -> list[dict[str, object]]:
        """What it was started with, as one of the models: `use` leads back to it."""
        if self._model is None:
            return []
        name, note = self._model.name, "what the studio was started with"
        return [{"id": name, "title": name, "licence": "", "bytes": 0, "state": "ready", "note": note}]

    # -- walls

    def enter(self, hello: Hello) -> tuple[Wall, bool]:
        """The wall of a page that comes back, else a new one; and which of both. Raises Refused."""
        found = None
        for wall in self._walls.values():  # all of them: how long it takes says nothing of keys
            if same_secret(wall.key, hello.wall) and wall.rights.has_key:
                found = wall
        if (
            found is not None
            and (not found.page.is_there or found.page.is_again(hello))
            and same_secret(found.token, hello.token)
        ):
            return found, True
        return self._begin(hello.token, Rights.STUDIO), False

    def greet(self, wall: Wall) -> None:
        """Tell a page what it has missed."""
        wall.tell(self._backing.said)
        for said in self._models.said():
            wall.tell(said)
        if self._spans:
            wall.tell_lanes(self._spans)

    def leave(self, wall: Wall) -> None:
        """A wall's page is done with it, for good."""
        if self._walls.pop(wall.viewer_key, None) is not None:
            self._keep(wall.close(), self._leaving)

    def watched(self, viewer_key: str) -> Wall | None:
        """The wall that a viewer's link names."""
        found = None
        for key, wall in self._walls.items():
            if same_secret(key, viewer_key):
                found = wall
        return found

    @property
    def own_walls(self) -> Sequence[Wall]:
        """Those of the studio's pages and cameras; not of pages that have one session."""
        return [wall for wall in self._walls.values() if wall.rights is Rights.STUDIO]

    # -- what concerns more than one wall

    def tell_pages(self, said: Trouble) -> None:
        """Tell the studio's pages; one that is slow hears the newest word about the same alone."""
        for wall in self.own_walls:
            wall.tell(said, ("trouble", said.about))

    def ask_model(self, wall: Wall, asked: ModelAsked) -> None:
        """Look, fetch, cancel or use. Raises InvalidRequest for a model that nobody knows."""
        if asked.action == "look":
            self._models.look(asked.id)
        elif asked.action == "fetch":
            self._models.fetch(asked.id)
        elif asked.action == "cancel":
            self._models.cancel(asked.id)
        else:
            wall.use("" if self._model is not None and asked.id == self._model.name else asked.id)

    def kill(self, span: str, *, is_local: bool) -> None:
        """Kill a replica of a local service. Raises InvalidRequest where that is not for the page to do."""
        lanes = self._lanes
        if lanes is None or not is_local:
            raise InvalidRequest(Reason.METHOD_UNSUPPORTED, "only on the machine that runs the service")
        if span not in {one.name for one in self._spans}:
            raise InvalidRequest(Reason.SETTING_OUT_OF_RANGE, "there is no such span")
        self._keep(self._kill(lanes, span))

    # -- how

    def _begin(self, token: str | None, rights: Rights) -> Wall:
        if len(self._walls) >= MAX_WALLS and not self._evict():
            raise Refused(Reason.NO_CAPACITY, f"the studio has {MAX_WALLS} walls", retry_after_s=KEEP_S)
        wall = Wall(partial(self._connect, token), token, rights)
        self._walls[wall.viewer_key] = wall
        return wall

    def _is_there(self, wall: Wall) -> bool:
        return self._walls.get(wall.viewer_key) is wall

    async def _describe_as(self, token: str | None) -> Model:
        endpoint = await self._backing.endpoint()
        with self._backing.asked():
            async with endpoint.client(token) as client:
                return await client.describe_model()

    async def _kill(self, lanes: LocalLanes, span: str) -> None:
        with suppress(RearviewError):  # there is none to kill at this moment
            killed = await asyncio.to_thread(lanes.kill, span)
            logger.info("a page has killed %s", killed)

    async def _connect(self, token: str | None, model: str) -> Service:
        endpoint = await (self._models.use(model) if model else self._backing.endpoint())
        client = endpoint.client(token)
        service = Service(
            model, client, Model(), partial(self._models.leave, model) if model else lambda: None
        )
        await client.__aenter__()
        try:
            with nullcontext() if model else self._backing.asked():
                service.model = await client.describe_model()
        except BaseException:
            await service.close()
            raise
        return service

    def _evict(self) -> bool:
        left = [wall for wall in self._walls.values() if wall.page.left_s is not None]
        if not left:
            return False
        self.leave(min(left, key=lambda wall: wall.page.left_s or 0.0))
        return True

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = asyncio.get_running_loop().time()
            self.sessions.tick(now)
            for wall in list(self._walls.values()):
                if wall.page.left_s is not None and now - wall.page.left_s > self._keep_s:
                    self.leave(wall)
                else:
                    wall.tick(now)

    async def _describe(self) -> None:
        """Learn what is served, for pages without a wall: as soon as it is, and again after it was away."""
        while True:
            is_known = self._model is not None or self._needs_token
            if not is_known or self._backing.said.state == "unreachable":
                await self._ask()
            await asyncio.sleep(DESCRIBE_EVERY_S)

    async def _ask(self) -> None:
        with suppress(RearviewError):
            try:
                self._model = await self._describe_as(None)
            except RearviewError as error:
                self._needs_token = error.reason in _REFUSALS

    async def _watch_lanes(self) -> None:
        while self._lanes is not None:
            self._spans = await asyncio.to_thread(self._lanes.lanes)
            for wall in self._walls.values():
                wall.tell_lanes(self._spans)
            await asyncio.sleep(LANES_S)

    def _service_changed(self) -> None:
        self._on_service(self._backing.said)
        self._tell_all(self._backing.said)

    def _tell_all(self, said: Said) -> None:
        for wall in self._walls.values():
            wall.tell(said)

    def _keep(self, work: Any, among: set[asyncio.Task[Any]] | None = None) -> None:
        tasks = self._tasks if among is None else among
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._done)

    @staticmethod
    def _done(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("a task of the studio failed", exc_info=failure)

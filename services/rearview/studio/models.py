"""The models that a studio offers beside the one it was started with: fetched, loaded beside it, used.

    absent ─fetch─► fetching ─► ready ─use─► loading ─► in_use ─the last wall leaves─► ready
                       └─► absent (cancelled), failed          └─► failed ─fetch─► ready

What there is, and where it is fetched from, comes from a `Source`; how a service with it is started from its
`start`. What blocks runs in threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rearview.errors import ConfigError, InvalidRequest, RearviewError, Reason
from rearview.studio.backing import Backing
from rearview.studio.said import ModelSaid
from rearview.studio.service import Endpoint

__all__ = ["Models", "NoModels", "Offer", "Source"]


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that can be had."""

    id: str
    title: str
    licence: str
    bytes: int
    """Of all files; 0: not known."""
    note: str = ""


class Source(Protocol):
    """Where models come from. All but `offers` and `is_here` may block."""

    def offers(self) -> Sequence[Offer]:
        """What there is, here or elsewhere."""

    def is_here(self, model: str) -> bool:
        """Whether all of it was fetched, and checked."""

    def look(self, model: str) -> int:
        """Ask where it is fetched from how many bytes it has. Raises ConfigError or OSError."""

    def fetch(self, model: str, on_bytes: Callable[[int, int], None], cancel: threading.Event) -> None:
        """Fetch it; `on_bytes(done, total)` from this thread. Raises ConfigError or OSError; soon, once
        `cancel` is set, and what was fetched stays.
        """

    def start(self, model: str, on_progress: Callable[[str], None]) -> AbstractContextManager[Endpoint]:
        """A service of this machine with it, until the block ends."""


@dataclass
class _Entry:
    offer: Offer
    said: ModelSaid
    backing: Backing | None = None
    num_users: int = 0
    cancel: threading.Event = field(default_factory=threading.Event)
    is_looked_at: bool = False


class Models:
    """For one event loop."""

    def __init__(self, source: Source, on_change: Callable[[ModelSaid], None]) -> None:
        """`on_change` is told how a model is, each time that this changes."""
        self._source, self._on_change = source, on_change
        self._entries: dict[str, _Entry] = {}
        for offer in source.offers():
            state = "ready" if source.is_here(offer.id) else "absent"
            self._entries[offer.id] = _Entry(offer, self._said(offer, state))
        self._tasks: set[asyncio.Task[Any]] = set()

    def listed(self) -> list[dict[str, object]]:
        """For `/api/info`."""
        return [
            {
                "id": entry.offer.id,
                "title": entry.offer.title,
                "licence": entry.offer.licence,
                "bytes": entry.offer.bytes,
                "state": entry.said.state,
                "note": entry.offer.note,
            }
            for entry in self._entries.values()
        ]

    def said(self) -> list[ModelSaid]:
        """How each of them is."""
        return [entry.said for entry in self._entries.values()]

    def fetch(self, model: str) -> None:
        """Begin to fetch one that is absent, or go on with it. One that is here and did not start is ready
        again. Raises InvalidRequest for an unknown one.
        """
        entry = self._entry(model)
        if entry.said.state not in ("absent", "failed"):
            return
        if self._source.is_here(model):
            self._become(entry, "ready")
        else:
            entry.cancel = threading.Event()
            self._become(entry, "fetching")
            self._keep(self._fetch(entry))

    def look(self, model: str) -> None:
        """Find out how large an absent one is; it is told. Raises InvalidRequest for an unknown one."""
        entry = self._entry(model)
        if entry.said.state == "absent" and not (entry.said.bytes_total or entry.is_looked_at):
            entry.is_looked_at = True
            self._keep(self._look(entry))

    def cancel(self, model: str) -> None:
        """Stop fetching; what is there stays there."""
        self._entry(model).cancel.set()

    async def use(self, model: str) -> Endpoint:
        """The service with it, started if it is not; `leave` when done. Raises InvalidRequest, Refused."""
        entry = self._entry(model)
        if not self._source.is_here(model):
            raise InvalidRequest(Reason.MODEL_UNKNOWN, "the model is not here: fetch it first")
        entry.num_users += 1
        try:
            if entry.backing is None:
                self._become(entry, "loading")
                backing = entry.backing = Backing(
                    lambda progress: self._source.start(model, progress),
                    lambda: self._progress(entry, backing),
                )
            endpoint = await entry.backing.endpoint()
        except BaseException as error:
            text = error.message if isinstance(error, RearviewError) else ""
            self._leave(entry, "failed" if isinstance(error, RearviewError) else "ready", text)
            raise
        self._become(entry, "in_use")
        return endpoint

    def leave(self, model: str) -> None:
        """One user less; without any, its service is stopped."""
        self._leave(self._entry(model), "ready", "")

    async def stop(self) -> None:
        """Stop fetching, and every service."""
        for entry in self._entries.values():
            entry.cancel.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        backings = [entry.backing for entry in self._entries.values() if entry.backing is not None]
        await asyncio.gather(*(backing.stop() for backing in backings))

    def _leave(self, entry: _Entry, state: str, text: str) -> None:
        entry.num_users -= 1
        if entry.num_users == 0 and entry.backing is not None:
            self._keep(entry.backing.stop())
            entry.backing = None
            self._become(entry, state, text)

    async def _fetch(self, entry: _Entry) -> None:
        loop, cancel = asyncio.get_running_loop(), entry.cancel

        def on_bytes(done: int, total: int) -> None:
            loop.call_soon_threadsafe(lambda: self._become(entry, "fetching", done=done, total=total))

        try:
            await asyncio.to_thread(self._source.fetch, entry.offer.id, on_bytes, cancel)
        except (ConfigError, OSError, RearviewError) as error:
            if cancel.is_set():
                self._become(entry, "absent", "stopped: the next fetch goes on from here")
            else:
                self._become(entry, "failed", str(error)[:500])
        else:
            self._become(entry, "ready")

    async def _look(self, entry: _Entry) -> None:
        text, total = "", 0
        try:
            total = await asyncio.to_thread(self._source.look, entry.offer.id)
        except (ConfigError, OSError, RearviewError) as error:
            text = str(error)[:500]
        finally:
            entry.is_looked_at = False
        if entry.said.state == "absent":  # A fetch that has begun meanwhile says more.
            self._become(entry, "absent", text, total=total)

    def _progress(self, entry: _Entry, backing: Backing) -> None:
        if entry.backing is backing and backing.said.state == "starting":
            self._become(entry, "loading", backing.said.message)

    def _become(self, entry: _Entry, state: str, text: str = "", *, done: int = 0, total: int = 0) -> None:
        if state == "fetching" and entry.said.state != "fetching" and done:
            return  # a word of the thread's that came late
        entry.said = self._said(entry.offer, state, text, done, total or entry.said.bytes_total)
        self._on_change(entry.said)

    @staticmethod
    def _said(offer: Offer, state: str, text: str = "", done: int = 0, total: int = 0) -> ModelSaid:
        return ModelSaid(
            id=offer.id,
            state=state,
            bytes_done=done,
            bytes_total=total or offer.bytes,
            licence=offer.licence,
            message=text,
        )

    def _entry(self, model: str) -> _Entry:
        if model not in self._entries:
            raise InvalidRequest(Reason.MODEL_UNKNOWN, "there is no such model")
        return self._entries[model]

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class NoModels:
    """A source of none: the service is somebody else's."""

    def offers(self) -> Sequence[Offer]:
        """None."""
        return ()

    def is_here(self, model: str) -> bool:
        """Never."""
        return False

    def look(self, model: str) -> int:
        """Raises ConfigError."""
        raise ConfigError(f"{model} cannot be fetched here")

    def fetch(self, model: str, on_bytes: Callable[[int, int], None], cancel: threading.Event) -> None:
        """Raises ConfigError."""
        raise ConfigError(f"{model} cannot be fetched here")

    def start(self, model: str, on_progress: Callable[[str], None]) -> AbstractContextManager[Endpoint]:
        """Raises ConfigError."""
        raise ConfigError(f"{model} cannot be started here")

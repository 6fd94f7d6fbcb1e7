"""A session leaves a replica, or a copy of it does, and comes to another one.

Whoever owns it freezes it (FREEZE) at an ordinal. Whoever is to have it pulls what it is over a connection of
its own (PULL): the replica waits until the session is quiet, copies it between two steps, thaws it in the
same breath if it was asked to, and streams. The replica that opens a session (OPEN with `state`) does the
pulling. What surprises: a freeze belongs to the link over which it was asked for, and ends with it, so that
no session stands still for an owner who is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from rearview.config import LinkConfig
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Engine
from rearview.engine.sessions import SessionState
from rearview.errors import NotFound, Reason, Refused
from rearview.replica.pasts import Begun, New, Past, moved, unfit
from rearview.replica.requests import Requests
from rearview.replica.runner import EngineRunner
from rearview.replica.sessions import Held, Sessions
from rearview.replica.state import Kept, Origin, OtherModel, StateReader, encode_state
from rearview.transport.bulk import pull, serve
from rearview.transport.links import Link
from rearview.transport.wire import Body, Kind, decode_json, decode_settings

__all__ = ["Transfers"]

QUIET_LIMIT_S = 5.0
"""How long a session may take to become quiet, where a request does not say."""


class Transfers:
    """Those of one replica. For one event loop."""

    def __init__(
        self,
        sessions: Sessions[Link],
        engine: EngineRunner,
        requests: Requests,
        *,
        links: LinkConfig,
        node: str,
        steps: Sequence[int],
        origin: Origin,
    ) -> None:
        """`node`, `steps`, `origin`: of this replica, its span and its model."""
        self._sessions, self._engine, self._requests = sessions, engine, requests
        self._links, self._node, self._steps, self._origin = links, node, tuple(steps), origin
        self._pulls: dict[asyncio.Timeout, tuple[Link, str, int]] = {}
        """What is pulled for an open: who asked for it, its session and its epoch."""
        self._waiting = 0
        self._changed = asyncio.Event()
        """Set, and replaced, when a session may have become quiet."""

    async def freeze(self, link: Link, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer FREEZE: the ordinal up to which the session's frames run, and the bytes of its past here. To
        freeze it again is to learn whether the ordinal has moved; it never goes back.
        """
        held = self._known(request)
        held.frozen_by = link
        held.freezes += 1
        at, num_bytes = await self._engine.call(
            partial(_freeze, session_id=held.session_id, ordinal=request.get("ordinal", -1))
        )
        self._check(held, request["epoch"])
        if link.closed:
            self.link_closed(link)
        return {"ordinal": at, "num_bytes": num_bytes}

    def thaw(self, link: Link, body: Body) -> None:
        """Take THAW; of an epoch that is not the session's it changes nothing."""
        request = decode_json(body)
        held = self._sessions.get(request["session_id"], request["epoch"])
        if held is not None:
            self._thaw(held)

    def link_closed(self, link: Link) -> None:
        """Whatever was frozen over it runs again, and nothing more is pulled for it."""
        for held in self._sessions:
            if held.frozen_by is link:
                self._thaw(held)
        self.give_up_unwanted()

    def adopted(self, held: Held[Link]) -> None:
        """The session may have another owner: a freeze that it did not ask for is over."""
        if held.frozen_by not in (None, held.owner):
            self._thaw(held)

    def stepped(self) -> None:
        """The engine has done something, or a session has ended."""
        if self._waiting:
            self._changed.set()
            self._changed = asyncio.Event()

    def give_up_unwanted(self) -> None:
        """Stop pulling for opens that were overtaken, and for whoever is gone."""
        for limit, (owner, session_id, epoch) in tuple(self._pulls.items()):
            if owner.closed or not self._sessions.is_opening(session_id, epoch):
                del self._pulls[limit]
                limit.reschedule(0.0)

    def pull(self, link: Link, body: Body) -> None:
        """Take PULL, which is answered over `link`."""
        self._requests.spawn(self._serve(link, decode_json(body)))

    async def past(self, owner: Link, request: Mapping[str, Any], spec: SessionSpec) -> Past:
        """What an OPEN by `owner` wants the session to begin from. Raises Refused and NotFound as its sources
        do, Refused(METHOD_UNSUPPORTED) for what does not fit here, and Refused(TAKEN_OVER) as soon as nobody
        wants the open any more.
        """
        if (state := request.get("state")) is not None:
            limit_s = float(state.get("limit_s", QUIET_LIMIT_S))
            async with self._while_wanted(owner, spec.session_id, request["epoch"]):
                pulled = [await self._pulled(source, limit_s) for source in state["sources"]]
            return moved([each for pieces in pulled for each in pieces], spec, state.get("start"))
        if (start := request.get("start")) is not None:
            settings = {int(version): decode_settings(each) for version, each in start["settings"].items()}
            if not settings or start["ordinal"] < 0:
                raise unfit("a session begins at an ordinal, under settings")
            return Begun(spec, start["ordinal"], settings)
        return New(spec)

    async def _serve(self, link: Link, request: Mapping[str, Any]) -> None:
        try:
            await serve(link, request, self._pieces)
        except Exception as error:  # The edge of one request: the replica goes on.
            self._requests.fault(Kind.PULL, error)

    async def _pieces(self, request: Mapping[str, Any]) -> AsyncGenerator[bytes | memoryview, None]:
        """What is streamed. Raises Refused and NotFound, in the middle too: of a session that has a newer
        owner meanwhile nothing more is given away.
        """
        held = self._known(request)
        state = await self._exported(held, request)
        steps = request.get("steps")
        kept = Kept(state if steps is None else state.of_steps(frozenset(steps)), dict(held.settings))
        for piece in encode_state(kept, self._origin):
            self._check(held, request["epoch"])
            yield piece

    async def _exported(self, held: Held[Link], request: Mapping[str, Any]) -> SessionState:
        """The session, once it is quiet."""
        thaws, upto = bool(request.get("thaw", False)), -1
        look = partial(_export_if_quiet, session_id=held.session_id, thaws=thaws)
        self._waiting += 1
        try:
            async with asyncio.timeout(float(request.get("limit_s", QUIET_LIMIT_S))):
                while True:
                    changed = self._changed  # From before the look: what it overlooks sets this one.
                    self._check(held, request["epoch"])
                    freezes = held.freezes
                    found = await self._engine.call(look)
                    if isinstance(found, SessionState):
                        break
                    upto = found
                    await changed.wait()
        except TimeoutError:
            text = f"frames up to ordinal {upto} have not all come and gone"
            raise _not_now("not_quiet", text, ordinal=str(upto)) from None
        finally:
            self._waiting -= 1
        if thaws and held.freezes == freezes:  # Else it was frozen again since.
            held.frozen_by = None
        return found

    @asynccontextmanager
    async def _while_wanted(self, owner: Link, session_id: str, epoch: int) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(None) as limit:
                self._pulls[limit] = owner, session_id, epoch
                self.give_up_unwanted()
                yield
        except TimeoutError:
            raise Refused(Reason.TAKEN_OVER, "the session is not to be opened here any more") from None
        finally:
            self._pulls.pop(limit, None)

    async def _pulled(self, source: Mapping[str, Any], limit_s: float) -> Sequence[Kept]:
        """The states that one source has."""
        request = {
            "session_id": source["session_id"],
            "epoch": source["epoch"],
            "steps": self._steps,
            "thaw": False,
            "limit_s": limit_s,
        }
        reader = StateReader(self._origin)
        parts = pull(self._links, self._node, source["address"], request, wait_s=limit_s)
        try:
            async with aclosing(parts):
                async for part in parts:
                    reader.feed(part)
            return reader.states()
        except OtherModel as error:
            raise Refused(Reason.MODEL_UNKNOWN, str(error), metadata={"cause": "other_model"}) from None
        except ValueError as error:
            raise unfit(str(error)) from None

    def _known(self, request: Mapping[str, Any]) -> Held[Link]:
        """The session that a request is about. Raises NotFound(SESSION_UNKNOWN) and Refused(TAKEN_OVER)."""
        held = self._sessions.check_attach(request["session_id"], request["epoch"])
        self._check(held, request["epoch"])
        return held

    def _check(self, held: Held[Link], epoch: int) -> None:
        if self._sessions.get(held.session_id) is not held:
            raise NotFound(Reason.SESSION_UNKNOWN, "the session has ended meanwhile")
        if held.epoch != epoch:
            raise Refused(Reason.TAKEN_OVER, "another epoch of the session is known here")

    def _thaw(self, held: Held[Link]) -> None:
        held.frozen_by = None
        session_id = held.session_id
        self._engine.post(lambda engine: engine.thaw(session_id))
        self.stepped()


def _freeze(engine: Engine, session_id: str, ordinal: int) -> tuple[int, int]:
    """The ordinal that it is frozen at, and the bytes of its past."""
    if session_id not in engine.sessions:
        raise NotFound(Reason.SESSION_UNKNOWN, "the session has ended meanwhile")
    return engine.freeze(session_id, ordinal), engine.past_bytes(session_id)


def _export_if_quiet(engine: Engine, session_id: str, *, thaws: bool) -> SessionState | int:
    """Else the ordinal up to which frames are still to come and go."""
    if session_id not in engine.sessions:
        raise NotFound(Reason.SESSION_UNKNOWN, "the session has ended meanwhile")
    if (upto := engine.frozen_at(session_id)) is None:
        raise _not_now("not_frozen", "the session is not frozen")
    if not engine.is_quiet(session_id):
        return upto
    state = engine.export(session_id)
    if thaws:
        engine.thaw(session_id)
    return state


def _not_now(cause: str, text: str, **metadata: str) -> Refused:
    return Refused(Reason.REPLICA_LOST, text, retry_after_s=1.0, metadata={"cause": cause, **metadata})

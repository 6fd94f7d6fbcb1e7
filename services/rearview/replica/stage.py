"""One replica of one span: an engine with its links and its drain. Serve's part is in `app.py`.

The table of sessions (`sessions`) says who may feed which session and where its frames go; the engine keeps
all else. Sessions are opened, fed, adopted and closed over links, in order with their frames. When the link
of their owner ends they are orphans, which another owner may adopt; when the link to the next hop ends,
outputs are kept and the owner is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rearview.config import ServiceConfig
from rearview.contract.chain import Span
from rearview.contract.events import SlotsOffered, SlotsTaken
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Engine
from rearview.engine.rows import StepResult
from rearview.engine.sessions import Standing
from rearview.errors import NotFound, Reason, Refused
from rearview.failpoints import reach
from rearview.replica.admitted import Admitted, Declared
from rearview.replica.build import OnProgress, build_engine
from rearview.replica.fingerprint import origin_of
from rearview.replica.identity import identity
from rearview.replica.inflow import Handler, Inflow
from rearview.replica.outflow import Outflow
from rearview.replica.pasts import Past
from rearview.replica.pulse import OnEnd, Pulse, only_told
from rearview.replica.renewal import Renewal
from rearview.replica.reporting import Reporting
from rearview.replica.requests import Requests
from rearview.replica.runner import EngineRunner
from rearview.replica.sessions import Held, Passed, Sessions
from rearview.replica.transfers import Transfers
from rearview.telemetry.exposition import MetricsServer, serve_metrics
from rearview.telemetry.listener import MetricsListener
from rearview.telemetry.metrics import Metrics, new_registry
from rearview.transport.codec import SPOKEN, FrameCodec
from rearview.transport.heap import keep_freed_memory
from rearview.transport.links import Link, LinkClosed, LinkPool, LinkServer, reachable
from rearview.transport.wire import (
    Body,
    Kind,
    decode_json,
    decode_spec,
    encode_json,
)

__all__ = ["Stage"]

logger = logging.getLogger(__name__)

CallLater = Callable[[float, Callable[[], None]], object]
"""Seconds from now, and what to do then."""


class Stage:
    """One replica of the span `config.spans[span_index]`. Construct and use it on one event loop."""

    def __init__(
        self,
        config: ServiceConfig,
        span_index: int,
        replica_id: str,
        node: str,
        *,
        clock: Callable[[], float] | None = None,
        call_later: CallLater | None = None,
        on_end: OnEnd = only_told,
        on_progress: OnProgress | None = None,
    ) -> None:
        """`clock`, `call_later`: of orphans. `on_end`: ends a process given up. `on_progress`: of a start."""
        self._config, self._span_index, self._span = config, span_index, config.spans[span_index]
        self._on_end, self._on_progress = on_end, on_progress
        self._identity, self._node = identity(config.model, self._span, replica_id, node), node
        loop = asyncio.get_running_loop()
        self._clock, self._call_later = clock or loop.time, call_later or loop.call_later
        self._sessions: Sessions[Link] = Sessions(config.link.orphan_grace_s)
        self._requests = Requests(self._span.name)
        self.admitted = Admitted(self._span.name, config.placement.max_load)
        self.reporting = Reporting(self._span.name, self.admitted, self._sessions, self._clock)
        self._renewal = Renewal(config, self._span, self.admitted)
        self._handlers: Mapping[Kind, Handler] = {}
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._server = LinkServer(
            config.link, node, on_message=self._on_message, on_closed=self._on_owner_closed
        )
        self._pool = LinkPool(config.link, node, on_message=self._on_message, on_closed=self._on_next_closed)
        self._runner: EngineRunner | None = None
        self._pulse: Pulse | None = None
        self._address, self._metrics_port = "", 0
        self._metrics = Metrics(new_registry())
        self._events = MetricsListener(self._metrics)
        is_last = span_index + 1 == len(config.spans)
        self._outflow = Outflow(self._sessions, self._span.name, self._events, is_last=is_last)
        self._metrics_server: MetricsServer | None = None

    async def start(self) -> None:
        """Load the model and take links."""
        keep_freed_memory()
        config, span = self._config, self._span
        told = (self._on_progress, self.admitted.planned, self._renewal.built)
        self._runner = runner = EngineRunner(partial(build_engine, config, span, *told), self._on_step)
        await runner.ready()
        self._transfers = Transfers(
            self._sessions,
            runner,
            self._requests,
            links=config.link,
            node=self._node,
            steps=Span.parse(span.name, span.operators).steps,
            origin=await asyncio.to_thread(origin_of, config.model),
        )
        await self._renewal.begin(runner)
        self._pulse = Pulse(runner, self._server, self._pool, self._on_end, self.describe)
        self._handlers = self._routes(runner, self._transfers, self._pulse)
        self._address = str(await self._server.start())
        self._metrics_server = serve_metrics(self._metrics.registry, span.metrics_port, config.access.metrics)
        self._metrics_port = self._metrics_server.port
        self._events(SlotsOffered(span.name, self.admitted.slots, span.max_batch))
        self.reporting.started()

    def describe(self) -> Mapping[str, Any]:
        """What placement and operators need to know of this replica."""
        return {
            **self._identity,
            "address": self._address,
            "free_slots": 0 if self.reporting.is_leaving else self.admitted.slots - self._sessions.num_owned,
            **self.admitted.describe(),
            **self._sessions.describe(),
            **self.reporting.describe(),
            "metrics_url": f"http://{reachable(self._config.access.metrics.host)}:{self._metrics_port}/metrics",
        }

    @property
    def num_sessions(self) -> int:
        """Orphans and those whose open is under way included: they hold a slot."""
        return len(self._sessions)

    def check_health(self) -> None:
        """Raise if the engine has died or hangs, or was given up: Serve then replaces the replica."""
        assert self._pulse is not None, "asked before the start"
        self._pulse.check_health()

    async def drain(self, grace_s: float) -> None:
        """Take no new sessions, tell the owners, and wait until the sessions have ended."""
        assert self._pulse is not None, "drained before the start"
        self.reporting.is_leaving = True
        self._pulse.drain()
        with contextlib.suppress(TimeoutError, RuntimeError):
            self.check_health()  # Else they would not end.
            async with asyncio.timeout(grace_s):
                await self._empty.wait()

    async def stop(self) -> None:
        """Close links and stop the engine; one that hangs is left alone."""
        self._stopping = True
        await self._renewal.stop()
        if self._pulse is not None:
            await self._pulse.stop()
        await self._server.stop()
        await self._pool.stop()
        await self._requests.stop()
        if self._runner is not None:
            await asyncio.to_thread(self._runner.stop)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)

    def _routes(self, runner: EngineRunner, transfers: Transfers, pulse: Pulse) -> Mapping[Kind, Handler]:
        """What takes each kind of message; others are of no concern to a replica."""
        inflow = Inflow(self._sessions, runner, self._outflow, self._span.name, self._events, self.admitted)
        answer = self._requests.answer
        return {
            Kind.FRAME: inflow.frame,
            Kind.ACK: inflow.acknowledge,
            Kind.ANSWER: inflow.answer,
            Kind.SETTINGS: inflow.settings,
            Kind.NOTE: inflow.note,
            Kind.DROPPED: inflow.dropped,
            Kind.OPEN: answer(Kind.OPEN, self._try_open),
            Kind.ATTACH: answer(Kind.ATTACH, self._try_attach),
            Kind.STANDING: answer(Kind.STANDING, self._sessions.standing),
            Kind.CLOSE: self._on_close,
            Kind.FREEZE: answer(Kind.FREEZE, transfers.freeze),
            Kind.THAW: transfers.thaw,
            Kind.PULL: transfers.pull,
            Kind.CONDEMN: lambda link, body: pulse.condemn(),
        }

    def _on_step(self, result: StepResult) -> None:
        self._outflow.step(result)  # Before whoever waits for the session to be quiet.
        self._transfers.stepped()

    def _on_message(self, link: Link, kind: Kind, body: Body) -> None:
        if (take := self._handlers.get(kind)) is not None:
            take(link, body)

    async def _try_open(self, owner: Link, request: Mapping[str, Any]) -> Mapping[str, Any]:
        spec, epoch = decode_spec(request["session"]), request["epoch"]
        codec = _codec(self._config, request, spec)
        if self.reporting.is_leaving or self._runner is None:
            raise Refused(Reason.DRAINING, "the replica is draining", retry_after_s=1.0)
        declared = Declared.told(spec, request)
        self.admitted.check(declared)
        if (former := self._sessions.begin(spec.session_id, epoch)) is not None:
            if former.owner is not owner:
                _tell_lost(former.owner, spec.session_id, former.epoch)
            self._forget(spec.session_id)
        self.admitted.add(declared)
        self._changed()
        try:
            next_link = await _link_to(self._pool, request["next"])
            past = await self._transfers.past(owner, request, spec)
            self._sessions.check_opening(spec.session_id, epoch)
            if (orphan := self._sessions.yielding(self.admitted.slots)) is not None:
                self._close(orphan.session_id, orphan.epoch)
            await self._engine.call(partial(_open_anew, session_id=spec.session_id, past=past))
            self._sessions.check_opening(spec.session_id, epoch)
            if owner.closed or next_link.closed:
                raise Refused(Reason.REPLICA_LOST, "a link of the session has ended", retry_after_s=1.0)
        except BaseException:
            if self._sessions.abandon(spec.session_id, epoch):
                self._forget(spec.session_id)
            raise
        reach("replica.activate.before")
        held = Held(spec.session_id, epoch, owner, next_link, codec, spec.tenant, request.get("lease"))
        past.held(held)
        self._sessions.opened(held)
        self._changed()
        reach("replica.activate.after")
        return {"kernels": self._renewal.kernels}

    async def _try_attach(self, owner: Link, request: Mapping[str, Any]) -> dict[str, Any]:
        """What whoever adopts the session must know. The last span is first: hops before it are fenced."""
        session_id, epoch, address = request["session_id"], request["epoch"], request.get("next")
        takes_over = request.get("takes_over", False)
        check = partial(self._sessions.check_attach, session_id, epoch, takes_over=takes_over)
        check()
        next_link = await _link_to(self._pool, address) if address else None
        held = check()  # It may have ended meanwhile.
        if owner.closed:
            raise Refused(Reason.REPLICA_LOST, "who asked is gone")
        target = next_link or held.next
        anew = next_link is not None or epoch > held.epoch
        if (fenced := self._sessions.attach(session_id, epoch, owner, request.get("lease"))) is not None:
            _tell_lost(fenced[0], session_id, fenced[1], **({"closed": 1} if request.get("closes") else {}))
        self._transfers.adopted(held)
        held.next = None if anew else held.next  # What was kept goes first.
        went = held.sent  # Replaced, not changed, when the session goes on over another link.
        known = await self._engine.call(
            partial(Engine.standing, session_id=session_id),
            lambda kept: self._resume(held, epoch, kept, target) if anew else None,
        )
        if known is None:
            raise NotFound(Reason.SESSION_UNKNOWN, "the session has ended meanwhile")
        return {"kernels": self._renewal.kernels, **_left_by_owner(held), **_told(known, went)}

    def _resume(self, held: Held[Link], epoch: int, kept: Standing | None, next_link: Link | None) -> None:
        if self._sessions.get(held.session_id, epoch) is not held or kept is None or next_link is None:
            return
        if next_link.closed:
            _tell_lost(held.owner, held.session_id, epoch, hop=self._span_index)
        else:
            self._outflow.resume(held, kept, next_link)

    @property
    def _engine(self) -> EngineRunner:
        assert self._runner is not None, "a session before the start"
        return self._runner

    def _on_close(self, link: Link, body: Body) -> None:
        content = decode_json(body)
        self._close(content["session_id"], content["epoch"])

    def _close(self, session_id: str, epoch: int) -> None:
        if self._sessions.close(session_id, epoch):
            self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        self.admitted.remove(session_id)
        self._engine.post(lambda engine: engine.close(session_id))
        self._transfers.stepped()
        self._changed()

    def _changed(self) -> None:
        self._events(SlotsTaken(self._span.name, len(self._sessions)))
        (self._empty.clear if self.num_sessions else self._empty.set)()
        self._transfers.give_up_unwanted()

    def _on_owner_closed(self, link: Link) -> None:
        self._transfers.link_closed(link)
        if self._stopping or not (orphans := self._sessions.owner_closed(link, self._clock())):
            return
        logger.warning("an owner is gone: %d sessions wait for another one", orphans)
        self._call_later(self._config.link.orphan_grace_s, self._close_overdue)

    def _close_overdue(self) -> None:
        for held in self._sessions.overdue(self._clock()):
            self._close(held.session_id, held.epoch)

    def _on_next_closed(self, link: Link) -> None:
        for held in self._sessions.next_closed(link):
            _tell_lost(held.owner, held.session_id, held.epoch, hop=self._span_index)


def _codec(config: ServiceConfig, request: Mapping[str, Any], spec: SessionSpec) -> FrameCodec:
    """How the frames of the lane are written. An owner that says no version knows of one alone."""
    version = request.get("version", 1)
    if version not in SPOKEN:
        raise Refused(Reason.REPLICA_LOST, f"lanes of version {version} are not served here")
    has_depth = spec.cache is not None and bool(config.model.depth)
    return FrameCodec(version, [span.name for span in config.spans], has_depth)


async def _link_to(pool: LinkPool, address: str) -> Link:
    try:
        return await pool.get(address)
    except LinkClosed as error:
        raise Refused(Reason.REPLICA_LOST, str(error), retry_after_s=1.0) from None


def _left_by_owner(held: Held[Link]) -> dict[str, Any]:
    """What the former owner has told of its frames, as it travels."""
    dropped = [[place, *why] for place, why in sorted(held.dropped.items())]
    return {"place": held.place, "index": held.index, "notes": list(held.notes), "dropped": dropped}


def _told(standing: Standing, went: Passed) -> dict[str, Any]:
    """Where a session stands, as it travels. Of what is retained or still to leave, each frame's
    place and ordinal; `went`: those of the retained that the hop after this one was sent.
    """
    return {
        "expected": standing.expected,
        "committed": {str(step): ordinal for step, ordinal in standing.committed.items()},
        "settings": list(standing.versions),
        "retained": [[frame.place, frame.ordinal] for frame in standing.retained],
        "coming": [[frame.place, frame.ordinal] for frame in standing.coming],
        "went": [frame.ordinal for frame in standing.retained if frame.ordinal in went],
    }


def _tell_lost(owner: Link, session_id: str, epoch: int, **why: int) -> None:
    with contextlib.suppress(LinkClosed):  # An owner that is gone needs no word.
        owner.send(Kind.LOST, encode_json({"session_id": session_id, "epoch": epoch, **why}))


def _open_anew(engine: Engine, session_id: str, past: Past) -> None:
    engine.close(session_id)  # An open under an older epoch may have come before.
    past.open(engine)

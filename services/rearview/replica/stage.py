"""One replica of one span: an engine with its links and its drain. Serve's part is in `app.py`.

A stage keeps, per session, where its frames go next and which epoch it obeys; the engine keeps all else.
Sessions are opened and closed over the link that feeds them, in order with their frames. When that link
ends, so do the sessions opened over it: their owner is gone or will open them again elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from rearview.config import ServiceConfig
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Engine, StepResult
from rearview.errors import Fault, RearviewError, Reason, Refused
from rearview.replica.build import build_engine
from rearview.replica.runner import EngineRunner
from rearview.telemetry.logging import log_fault
from rearview.telemetry.metrics import Metrics, MetricsServer, new_registry, serve_metrics
from rearview.transport.links import Link, LinkClosed, LinkPool, LinkServer, reachable
from rearview.transport.wire import (
    Kind,
    decode_frame,
    decode_json,
    decode_settings,
    decode_spec,
    encode_frame,
    encode_json,
    plane_bytes,
)

__all__ = ["Stage"]

logger = logging.getLogger(__name__)

REMEMBERED_EPOCHS = 10_000
"""Closed sessions whose epoch is remembered, so that a former owner stays fenced."""


@dataclass(slots=True)
class _Session:
    epoch: int
    owner: Link
    """Who opened it, and feeds it or the span before."""
    next_link: Link
    frames: int = 0
    """Frames that have left this stage."""


def _tell_lost(session_id: str, session: _Session) -> None:
    with contextlib.suppress(LinkClosed):  # An owner that is gone needs no word.
        session.owner.send(Kind.LOST, encode_json({"session_id": session_id, "epoch": session.epoch}))


def _refusal(error: RearviewError) -> dict[str, Any]:
    """The reply to an open that has failed."""
    return {
        "reason": error.reason.name,
        "message": error.message,
        "retry_after_s": error.retry_after_s,
        "metadata": error.metadata,
    }


def _on_tensors(frame: Frame[NDArray[Any]]) -> Frame[Tensor]:
    """One copy: a tensor must be writable and must not pin the whole message."""
    planes = frame.planes
    copied = None if planes is None else {n: torch.from_numpy(plane.copy()) for n, plane in planes.items()}
    return replace(cast("Frame[Any]", frame), planes=copied)


def _on_arrays(frame: Frame[Tensor], epoch: int) -> Frame[NDArray[Any]]:
    planes = frame.planes
    arrays = None if planes is None else {name: plane.numpy() for name, plane in planes.items()}
    return replace(cast("Frame[Any]", frame), planes=arrays, epoch=epoch)


def _open_anew(engine: Engine, spec: SessionSpec) -> None:
    engine.close(spec.session_id)  # An open under an older epoch may have come before.
    engine.open(spec)


def _admit(frame: Frame[Tensor], now: float, engine: Engine) -> None:
    # A session that was closed meanwhile needs no answer: its owner closed it.
    engine.admit(frame, now)


class Stage:
    """One replica of the span `config.spans[span_index]`. Construct and use it on one event loop."""

    def __init__(self, config: ServiceConfig, span_index: int, replica_id: str, node: str) -> None:
        self._config = config
        self._span_index = span_index
        self._span = config.spans[span_index]
        self._replica_id = replica_id
        self._node = node
        self._sessions: dict[str, _Session] = {}
        self._opening: dict[str, int] = {}
        """Epochs of the sessions whose open is under way; a close takes them out."""
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._server = LinkServer(
            config.link, node, on_message=self._on_message, on_closed=self._on_owner_closed
        )
        self._pool = LinkPool(config.link, node, on_message=self._on_message, on_closed=self._on_next_closed)
        self._runner: EngineRunner | None = None
        self._address = ""
        self._metrics = Metrics(new_registry())
        self._metrics_server: MetricsServer | None = None
        self._metrics_port = 0

    async def start(self) -> None:
        """Load the model and take links."""
        runner = EngineRunner(partial(build_engine, self._config, self._span), self._on_step)
        await runner.ready()
        self._runner = runner
        self._address = str(await self._server.start())
        self._metrics_server, self._metrics_port = serve_metrics(
            self._metrics.registry, self._span.metrics_port, self._config.link.host
        )
        self._metrics.slots.labels(self._span.name).set(self._span.slots)

    def describe(self) -> Mapping[str, Any]:
        """What placement and operators need to know of this replica."""
        return {
            "replica_id": self._replica_id,
            "span": self._span.name,
            "address": self._address,
            "node": self._node,
            "slots": self._span.slots,
            "free_slots": 0 if self._draining else self._span.slots - self.num_sessions,
            "sessions": sorted(self._sessions),
            "frames_by_session": {key: session.frames for key, session in self._sessions.items()},
            "pid": os.getpid(),
            "draining": self._draining,
            "metrics_url": f"http://{reachable(self._config.link.host)}:{self._metrics_port}/metrics",
        }

    @property
    def num_sessions(self) -> int:
        """Those whose open is under way included: they hold a slot."""
        return len(self._sessions) + len(self._opening)

    def check_health(self) -> None:
        """Raise if the engine's thread has died: Serve then replaces the replica."""
        if self._runner is None or not self._runner.alive:
            raise RuntimeError("the engine thread is not running")

    async def drain(self, grace_s: float) -> None:
        """Take no new sessions, tell the owners, and wait until the sessions have ended."""
        self._draining = True
        self._server.broadcast(Kind.DRAINING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()

    async def stop(self) -> None:
        """Close links and stop the engine."""
        await self._server.stop()
        await self._pool.stop()
        if self._runner is not None:
            await asyncio.to_thread(self._runner.stop)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)

    def _on_message(self, link: Link, kind: Kind, body: bytes) -> None:
        if kind is Kind.FRAME:
            self._on_frame(decode_frame(body, time.monotonic()))
        elif kind is Kind.SETTINGS:
            self._on_settings(decode_json(body), body)
        elif kind is Kind.OPEN:
            task = asyncio.create_task(self._open(link, decode_json(body)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind is Kind.CLOSE:
            content = decode_json(body)
            self._close(content["session_id"], content["epoch"])

    def _on_frame(self, frame: Frame[NDArray[Any]]) -> None:
        session = self._sessions.get(frame.session_id)
        if session is None or frame.epoch != session.epoch or self._runner is None:
            return  # Of a former owner or a closed session: fenced.
        self._runner.post(partial(_admit, _on_tensors(frame), time.monotonic()))
        self._count_bytes("received", plane_bytes(frame))

    def _on_settings(self, content: Mapping[str, Any], body: bytes) -> None:
        session = self._sessions.get(content["session_id"])
        if session is None or content["epoch"] != session.epoch or self._runner is None:
            return
        version, settings = content["version"], decode_settings(content["settings"])
        self._runner.post(lambda engine: engine.update(content["session_id"], version, settings))
        if self._span_index + 1 < len(self._config.spans):
            with contextlib.suppress(LinkClosed):
                session.next_link.send(Kind.SETTINGS, body)

    async def _open(self, owner: Link, request: dict[str, Any]) -> None:
        try:
            await self._try_open(owner, decode_spec(request["session"]), request["epoch"], request["next"])
        except RearviewError as error:
            owner.reply(request, _refusal(error))
        except Exception as error:  # The edge of one open: the session does not start, the replica goes on.
            error_id = log_fault(logger, "open failed", error, span=self._span.name)
            owner.reply(request, _refusal(Fault(metadata={"error_id": error_id})))
        else:
            owner.reply(request, {})

    async def _try_open(self, owner: Link, spec: SessionSpec, epoch: int, next_address: str) -> None:
        if self._draining or self._runner is None:
            raise Refused(Reason.DRAINING, "the replica is draining", retry_after_s=1.0)
        if epoch <= self._epochs.get(spec.session_id, 0):
            raise Refused(Reason.TAKEN_OVER, "a newer epoch of the session is known here")
        if (former := self._sessions.get(spec.session_id)) is not None:
            if former.owner is not owner:
                _tell_lost(spec.session_id, former)
            self._close(spec.session_id, former.epoch)
        self._remember(spec.session_id, epoch)
        self._opening[spec.session_id] = epoch
        self._changed()
        try:
            next_link = await self._link_to(next_address)
            self._check_opening(spec.session_id, epoch)
            await self._runner.call(partial(_open_anew, spec=spec))
            self._check_opening(spec.session_id, epoch)
        except BaseException:
            self._abandon(spec.session_id, epoch)
            raise
        del self._opening[spec.session_id]
        self._sessions[spec.session_id] = _Session(epoch, owner, next_link)
        self._changed()
        if owner.closed or next_link.closed:
            self._close(spec.session_id, epoch)

    def _check_opening(self, session_id: str, epoch: int) -> None:
        if self._opening.get(session_id) != epoch:
            raise Refused(Reason.TAKEN_OVER, "the session was closed or opened anew meanwhile")

    def _abandon(self, session_id: str, epoch: int) -> None:
        """An open has failed: give the slot back, unless a newer open of the session will use it."""
        if self._opening.get(session_id, epoch) != epoch or session_id in self._sessions:
            return
        self._opening.pop(session_id, None)
        if self._runner is not None:
            self._runner.post(lambda engine: engine.close(session_id))
        self._changed()

    async def _link_to(self, address: str) -> Link:
        try:
            return await self._pool.get(address)
        except LinkClosed as error:
            raise Refused(Reason.REPLICA_LOST, str(error), retry_after_s=1.0) from None

    def _remember(self, session_id: str, epoch: int) -> None:
        self._epochs[session_id] = epoch
        self._epochs.move_to_end(session_id)
        if len(self._epochs) > REMEMBERED_EPOCHS:
            self._epochs.popitem(last=False)

    def _close(self, session_id: str, epoch: int) -> None:
        if epoch > self._epochs.get(session_id, 0):
            self._remember(session_id, epoch)  # Its open is still to run, and will be refused.
        if self._opening.get(session_id) == epoch:
            self._abandon(session_id, epoch)  # Its open is under way, and will find itself gone.
        session = self._sessions.get(session_id)
        if session is None or epoch != session.epoch or self._runner is None:
            return
        del self._sessions[session_id]
        self._runner.post(lambda engine: engine.close(session_id))
        self._changed()

    def _changed(self) -> None:
        self._metrics.slots_used.labels(self._span.name).set(len(self._sessions))
        if self.num_sessions:
            self._empty.clear()
        else:
            self._empty.set()

    def _on_owner_closed(self, link: Link) -> None:
        for session_id, session in tuple(self._sessions.items()):
            if session.owner is link:
                self._close(session_id, session.epoch)

    def _on_next_closed(self, link: Link) -> None:
        for session_id, session in tuple(self._sessions.items()):
            if session.next_link is link:
                _tell_lost(session_id, session)
                self._close(session_id, session.epoch)

    def _on_step(self, result: StepResult) -> None:
        if result.batch is not None:
            self._metrics.batch_rows.labels(self._span.name).observe(result.batch.rows)
            self._metrics.queue_age_seconds.labels(self._span.name).set(result.queue_age_s)
        now = time.monotonic()
        for emission in result.emissions:
            session = self._sessions.get(emission.session_id)
            if session is None:
                continue
            session.frames += 1
            timing = emission.timings[-1]
            self._metrics.span_queue_seconds.labels(self._span.name).observe(timing.queue_s)
            self._metrics.span_compute_seconds.labels(self._span.name).observe(timing.compute_s)
            left = _on_arrays(emission, session.epoch)
            self._count_bytes("sent", plane_bytes(left))
            with contextlib.suppress(LinkClosed):  # `_on_next_closed` closes the session.
                session.next_link.send(Kind.FRAME, *encode_frame(left, now))

    def _count_bytes(self, direction: str, count: int) -> None:
        self._metrics.link_bytes.labels(self._span.name, direction).inc(count)

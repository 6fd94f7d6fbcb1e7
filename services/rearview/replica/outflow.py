"""What leaves a replica: frames to the next hop, acknowledgements to the one before.

A frame goes once over a link to the next hop. It is kept in the engine until that hop has acknowledged it,
so that it can be sent again where a lost link is replaced; the hop before may let its own copy go as soon
as the frame has left here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from rearview.contract.events import BatchRun, Direction, Events, FrameLeftSpan, LinkBytes, OutputsForgotten
from rearview.contract.frame import Frame
from rearview.engine.rows import StepResult
from rearview.engine.sessions import Standing
from rearview.failpoints import reach
from rearview.replica.planes import on_arrays
from rearview.replica.sessions import Held, Sessions
from rearview.transport.links import Link, LinkClosed
from rearview.transport.wire import Ack, Kind, encode_ack, encode_json, plane_bytes

__all__ = ["Outflow"]

ACK_EVERY = 8
"""Ordinals from one acknowledgement to the next: the hop before keeps so many outputs more than it must."""


class Outflow:
    """Sends what an engine has done. For one event loop."""

    def __init__(self, sessions: Sessions[Link], span: str, events: Events, *, is_last: bool) -> None:
        """`span`: name of the replica's. `is_last`: the next hop is the ingress, which knows the settings."""
        self._sessions = sessions
        self._span = span
        self._events = events
        self._is_last = is_last

    def step(self, result: StepResult) -> None:
        """Pass on what one step of the engine did."""
        if (batch := result.batch) is not None:
            figures, how = (batch.seconds, batch.failure), (batch.is_accelerated, batch.is_fallback)
            self._events(BatchRun(self._span, batch.rows, result.queue_age_s, *figures, *how))
        if result.forgotten:
            self._events(OutputsForgotten(self._span, result.forgotten))
        now = time.monotonic()
        for frame in result.emissions:
            held = self._sessions.get(frame.session_id)
            if held is None:
                continue
            if held.left.add(frame.ordinal):
                held.frames += 1
                self._events(FrameLeftSpan(frame.timings[-1]))
            self._send(held, frame, now)
            self._acknowledge(held)

    def announce(self, held: Held[Link], version: int, settings: Mapping[str, Any]) -> None:
        """Tell the next span of settings; precedes the first frame under them."""
        held.announced(version, settings)
        self._tell_settings(held, version, settings)

    def resume(self, held: Held[Link], kept: Standing, next_link: Link) -> None:
        """Go on over `next_link`: first the settings, then what was kept and not acknowledged."""
        held.next = next_link
        held.sent = held.left.without([frame.ordinal for frame in kept.retained])
        self._retell(held)
        now = time.monotonic()
        for frame in kept.retained:
            self._send(held, frame, now)

    def _send(self, held: Held[Link], frame: Frame[Tensor], now: float) -> None:
        if held.next is None or not held.sent.add(frame.ordinal):
            return
        if held.retells:
            self._retell(held)
        left = on_arrays(_dated(frame) if frame.trace_id else frame, held.epoch)
        with contextlib.suppress(LinkClosed):  # The stage will be told, and the output is kept.
            held.next.send(Kind.FRAME, *held.codec.encode(left, now))
            self._events(LinkBytes(self._span, Direction.SENT, plane_bytes(left)))

    def _retell(self, held: Held[Link]) -> None:
        for version, settings in held.settings.items():
            self._tell_settings(held, version, settings)
        held.retells = False

    def _tell_settings(self, held: Held[Link], version: int, settings: Mapping[str, Any]) -> None:
        if self._is_last or held.next is None:
            return
        content = {
            "session_id": held.session_id,
            "epoch": held.epoch,
            "version": version,
            "settings": settings,
        }
        with contextlib.suppress(LinkClosed):
            held.next.send(Kind.SETTINGS, encode_json(content))

    def _acknowledge(self, held: Held[Link]) -> None:
        before = held.feeder
        if before is None or not before.knows(Kind.ACK) or (ordinal := held.ack_due(ACK_EVERY)) is None:
            return
        reach("replica.acknowledge.before")
        with contextlib.suppress(LinkClosed):  # Who is gone keeps nothing.
            before.send(Kind.ACK, encode_ack(Ack(held.session_id, held.epoch, ordinal)))
        reach("replica.acknowledge.after")


def _dated(frame: Frame[Tensor]) -> Frame[Tensor]:
    """With the arrival here on the wall clock, for whoever puts the spans of a trace in order."""
    *before, here = frame.timings
    arrived_s = time.time() - (time.monotonic() - here.arrived_s)
    return frame.carrying(frame.planes, timings=(*before, replace(here, arrived_s=arrived_s)))

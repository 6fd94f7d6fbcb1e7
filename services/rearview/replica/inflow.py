"""What comes to a replica for sessions that it holds: frames, settings, acknowledgements.

Each goes on to the engine as a command, in the order of arrival. What is of another epoch than the session's
is fenced: it comes from a former owner, or from a hop that is still to be adopted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from torch import Tensor

from rearview.contract.events import Direction, Events, LinkBytes
from rearview.contract.frame import Frame
from rearview.engine.engine import Engine
from rearview.replica.admitted import Admitted
from rearview.replica.outflow import Outflow
from rearview.replica.planes import on_tensors
from rearview.replica.runner import Command, EngineRunner
from rearview.replica.sessions import Held, Sessions
from rearview.telemetry.logging import concerning
from rearview.transport.links import Link
from rearview.transport.wire import (
    Body,
    decode_ack,
    decode_json,
    decode_note,
    decode_settings,
    frame_head,
    plane_bytes,
)

__all__ = ["Handler", "Inflow"]

Handler = Callable[[Link, Body], None]
"""Takes the body of a message that came over a link."""


class Inflow:
    """Takes it in. For one event loop."""

    def __init__(
        self,
        sessions: Sessions[Link],
        engine: EngineRunner,
        outflow: Outflow,
        span: str,
        events: Events,
        admitted: Admitted,
    ) -> None:
        """`span`: name of the replica's."""
        self._sessions, self._engine, self._outflow = sessions, engine, outflow
        self._span, self._events, self._admitted = span, events, admitted

    def frame(self, link: Link, body: Body) -> None:
        """Take FRAME."""
        held = self._sessions.get(*frame_head(body))
        if held is None:
            return  # Of a former owner or a closed session: fenced.
        now = time.monotonic()
        frame = held.codec.decode(body, now)
        held.came(frame.place, frame.frame_index, link)
        self._engine.post(partial(_for, held, partial(_admit, on_tensors(frame), now)))
        self._events(LinkBytes(self._span, Direction.RECEIVED, plane_bytes(frame)))

    def acknowledge(self, link: Link, body: Body) -> None:
        """Take ACK."""
        session_id, epoch, ordinal = decode_ack(body)
        held = self._sessions.get(session_id, epoch)
        if held is not None and held.next is link:  # What a former next hop has, this one may lack.
            self._engine.post_later(lambda engine: engine.retained.acknowledge(session_id, ordinal))

    def answer(self, link: Link, body: Body) -> None:
        """Take ANSWER. There is time until somebody asks."""
        held = self._sessions.get(*frame_head(body))
        if held is not None:
            frame = on_tensors(held.codec.decode(body, time.monotonic()))
            self._engine.post_later(lambda engine: engine.retained.keep(frame))

    def note(self, link: Link, body: Body) -> None:
        """Take NOTE."""
        self._sessions.note(*decode_note(body))

    def dropped(self, link: Link, body: Body) -> None:
        """Take DROPPED."""
        content = decode_json(body)
        held = self._sessions.get(content["session_id"], content["epoch"])
        if held is not None:
            held.dropped_before(content["frames"])

    def settings(self, link: Link, body: Body) -> None:
        """Take SETTINGS, and tell the next span of them."""
        content = decode_json(body)
        held = self._sessions.get(content["session_id"], content["epoch"])
        if held is None:
            return
        version, settings = content["version"], decode_settings(content["settings"])
        self._admitted.changed(held.session_id, settings)
        self._engine.post(
            partial(_for, held, lambda engine: engine.update(held.session_id, version, settings))
        )
        self._outflow.announce(held, version, content["settings"])


def _for(held: Held[Link], command: Command, engine: Engine) -> None:
    with concerning(session_id=held.session_id, tenant=held.tenant):
        command(engine)


def _admit(frame: Frame[Tensor], now: float, engine: Engine) -> None:
    # A session that was closed meanwhile needs no answer: its owner closed it.
    engine.admit(frame, now)

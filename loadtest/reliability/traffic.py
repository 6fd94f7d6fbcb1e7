"""Open-loop traffic by the client library and by raw stubs, and the history of it.

Frames are due on a clock of their own, whatever the service does. A `latest` stream that is behind skips what
it could not send in time; the others send late. An answer is written down when it was read, a frame when it
was handed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from rearview.contract.stream import DropPolicy

from loadtest.reliability.conversation import Conversation, LibraryConversation, Over, Told
from loadtest.reliability.history import Log, What
from loadtest.reliability.plan import ClientKind, Manners, Plan, StreamPlan, payload
from loadtest.reliability.raw_client import RawConversation

__all__ = ["Clock", "drive"]

DEADLINE_S = 40.0
"""After the last frame was due: a stream that has no end by then has none, and V1 says so."""
DAWDLE_S = 0.05
DAWDLE_EVERY = 4
LAG_INTERVAL_S = 0.02
LAG_SAMPLES = 50
REOPEN_WAIT_S = 0.1


class Clock:
    """The traffic's own time, and how late this process is."""

    def __init__(self, start_s: float | None = None) -> None:
        """`start_s`: when the traffic begins, on the monotonic clock; default: now."""
        self._start_s = time.monotonic() if start_s is None else start_s
        self.lag_s = 0.0
        """The worst lateness of late: what comes late may be this process's own fault."""
        self.is_over = False
        """Whether no more frames are due: streams finish, however many frames they were to have."""

    @property
    def now(self) -> float:
        """Seconds after the start of the traffic."""
        return time.monotonic() - self._start_s

    async def until(self, due_s: float) -> None:
        """Sleep until then."""
        await asyncio.sleep(max(0.0, due_s - self.now))

    async def watch(self) -> None:
        """Measure the lateness, for ever."""
        recent: list[float] = []
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_INTERVAL_S)
            late_s = max(0.0, time.monotonic() - before - LAG_INTERVAL_S)
            recent = [*recent[1 - LAG_SAMPLES :], late_s]
            self.lag_s = max(recent)


async def drive(plan: Plan, addresses: Sequence[str], log: Log, clock: Clock | None = None) -> None:
    """Make the traffic of a plan, to its end."""
    clock = clock or Clock()
    watch = asyncio.create_task(clock.watch())
    try:
        async with asyncio.TaskGroup() as streams:
            for stream in plan.streams:
                streams.create_task(_stream(stream, tuple(addresses), log, clock))
    finally:
        watch.cancel()


async def _stream(plan: StreamPlan, addresses: tuple[str, ...], log: Log, clock: Clock) -> None:
    """One stream, opened anew as long as it may, when it was ended by no doing of its own."""
    await clock.until(plan.start_s)
    first = 0
    while True:
        number = int(plan.key.partition("/")[2].partition(".")[0]) % len(addresses)
        one = OneStream(plan, log, clock, first)
        ways = {ClientKind.LIBRARY: LibraryConversation, ClientKind.RAW: RawConversation}
        try:
            async with asyncio.timeout(max(0.0, plan.due_s(plan.frames) - clock.now) + DEADLINE_S):
                is_over = await one.run(ways[plan.client](plan, addresses[number:] + addresses[:number]))
        except TimeoutError:
            return
        except Exception as error:  # The edge of a stream: it is a finding, not the end of the run.
            log(What.BROKEN, plan.key, text=f"the client: {type(error).__name__}: {error}"[:200])
            return
        first = max(one.next_index, round((clock.now - plan.start_s) * plan.rate) + 1)
        if is_over or plan.reopens <= 0 or first >= plan.frames:
            return
        await asyncio.sleep(REOPEN_WAIT_S)
        plan = plan.anew()


class OneStream:
    """One session of a client, and what it writes down."""

    def __init__(self, plan: StreamPlan, log: Log, clock: Clock, first: int = 0) -> None:
        """`first`: frame to begin with."""
        self._plan, self._log, self._clock = plan, log, clock
        self.next_index = first
        self._is_open = False

    async def run(self, conversation: Conversation) -> bool:
        """Speak to the end. False: it ended before its time, and by no doing of the client."""
        self._note(What.OPEN)
        try:
            async with conversation:
                self._is_open = True
                self._tell(conversation.opened)
                return await self._speak(conversation)
        except Over as over:
            what = What.ENDED if self._is_open else What.REFUSED
            self._note(what, **over.data, lag_s=round(self._clock.lag_s, 4))
            return False

    async def _speak(self, conversation: Conversation) -> bool:
        sender = asyncio.create_task(self._send_all(conversation))
        reader = asyncio.create_task(self._read_all(conversation))
        try:
            await asyncio.wait({sender, reader}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done() and sender.exception() is None and sender.result():
                self._note(What.LEFT)
                if self._plan.manners is Manners.VANISHES:
                    assert isinstance(conversation, RawConversation), "the library does not vanish"
                    await conversation.vanish()
                return True
            await reader  # It has the end of the stream, whatever the sender has met.
            self._note(What.ENDED, status="OK")
            return True
        finally:
            sender.cancel()
            reader.cancel()
            await asyncio.gather(sender, reader, return_exceptions=True)

    async def _send_all(self, conversation: Conversation) -> bool:
        """Returns whether the client leaves in the middle."""
        plan, clock = self._plan, self._clock
        controls = dict(plan.controls)
        leaves = plan.manners in (Manners.LEAVES, Manners.VANISHES)
        for index in range(self.next_index, plan.frames):
            if leaves and index >= plan.leaves_at:
                return True
            await clock.until(plan.due_s(index))
            if clock.is_over:
                break
            self.next_index = index + 1
            if index in controls:
                self._note(What.CONTROL, index)
                await conversation.control(controls[index])
            if plan.policy is DropPolicy.LATEST and clock.now > plan.due_s(index + 1):
                continue
            await conversation.send(index, payload(plan.key, index, plan.size))
            self._note(What.SENT, index, size=plan.size)
        if leaves:
            return True
        await conversation.finish()
        self._note(What.FINISHED)
        return False

    async def _read_all(self, conversation: Conversation) -> None:
        count = 0
        async for told in conversation.answers():
            self._tell(told)
            count += 1
            if self._plan.manners is Manners.DAWDLES and count % DAWDLE_EVERY == 0:
                await asyncio.sleep(DAWDLE_S)

    def _tell(self, told: Told) -> None:
        more: dict[str, Any] = {}
        if told.what in (What.RESULT, What.DROPPED):
            more["lag_s"] = round(self._clock.lag_s, 4)
            until_s = self._plan.token_until_s
            if until_s is not None and self._clock.now > until_s:
                more["token_age_s"] = round(self._clock.now - until_s, 3)
        self._note(told.what, told.index, **told.data, **more)

    def _note(self, what: What, index: int = -1, **data: Any) -> None:
        self._log(what, self._plan.key, index, **data)

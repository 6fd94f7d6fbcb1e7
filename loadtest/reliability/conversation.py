"""What traffic needs of a client, whichever it is, and the client library in that form."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from rearview.client import (
    Answer,
    Client,
    ControlApplied,
    Dropped,
    ImageFormat,
    Notice,
    Reconnect,
    Session,
    Translated,
)
from rearview.client.losses import Unreachable
from rearview.contract.watermark import Watermark, digest, settings_digest
from rearview.errors import RearviewError

from loadtest.reliability.history import What
from loadtest.reliability.plan import StreamPlan

__all__ = ["Conversation", "LibraryConversation", "Over", "Told", "result_of"]

GIVE_UP_S = 20.0
OPEN_S = 5.0


@dataclass(frozen=True, slots=True)
class Told:
    """What the service has said, as the history keeps it."""

    what: What
    index: int = -1
    data: Mapping[str, Any] = field(default_factory=dict)


class Over(Exception):
    """How the session, or its opening, has ended; not raised for an end with OK."""

    def __init__(
        self, status: str, reason: str | None, text: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(text)
        self.data = {"status": status, "reason": reason, "text": text, "retry_after_s": retry_after_s}


class Conversation(Protocol):
    """One session. Entering it opens the session; leaving it early ends it."""

    async def __aenter__(self) -> Self:
        """Raises Over if there is no session."""

    async def __aexit__(self, *exception: object) -> None: ...

    @property
    def opened(self) -> Told:
        """What the service has said at the open."""

    async def send(self, index: int, content: bytes) -> None:
        """Send a frame when there is credit. Raises Over."""

    async def control(self, seed: int) -> None:
        """Ask for another seed. Raises Over."""

    async def finish(self) -> None:
        """Half-close. Raises Over."""

    def answers(self) -> AsyncIterator[Told]:
        """What comes, to the end with OK. Raises Over."""


def result_of(data: bytes) -> dict[str, Any]:
    """What a picture says."""
    content, mark = Watermark.read(data)
    if mark is None:
        return {"session": "", "ordinal": -1, "settings": 0, "links": [], "content": digest(content).hex()}
    return {
        "session": mark.session_id,
        "ordinal": mark.ordinal,
        "settings": mark.settings,
        "links": [[link.step, link.count, link.chain.hex()] for link in mark.links],
        "content": digest(content).hex(),
    }


class LibraryConversation:
    """By `rearview.client`, which finds lost connections again by itself."""

    def __init__(self, plan: StreamPlan, addresses: tuple[str, ...]) -> None:
        """`addresses`: called in turn, from the first on."""
        self._plan = plan
        self._client = Client(
            addresses, plan.token, reconnect=Reconnect(open_timeout_s=OPEN_S, give_up_after_s=GIVE_UP_S)
        )
        self._session: Session | None = None

    async def __aenter__(self) -> Self:
        plan = self._plan
        await self._client.__aenter__()
        session = self._client.open(
            prompt="a",
            width=64,
            height=64,
            steps=plan.steps,
            drop_policy=plan.policy,
            frame_budget_s=plan.budget_s,
            frame_rate=plan.rate,
            answer_format=ImageFormat.OPAQUE,
        )
        try:
            self._session = await session.__aenter__()
        except RearviewError as error:
            await self._client.__aexit__(None, None, None)
            raise _over(error) from None
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._open.__aexit__(None, None, None)
        await self._client.__aexit__(None, None, None)

    @property
    def _open(self) -> Session:
        assert self._session is not None, "enter it first"
        return self._session

    @property
    def opened(self) -> Told:
        opened = self._open.opened
        return Told(
            What.OPENED, data={"session": opened.session_id, "settings": settings_digest(opened.settings)}
        )

    async def send(self, index: int, content: bytes) -> None:
        try:
            await self._open.send(content, index=index, format=ImageFormat.OPAQUE)
        except RearviewError as error:
            raise _over(error) from None

    async def control(self, seed: int) -> None:
        try:
            await self._open.control(seed=seed)
        except RearviewError as error:
            raise _over(error) from None

    async def finish(self) -> None:
        try:
            await self._open.finish()
        except RearviewError as error:
            raise _over(error) from None

    async def answers(self) -> AsyncIterator[Told]:
        try:
            async for answer in self._open:
                yield _told(answer)
        except RearviewError as error:
            raise _over(error) from None


def _told(answer: Answer) -> Told:
    match answer:
        case Translated():
            return Told(What.RESULT, answer.frame_index, result_of(answer.data))
        case Dropped():
            return Told(What.DROPPED, answer.frame_index, {"reason": answer.reason.name})
        case ControlApplied():
            return Told(What.APPLIED, answer.received_frames, {"settings": settings_digest(answer.settings)})
        case Notice():
            said = None if answer.continuity is None else answer.continuity.value
            return Told(What.NOTICE, data={"kind": answer.kind.value, "continuity": said})


def _over(error: RearviewError) -> Over:
    # What did not come from the service has no reason of its own.
    reason = None if isinstance(error, Unreachable) else error.reason.name
    return Over(error.status, reason, error.message, error.retry_after_s)

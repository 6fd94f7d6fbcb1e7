"""What a page is told of a tile's session, built from what the client says of it."""

from __future__ import annotations

from rearview.client import ControlApplied, Model, Notice, NoticeKind, Settings, SettingsChange
from rearview.client import Opened as SessionOpened
from rearview.contract.opening import OpenRequest
from rearview.errors import Reason
from rearview.studio.said import Applied, Opened, Turned
from rearview.studio.said import Notice as NoticeSaid
from rearview.studio.spoken import plain, spoken

__all__ = ["applied_said", "notice_said", "opened_said", "rejected_said", "turned_said"]

_NOTICES = {
    NoticeKind.MOVED: "the session goes on at other replicas",
    NoticeKind.DRAIN: "the service drains: the session goes on elsewhere when it stops",
    NoticeKind.RESIZED: "the next pictures have another size",
    NoticeKind.RESUMED: "the connection was lost, and the session goes on",
}


_SAID_OF_IT = ("settings", "width", "height", "method")
"""Of what was asked: `Opened` says itself what became of these."""


def opened_said(tile: int, opened: SessionOpened, asked: OpenRequest, model: Model, frame: int) -> Opened:
    """A tile's session is open, under what was asked; `frame`: the first of the page's that may go to it."""
    options = {name: value for name, value in spoken(asked).items() if name not in _SAID_OF_IT}
    return Opened(
        tile=tile,
        session_id=opened.session_id,
        width=opened.width,
        height=opened.height,
        settings=opened.settings,
        options=options,
        method=None if opened.method is None else plain(opened.method),
        advice=opened.advice,
        unknown_words=_unknown_words(opened.settings, model),
        warm_up_frames=opened.warm_up_frames,
        continuity=plain(opened.continuity),
        frame=frame,
        model=opened.model,
    )


def applied_said(tile: int, control_id: int, answer: ControlApplied, model: Model, frame: int) -> Applied:
    """A control was answered; `frame`: the first of the page's under it."""
    return Applied(
        tile=tile,
        id=control_id,
        frame=frame,
        settings=answer.settings,
        rejected=_refusal(answer),
        advice=answer.advice,
        unknown_words=_unknown_words(answer.settings, model),
    )


def turned_said(tile: int, asked: SettingsChange, answer: ControlApplied, model: Model, frame: int) -> Turned:
    """What a controller has turned was answered; `frame`: the first of the page's under it."""
    return Turned(
        tile=tile,
        frame=frame,
        asked={name: plain(value) for name, value in asked.named().items()},
        settings=answer.settings,
        rejected=_refusal(answer),
        advice=answer.advice,
        unknown_words=_unknown_words(answer.settings, model),
    )


def rejected_said(tile: int, control_id: int, reason: Reason, message: str) -> Applied:
    """A control that no session has answered."""
    rejected = _rejection(reason, message)
    return Applied(tile=tile, id=control_id, frame=None, settings=None, rejected=rejected)


def notice_said(tile: int, notice: Notice, frame: int) -> NoticeSaid:
    """Something to know; `frame`: the first of the page's that was not sent yet."""
    continuity = None if notice.continuity is None else plain(notice.continuity)
    text = _NOTICES.get(notice.kind, "")
    return NoticeSaid(tile=tile, kind=plain(notice.kind), message=text, continuity=continuity, frame=frame)


def _unknown_words(settings: Settings, model: Model) -> tuple[str, ...]:
    words = (word for one in settings.mix for word in model.unknown_words(one.prompt))
    return tuple(dict.fromkeys(words))


def _refusal(answer: ControlApplied) -> dict[str, str] | None:
    reason = answer.rejected_reason
    return None if reason is None else _rejection(reason, "the service refuses the change")


def _rejection(reason: Reason, message: str) -> dict[str, str]:
    return {"reason": reason.name, "message": message}

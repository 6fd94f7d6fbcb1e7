"""The table of a replica's sessions: epochs, orphans and adoptions, in virtual time and without links."""

from __future__ import annotations

import random

import pytest
from rearview.errors import NotFound, Reason, Refused
from rearview.replica import sessions as module
from rearview.replica.sessions import Held, Passed, Sessions
from rearview.transport.codec import FrameCodec

pytestmark = pytest.mark.unit

CODEC = FrameCodec(2, ("fused",))
GRACE_S = 60.0


def table(*held: tuple[str, int, str, str]) -> Sessions[str]:
    """Session, epoch, owner and next hop of each; links are strings."""
    sessions: Sessions[str] = Sessions(GRACE_S)
    for session_id, epoch, owner, following in held:
        sessions.begin(session_id, epoch)
        sessions.opened(Held(session_id, epoch, owner, following, CODEC))
    return sessions


def reason(refused: pytest.ExceptionInfo[Refused] | pytest.ExceptionInfo[NotFound]) -> Reason:
    return refused.value.reason


def test_only_the_epoch_that_is_known_gets_at_a_session() -> None:
    sessions = table(("s", 2, "owner", "next"))
    assert [sessions.get("s", epoch) is not None for epoch in (1, 2, 3)] == [False, True, False]
    assert sessions.get("other") is None
    assert not sessions.close("s", 1)
    assert not sessions.close("s", 3)
    assert len(sessions) == 1


def test_a_lost_owner_leaves_orphans_until_the_grace_is_over() -> None:
    sessions = table(("a", 1, "gone", "next"), ("b", 1, "stays", "next"), ("c", 1, "gone", "next"))
    assert sessions.owner_closed("gone", 100.0) == 2
    assert sessions.owner_closed("gone", 130.0) == 0
    assert sessions.orphans == ["a", "c"]
    assert sessions.overdue(100.0 + GRACE_S - 0.01) == []
    sessions.attach("a", 2, "new")
    assert [held.session_id for held in sessions.overdue(100.0 + GRACE_S)] == ["c"]
    assert sessions.close("c", 1)
    assert sessions.orphans == []
    assert len(sessions) == 2


def test_another_owner_needs_a_newer_epoch_and_fences_the_former_one() -> None:
    sessions = table(("s", 4, "old", "next"))
    with pytest.raises(Refused) as refused:
        sessions.attach("s", 3, "new")
    assert reason(refused) is Reason.TAKEN_OVER
    assert sessions.attach("s", 5, "new") == ("old", 4)
    assert sessions.get("s", 4) is None
    assert sessions.owner_closed("old", 0.0) == 0


def test_the_same_epoch_is_the_same_owner_and_nobody_is_fenced() -> None:
    sessions = table(("s", 4, "old link", "next"))
    sessions.owner_closed("old link", 0.0)
    assert sessions.attach("s", 4, "new link") is None
    assert sessions.attach("s", 5, "new link") is None, "a newer epoch of the same owner"
    assert sessions.orphans == []


def test_what_is_not_here_cannot_be_adopted() -> None:
    sessions = table(("s", 4, "old", "next"))
    sessions.begin("opening", 1)
    sessions.close("s", 4)
    for session_id, epoch in (("s", 4), ("s", 9), ("opening", 1), ("never", 1)):
        with pytest.raises(NotFound) as unknown:
            sessions.attach(session_id, epoch, "new")
        assert reason(unknown) is Reason.SESSION_UNKNOWN
    with pytest.raises(Refused) as refused:
        sessions.attach("s", 3, "new")
    assert reason(refused) is Reason.TAKEN_OVER


def test_a_lost_next_hop_is_told_of_its_sessions_alone_and_once() -> None:
    sessions = table(("a", 1, "owner", "gone"), ("b", 1, "owner", "stays"))
    assert [held.session_id for held in sessions.next_closed("gone")] == ["a"]
    assert sessions.next_closed("gone") == []
    held = sessions.get("a")
    assert held is not None
    assert held.next is None


def test_epochs_are_remembered_beyond_their_sessions_but_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_EPOCHS", 3)
    sessions = table(*((str(n), 5, "owner", "next") for n in range(5)))
    for n in range(5):
        assert sessions.close(str(n), 5)
    with pytest.raises(Refused):
        sessions.begin("4", 5)
    assert sessions.begin("0", 5) is None
    assert len(sessions._epochs) == 3


def test_sessions_that_are_here_fence_former_owners_however_many_came_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_EPOCHS", 3)
    sessions = table(("held", 5, "owner", "next"))
    sessions.begin("opening", 5)
    for n in range(5):
        sessions.begin(str(n), 1)
        sessions.close(str(n), 1)
    for session_id in ("held", "opening"):
        with pytest.raises(Refused) as refused:
            sessions.begin(session_id, 5)
        assert refused.value.metadata == {"epoch": "5"}
        with pytest.raises(Refused):
            sessions.attach(session_id, 4, "former owner")
        assert not sessions.close(session_id, 4)
    assert sessions.close("held", 5)
    with pytest.raises(Refused):
        sessions.begin("held", 5)


def test_a_close_overtakes_an_open() -> None:
    sessions = table()
    sessions.begin("s", 1)
    assert len(sessions) == 1
    assert sessions.close("s", 1)
    with pytest.raises(Refused):
        sessions.check_opening("s", 1)
    assert not sessions.close("s", 2)
    with pytest.raises(Refused):
        sessions.begin("s", 2)
    assert len(sessions) == 0


def test_a_newer_open_keeps_the_slot_that_an_older_one_gives_up() -> None:
    sessions = table()
    sessions.begin("s", 1)
    sessions.begin("s", 2)
    assert not sessions.abandon("s", 1)
    sessions.opened(Held("s", 2, "owner", "next", CODEC))
    assert not sessions.abandon("s", 1)
    assert len(sessions) == 1


@pytest.mark.parametrize("seed", range(5))
def test_ordinals_pass_once_in_whatever_order_and_leave_nothing_behind(seed: int) -> None:
    chance, passed = random.Random(seed), Passed()
    waiting = [n + chance.random() * 5 for n in range(200)]
    order = sorted(range(200), key=waiting.__getitem__)
    for count, ordinal in enumerate(order, 1):
        assert passed.add(ordinal)
        assert not passed.add(ordinal)
        assert len(passed.after) <= 6
        again = chance.sample(order[:count], min(count, 3))
        back = passed.without(again)
        assert all(back.add(one) for one in again)
        assert back == passed
    assert passed == Passed(199)


def test_an_acknowledgement_is_due_every_few_ordinals() -> None:
    held = Held("s", 1, "owner", "next", CODEC)
    due = []
    for ordinal in (0, 1, 3, 2, 4, 5, 6, 7, 8):
        held.left.add(ordinal)
        due.append(held.ack_due(4))
    assert due == [None, None, None, 3, None, None, None, 7, None]


def test_settings_are_remembered_up_to_a_bound() -> None:
    held = Held("s", 1, "owner", "next", CODEC)
    for version in range(200):
        held.announced(version, {"prompt": str(version)})
    assert list(held.settings) == list(range(200 - module.REMEMBERED_SETTINGS, 200))


def test_frames_that_never_came_are_remembered_up_to_a_bound_and_until_they_come_after_all() -> None:
    held = Held("s", 1, "owner", "next", CODEC)
    held.dropped_before([(place, 2 * place, 5) for place in range(200)])
    assert list(held.dropped) == list(range(200 - module.REMEMBERED_DROPS, 200))
    assert held.dropped[199] == (398, 5)
    held.came(199, 398, "ingress")
    held.dropped_before([(198, 396, 3)])
    assert (held.place, held.dropped[198], 199 in held.dropped) == (199, (396, 3), False)

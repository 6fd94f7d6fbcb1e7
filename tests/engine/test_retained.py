"""What is kept until it is acknowledged: by session, by tenant, and what goes first where it is too much."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rearview.contract.chain import Span
from rearview.contract.frame import ANSWER, Frame
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Engine
from rearview.engine.retained import FRAME_BYTES, Retained, Retention
from support.frames import entering
from support.tiny import whole_chain
from support.toy import TOY_STEPS, ToyModel, admit, drain, expect, toy_engine, toy_payload, toy_spec

pytestmark = pytest.mark.unit

EACH = FRAME_BYTES + toy_payload("a", 0).nbytes
LIMIT = 12 * EACH


def toy(session_id: str, tenant: str = "t", limit: int = LIMIT) -> SessionSpec:
    return replace(toy_spec(session_id, tenant=tenant), max_kept_bytes=limit)


def kept(engine: Engine, session_id: str) -> list[int]:
    return [frame.ordinal for frame in engine._sessions[session_id].flight.retained.all()]


def bytes_of(engine: Engine, *session_ids: str) -> int:
    return sum(engine._sessions[each].flight.retained.num_bytes for each in session_ids)


def test_who_never_acknowledges_loses_its_own_oldest_and_nobody_elses() -> None:
    """Three of one tenant, one of which acknowledges; and one of another tenant, which never does."""
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), max_batch=4)
    for spec in (toy("polite"), toy("greedy"), toy("other", "u", 1 << 20), toy("rude")):
        engine.open(spec)
    left: list[Frame[torch.Tensor]] = []
    for ordinal in range(20):
        for name in ("polite", "greedy", "rude", "other"):
            admit(engine, name, ordinal)
        left += [frame for frame in drain(engine) if frame.session_id == "polite"]
        assert bytes_of(engine, "polite", "greedy", "rude") <= LIMIT
        if ordinal % 4 == 3:
            engine.retained.acknowledge("polite", ordinal - 1)
        assert kept(engine, "polite") == list(range(max(0, 4 * ((ordinal + 1) // 4) - 1), ordinal + 1))
    expect(left, toy("polite"), range(20))
    assert kept(engine, "other") == list(range(20))
    for name in ("greedy", "rude"):
        last = kept(engine, name)
        assert last == list(range(last[0], 20)), "the oldest go first"
        assert len(last) >= 3


def test_what_goes_unacknowledged_is_counted_once_and_what_is_acknowledged_is_not() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy("a"))
    admit(engine, "a", *range(10))
    assert sum(engine.step(0.0).forgotten for _ in iter(lambda: engine.has_work, False)) == 0
    engine.retained.acknowledge("a", 7)
    admit(engine, "a", *range(10, 24))
    assert sum(engine.step(0.0).forgotten for _ in iter(lambda: engine.has_work, False)) == 4
    assert kept(engine, "a") == list(range(12, 24))


def test_a_session_that_ends_gives_its_room_back() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    for name in ("a", "b"):
        engine.open(toy(name))
        admit(engine, name, *range(10))
        drain(engine)
    assert len(kept(engine, "a")) == len(kept(engine, "b")) == 6
    engine.close("a")
    admit(engine, "b", *range(10, 14))
    drain(engine)
    assert len(kept(engine, "b")) == 10
    engine.close("b")
    assert not engine.retained._tenants
    assert not engine.retained._sessions


def test_a_session_that_does_not_fit_leaves_nothing() -> None:
    here = toy_engine(ToyModel(), Span("first", whole_chain(TOY_STEPS).operators[:2]))
    there = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    here.open(toy("a"))
    here.freeze("a")
    with pytest.raises(ValueError, match="without"):
        there.import_(here.export("a"))
    assert not there.retained._sessions


def test_within_a_chain_replicas_acknowledge_and_tenants_have_no_limit() -> None:
    engine = toy_engine(ToyModel(), Span("first", whole_chain(TOY_STEPS).operators[:2]))
    engine.open(toy("a", limit=EACH))
    admit(engine, "a", *range(10))
    drain(engine)
    assert kept(engine, "a") == list(range(10))


def test_an_answer_takes_the_place_of_its_pixels_until_it_is_acknowledged() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy("a"))
    admit(engine, "a", *range(3))
    drain(engine)
    answer = replace(entering("a", 1, None), planes={ANSWER: torch.zeros(3, dtype=torch.uint8)})
    engine.retained.keep(answer)
    engine.retained.keep(replace(answer, session_id="gone"))
    assert engine._sessions["a"].flight.retained.get(1) is answer
    assert bytes_of(engine, "a") == 2 * EACH + FRAME_BYTES + 3
    engine.retained.acknowledge("a", 1)
    engine.retained.keep(answer)
    assert kept(engine, "a") == [2], "words over two links may overtake each other"
    assert bytes_of(engine, "a") == EACH


@given(st.data())
def test_an_even_share_is_never_lost_to_others(data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, 40)) * 64 + 4 * FRAME_BYTES
    retention = Retention(whole_chain(TOY_STEPS), 1 << 20)
    sessions = [retention.open(toy(str(number), limit=limit)) for number in range(4)]
    owed: list[dict[int, int]] = [{} for _ in sessions]
    forgotten = 0
    for ordinal in range(40):
        number = data.draw(st.integers(0, 3))
        retained, size = sessions[number], data.draw(st.integers(0, 400))
        before = [{frame.ordinal for frame in each.all()} for each in sessions]
        held = [each.num_bytes for each in sessions]
        retained.keep(entering("a", ordinal, torch.zeros(size, dtype=torch.uint8)))
        owed[number][ordinal] = size + FRAME_BYTES
        assert sum(each.num_bytes for each in sessions) <= limit
        for other, had, num_bytes in zip(sessions, before, held, strict=True):
            now = {frame.ordinal for frame in other.all()}
            if other is not retained and num_bytes <= limit / 4:
                assert now == had
            assert all(max(had - now) < ordinal for _ in now if had - now), "the oldest first"
        if data.draw(st.booleans()):
            retained.acknowledge(ordinal)
            owed[number].clear()
    for retained, due in zip(sessions, owed, strict=True):
        assert retained.num_bytes == sum(due[frame.ordinal] for frame in retained.all())
        forgotten += len(due) - len(retained.all())
    assert retention.take_forgotten() >= forgotten
    assert retention.take_forgotten() == 0


def test_alone_a_session_has_its_own_limit() -> None:
    retained = Retained(3 * FRAME_BYTES)
    for ordinal in range(5):
        retained.keep(entering("a", ordinal, None))
    assert [frame.ordinal for frame in retained.all()] == [2, 3, 4]
    retained.clear()
    assert retained.num_bytes == 0


def test_the_newest_outputs_are_kept_however_large_they_are() -> None:
    """A frame with pictures for its controls may be larger than all that a session may keep."""
    gone: list[int] = []
    retained = Retained(LIMIT, on_forgotten=lambda: gone.append(1))
    for ordinal in range(4):
        retained.keep(Frame("a", ordinal, {ANSWER: torch.zeros(2 * LIMIT, dtype=torch.uint8)}))
    assert [frame.ordinal for frame in retained.all()] == [2, 3]
    assert len(gone) == 2
    retained.keep(Frame("a", 4, {ANSWER: torch.zeros(1, dtype=torch.uint8)}))
    retained.keep(Frame("a", 5, {ANSWER: torch.zeros(1, dtype=torch.uint8)}))
    assert [frame.ordinal for frame in retained.all()] == [4, 5]

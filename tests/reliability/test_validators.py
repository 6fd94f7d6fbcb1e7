"""Validators on hand-written histories: each finds its own kind of wrong, and nothing in a good one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rearview.contract.stream import DropPolicy
from rearview.contract.watermark import digest, first_chain, next_chain

from loadtest.reliability.history import Event, Fault, Log, Run, Snapshot, What, read_history
from loadtest.reliability.plan import Expected, Plan, StreamPlan, make_plan, payload, token_of
from loadtest.reliability.validators import VALIDATORS, validate

pytestmark = pytest.mark.unit

SESSION = "0" * 31 + "1"
OTHER = "0" * 31 + "2"
SIZE = 64
KEY = "alpha/0"
SETTINGS = 7
FRAMES = 6


class History:
    """Writes a good history, with room for what is wrong."""

    def __init__(self, **fields: Any) -> None:
        self.plan = StreamPlan(KEY, "alpha", token_of("alpha"), size=SIZE, **fields)
        self.events: list[Event] = []
        self.now = 100.0
        self.ordinal = 0
        self.counts = dict.fromkeys((0, 1), 0)
        self.chains = {step: first_chain(SESSION, step) for step in (0, 1)}

    def note(self, what: What, index: int = -1, after_s: float = 0.01, **data: Any) -> None:
        self.now += after_s
        self.events.append(Event(what, KEY, self.now, index, data))

    def open(self) -> History:
        self.note(What.OPEN)
        self.note(What.OPENED, session=SESSION, settings=SETTINGS)
        return self

    def send(self, *indices: int) -> History:
        for index in indices:
            self.note(What.SENT, index, size=SIZE)
        return self

    def commit(self, index: int, steps: Sequence[int] = (0, 1)) -> int:
        for step in steps:
            self.chains[step] = next_chain(
                self.chains[step], self.ordinal, SETTINGS, payload(KEY, index, SIZE)
            )
            self.counts[step] += 1
        self.ordinal += 1
        return self.ordinal - 1

    def forget(self, steps: Sequence[int] = (0, 1)) -> History:
        for step in steps:
            self.chains[step], self.counts[step] = first_chain(SESSION, step), 0
        return self

    def result(self, *indices: int, **wrong: Any) -> History:
        for index in indices:
            ordinal = self.commit(index)
            data = {
                "session": SESSION,
                "ordinal": ordinal,
                "settings": SETTINGS,
                "content": digest(payload(KEY, index, SIZE)).hex(),
                "links": [[step, self.counts[step], self.chains[step].hex()] for step in (0, 1)],
            }
            self.note(What.RESULT, index, **{**data, **wrong})
        return self

    def drop(self, index: int, reason: str) -> History:
        self.note(What.DROPPED, index, reason=reason)
        return self

    def notice(self, continuity: str) -> History:
        self.note(What.NOTICE, kind="moved", continuity=continuity)
        return self

    def end(
        self, status: str = "OK", reason: str | None = None, text: str = "", after_s: float = 0.01
    ) -> History:
        if status == "OK":
            self.note(What.FINISHED)
        self.note(What.ENDED, after_s=after_s, status=status, reason=reason, text=text)
        return self

    def run(self, **fields: Any) -> Run:
        results = sum(event.what is What.RESULT for event in self.events)
        drops = sum(event.what is What.DROPPED for event in self.events)
        end = Snapshot(frames={"translated": results, "dropped": drops})
        return Run(Plan(streams=(self.plan,)), tuple(self.events), **{"end": end, **fields})


def good(frames: int = FRAMES) -> History:
    return History().open().send(*range(frames)).result(*range(frames))


def found(run: Run) -> dict[str, list[str]]:
    by_name: dict[str, list[str]] = {}
    for each in validate(run):
        by_name.setdefault(each.validator, []).append(each.text)
    return by_name


def test_a_good_history_has_nothing_wrong() -> None:
    assert found(good().end().run()) == {}
    assert list(VALIDATORS) == [f"V{number}" for number in range(1, 11)]


def late_ones() -> History:
    """A frame dropped late has its ordinal, and is in the past; one superseded has none."""
    history = History().open().send(*range(FRAMES)).result(0)
    history.commit(1)
    return history.drop(1, "LATE").drop(2, "SUPERSEDED").result(3, 4, 5)


def lost_in_step_1() -> History:
    """A fault took a frame between the steps."""
    history = History().open().send(*range(FRAMES)).result(0)
    history.commit(1, steps=[0])
    return history.drop(1, "FAULT").result(2, 3, 4, 5)


GOOD: dict[str, Callable[[], Run]] = {
    "dropped frames, with and without an ordinal": lambda: late_ones().end().run(),
    "a frame that only one step has seen": lambda: lost_in_step_1().end().run(),
    "an announced reset": lambda: (
        History().open().send(0, 1, 2).result(0).notice("reset").forget().result(1, 2).end().run()
    ),
    "a reset of one step, announced": lambda: (
        History().open().send(0, 1, 2).result(0).notice("approximate").forget([1]).result(1, 2).end().run()
    ),
    "a move that keeps its promise": lambda: (
        History().open().send(0, 1).result(0).notice("exact").result(1).end().run()
    ),
    "an announced end after a fault": lambda: (
        History()
        .open()
        .send(0, 1)
        .result(0)
        .end("UNAVAILABLE", "REPLICA_LOST")
        .run(faults=[Fault("kill", "span-0", 100.0)])
    ),
    "a client that leaves": lambda: _left(History().open().send(0, 1).result(0)).run(),
}


def _left(history: History) -> History:
    history.note(What.LEFT)
    return history


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_found_in(name: str) -> None:
    assert found(GOOD[name]()) == {}


def swapped() -> History:
    return History().open().send(0, 1, 2).result(0, 2, 1)


def stranger() -> Run:
    history = History(expected=Expected.REFUSED).open().send(0).result(0).end()
    return history.run()


def refused(after_s: float, **data: Any) -> Run:
    history = History(expected=Expected.EITHER)
    history.note(What.OPEN)
    history.note(
        What.REFUSED,
        after_s=after_s,
        **{"status": "RESOURCE_EXHAUSTED", "reason": "NO_CAPACITY", "text": "", **data},
    )
    return history.run()


def slow(policy: DropPolicy) -> Run:
    history = History(policy=policy).open().send(0)
    history.now += 1.0
    return history.result(0).end().run()


def twice(continuity: str) -> Run:
    """A notice counts for one break only."""
    history = History().open().send(0, 1, 2, 3).result(0).notice(continuity).forget().result(1)
    return history.forget().result(2, 3).end().run()


HELD = Snapshot({"a": 1}, 1, {"p": 30}, {"p": 30}, {"translated": FRAMES})
BASE = Snapshot({"a": 0}, 0, {"p": 20}, {"p": 20})
HURT = [Fault("kill", "span-0", 100.0)]
BAD: dict[str, tuple[Callable[[], Run], str, str]] = {
    "a frame without an outcome": (
        lambda: History().open().send(0, 1).result(0).end().run(),
        "V1",
        "no outcome",
    ),
    "a stream without an end": (lambda: good().run(), "V1", "never ended"),
    "a half-close without OK": (lambda: _unended().run(faults=[]), "V1", "all is answered"),
    "an end that takes long": (lambda: good().end(after_s=9.0).run(), "V1", "s later"),
    "silence after a fault": (lambda: good().run(faults=HURT), "V1", "never ended"),
    "two outcomes out of order": (lambda: swapped().end().run(), "V2", "came after"),
    "a second outcome": (lambda: good().drop(FRAMES - 1, "FAULT").end().run(), "V3", "second outcome"),
    "an outcome of nothing": (lambda: good().drop(99, "FAULT").end().run(), "V3", "never sent"),
    "another session's picture": (
        lambda: History().open().send(0).result(0, session=OTHER).end().run(),
        "V4",
        "another session",
    ),
    "another frame's picture": (
        lambda: History().open().send(0).result(0, content="00").end().run(),
        "V4",
        "another picture",
    ),
    "an ordinal twice": (lambda: good(2).send(7).result(7, ordinal=1).end().run(), "V4", "has ordinal"),
    "old settings": (
        lambda: History().open().send(0).result(0, settings=8).end().run(),
        "V4",
        "other settings",
    ),
    "a picture over its budget": (lambda: slow(DropPolicy.DEADLINE), "V5", "are allowed"),
    "a slow refusal": (lambda: refused(0.5, retry_after_s=1.0), "V6", "refused after"),
    "a refusal without a hint": (lambda: refused(0.01), "V6", "not told when"),
    "a slot": (lambda: good().end().run(base=BASE, end=HELD), "V7", "slots are held"),
    "a lease": (lambda: good().end().run(base=BASE, end=HELD), "V7", "sessions are kept"),
    "tasks": (lambda: good().end().run(base=BASE, end=HELD), "V7", "30 tasks"),
    "descriptors": (lambda: good().end().run(base=BASE, end=HELD), "V7", "30 fds"),
    "a silent reset": (lambda: good(3).forget().send(7).result(7).end().run(), "V8", "its past began anew"),
    "a silent reset of one step": (
        lambda: good(3).forget([1]).send(7).result(7).end().run(),
        "V8",
        "step 1 knows 1 frames",
    ),
    "a false EXACT": (
        lambda: good(3).notice("exact").forget().send(7).result(7).end().run(),
        "V8",
        "said EXACT",
    ),
    "a second reset under one notice": (lambda: twice("reset"), "V8", "its past began anew"),
    "a past that never was, announced": (lambda: _corrupt().run(), "V8", "never was"),
    "a past without one frame": (lambda: _skipped().run(), "V8", "never was"),
    "counters that say more": (
        lambda: good().end().run(end=Snapshot(frames={"translated": FRAMES + 1})),
        "V9",
        "translated",
    ),
    "counters that say less": (
        lambda: good().end().run(end=Snapshot(frames={"translated": FRAMES - 1})),
        "V9",
        "translated",
    ),
    "an unlisted status": (lambda: good().end("INTERNAL", "INTERNAL").run(), "V10", "INTERNAL"),
    "a status without a reason": (lambda: good().end("UNKNOWN").run(faults=HURT), "V10", "UNKNOWN"),
    "a status that is not its reason's": (
        lambda: good().end("INTERNAL", "REPLICA_LOST").run(faults=HURT),
        "V10",
        "has UNAVAILABLE",
    ),
    "a loss without a fault": (
        lambda: good().end("UNAVAILABLE", "REPLICA_LOST").run(),
        "V10",
        "REPLICA_LOST",
    ),
    "a traceback": (
        lambda: (
            good().end("UNAVAILABLE", "REPLICA_LOST", "Traceback (most recent call last)").run(faults=HURT)
        ),
        "V10",
        "its end says",
    ),
    "a token worth nothing": (stranger, "V10", "worth nothing"),
    "a token that ended": (
        lambda: History(token_until_s=1.0).open().send(0).result(0, token_age_s=6.0).end().run(),
        "V10",
        "token's end",
    ),
}


def _unended() -> History:
    history = good()
    history.note(What.FINISHED)
    history.note(What.ENDED, status="DEADLINE_EXCEEDED", reason="IDLE", text="")
    return history


def _corrupt() -> History:
    history = good(3).notice("reset")
    history.chains[0] = bytes(16)
    return history.send(7).result(7).end()


def _skipped() -> History:
    """Step 0 has not seen frame 2, which was answered."""
    history = History().open().send(*range(5)).result(0, 1)
    kept, count = history.chains[0], history.counts[0]
    history.result(2)
    history.chains[0], history.counts[0] = kept, count
    return history.result(3, 4).end()


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_found(name: str) -> None:
    make, validator, text = BAD[name]
    seen = found(make())
    assert any(text in each for each in seen.get(validator, [])), seen


def test_a_history_survives_the_death_of_who_wrote_it(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w", buffering=1, encoding="utf-8") as file:
        log = Log(file)
        log(What.OPEN, KEY)
        log(What.SENT, KEY, 3, size=64)
        file.write('{"what":"resu')
    (first, second) = read_history([tmp_path / "a.jsonl"])
    assert (first.what, second.what, second.index, second.data) == (What.OPEN, What.SENT, 3, {"size": 64})


def test_a_plan_is_made_again_from_its_seed() -> None:
    assert make_plan(3) == make_plan(3) != make_plan(4)
    plan = make_plan(3)
    assert plan.of("alpha/0.2") == plan.streams[0]
    assert replace(plan.streams[0], reopens=1).anew().key == "alpha/0.1"

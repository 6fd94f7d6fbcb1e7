"""Replicas kept in the order of placement: the same answers as a look at all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.contract.cost import FrameCost
from rearview.contract.lease import Load, Usage
from rearview.control.placement import Asked, Full, Replica, place
from rearview.control.ranked import Ranked

pytestmark = pytest.mark.unit

SPANS = ("encode", "denoise")
NAMES = [f"{span}-{number}" for span in SPANS for number in range(5)]
COST = FrameCost(512 * 512, 1e-3, 2e-3, 3e-3, (0, 1))
LOADS = [Load.of(rate, 512, 512) for rate in (0.0, 5.0, 15.0, 60.0)]

some = st.frozensets(st.sampled_from(NAMES), max_size=3)
wanted = st.builds(
    Asked,
    load=st.sampled_from(LOADS),
    max_steps=st.integers(1, 2),
    max_load=st.sampled_from([None, 0.1, 0.5, 1.0]),
    goes_on=st.booleans(),
    spares=some,
    taken=some,
    leaving=some,
)
costs = st.sampled_from([COST] * 9 + [replace(COST, step_s=0.02)] * 3)


@st.composite
def described(draw: st.DrawFn, name: str, *, tells: bool) -> Replica:
    slots = draw(st.integers(0, 3))
    return Replica(
        name,
        name.split("-")[0],
        f"tcp://{name}",
        draw(st.sampled_from(["here", "there"])),
        draw(st.integers(0, slots)),
        slots,
        draw(costs) if tells or draw(st.booleans()) else None,
        draw(st.sampled_from([0.0, 0.01, 0.3, 0.9])),
        draw(st.sampled_from([0.0, LOADS[2].pixels_per_s])),
    )


def answer(ask: object) -> object:
    """The lane, or how full it is."""
    try:
        return ask()  # type: ignore[operator]
    except Full as full:
        return full.metadata, full.is_certain, full.retry_after_s


@given(st.data(), st.booleans())
def test_after_every_change_the_answer_is_that_of_placement(data: st.DataObject, tells: bool) -> None:
    ranked = Ranked(SPANS)
    replicas: dict[str, Replica] = {}
    usage: dict[str, Usage] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        for name in data.draw(st.lists(st.sampled_from(NAMES), max_size=4)):
            replicas[name] = data.draw(described(name, tells=tells))
        for name in data.draw(st.lists(st.sampled_from(NAMES), max_size=4)):
            usage[name] = Usage(data.draw(st.integers(0, 3)), data.draw(st.sampled_from(LOADS)))
        for name in data.draw(some):
            (replicas if data.draw(st.booleans()) else usage).pop(name, None)
        asked = data.draw(wanted)
        fast = answer(lambda asked=asked: ranked.place(replicas, usage, asked))
        assert fast == answer(lambda asked=asked: place(SPANS, replicas.values(), usage, asked))


def test_only_what_has_changed_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = {name: Replica(name, name.split("-")[0], name, "here", 2, 2, COST) for name in NAMES}
    usage: Mapping[str, Usage] = {name: Usage(1, LOADS[1]) for name in NAMES}
    ranked, loaded = Ranked(SPANS), list[str]()
    load = Replica.load
    monkeypatch.setattr(
        Replica, "load", lambda self, used: (loaded.append(self.replica_id), load(self, used))[1]
    )
    ranked.place(replicas, usage)
    assert sorted(loaded) == sorted(NAMES)
    loaded.clear()
    told = {name: Usage(each.sessions, each.load) for name, each in usage.items()} | {
        NAMES[3]: Usage(2, LOADS[1])
    }
    ranked.place({**replicas, NAMES[1]: replace(replicas[NAMES[1]])}, told)
    assert sorted(loaded) == [NAMES[1], NAMES[3]]

"""What a service tells of its start: of one process at a time."""

from __future__ import annotations

import pytest
from rearview.local.places import Place
from rearview.local.speaker import Speaker
from rearview.local.words import Card

pytestmark = pytest.mark.unit


def starting(*names: str) -> list[Place]:
    places = [Place(name, number) for number, name in enumerate(names)]
    for place in places:
        place.filled(f"{place.name}#0", 0.0)
    return places


def test_one_process_is_heard_until_it_is_ready_and_nothing_is_told_twice() -> None:
    speaker, (encode, decode) = Speaker(), starting("encode", "decode")
    assert speaker.hears(encode, "encode: 3 s left")
    assert not speaker.hears(decode, "decode: 4 s left")
    assert not speaker.hears(encode, "encode: 3 s left")
    assert speaker.hears(encode, "encode: 2 s left")
    encode.heard(Card({}, healthy=True), 1.0)
    assert speaker.hears(decode, "decode: 3 s left")


def test_one_that_has_ended_is_not_waited_for() -> None:
    speaker, (encode, decode) = Speaker(), starting("encode", "decode")
    assert speaker.hears(encode, "encode: 3 s left")
    encode.ended(1.0)
    assert speaker.hears(decode, "decode: 3 s left")

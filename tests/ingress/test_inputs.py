"""What a lane was sent is kept without a gap, and counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.settings import Settings
from rearview.contract.stream import ImageFormat
from rearview.ingress.book import Receipt
from rearview.ingress.inputs import Input, Inputs
from rearview.ingress.intake import Admitted, ControlIn, FrameIn, Waiting
from rearview.ingress.ordinals import Numbers

pytestmark = pytest.mark.unit


def sent(ordinal: int, size: int = 10, *, is_filler: bool = False) -> Input:
    frame = FrameIn(ordinal, (0, 0), ImageFormat.OPAQUE, b"x" * size, 0.0)
    waiting = Waiting(frame, Receipt(ordinal, ordinal, (0, 0), 0.0), Settings())
    numbers = Numbers(range(0), range(0), ordinal, False)
    return Input(ordinal, Admitted(waiting, numbers, Settings(), 0, 0.0, 0.1), is_filler)


def test_what_was_sent_is_kept_until_it_is_forgotten() -> None:
    inputs = Inputs(5, max_bytes=25)
    for ordinal in range(5, 9):
        inputs.add(sent(ordinal, is_filler=ordinal == 6))
    assert (inputs.first, inputs.following, inputs.num_bytes, inputs.full()) == (5, 9, 30, True)
    assert [each.ordinal for each in inputs.since(7)] == [7, 8]
    inputs.forget(7)
    assert (inputs.first, inputs.following, inputs.num_bytes, inputs.full()) == (7, 9, 20, False)
    inputs.forget(99)
    assert (inputs.first, inputs.following, inputs.num_bytes) == (9, 9, 0)
    assert inputs.since(9) == ()
    inputs.add(sent(9))
    assert inputs.first == 9


def test_what_came_for_controls_counts_too() -> None:
    kept = sent(0)
    frame = replace(kept.admitted.waiting.frame, controls=(ControlIn("pose", ImageFormat.JPEG, b"y" * 7),))
    waiting = replace(kept.admitted.waiting, frame=frame)
    inputs = Inputs(0, max_bytes=100)
    inputs.add(replace(kept, admitted=replace(kept.admitted, waiting=waiting)))
    assert inputs.num_bytes == 17


def test_a_gap_is_a_fault() -> None:
    inputs = Inputs(0, max_bytes=10)
    inputs.add(sent(0))
    with pytest.raises(AssertionError, match="ordinal 2 after 0"):
        inputs.add(sent(2))
    inputs.forget(1)
    with pytest.raises(AssertionError, match="ordinal 0 is not kept"):
        inputs.since(0)

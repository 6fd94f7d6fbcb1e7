"""The bench of LoRA switches: what it asks for, and what it counts."""

from __future__ import annotations

import pytest
from rearview.contract.stream import ImageFormat
from support.raw_stream import running

from loadtest.adapter_switches import EVERY, changes, figures, measure

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

SETS = {"ink": [{"path": "owner/name/ink.safetensors"}], "oil": [{"path": "owner/name/oil.safetensors"}]}
"""Of a model that loads nothing."""


@pytest.mark.parametrize("kind", ["weights", "sets"])
async def test_every_picture_is_counted_by_what_came_before_it(kind: str) -> None:
    async with running(model={"adapters": SETS}) as service:
        found = await measure(service.address, kind, [b"any"], 4 * EVERY, 64, ImageFormat.OPAQUE)
    assert [len(found[name]) for name in ("switched", "others")] == [2, 2 * (EVERY - 1)]


async def test_a_frame_without_a_picture_ends_the_bench(capsys: pytest.CaptureFixture[str]) -> None:
    async with running(model={"adapters": SETS}) as service:
        with pytest.raises(SystemExit):
            await measure(service.address, "sets", [b"no picture"], 4 * EVERY, 64)
    assert "frame 0 was dropped" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["weights", "sets"])
def test_each_switch_asks_for_something_else_than_the_one_before(kind: str) -> None:
    asked = [changes(kind, number) for number in range(3)]
    assert asked[0] == asked[2] != asked[1]


def test_a_switch_is_judged_by_what_it_takes_more_than_other_pictures() -> None:
    slow = {"switched": [0.2, 0.3, 0.2], "others": [0.1, 0.1, 0.1, 0.25]}
    quick = {"switched": [0.12, 0.11], "others": [0.1, 0.1]}
    judged = figures({"weights": slow, "sets": quick}, "here")
    assert [figure.value for figure in judged] == pytest.approx([3.0, 1.5, 100.0, 0.45, 0.6, 100.0])
    assert [figure.met for figure in judged] == [False, None, None, True, None, None]

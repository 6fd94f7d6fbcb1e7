"""What a replica counts of the sessions that it holds."""

from __future__ import annotations

import pytest
from rearview.contract.cost import FrameCost
from rearview.contract.lease import Load
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.replica.admitted import Admitted, Declared
from rearview.transport.wire import encode_settings

pytestmark = pytest.mark.unit

SPEC = SessionSpec("s", 64, 64, 1)
COST = FrameCost(64 * 64, 0.0, 0.01, 0.01, (0,))


def test_frames_of_another_size_count_by_their_pixels_there_and_back() -> None:
    admitted = Admitted("fused", None)
    admitted.cost = COST
    admitted.add(Declared(SPEC, Load.of(30.0, 64, 64), Settings(), goes_on=False))
    shares = []
    for width, height in ((128, 64), (0, 0), (64, 32), (0, 0)):
        admitted.changed("s", Settings(width=width, height=height))
        shares.append(admitted.describe()["share"])
    assert shares == pytest.approx([0.6, 0.3, 0.15, 0.3])


def test_a_session_that_comes_in_another_size_has_declared_that_size() -> None:
    newest = Settings(width=128)
    told = {"frames_per_s": 30.0, "pixels_per_s": Load.of(30.0, 128, 64).pixels_per_s, "goes_on": True}
    declared = Declared.told(SPEC, {"declared": {**told, "settings": encode_settings(newest)}})
    assert declared.share(COST) == pytest.approx(0.6)
    assert declared.under(Settings()).share(COST) == pytest.approx(0.3)

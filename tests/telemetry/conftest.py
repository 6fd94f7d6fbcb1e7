"""What the tests of telemetry share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rearview.engine.networks.model import Model


@pytest.fixture
def plant_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[Model], None]:
    """Make stages run a model of the test's own."""

    def plant(model: Model) -> None:
        monkeypatch.setattr("rearview.replica.build.load_model", lambda *_: model)

    return plant

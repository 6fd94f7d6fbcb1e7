"""A second Ctrl-C while a start that was interrupted is being cleaned up leaves nothing half stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from rearview.config import load_config
from rearview.local import LocalService

pytestmark = pytest.mark.unit


class Interrupted(LocalService):
    """One whose start is interrupted, and whose stop is, too."""

    address = ""
    metrics_urls: Sequence[str] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    is_stopped = False

    def _start(self) -> None:
        raise KeyboardInterrupt

    def stop(self) -> None:
        os.kill(os.getpid(), self.again)
        self.is_stopped = True

    again = signal.SIGINT


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM])
def test_what_an_interrupted_start_began_is_stopped_whatever_comes(
    again: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("again")

    monkeypatch.setattr("rearview.local.service.remove_leftovers", lambda: 0)
    service = Interrupted(load_config({"model": {"checkpoint": "null"}, "ingress": {"port": 0}}))
    service.again = again
    former = signal.signal(again, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            service.__enter__()
        assert service.is_stopped
        assert str(caught.value) == ""
        assert signal.getsignal(again) is interrupt
    finally:
        signal.signal(again, former)

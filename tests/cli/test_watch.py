"""When Ray's control service counts as gone for good."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from rearview.cli.watch import PATIENCE_S, REFUSALS, Watch

pytestmark = pytest.mark.integration


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def answer_one(server: socket.socket) -> threading.Thread:
    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(64)
            connection.sendall(bytes(3) + b"\x04" + bytes(5))

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_one_that_has_died_is_gone_after_a_few_looks(listener: socket.socket) -> None:
    watch = Watch(address(listener), Time())
    listener.close()
    assert [watch.is_gone() for _ in range(REFUSALS)] == [False] * (REFUSALS - 1) + [True]


def test_one_that_is_silent_is_given_time(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rearview.cli.watch.ANSWER_S", 0.05)
    time = Time()
    watch = Watch(address(listener), time)  # It listens, and nobody reads what comes.
    for _ in range(3):
        time.now += PATIENCE_S / 4
        assert not watch.is_gone()
    time.now += PATIENCE_S
    assert watch.is_gone()


def test_one_that_answers_again_is_not_gone(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    watch = Watch(address(listener), time)
    for _ in range(3):
        time.now += PATIENCE_S - 1
        thread = answer_one(listener)
        assert not watch.is_gone()
        thread.join()

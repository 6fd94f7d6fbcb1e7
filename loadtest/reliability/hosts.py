"""Two hosts on this machine: a network namespace besides this one, with a cable between them that can be cut
or made slow. Where the kernel or its rights give none, relays stand for the cable.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol, Self

from loadtest.reliability.relay import Relay, Way

__all__ = ["Cable", "Host", "Namespaces", "Relays", "can_have_namespaces", "enter_namespace"]

CLONE_NEWNET = 0x40000000
SLOW_BYTES_PER_S = 100_000
BURST_BYTES = 16_000
QUEUED_S = 1.0
"""What is queued longer is thrown away, as a router does, and TCP sends it again."""
COMMAND_S = 10.0


@dataclass(frozen=True, slots=True)
class Host:
    """Another host, for a process that is started there."""

    name: str
    """Of its namespace."""
    address: str


class Cable(Protocol):
    """What lies between the two hosts."""

    here: str
    """This host's address, on which the other one reaches what listens here."""

    def cut(self) -> None:
        """Nothing passes, and nobody is told."""

    def slow(self) -> None:
        """Little passes."""

    def mend(self) -> None:
        """All is well again."""


class Namespaces:
    """`with Namespaces() as cable:` has another host, `cable.there`."""

    def __init__(self) -> None:
        number = os.getpid() & 0x3FFF
        network = f"10.231.{number >> 6}.{(number & 63) * 4}"
        first, _, last = network.rpartition(".")
        self.here, there = (f"{first}.{int(last) + offset}" for offset in (1, 2))
        self.name = f"rv{os.getpid()}"
        self.there = Host(self.name, there)
        self._ends = (f"{self.name}a", f"{self.name}b")

    def __enter__(self) -> Self:
        ours, theirs = self._ends
        _run("ip", "netns", "add", self.name)
        try:
            _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", self.name)
            _run("ip", "address", "add", f"{self.here}/30", "dev", ours)
            _run("ip", "-n", self.name, "address", "add", f"{self.there.address}/30", "dev", theirs)
            _run("ip", "link", "set", ours, "up")
            for device in ("lo", theirs):
                _run("ip", "-n", self.name, "link", "set", device, "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def cut(self) -> None:
        """The other end goes down: here is no carrier, and packets are lost without a word."""
        _run("ip", "-n", self.name, "link", "set", self._ends[1], "down")

    def slow(self) -> None:
        ours, theirs = self._ends
        rate, queued = f"{8 * SLOW_BYTES_PER_S}bit", f"{round(1000 * QUEUED_S)}ms"
        shape = ("root", "tbf", "rate", rate, "burst", str(BURST_BYTES), "latency", queued)
        _run("tc", "qdisc", "replace", "dev", ours, *shape)
        _run("tc", "-n", self.name, "qdisc", "replace", "dev", theirs, *shape)

    def mend(self) -> None:
        ours, theirs = self._ends
        _run("ip", "-n", self.name, "link", "set", theirs, "up")
        for where, device in (((), ours), (("-n", self.name), theirs)):
            _run("tc", *where, "qdisc", "delete", "dev", device, "root", must=False)

    def _remove(self) -> None:
        _run("ip", "link", "delete", self._ends[0], must=False)
        _run("ip", "netns", "delete", self.name, must=False)


class Relays:
    """The same for hosts that are not there: a relay before each replica that is said to be on the other."""

    here = "127.0.0.1"

    def __init__(self) -> None:
        self._relays: list[Relay] = []

    async def add(self, target: Callable[[], tuple[str, int]], stack: AsyncExitStack) -> int:
        """Another relay; the port that leads to `target`."""
        relay = await stack.enter_async_context(Relay(target))
        self._relays.append(relay)
        return relay.port

    def cut(self) -> None:
        self._set(Way.STALLED)

    def slow(self) -> None:
        self._set(Way.SLOW)

    def mend(self) -> None:
        self._set(Way.OPEN)

    def _set(self, way: Way) -> None:
        for relay in self._relays:
            relay.set(way)


def can_have_namespaces() -> bool:
    """Whether this process may make them."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return False
    try:
        with Namespaces() as cable:
            cable.slow()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return False
    return True


def enter_namespace(name: str) -> None:
    """Let this process, and what it starts, use the network of a namespace from now on. Raises OSError."""
    file = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), name)
    finally:
        os.close(file)


def _run(*command: str, must: bool = True) -> None:
    subprocess.run(command, check=must, capture_output=True, timeout=COMMAND_S)

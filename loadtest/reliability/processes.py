"""What the processes of a run do: a replica, an ingress, clients. Started by `zygote`, watched by `harness`.

Failpoints fail once a process was told to arm them, by SIGUSR1: what it passes before does not count. A
replica and an ingress write a *card* into the run's folder ten times a second: what they say of themselves.
That is how an ingress knows its replicas (it is what Serve's handles are for), and how the harness knows who
does not answer any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rearview import failpoints

from loadtest.reliability.history import Log
from loadtest.reliability.hosts import enter_namespace
from loadtest.reliability.plan import Plan
from loadtest.reliability.traffic import Clock, drive

__all__ = ["FRESH_S", "RUN", "preload", "read_card", "read_cards"]

WRITE_EVERY_S = 0.1
FRESH_S = 1.0
"""A card that is older is of a process that does not answer."""
NODE = "node"
OTHER_NODE = "node-behind-a-relay"

Order = Mapping[str, Any]


def preload() -> None:
    """Import, before anything is forked, all that a process needs."""
    import rearview.engine.memory.build
    import rearview.engine.weights.checkpoint
    import rearview.ingress.server
    import rearview.replica.stage  # noqa: F401


def read_card(path: Path) -> dict[str, Any] | None:
    """What a process says of itself; None if there is nothing."""
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return card


def read_cards(folder: Path, *, fresh: bool = True) -> list[dict[str, Any]]:
    """The cards in a folder; with `fresh` only of those who answer."""
    found = [card for path in sorted(folder.glob("*.json")) if (card := read_card(path)) is not None]
    oldest_s = time.monotonic() - FRESH_S
    return [card for card in found if not fresh or card["written_s"] >= oldest_s]


def replica(order: Order) -> None:
    """One replica of one span."""
    _begin(order)
    asyncio.run(_replica(order))


async def _replica(order: Order) -> None:
    from rearview.config import ServiceConfig
    from rearview.replica.pulse import end_process
    from rearview.replica.stage import Stage

    config = ServiceConfig.model_validate(order["config"])
    node = order["host"]["name"] if order.get("host") else NODE
    stage = Stage(config, order["span"], order["name"], node, on_end=end_process)
    await stage.start()

    async def card() -> dict[str, Any]:
        described = dict(stage.describe())
        try:
            stage.check_health()
            healthy = True
        except RuntimeError:
            healthy = False
        relay = order.get("relay")
        true = described["address"]
        shown = true if relay is None else f"{OTHER_NODE}||127.0.0.1|{relay}"
        return {**described, "address": shown, "true_address": true, "healthy": healthy}

    await _until_told(Path(order["folder"]) / "members", order["name"], card)
    await stage.drain(config.ingress.drain_grace_s)
    await stage.stop()


def ingress(order: Order) -> None:
    """One ingress."""
    _begin(order)
    asyncio.run(_ingress(order))


async def _ingress(order: Order) -> None:
    from rearview.config import ServiceConfig
    from rearview.ingress.server import IngressServer
    from rearview.ingress.service import Ingress

    folder = Path(order["folder"])
    config = ServiceConfig.model_validate(order["config"])

    async def members() -> Sequence[Mapping[str, Any]]:
        return await asyncio.to_thread(read_cards, folder / "members")

    one = Ingress(config, order["name"], NODE, members)
    server = IngressServer(one)
    await server.start()

    async def card() -> dict[str, Any]:
        return {
            "name": order["name"],
            "address": server.address,
            "metrics_url": server.metrics_url,
            "sessions": [record.session.spec.session_id for record in one.sessions],
            "healthy": True,
        }

    await _until_told(folder / "ingresses", order["name"], card)
    await server.drain()
    await server.stop()


def clients(order: Order) -> None:
    """Some clients, who write their history."""
    _begin(order)
    plan = Plan.from_json(order["plan"])
    with open(order["history"], "a", buffering=1, encoding="utf-8") as file:
        asyncio.run(drive(plan, order["addresses"], Log(file), Clock(order["start_s"])))


RUN: Mapping[str, Callable[[Order], None]] = {"replica": replica, "ingress": ingress, "clients": clients}


def _begin(order: Order) -> None:
    import logging

    import torch

    torch.set_num_threads(1)
    if order.get("host"):
        enter_namespace(order["host"]["name"])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    mark = Path(order["folder"]) / "marks" / order["name"]
    points = order.get("failpoints", "")
    signal.signal(signal.SIGUSR1, lambda *_: failpoints.arm(points, lambda place: _mark(mark)))


def _mark(path: Path) -> None:
    """Note when a failpoint failed first."""
    if not path.exists():
        _write(path, str(time.monotonic()))


async def _until_told(folder: Path, name: str, card: Callable[[], Any]) -> None:
    """Write the card again and again, until the process is told to go."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    path = folder / f"{name}.json"
    while not told.is_set():
        content = {
            **await card(),
            "pid": os.getpid(),
            "tasks": len(asyncio.all_tasks()),
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "rss_bytes": _rss_bytes(),
            "written_s": time.monotonic(),
        }
        await asyncio.to_thread(_write, path, json.dumps(content, default=list))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WRITE_EVERY_S):
                await told.wait()
    path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _rss_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")

"""A replica in a process of its own, without Ray: what a signal can stop, and what may end itself."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rearview import failpoints
from rearview.config import ServiceConfig

__all__ = ["ReplicaProcess", "replica_processes"]

READY_S = 110.0
END_S = 30.0
# Its server imports torch once; each replica is a fork of it, made in milliseconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["rearview.replica.stage"])


class ReplicaProcess:
    """One replica, its description, and signals to it."""

    def __init__(self, config: ServiceConfig, index: int, replica_id: str, log: Path | None = None) -> None:
        self._ours, theirs = _PROCESSES.Pipe()
        self._process: BaseProcess = _PROCESSES.Process(
            target=_run, args=(config.model_dump_json(), index, replica_id, theirs, log), daemon=True
        )
        self.log = log
        self._process.start()
        theirs.close()
        self.described: Mapping[str, Any] = {}

    async def ready(self) -> None:
        """Return when it takes links."""
        assert await asyncio.to_thread(self._ours.poll, READY_S), "the replica does not start"
        self.described = self._ours.recv()

    @property
    def replica_id(self) -> str:
        return str(self.described["replica_id"])

    @property
    def is_running(self) -> bool:
        """Stopped ones included."""
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended takes none."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    async def arm(self, failpoints: str) -> None:
        """Let places in it fail from now on."""
        self._ours.send(failpoints)
        assert await asyncio.to_thread(self._ours.poll, READY_S)
        assert self._ours.recv() == failpoints

    async def ended(self) -> int | None:
        """Its exit status, once it has ended."""
        await asyncio.to_thread(self._process.join, END_S)
        return self._process.exitcode


@asynccontextmanager
async def replica_processes(
    config: ServiceConfig, logs: Path | None = None
) -> AsyncIterator[list[ReplicaProcess]]:
    """Every replica that `config` names; they are ended at the end. `logs`: a folder for what they log."""
    replicas = [
        ReplicaProcess(config, index, f"{span.name}#{number}", logs and logs / f"{span.name}-{number}.log")
        for index, span in enumerate(config.spans)
        for number in range(span.replicas)
    ]
    try:
        await asyncio.gather(*(replica.ready() for replica in replicas))
        yield replicas
    finally:
        for replica in replicas:
            replica.signal(signal.SIGKILL)
        for replica in replicas:
            assert await replica.ended() is not None


def _run(config: str, index: int, replica_id: str, parent: Connection, log: Path | None) -> None:
    if log is not None:
        logging.basicConfig(filename=log, level=logging.INFO)
    asyncio.run(_serve(ServiceConfig.model_validate_json(config), index, replica_id, parent))


async def _serve(config: ServiceConfig, index: int, replica_id: str, parent: Connection) -> None:
    from rearview.replica.pulse import end_process
    from rearview.replica.stage import Stage

    stage = Stage(config, index, replica_id, "node", on_end=end_process)
    await stage.start()
    parent.send(dict(stage.describe()))
    with suppress(EOFError):  # Until whoever asked for it is gone.
        while True:
            points = await asyncio.to_thread(parent.recv)
            failpoints.arm(points)
            parent.send(points)

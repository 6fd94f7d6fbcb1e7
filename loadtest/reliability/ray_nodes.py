"""A private Ray of several nodes on this machine: each with an address, a raylet and processes of its own.

Nodes are started as a pod starts them (`ray start`), so that they can be ended as a pod is: told to go, after
which they drain, or lost with everything on them. Only one such cluster is used by a process: what Ray reads
of the environment, it reads once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rearview.scratch import Scratch, remove_leftovers

__all__ = ["Gcs", "RayNode", "RayNodes", "descendants"]

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
TRIES = 6
GONE_S = 30.0
POLL_S = 0.05
OBJECT_STORE_BYTES = 80 << 20
DRAIN_S = 60
"""What a node may take to drain when it is told to go, seconds."""
PATIENCE_S = 600
"""How long nodes and drivers go on without the GCS, seconds: what KubeRay sets where it is fault tolerant."""


def descendants(root: int) -> set[int]:
    """Ids of all live processes begun by `root`, or by one of those."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has ended.
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def is_alive(pid: int) -> bool:
    """Whether the process runs, or is stopped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    """Raises TimeoutError saying `what`."""
    until_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until_s:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(POLL_S)


class RayNode:
    """One node besides the head."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        """`process`: `ray start --block`."""
        self.process, self.address = process, address

    def end(self) -> None:
        """Tell it to go, as a pod is told; returns at once."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Lose it: the raylet and everything on it."""
        pids = {*descendants(self.process.pid), self.process.pid}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(GONE_S)
        wait_until(lambda: not any(map(is_alive, pids)), GONE_S, "the processes of a node are gone")

    def wait(self) -> None:
        """Until it is gone."""
        self.process.wait(DRAIN_S + GONE_S)


class Gcs:
    """The server that knows all of a Ray, to kill, to freeze and to start again under the same address."""

    def __init__(self, pid: int) -> None:
        folder = Path(f"/proc/{pid}")
        self.pid = pid
        self._command = _strings(folder / "cmdline")
        self._environment = dict(each.split("=", 1) for each in _strings(folder / "environ"))
        self._folder = os.readlink(folder / "cwd")

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(self.pid), GONE_S, "the GCS is gone")

    def start(self) -> None:
        """Start it again; what it knew is in its storage, if it has one."""
        silent = subprocess.DEVNULL
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=self._folder,
            stdin=silent,
            stdout=silent,
            stderr=silent,
            start_new_session=True,
        )
        self.pid = process.pid

    def freeze(self) -> None:
        """Stop it, connections and all."""
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


class RayNodes:
    """`with RayNodes() as ray_nodes:` has a head; `add` brings more, `connect` makes this the driver."""

    def __init__(self, resources: Mapping[str, float], *, storage: str | None = None) -> None:
        """`resources`: of the head. `storage`: `host:port` of a Redis where the GCS keeps what it knows."""
        self._resources = resources
        self._scratch: Scratch | None = None
        self._port = free_port()
        self._numbers = iter(range(2, 255))
        self.nodes: list[RayNode] = []
        """Those that were added, gone ones included."""
        self._environment = {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "services"), str(ROOT), str(ROOT / "tests")]),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # Else replicas starve beside whatever else this machine does.
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
        }
        if storage is not None:
            self._environment |= {
                "RAY_REDIS_ADDRESS": storage,
                "RAY_external_storage_namespace": "rearview",
                "RAY_gcs_rpc_server_reconnect_timeout_s": str(PATIENCE_S),
            }

    def __enter__(self) -> Self:
        remove_leftovers()
        self._scratch = Scratch()
        os.environ.update(self._environment)
        try:
            self._head = self._new_address()
            options = ["--head", f"--port={self._port}", "--include-dashboard=false"]
            options += [f"--ray-client-server-port={free_port()}", "--disable-usage-stats", "--no-monitor"]
            status = self._start(self._head, self._resources, options, blocks=False).wait(START_S)
            assert status == 0, f"ray start --head: {self._said()}"
        except BaseException:
            self._scratch.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of it, at once."""
        import ray

        assert self._scratch is not None, "enter it first"
        if ray.is_initialized():
            ray.shutdown()
        self._scratch.remove()
        for node in self.nodes:
            node.process.wait(GONE_S)

    @property
    def address(self) -> str:
        """To join."""
        return f"{self._head}:{self._port}"

    @property
    def gcs(self) -> Gcs:
        """The one that runs now."""
        assert self._scratch is not None, "enter it first"
        names = {pid: _strings(Path(f"/proc/{pid}/cmdline")) for pid in self._scratch.processes()}
        (pid,) = (pid for pid, words in names.items() if words and words[0].endswith("gcs_server"))
        return Gcs(pid)

    def add(self, resources: Mapping[str, float], count: int = 1) -> Sequence[RayNode]:
        """More nodes, which have joined when this returns."""
        added = [self._add_one(resources) for _ in range(count)]
        self.nodes += added
        return added

    def connect(self) -> None:
        """Make this process a driver of the cluster."""
        import ray

        ray.init(
            address=self.address,
            _node_ip_address=self._head,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )

    def node_of(self, ray_node_id: str) -> RayNode | None:
        """The node that Ray knows by this id; None: the head."""
        import ray

        (address,) = (n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == ray_node_id)
        return next((node for node in self.nodes if node.address == address), None)

    # -- how

    def _add_one(self, resources: Mapping[str, float]) -> RayNode:
        """Ray gives a node 30 s to start, which a busy machine may not: then it is tried again."""
        import ray

        for _ in range(TRIES):
            address = self._new_address()
            process = self._start(address, resources, [f"--address={self.address}", "--block"], blocks=True)

            def has_joined(process: subprocess.Popen[bytes] = process, address: str = address) -> bool:
                living = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
                return address in living or process.poll() is not None

            wait_until(has_joined, START_S, "a node has joined")
            if process.poll() is None:
                return RayNode(process, address)
        raise TimeoutError(f"ray start: {self._said()}")

    def _new_address(self) -> str:
        """All of 127.0.0.0/8 is this machine; Ray takes 127.0.0.1 for another name of its address."""
        return f"127.0.0.{next(self._numbers)}"

    def _start(
        self, address: str, resources: Mapping[str, Any], options: Sequence[str], *, blocks: bool
    ) -> subprocess.Popen[bytes]:
        assert self._scratch is not None, "enter it first"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={address}"]
        command += [
            "--include-log-monitor=false",
            "--num-cpus=4",
            "--num-gpus=0",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
        ]
        command += [f"--temp-dir={self._scratch.path}", f"--dashboard-agent-listen-port={free_port()}"]
        command += [f"--resources={json.dumps(dict(resources))}", *options]
        with (self._scratch.path / "start.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=blocks
            )

    def _said(self) -> str:
        assert self._scratch is not None, "enter it first"
        return (self._scratch.path / "start.log").read_text(encoding="utf-8")[-2000:]


def free_port() -> int:
    """Of this machine, for a server that is started next."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _strings(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [os.fsdecode(each) for each in path.read_bytes().split(b"\0") if each]
    return []

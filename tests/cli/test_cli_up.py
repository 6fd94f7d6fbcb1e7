"""`rearview up` as a process: it says READY, serves, and leaves nothing behind when it is told to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rearview.client import DropPolicy, ImageFormat, Translated
from rearview.client.exchange import Frame
from rearview.client.sync import Client
from support.shapes import shaped

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SERVICE = """
model: {name: "null", checkpoint: "null", max_steps: 1}
ingress: {port: 0}
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    config = tmp_path / "service.yaml"
    config.write_text(SERVICE)
    command = [sys.executable, "-m", "rearview.cli.main", "up", "--config", str(config), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as started:
        try:
            yield started
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)


def ready_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("READY"):
            said = shaped("up", json.loads(next(process.stdout)))
            assert said == {"address": line.split()[1], "studio": None, "studio_lan": None}
            return line.split()[1]
    raise AssertionError(f"ended without READY:\n{''.join(seen)}")


def descendants(root: int) -> set[int]:
    """Ids of all live processes begun by `root`, or by one of those."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def translate(address: str) -> None:
    """A few frames, which come back as they went."""
    with Client(address) as client:
        frames = [Frame(bytes([number] * 64), index=number, format=ImageFormat.OPAQUE) for number in range(8)]
        answers = list(
            client.translate_frames(
                frames,
                prompt="none",
                answer_format=ImageFormat.OPAQUE,
                drop_policy=DropPolicy.LOSSLESS,
            )
        )
    assert [a.frame_index for a in answers if isinstance(a, Translated)] == list(range(8))
    assert all(a.data == bytes([a.frame_index] * 64) for a in answers if isinstance(a, Translated))


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_up_serves_until_it_is_told_to_stop_and_leaves_nothing(process: subprocess.Popen[str]) -> None:
    translate(ready_address(process))
    assert_stops(process)


@pytest.mark.load  # Two minutes: Ray starts twice, and takes its time to end without its GCS.
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_up_starts_anew_at_its_port_when_the_gcs_has_died(process: subprocess.Popen[str]) -> None:
    address = ready_address(process)
    first = descendants(process.pid)
    (gcs,) = (pid for pid in first if name_of(pid) == "gcs_server")
    os.kill(gcs, signal.SIGKILL)
    assert ready_address(process) == address
    translate(address)
    assert_gone(first)
    assert_stops(process)


def assert_stops(process: subprocess.Popen[str]) -> None:
    """Ctrl-C ends it and all that it has started."""
    started = descendants(process.pid)
    assert len(started) > 3
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert_gone(started)


def assert_gone(started: set[int]) -> None:
    deadline = time.monotonic() + 10
    while (left := [pid for pid in started if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []

"""Commands with a service of their own, as processes: what they show, and that they leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
from rearview.samples import sample_clip_path
from rearview.scratch import remove_leftovers
from support.processes import REARVIEW, of_session
from support.waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

SERVING = """
import sys
from rearview.config import load_config
from rearview.local import PlainService
if __name__ == "__main__":
    config = load_config({"model": {"checkpoint": "null"}, "ingress": {"port": 0}})
    with PlainService(config) as service:
        print(service.stages[0]["pid"], flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """With room for paths of sockets below it: a service whose folders are too deep has them elsewhere."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


@contextmanager
def started(*command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A session of its own, with its folders in `folder`; all that is left of it is killed at the end."""
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            for pid in of_session(process.pid):
                os.kill(pid, signal.SIGKILL)


def until_said(process: subprocess.Popen[str], pattern: str) -> str:
    """What it has said when a line fits the pattern."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(f"ended without {pattern!r}:\n{said}")


def test_translate_starts_a_service_and_leaves_nothing_of_it(short_path: Path) -> None:
    out = short_path / "out.mp4"
    asked = ["translate", str(sample_clip_path()), str(out), "--prompt", "neon", "--max-frames", "3"]
    with started(*REARVIEW, *asked, folder=short_path) as process:
        said, _ = process.communicate(timeout=150)
        assert process.returncode == 0, said
        eventually(lambda: not of_session(process.pid), within_s=20)
    assert "ready at 127.0.0.1:" in said
    with av.open(str(out)) as container:
        assert len(list(container.decode(video=0))) == 3
    assert list(short_path.glob("rv-*")) == []


@pytest.mark.parametrize("stage", ["starting the service", "loading the model"])
def test_ctrl_c_during_the_start_makes_no_noise_and_leaves_nothing(short_path: Path, stage: str) -> None:
    with started(*REARVIEW, "demo", "--out", str(short_path / "out"), folder=short_path) as process:
        until_said(process, stage)
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does: to all of them.
        said, _ = process.communicate(timeout=60)
        assert process.returncode != 0
        assert [line for line in said.splitlines() if "…" not in line] == ["interrupted"]
        eventually(lambda: not of_session(process.pid), within_s=30)
    assert list(short_path.glob("rv-*")) == []


def test_processes_end_with_a_service_that_is_killed(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(sys.executable, "-c", SERVING, folder=short_path) as process:
        until_said(process, r"^\d+$")
        assert len(of_session(process.pid)) >= 4, "service, fork server, replica, ingress"
        process.kill()
        eventually(lambda: not of_session(process.pid), within_s=20)
    assert_removed(short_path, monkeypatch)


def test_a_process_that_cannot_see_the_end_of_its_service_is_ended_by_the_next_one(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(sys.executable, "-c", SERVING, folder=short_path) as process:
        replica = int(until_said(process, r"^\d+$").split()[-1])
        os.kill(replica, signal.SIGSTOP)
        process.kill()
        process.wait()
        assert replica in of_session(process.pid)
        assert_removed(short_path, monkeypatch)
        eventually(lambda: not of_session(process.pid), within_s=20)


def assert_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next service removes what is left in the folder."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert list(folder.glob("rv-*")) != []
    assert remove_leftovers() == 1
    assert list(folder.glob("rv-*")) == []


def test_what_cannot_work_is_said_within_two_seconds_and_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    began_s = time.monotonic()
    done = subprocess.run(
        [*REARVIEW, "demo", "--out", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    took_s = time.monotonic() - began_s
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert f"--out {file}" in line
    assert took_s < 20, "two seconds, where nothing else runs"

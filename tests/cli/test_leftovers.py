"""What a killed `up` leaves is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rearview import machine, scratch
from rearview.config import load_config
from rearview.errors import ConfigError
from rearview.local import RayService
from rearview.scratch import Scratch, remove_leftovers
from support.waiting import eventually

pytestmark = pytest.mark.integration

OWNER = """
import subprocess, sys
from rearview import scratch
scratch.SOCKET_ROOM = 0
scratch = scratch.Scratch()
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(scratch.path, child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders of this test are made, and no others."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machine, "SHORT", str(tmp_path))
    monkeypatch.setattr(scratch, "SOCKET_ROOM", 0)
    monkeypatch.delenv(scratch.MARK, raising=False)
    return tmp_path


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_what_a_killed_owner_has_left_is_removed_with_its_processes_by_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        path, child = owner.stdout.readline().split()
        assert remove_leftovers() == 0, "its owner lives"
        assert is_running(int(child))
        owner.send_signal(signal.SIGKILL)
    assert is_running(int(child))
    assert Path(path).is_dir()
    starts = Starts(monkeypatch)
    with starts.service:
        assert not Path(path).exists()
    assert "removed what 1 killed services had left" in starts.told
    eventually(lambda: not is_running(int(child)), within_s=30)
    assert remove_leftovers() == 0


def test_a_folder_goes_with_its_owner_and_others_stay(folder: Path) -> None:
    foreign = folder / f"{scratch.PREFIX}foreign"
    foreign.mkdir()
    with Scratch() as mine, Scratch() as other:
        (mine.path / "session").mkdir()
        assert remove_leftovers() == 0
        mine.remove()
        assert not mine.path.exists()
        assert other.path.is_dir()
    assert list(folder.iterdir()) == [foreign]


class Starts:
    """A service that starts nothing, and whose first starts fail half-way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.errors, self.tries, self.told = list(errors), 0, list[str]()
        monkeypatch.setattr(RayService, "_try_start", lambda service: self.start())
        monkeypatch.setattr(RayService, "address", "somewhere")
        config = load_config({"model": {"checkpoint": "null"}, "ingress": {"port": 0}})
        self.service = RayService(config, self.told.append)

    def start(self) -> None:
        self.tries += 1
        assert list(Path(tempfile.gettempdir()).glob(f"{scratch.PREFIX}*")) == [], "of an earlier start"
        self.service._scratch = Scratch()
        if self.errors:
            raise self.errors.pop(0)


def test_a_failed_start_of_ray_is_tried_once_more_and_the_reason_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts = Starts(monkeypatch, RuntimeError("the agent missed its deadline\nand more"))
    with starts.service:
        assert starts.tries == 2
    assert "Ray did not start, trying once more: RuntimeError: the agent missed its deadline" in starts.told


def test_a_start_that_fails_twice_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, RuntimeError("once"), RuntimeError("twice"))
    with pytest.raises(RuntimeError, match="twice"):
        starts.service.__enter__()
    assert starts.tries == 2


def test_a_service_that_is_configured_wrongly_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, ConfigError("no such checkpoint"))
    with pytest.raises(ConfigError):
        starts.service.__enter__()
    assert starts.tries == 1


TORCH = """
import sys
from rearview.cli.main import rearview
rearview(False)
import torch._dynamo
"""


@pytest.mark.parametrize("cache", ["cache", "file/that/is/none"])
def test_torch_leaves_no_folder_among_temporary_files_but_where_there_is_no_other_place(
    folder: Path, cache: str
) -> None:
    for name in ("temporary", "cache"):
        (folder / name).mkdir()
    (folder / "file").touch()
    places = {"TMPDIR": str(folder / "temporary"), "REARVIEW_CACHE": str(folder / cache)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")}
    subprocess.run([sys.executable, "-c", TORCH], env={**environment, **places}, check=True, timeout=120)
    left = [path.name.partition("_")[0] for path in (folder / "temporary").iterdir()]
    assert left == ([] if cache == "cache" else ["torchinductor"])

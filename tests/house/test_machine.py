"""What a system lacks is made up for at one place, and no other module asks which system it is."""

from __future__ import annotations

import ast
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rearview import machine
from rearview.config import LinkConfig
from rearview.errors import ConfigError
from rearview.machine import (
    Machine,
    System,
    anonymous_bytes,
    group_memory_bytes,
    peak_resident_bytes,
    processes_of,
    reset_peak_resident,
    resident_bytes,
    short_folder,
    this_machine,
)
from rearview.transport.sockets import socket_folder

pytestmark = pytest.mark.unit

APPLE = Machine(System.APPLE, "23.1.0", "arm64", cores=8, memory_bytes=8 << 30, has_proc=False)
ASKED = {"sys.platform", "platform.system", "os.uname", "os.sched_getaffinity", "os.sched_setaffinity"}
"""What would ask which system it is."""
MAY_ASK = {"rearview/machine.py", "rearview/client/live.py"}
"""The client names the camera of each system; it knows no room but the contract."""


@pytest.mark.parametrize(
    ("name", "release", "system"),
    [
        ("Linux", "6.1.0-13-amd64", System.LINUX),
        ("Linux", "5.15.153.1-microsoft-standard-WSL2", System.WSL),
        ("Darwin", "23.1.0", System.APPLE),
        ("Windows", "10", System.WINDOWS),
        ("FreeBSD", "14", System.OTHER),
    ],
)
def test_systems_are_told_apart(name: str, release: str, system: System) -> None:
    assert machine.system_of(name, release) is system


def test_what_was_never_run_is_said() -> None:
    assert APPLE.untried == "never run on Apple"
    assert replace(APPLE, system=System.WSL).untried == "never run on Windows through WSL2"
    assert replace(APPLE, system=System.WINDOWS).untried == "never run on Windows but through WSL2"
    assert replace(APPLE, system=System.LINUX).untried == ""


def test_flags_are_those_of_the_first_processor() -> None:
    x86 = "processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert machine.flags_of(x86) == {"fpu", "avx512_bf16"}
    assert machine.flags_of("Features\t: fp asimd bf16\n") == {"fp", "asimd", "bf16"}
    assert machine.flags_of("model name: none\n") == frozenset()


def test_this_machine_is_known() -> None:
    here = this_machine()
    assert here.cores >= 1
    assert here.has_proc == Path("/proc/self/stat").exists()
    assert here.memory_bytes > 1 << 28


GROUPS = {
    "version 2": ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.max": "300", "sys/fs/cgroup/a/memory.max": "max"}),
    "of the group above": (
        "0::/a/b\n",
        {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": "300"},
    ),
    "in a container": ("0::/\n", {"sys/fs/cgroup/memory.max": "300\n"}),
    "version 1": (
        "11:cpu,cpuacct:/x\n4:memory:/a/b\n",
        {"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "300", "sys/fs/cgroup/memory.max": "1"},
    ),
    "version 1 in a container": (
        "4:memory:/docker/0123\n",
        {"sys/fs/cgroup/memory/memory.limit_in_bytes": "300"},
    ),
}


@pytest.mark.parametrize("where", GROUPS)
def test_the_limit_of_a_control_group_is_found(where: str, tmp_path: Path) -> None:
    groups, files = GROUPS[where]
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert group_memory_bytes(tmp_path) == 300


@pytest.mark.parametrize("text", ["max", "9223372036854771712", "", "lots"])
def test_without_a_limit_a_group_has_none(text: str, tmp_path: Path) -> None:
    assert group_memory_bytes(tmp_path) == 0
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/\n0::/\nnonsense\n")
    for folder, name in (("memory", "memory.limit_in_bytes"), (".", "memory.max")):
        (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup" / folder / name).write_text(text)
    assert group_memory_bytes(tmp_path) == 0


@pytest.mark.skipif(not this_machine().has_proc, reason="needs /proc")
def test_what_this_process_had_at_most_is_known() -> None:
    assert reset_peak_resident()
    before = resident_bytes()
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:  # never the heap's
        taken[:: 1 << 12] = b"x" * len(taken[:: 1 << 12])
        assert resident_bytes() - before > 48 << 20
        assert 48 << 20 < anonymous_bytes() < resident_bytes()
    assert peak_resident_bytes() - before > 48 << 20
    assert reset_peak_resident()
    assert peak_resident_bytes() - before < 48 << 20


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A temporary folder as long as macOS's under another one."""
    folder = tmp_path / ("x" * 60) / "T"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(machine, "SHORT", short)
        yield folder


def test_sockets_lie_where_their_paths_fit(long: Path) -> None:
    room = APPLE.max_socket_path - len(f"{long}/rv-12345678")
    assert short_folder("rv-", room, machine=APPLE).parent == long
    made = short_folder("rv-", room + 1, machine=APPLE)
    assert made.parent == Path(machine.SHORT)
    assert made.stat().st_mode & 0o077 == 0, "others may not look in"
    linux = replace(APPLE, system=System.LINUX)
    assert short_folder("rv-", room + 4, machine=linux).parent == long


def test_a_chosen_folder_is_not_left_for_another(long: Path) -> None:
    with pytest.raises(OSError, match="103"):
        short_folder("rv-", 90, parent=str(long), machine=APPLE)
    too_long = long / ("y" * 60)
    too_long.mkdir()
    with pytest.raises(ConfigError, match=r"link\.unix_dir: .* too long"):
        socket_folder(LinkConfig(unix_dir=str(too_long)).unix_dir)


def test_processes_are_found_by_mark_and_by_output(tmp_path: Path) -> None:
    mark = f"REARVIEW_TEST_MARK=/tmp/{os.getpid()}"
    name, _, value = mark.partition("=")
    child = [sys.executable, "-c", "import sys; sys.stderr.write('x'); sys.stderr.flush(); sys.stdin.read()"]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(child, env={**os.environ, name: value}, **pipes) as marked,  # type: ignore[call-overload]
        subprocess.Popen(child, stdout=log, **pipes) as writing,  # type: ignore[call-overload]
    ):
        for process in (marked, writing):
            process.stderr.read(1)
        assert set(processes_of(tmp_path, mark)) == {marked.pid, writing.pid}
        for process in (marked, writing):
            process.communicate()


def test_without_proc_the_system_s_tools_are_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mark = "REARVIEW_TEST_MARK=/tmp/x"
    lines = [f"  77 sleep 600 PATH=/bin {mark} X=y", f"   78 sleep {mark}0", f"{os.getpid()} python {mark}"]
    said = {"ps": "\n".join(["    1 /sbin/launchd A=b", *lines, ""]), "lsof": f"79\n{os.getpid()}\n"}
    monkeypatch.setattr(machine, "_said", lambda tool, *_: said[tool])
    assert list(processes_of(tmp_path, mark, APPLE)) == [77, 79]
    monkeypatch.undo()
    assert machine._said("no-such-tool-here") == ""


def test_nobody_else_asks_which_system_it_is(root: Path) -> None:
    assert questions(root / "services") == set()


def test_a_module_that_asks_is_seen(tmp_path: Path) -> None:
    (tmp_path / "rearview").mkdir()
    (tmp_path / "rearview" / "a.py").write_text("import sys\nif sys.platform == 'darwin': pass\n")
    (tmp_path / "rearview" / "b.py").write_text("from pathlib import Path\nPath('/proc/self/stat')\n")
    assert questions(tmp_path) == {"rearview/a.py:2 sys.platform", "rearview/b.py:2 /proc/self/stat"}


def questions(folder: Path) -> set[str]:
    found = set()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if name in MAY_ASK:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = ""
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                said = f"{node.value.id}.{node.attr}"
            elif isinstance(node, ast.Constant) and str(node.value).startswith("/proc"):
                said = str(node.value)
            if said in ASKED or said.startswith("/proc"):
                found.add(f"{name}:{node.lineno} {said}")  # type: ignore[attr-defined]
    return found

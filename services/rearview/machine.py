"""What this machine and its system have: the one module that asks which system it is, or reads /proc.

Linux, macOS, and Windows through WSL2, which is Linux with another kernel. Tests put another `Machine` in
place of this one: what cannot be run here is decided here all the same.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

__all__ = [
    "Machine",
    "System",
    "anonymous_bytes",
    "group_memory_bytes",
    "peak_resident_bytes",
    "processes_of",
    "reset_peak_resident",
    "resident_bytes",
    "run_delays_s",
    "short_folder",
    "temporary_folders",
    "this_machine",
]

SHORT = "/tmp"
"""Where socket paths fit if they do not in the temporary folder: that of macOS has 49 characters."""
TOOL_TIMEOUT_S = 5.0
ACCELERATORS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dri", "/dev/dxg")
"""Of Nvidia, of AMD, of Intel (and others' displays), and of WSL2."""
UNLIMITED = 1 << 60
"""Bytes. Version 1 of control groups writes such a number where there is no limit."""
CLEAR_PEAK = "5"
"""What Linux wants to hear in /proc/self/clear_refs."""


class System(Enum):
    """Those that the service knows of."""

    LINUX = "Linux"
    APPLE = "macOS"
    WSL = "WSL2"
    WINDOWS = "Windows"
    OTHER = "another system"


@dataclass(frozen=True)
class Machine:
    """What is known of it."""

    system: System
    release: str
    """Of its kernel; of macOS its Darwin's."""
    processor: str
    """`x86_64`, `arm64`, …"""
    cores: int
    """That this process may use."""
    memory_bytes: int
    """That this process may use: what is built in, or less where its control group (a container) has a
    limit. 0: unknown."""
    cpu_flags: frozenset[str] = frozenset()
    """As Linux names them. Empty elsewhere."""
    has_proc: bool = True
    """Whether /proc tells of processes."""
    may_accelerate: bool = True
    """Whether torch may find something better than the CPU: a driver is there. It need not be of use."""

    @property
    def max_socket_path(self) -> int:
        """Bytes of a Unix socket's path: what `sockaddr_un` holds, less the zero at its end."""
        return 107 if self.system in (System.LINUX, System.WSL) else 103

    @property
    def shares_ports(self) -> bool:
        """Whether SO_REUSEPORT spreads connections over a port's processes: on macOS one gets them all."""
        return self.system in (System.LINUX, System.WSL)

    @property
    def ends_children(self) -> bool:
        """Whether a process can ask to be ended with its parent (PR_SET_PDEATHSIG)."""
        return self.system in (System.LINUX, System.WSL)

    @property
    def forks_well(self) -> bool:
        """Whether libraries outlive a fork: those of macOS end the process."""
        return self.system in (System.LINUX, System.WSL)

    @property
    def untried(self) -> str:
        """Why nobody can say that the service runs here; empty where it has been tried."""
        return {
            System.APPLE: "never run on Apple",
            System.WSL: "never run on Windows through WSL2",
            System.WINDOWS: "never run on Windows but through WSL2",
            System.OTHER: "never run on this system",
        }.get(self.system, "")


@functools.cache
def this_machine() -> Machine:
    """The one that we are on."""
    name, release = platform.system(), platform.release()
    proc = Path("/proc/self/stat").exists()
    return Machine(
        system=system_of(name, release),
        release=release,
        processor=platform.machine(),
        cores=_cores(),
        memory_bytes=_least(_memory_bytes(), group_memory_bytes()),
        cpu_flags=flags_of(Path("/proc/cpuinfo").read_text(encoding="utf-8")) if proc else frozenset(),
        has_proc=proc,
        may_accelerate=not proc or any(Path(device).exists() for device in ACCELERATORS),
    )


def system_of(name: str, release: str) -> System:
    """From what `platform` says: WSL2's kernel has Microsoft in its release."""
    if name == "Linux":
        return System.WSL if "microsoft" in release.lower() else System.LINUX
    return {"Darwin": System.APPLE, "Windows": System.WINDOWS}.get(name, System.OTHER)


def flags_of(cpuinfo: str) -> frozenset[str]:
    """Of the first processor of a /proc/cpuinfo; ARM calls them features."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def temporary_folders() -> list[str]:
    """Where `short_folder` may make one."""
    return list(dict.fromkeys([tempfile.gettempdir(), SHORT]))


def short_folder(prefix: str, room: int, parent: str | None = None, machine: Machine | None = None) -> Path:
    """A new private folder under the temporary one in which socket paths have `room` more bytes.

    Where that would be too long, under `SHORT`. `parent`: there and nowhere else. Raises OSError for one
    that is too long, or cannot be written.
    """
    machine = machine or this_machine()
    for folder in [parent] if parent else temporary_folders():
        # mkdtemp adds a slash and eight characters; /tmp is a link to /private/tmp on macOS.
        length = len(os.fsencode(os.path.realpath(folder))) + 1 + len(prefix) + 8 + room
        if length <= machine.max_socket_path:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    raise OSError(f"{folder}: too long for Unix sockets, whose paths have {machine.max_socket_path} bytes")


def processes_of(folder: Path, mark: str, machine: Machine | None = None) -> Iterator[int]:
    """Ids of processes, but for this one, that have `mark` (NAME=value) in their environment, or whose
    output goes into `folder`.
    """
    if (machine or this_machine()).has_proc:
        yield from _found_in_proc(folder, mark.encode())
        return
    writing = _said("lsof", "-w", "-t", "-a", "-d", "1", "+D", str(folder)).split()
    found = {int(number) for number in writing if number.isdigit()}
    found.update(marked_in(_said("ps", "-axwwE", "-o", "pid=,command="), mark))
    yield from sorted(found - {os.getpid()})


def _found_in_proc(path: Path, mark: bytes) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has ended, or is another user's.
            if int(folder.name) == os.getpid():
                continue
            is_marked = mark in (folder / "environ").read_bytes().split(b"\0")
            if is_marked or (folder / "fd/1").readlink().is_relative_to(path):
                yield int(folder.name)


def run_delays_s(folder: Path = Path("/proc/self/task")) -> Mapping[int, float]:
    """For how long each thread of this process, by its id, was ready to run and waited for a processor since
    it began, seconds. Empty where the system does not say.
    """
    found = {}
    with contextlib.suppress(OSError):
        for thread in folder.iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # It has ended meanwhile.
                found[int(thread.name)] = 1e-9 * int((thread / "schedstat").read_text().split()[1])
    return found


def group_memory_bytes(root: Path = Path("/")) -> int:
    """The least limit of this process's control group and of those above it; 0 without one. Both versions of
    control groups are read. In a container the group's own path may not be there: the top is the group then.
    """
    limits = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if not controllers:
                top, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                limits.append(_number_in(folder / name))
                if folder == top:
                    break
    return _least(*limits)


def resident_bytes() -> int:
    """Memory that this process has now; 0 where the system does not say."""
    return _status("VmRSS")


def anonymous_bytes() -> int:
    """Of those, what is not the content of a file, which the system could drop and read again; 0 where the
    system does not say.
    """
    return _status("RssAnon")


def peak_resident_bytes() -> int:
    """The most that it had since `reset_peak_resident`; 0 where the system does not say."""
    return _status("VmHWM")


def reset_peak_resident() -> bool:
    """Let `peak_resident_bytes` begin anew. False: the system does not count it."""
    try:
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK, encoding="ascii")
    except OSError:
        return False
    return resident_bytes() > 0


def _status(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) << 10
    return 0


def _number_in(path: Path) -> int:
    """0: there is none, or no limit."""
    with contextlib.suppress(OSError, ValueError):
        number = int(path.read_text(encoding="ascii"))
        return number if number < UNLIMITED else 0
    return 0


def _least(*limits: int) -> int:
    """Of those that are known."""
    return min((limit for limit in limits if limit > 0), default=0)


def _said(*command: str) -> str:
    """What a tool of macOS prints; nothing if it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def marked_in(listing: str, mark: str) -> Iterator[int]:
    """Those in lines of `ps`: an id, then command and environment with spaces between."""
    for line in listing.splitlines():
        number, _, rest = line.strip().partition(" ")
        if number.isdigit() and int(number) != os.getpid() and mark in rest.split():
            yield int(number)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0

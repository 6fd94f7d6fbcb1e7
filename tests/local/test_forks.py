"""The process that the others of a service are forked from: begun early, one, and gone with who began it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest
from rearview.machine import this_machine

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not this_machine().forks_well, reason="nothing is forked here"),
]

GONE_S = 2.0
"""The imports that are left take longer."""
CORES = """
from types import SimpleNamespace
from unittest.mock import patch
from rearview import forks

def with_cores(cores):
    return patch.object(forks, "this_machine", lambda: SimpleNamespace(cores=cores))
"""
CHILDREN = """
import os
from pathlib import Path

def children():
    tasks = Path("/proc/self/task").iterdir()
    return sorted({int(pid) for task in tasks for pid in (task / "children").read_text().split()})
"""


def run(*parts: str) -> str:
    """What a script and all that it has started write."""
    command = [sys.executable, "-c", "\n".join(map(textwrap.dedent, parts))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.timeout(180)
@pytest.mark.skipif(not this_machine().ends_children, reason="the kernel tells nobody of a parent's end")
def test_imports_that_nobody_waits_for_any_more_end_with_who_began_them() -> None:
    midst = """
    import time
    with with_cores(2):
        forks.begin_imports()
    while not any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in children()):
        time.sleep(0.02)
    print(time.monotonic(), flush=True)
    """
    began_s = float(run(CORES, CHILDREN, midst))  # It ends with the last that could write.
    assert time.monotonic() - began_s < GONE_S


def test_a_single_core_is_left_to_what_is_checked_meanwhile() -> None:
    counted = """
    with patch.object(forks.forkserver, "ensure_running") as began:
        for cores in (1, 2):
            with with_cores(cores):
                forks.begin_imports()
            print(began.call_count)
    """
    assert run(CORES, counted).split() == ["0", "1"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("is_early", [True, False])
def test_all_are_forked_from_what_was_begun_though_the_thread_that_waited_has_ended(is_early: bool) -> None:
    started = """
    import threading
    from rearview.forks import CONTEXT, begin_imports, starting

    def start():
        with starting():
            one = CONTEXT.Process(target=os.getpid)
            one.start()
        one.join()
        print(*children())

    if is_early:
        with with_cores(2):
            begin_imports()
        print(*children())
    for _ in range(2 if is_early else 3):
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    """
    former, *later = run(CORES, CHILDREN, f"is_early = {is_early}", started).splitlines()
    assert later == [former] * 2

"""What processes of a service are forked from: one that has imported everything, where forks work.

`multiprocessing` keeps that one (its forkserver), for all services of this process; it goes when nobody needs
it any more. Its imports take seconds, so a command lets them begin before it looks at its own options and
files. Elsewhere than on Linux libraries do not outlive a fork, and each process imports for itself.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext

from rearview.machine import this_machine
from rearview.replica.openmp import SPINS
from rearview.scratch import unmarked

__all__ = ["CONTEXT", "begin_imports", "end_with_parent", "outlive_parent", "starting"]

PR_SET_PDEATHSIG = 1

CONTEXT: ForkServerContext | SpawnContext
if this_machine().forks_well:
    CONTEXT = multiprocessing.get_context("forkserver")
else:
    CONTEXT = multiprocessing.get_context("spawn")


def begin_imports() -> None:
    """Let the imports of a service begin, beside what this process does next. Returns in milliseconds, and
    does nothing where they would take its only core, or where nothing is forked.
    """
    if isinstance(CONTEXT, ForkServerContext) and this_machine().cores > 1:
        with starting():
            forkserver.ensure_running()


@contextmanager
def starting() -> Iterator[None]:
    """Around the start of a process: what it inherits."""
    CONTEXT.set_forkserver_preload(["rearview.local.preload"])
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    resource_tracker.ensure_running()  # It lets go of the signals that are held below.
    # Ctrl-C is for whoever has started the service: its processes inherit that they do not hear it.
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with unmarked():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def end_with_parent() -> None:
    """Where the kernel can: end this process with the thread that has started it, however that one ends."""
    _at_parents_end(signal.SIGKILL)


def outlive_parent() -> None:
    """Take `end_with_parent` back."""
    _at_parents_end(0)


def _at_parents_end(number: int) -> None:
    if this_machine().ends_children:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)

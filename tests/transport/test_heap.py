"""Pages that a process has freed are not asked for again, picture by picture."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

PICTURES = """
import resource, sys
from rearview.transport.heap import keep_freed_memory

if "keeps" in sys.argv:
    keep_freed_memory()

def copied_thrice():
    first = bytearray(1_000_000)
    second = bytes(first)
    return len(bytearray(second))

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(10):
    copied_thrice()
before = faults()
for _ in range(100):
    copied_thrice()
print((faults() - before) // 100)
"""


def faults_per_picture(*arguments: str) -> int:
    command = [sys.executable, "-c", PICTURES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back so soon")
def test_copies_of_a_picture_fault_no_pages_in_once_freed_memory_is_kept() -> None:
    assert faults_per_picture("keeps") < 5
    assert faults_per_picture() > 250  # 4 kB each, of three megabytes: else there is nothing to keep.

"""What an error of a forward means, told by its type and its words.

Torch has a type for an accelerator that is out of memory and one for whatever else an accelerator says. A
host that is out of memory raises a plain RuntimeError, and so do libraries below torch.
What surprises: after some of CUDA's errors every further call of the process fails in the same way, and no
row can be blamed for it. Such an error is *sticky*: whoever meets it ends the process.
"""

from __future__ import annotations

import torch

from rearview.contract.failure import Failure

__all__ = ["failure_of", "is_sticky", "said_by"]

NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""The second is of macOS and Windows, the third of CUDA where torch does not allocate, and of MPS."""
DEVICE = ("CUDA error:", "HIP error:")
CALL = ("CUBLAS_STATUS", "CUSPARSE_STATUS", "CUSOLVER_STATUS")
"""A library tells of one call. If the device is broken, the next call of CUDA itself says so."""
HARMLESS = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "no kernel image is available",
    "too many resources requested for launch",
    "operation not supported",
    "operation not permitted when stream is capturing",
    "operation would make the legacy stream depend on a capturing",
    "operation failed due to a previous error during capture",
)
"""Errors of one call, after which the next one can be right. An error that is not among them is taken to be
sticky: to take it for harmless would drop every later frame, to take it for sticky moves some sessions.
"""


def failure_of(error: Exception) -> Failure:
    """Of a forward that `error` has ended."""
    return Failure.NO_MEMORY if _is_no_memory(error) else Failure.RAISED


def is_sticky(error: BaseException) -> bool:
    """Whether no later call of this process can be expected to succeed on its device."""
    if not isinstance(error, RuntimeError) or _is_no_memory(error):
        return False
    text = str(error)
    is_of_device = isinstance(error, torch.AcceleratorError) or text.startswith(DEVICE)
    return is_of_device and not any(words in text for words in (*HARMLESS, *CALL))


def said_by(error: BaseException) -> str:
    """An error in one line: torch's go on with advice."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_no_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)

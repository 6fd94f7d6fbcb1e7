"""What errors mean, told by type and words: as torch 2.13 gives them."""

from __future__ import annotations

import pytest
import torch
from rearview.contract.failure import Failure
from rearview.engine.failures import failure_of, is_sticky, said_by

pytestmark = pytest.mark.unit

ADVICE = "\nSearch for `cudaError' in https://docs.nvidia.com/cuda/ for more information."


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: out of memory"),
        torch.AcceleratorError(f"CUDA error: out of memory{ADVICE}"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."),
        MemoryError(),
    ],
)
def test_no_memory_is_told_and_never_taken_for_a_broken_device(error: Exception) -> None:
    assert failure_of(error) is Failure.NO_MEMORY
    assert not is_sticky(error)


def test_what_the_host_says_that_has_no_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert failure_of(caught.value) is Failure.NO_MEMORY


@pytest.mark.parametrize(
    "words",
    [
        "an illegal memory access was encountered",
        "device-side assert triggered",
        "unspecified launch failure",
        "misaligned address",
        "an illegal instruction was encountered",
        "uncorrectable ECC error encountered",
        "unknown error",
    ],
)
@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_errors_after_which_a_device_answers_nothing_else(kind: type[RuntimeError], words: str) -> None:
    error = kind(f"CUDA error: {words}{ADVICE}")
    assert is_sticky(error)
    assert said_by(error) == f"CUDA error: {words}"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(f"CUDA error: invalid configuration argument{ADVICE}"),
        torch.AcceleratorError(
            f"CUDA error: no kernel image is available for execution on the device{ADVICE}"
        ),
        torch.AcceleratorError(f"CUDA error: operation not permitted when stream is capturing{ADVICE}"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
        RuntimeError("the size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("a prompt that says CUDA error: device-side assert triggered"),
        ValueError("CUDA error: device-side assert triggered"),
        KeyError("x"),
    ],
)
def test_what_one_call_did_wrong_is_an_ordinary_failure(error: Exception) -> None:
    assert not is_sticky(error)
    assert failure_of(error) is Failure.RAISED


def test_an_error_without_words_is_told_by_its_type() -> None:
    assert said_by(RuntimeError()) == "RuntimeError"

"""Which planes of a message an engine copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rearview.contract.frame import LATENT, PICTURE, Frame
from rearview.replica.planes import on_arrays, on_tensors
from rearview.transport.wire import decode_frame, encode_frame

pytestmark = pytest.mark.unit

PLANES = {
    PICTURE: np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    LATENT: np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 2, 2),
}


def test_a_picture_stays_in_its_message_and_a_latent_is_copied() -> None:
    body = bytearray(b"".join(encode_frame(Frame("0" * 32, 0, PLANES), 0.0)))
    planes = on_tensors(decode_frame(body, 0.0)).planes
    assert planes is not None
    body[-PLANES[LATENT].nbytes - PLANES[PICTURE].nbytes :] = bytes(
        PLANES[LATENT].nbytes + PLANES[PICTURE].nbytes
    )
    assert not planes[PICTURE].any()
    assert torch.equal(planes[LATENT], torch.from_numpy(PLANES[LATENT]))
    planes[PICTURE].add_(1)  # It may be written to: the message belongs to whoever took it.


def test_a_picture_of_somebody_else_is_copied() -> None:
    body = b"".join(encode_frame(Frame("0" * 32, 0, PLANES), 0.0))
    planes = on_tensors(decode_frame(body, 0.0)).planes
    assert planes is not None
    planes[PICTURE].add_(1)
    left = on_arrays(Frame("0" * 32, 0, planes), 1).planes
    assert left is not None
    assert np.array_equal(left[PICTURE], PLANES[PICTURE] + 1)

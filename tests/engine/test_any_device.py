"""Every method runs whole on a device without float64 and without CUDA's own operators: a pretended Apple."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, NoiseRule, Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.attention.extended import attend_segments
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions
from support.frames import content, entering
from support.pretend import OnDevice, PretendDevice, Refused, has_kernel
from support.tiny import SIZE, random_frames, whole_chain, write_tiny_checkpoint
from support.tiny_motion_files import write_motion_adapter
from support.toy import drain
from torch import Tensor

pytestmark = pytest.mark.unit

CPU, MPS = torch.device("cpu"), torch.device("mps", 0)
WINDOW = CacheWindow(2, 2)
BANK = BankSettings(interval=2, fusion_threshold=0.5)
METHODS = {
    "per-frame": (None, None),
    "streamv2v": (BANK, None),
    "live2diff": (None, CacheSettings()),
    "both": (BANK, CacheSettings()),
}
FRAMES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def additions(tmp_path_factory: pytest.TempPathFactory) -> Additions:
    return Additions(motion=str(write_motion_adapter(tmp_path_factory.mktemp("motion"))))


def translate(
    folder: Path, additions: Additions, method: str, device: torch.device, dtype: torch.dtype
) -> Sequence[Tensor]:
    """Loaded, remembered and translated on `device`: two sessions, of which one is guided and changes."""
    bank, cache = METHODS[method]
    span = whole_chain()
    model = load_model(str(folder), span, device, dtype, additions)
    assert isinstance(model, DiffusionModel)
    options = MemoryOptions(
        num_slots=2, height=SIZE, width=SIZE, dtype=dtype, device=device, bank=bank,
        cache=None if cache is None else CacheOptions(WINDOW), latent_scale=8,
    )  # fmt: skip
    engine = Engine(span, model, build_memories(span, model.layouts, options), Scheduler(CostTable(), 4))
    guided = Settings("b", steps=2, guidance=Guidance.FULL, guidance_scale=1.5, noise_rule=NoiseRule.FRESH)
    for name, settings in (("a", Settings("a", steps=2)), ("b", guided)):
        engine.open(SessionSpec(name, SIZE, SIZE, 2, settings, bank=bank, cache=cache))
    found: dict[tuple[str, int], Tensor] = {}
    for ordinal, frame in enumerate(random_frames(FRAMES)):
        if ordinal == FRAMES - 2:
            engine.update("a", 1, Settings("c", steps=1, strength=0.5))
        for name in ("a", "b"):
            engine.admit(
                entering(name, ordinal, frame, version=int(name == "a" and ordinal >= FRAMES - 2)), 0.0
            )
        for left in drain(engine):
            picture = content(left)
            assert picture is not None, f"{name} {ordinal} was lost"
            assert type(picture) is Tensor, "it has not come back to the host"
            found[left.session_id, left.ordinal] = picture
    assert len(found) == 2 * FRAMES
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_a_device_without_float64(
    folder: Path, additions: Additions, method: str
) -> None:
    expected = translate(folder, additions, method, CPU, torch.float32)
    with PretendDevice() as world:
        pictures = translate(folder, additions, method, MPS, torch.float32)
    assert {"convolution", "native_group_norm"} <= world.operators.keys()
    assert world.dtypes <= {torch.float32, torch.int64, torch.bool, torch.uint8, torch.int32}
    for one, other in zip(pictures, expected, strict=True):
        assert int((one.int() - other.int()).abs().max()) <= 1


def test_half_precision_stays_half(folder: Path, additions: Additions) -> None:
    with PretendDevice() as world:
        translate(folder, additions, "both", MPS, torch.float16)
    assert torch.float16 in world.dtypes
    assert torch.float64 not in world.dtypes


def test_the_other_attention_needs_no_kernel_of_cuda() -> None:
    with PretendDevice(), torch.inference_mode():
        query, key, value, past_key, past_value = torch.randn(5, 1, 2, 4, 8).to(MPS, torch.float16).unbind(0)
        for mask in (None, torch.ones(1, 4, dtype=torch.bool, device=MPS)):
            assert attend_segments(query, key, value, past_key, past_value, mask).dtype is torch.float16


# --- what the pretended device refuses: a law that has never failed proves nothing


def test_float64_is_refused() -> None:
    with PretendDevice():
        with pytest.raises(Refused, match="float64"):
            torch.ones(2, device=MPS).double()
        with pytest.raises(Refused, match="float64"):
            torch.arange(3, device=MPS, dtype=torch.float64)
        with pytest.raises(Refused, match="float64"):
            torch.tensor([0.5], dtype=torch.float64, device=MPS)
        with pytest.raises(Refused, match="float64"):
            torch.ones(2, dtype=torch.float64).to(MPS)


def test_kernels_that_it_lacks_are_refused() -> None:
    assert has_kernel("mm", "MPS")
    assert not has_kernel("linalg_eig", "MPS")
    with PretendDevice():
        matrix = torch.ones(2, 2, device=MPS)
        with pytest.raises(Refused, match="no kernel"):
            torch.linalg.eig(matrix)
        with pytest.raises(Refused, match="no kernel"):
            torch.ops.aten._scaled_dot_product_flash_attention(*torch.ones(3, 1, 1, 2, 8, device=MPS))


def test_two_devices_and_foreign_generators_are_refused() -> None:
    with PretendDevice():
        there = torch.ones(2, device=MPS)
        with pytest.raises(Refused, match="host"):
            there + torch.ones(2)
        with pytest.raises(Refused, match="generator"):
            torch.randn(2, device=MPS, generator=torch.Generator("cpu"))
        assert isinstance(there + 1.0, OnDevice)
        assert type((there * 2).cpu()) is Tensor
        assert (there * 2).cpu().tolist() == [2.0, 2.0]

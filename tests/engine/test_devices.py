"""Which device and which type are chosen, for machines that are not at hand too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rearview.engine.devices import (
    Seen,
    choose_device,
    choose_dtype,
    device_name,
    draws_ahead,
    memory_format,
    pick_device,
    pick_dtype,
    see,
    synchronize,
    upload,
)
from rearview.errors import ConfigError
from rearview.machine import Machine, System, this_machine

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
ALL = Seen(("cuda", "mps", "xpu", "cpu"))


@pytest.mark.parametrize("best", ["cuda", "mps", "xpu", "cpu"])
def test_auto_takes_the_best_that_there_is(best: str) -> None:
    seen = Seen(ALL.devices[ALL.devices.index(best) :])
    assert choose_device("auto", seen).type == best
    assert choose_device("cpu", seen) == CPU


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"model.device 'cuda:1'.* has mps, cpu here"):
        choose_device("cuda:1", Seen(("mps", "cpu")))
    with pytest.raises(ConfigError, match="none of auto, cuda, mps, xpu, cpu"):
        choose_device("toaster", ALL)


@pytest.mark.parametrize(
    ("kind", "seen", "dtype"),
    [
        ("cuda", ALL, torch.float16),
        ("mps", ALL, torch.float16),
        ("xpu", ALL, torch.float16),
        ("cpu", ALL, torch.float32),
        ("cpu", replace(ALL, has_bfloat16=True), torch.bfloat16),
        ("cpu", replace(ALL, has_bfloat16=True, has_mkldnn=False), torch.float32),
    ],
)
def test_the_type_follows_from_device_and_hardware(kind: str, seen: Seen, dtype: torch.dtype) -> None:
    assert choose_dtype("auto", kind, seen) is dtype
    assert choose_dtype("float32", kind, seen) is torch.float32


def test_only_where_it_pays_something_is_drawn_ahead() -> None:
    assert [kind for kind in ALL.devices if draws_ahead(torch.device(kind))] == ["cuda"]


def test_float64_is_for_devices_that_have_it() -> None:
    assert choose_dtype("float64", "cpu", ALL) is torch.float64
    with pytest.raises(ConfigError, match="mps has none"):
        choose_dtype("float64", "mps", ALL)


def test_a_torch_without_onednn_is_asked_nothing_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's builds are: `torch.ops.mkldnn` does not exist there."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    apple = Machine(System.APPLE, "23.1.0", "arm64", cores=8, memory_bytes=8 << 30, has_proc=False)
    seen = see(apple)
    assert seen.devices[seen.devices.index("mps") :] == ("mps", "cpu")
    assert choose_dtype("auto", "cpu", seen) is torch.float32
    assert memory_format(CPU) is torch.contiguous_format


def test_bfloat16_needs_a_cpu_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    here = this_machine()
    assert see(replace(here, cpu_flags=frozenset({"avx512_bf16"}))).has_bfloat16
    assert not see(replace(here, cpu_flags=frozenset({"avx512f"}))).has_bfloat16


def test_this_machine_has_a_device_and_a_name_for_it() -> None:
    device = pick_device("auto")
    assert device_name(device)
    assert device_name(CPU) == "CPU"
    assert pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    synchronize()
    assert torch.equal(upload(torch.arange(3), CPU), torch.arange(3))


def test_only_queues_that_keep_their_source_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, *, non_blocking: asked.update({device.type: non_blocking})
    )
    for kind in ("cuda", "xpu", "mps", "cpu"):
        upload(torch.arange(3), torch.device(kind))
    assert asked == {"cuda": True, "xpu": True, "mps": False, "cpu": False}

"""`--model` before anything starts: what it becomes, what it is sized for, and what is refused at once."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import rearview.cli.model_choice as model_choice
import torch
from hypothesis import given
from hypothesis import strategies as st
from rearview.cli.model_choice import choose_model, config_for, model_config, remember_costs
from rearview.client import OpenOptions
from rearview.contract.card import ModelCard
from rearview.contract.cost import FrameCost
from rearview.contract.family import check_checkpoint
from rearview.contract.fit import WANTED_FPS, fit
from rearview.contract.settings import SettingsChange
from rearview.errors import ConfigError
from rearview.models import FetchFailed
from safetensors.torch import save_file
from support.tiny import write_tiny_checkpoint
from support.tiny_turbo import write_tiny_turbo
from support.tiny_xl import write_tiny_xl

pytestmark = pytest.mark.unit

REAL_DEVICE = model_choice._device
SLOW = {"pixels": 256 * 256, "once_s": 0.01, "step_s": 0.5, "cached_step_s": 0.5, "steps": (0,)}
QUICK = {**SLOW, "step_s": 0.01}


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REARVIEW_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(model_choice, "_device", lambda name: "cpu")


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_turbo(tmp_path_factory.mktemp("turbo") / "tiny-turbo")


def test_a_folder_becomes_the_model_of_a_service_that_is_made_for_it(turbo: Path) -> None:
    config = model_config(str(turbo), topology="pipeline")
    assert (config.model.name, config.model.checkpoint) == ("tiny-turbo", str(turbo))
    assert (config.model.max_steps, config.model.width, config.model.height) == (1, 256, 256)
    assert config.operators == ("encode", "denoise-0", "decode")
    assert [span.operators for span in config.spans] == [("encode",), ("denoise-0", "decode")]


def test_without_a_name_the_service_is_sized_for_what_is_asked() -> None:
    config = model_config(None, size=(512, 384), steps=3)
    assert (config.model.checkpoint, config.model.width, config.model.height) == ("pocket", 512, 384)
    assert config.model.max_steps == 3
    assert config.cache is not None
    assert model_config().model.max_steps == 2


@pytest.mark.parametrize(
    ("options", "change", "steps"),
    [
        ({}, SettingsChange(prompt="ink"), 2),
        ({"steps": 3}, SettingsChange(steps=1), 3),
        ({"max_steps": 4}, SettingsChange(), 4),
        ({"steps": 1}, SettingsChange(steps=3), 3),
        ({"timestep_indices": (10, 20, 30)}, SettingsChange(), 3),
        ({}, SettingsChange(timestep_indices=(5, 10, 20, 30)), 4),
    ],
)
def test_a_service_has_the_steps_that_its_session_comes_to(
    options: OpenOptions, change: SettingsChange, steps: int
) -> None:
    assert config_for(None, options, changes=[change]).model.max_steps == steps


def test_more_steps_than_a_service_has_are_refused_before_it_starts() -> None:
    for options, change in (({"max_steps": 5}, SettingsChange()), ({}, SettingsChange(steps=5))):
        with pytest.raises(ConfigError, match="5 denoising steps"):
            config_for(None, options, changes=[change])


@pytest.mark.parametrize("topology", ["fused", "pipeline"])
def test_memory_is_for_those_who_come(turbo: Path, topology: str) -> None:
    config = model_config(str(turbo), topology=topology, sessions=9)
    assert {span.slots for span in config.spans} == {9}
    (run,) = config_for(str(turbo), {}).spans
    assert run.slots == model_choice.RUN_SESSIONS
    (shared,) = model_config(str(turbo)).spans
    assert shared.slots == "auto"


def test_room_is_made_in_whole_levels_for_sizes_that_are_none(turbo: Path) -> None:
    assert [choose_model(None, size=(264, 200))[side] % 8 for side in ("width", "height")] == [0, 0]
    content = choose_model(str(turbo), size=(264, 200))
    assert (content["width"], content["height"]) == (320, 256)


def test_a_lora_that_belongs_to_a_fetched_model_is_named(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "sd")
    assert "lcm_lora" not in choose_model(str(folder))
    (folder / "lcm_lora").mkdir()
    assert choose_model(str(folder))["lcm_lora"] == str(folder / "lcm_lora")


def test_size_follows_what_a_frame_has_cost(turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config(str(turbo))
    remember_costs(config, [{"span": "fused", "cost": QUICK}])
    assert choose_model(str(turbo))["width"] == 384
    remember_costs(config, [{"span": "fused", "cost": SLOW}])
    assert choose_model(str(turbo))["width"] == 256
    assert choose_model(str(turbo), size=(512, 512))["width"] == 512
    monkeypatch.setattr(model_choice, "_device", lambda name: "mps")
    assert choose_model(str(turbo))["width"] == 512, "what was measured on another device counted"


def test_costs_are_of_the_device_that_the_replicas_name(turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config(str(turbo))
    monkeypatch.setattr(model_choice, "_device", lambda name: pytest.fail("it was said"))
    remember_costs(config, [{"span": "fused", "cost": QUICK, "device": "cpu:0"}])
    monkeypatch.setattr(model_choice, "_device", lambda name: "cpu")
    assert choose_model(str(turbo))["width"] == 384


def test_costs_that_cannot_be_read_are_as_good_as_none(turbo: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for text in ("", "[]", json.dumps({f"{turbo} on cpu": [{"odd": 1, "steps": []}]})):
        (tmp_path / "models" / "costs.json").write_text(text)
        assert choose_model(str(turbo))["width"] == 256


@pytest.mark.parametrize(
    ("device", "step_s", "steps", "expected"),
    [
        ("cpu", 0.001, 4, (384, 4)),
        ("cpu", 0.03, 1, (384, 1)),
        ("cpu", 0.04, 1, (320, 1)),
        ("cpu", 0.07, 1, (256, 1)),
        ("cpu", 0.07, 4, (256, 1)),
        ("cpu", 3.0, 2, (256, 2)),
        ("cuda", 0.001, 4, (512, 4)),
        ("mps", 0.018, 4, (512, 1)),
        ("xpu", 9.0, 2, (512, 2)),
    ],
)
def test_size_and_steps_are_those_that_keep_up(
    device: str, step_s: float, steps: int, expected: tuple[int, int]
) -> None:
    cost = FrameCost(256 * 256, 0.0, step_s, step_s, tuple(range(steps)))
    chosen = fit(device, [cost], steps)
    assert (chosen.side, chosen.steps) == expected
    assert chosen.frames_per_s == pytest.approx(256**2 / (chosen.side**2 * step_s * chosen.steps))


@given(st.floats(1e-4, 10.0), st.floats(0.0, 1.0), st.integers(1, 4))
def test_only_a_machine_that_can_do_nothing_in_time_is_late(step_s: float, once_s: float, steps: int) -> None:
    costs = [FrameCost(256 * 256, once_s, step_s, step_s, tuple(range(steps)))]
    chosen = fit("cpu", costs, steps)
    assert chosen.frames_per_s is not None
    is_late = chosen.frames_per_s < WANTED_FPS
    assert is_late == (1.0 / (once_s + step_s) < WANTED_FPS)
    assert not is_late or (chosen.side, chosen.steps) == (256, steps)
    assert fit("cpu", [], steps).side == 256


def refused(name: str) -> str:
    started_s = time.monotonic()
    with pytest.raises(ConfigError) as error:
        choose_model(name)
    assert time.monotonic() - started_s < 2.0, "told too late"
    return str(error.value)


def test_what_is_nowhere_is_refused_at_once() -> None:
    assert refused("sd-turbi").endswith("; did you mean sd-turbo?")
    assert "none of pocket, sd-turbo" in refused("/nowhere/at/all")
    assert "did you mean" not in refused("/nowhere/at/all")
    assert refused("pockt").endswith("; did you mean pocket?")
    assert "is not a file" in refused("/nowhere/model.safetensors")


def test_a_hub_that_is_not_there_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchFailed, match="OFFLINE"):
        choose_model("sd-turbo")


def test_another_family_is_refused_by_name(turbo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(turbo, tmp_path / "xl"))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    assert "Stable Diffusion 3, which is not supported: take" in refused(str(folder))


def test_a_folder_of_sdxl_turbo_starts_with_one_step_at_half_strength(tmp_path: Path) -> None:
    folder = write_tiny_xl(tmp_path / "xl")
    check_checkpoint(str(folder))
    card = ModelCard.read(str(folder))
    assert (card.steps, card.strength) == (1, 0.5)
    assert choose_model(str(folder))["max_steps"] == 1


def test_a_single_file_takes_the_settings_of_what_was_fetched_or_is_refused(tmp_path: Path) -> None:
    file, other = tmp_path / "dream.safetensors", tmp_path / "sd2.safetensors"
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}
    save_file(unet, file)
    save_file({**unet, "cond_stage_model.model.ln_final.weight": torch.zeros(1)}, other)
    assert "vae" not in choose_model(str(file))
    settings = tmp_path / "models" / "sd15-lcm"
    settings.mkdir(parents=True)
    (settings / "rearview-source.json").write_text(json.dumps({"files": {}}))
    content = choose_model(str(file))
    assert (content["single_file_config"], content["vae"]) == (str(settings), str(settings / "vae"))
    assert "model.single_file_config" in refused(str(other))
    save_file({**unet, "conditioner.embedders.1.model.ln_final.weight": torch.zeros(1)}, other)
    assert "is of Stable Diffusion XL, and does not say for which sampler" in refused(str(other))


def test_a_device_is_chosen_and_one_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_choice, "_device", REAL_DEVICE)
    assert model_config(device="cpu").model.device == "cpu"
    assert config_for(None, {}, "cpu").model.device == "cpu"
    with pytest.raises(ConfigError, match=r"model\.device 'xpu'"):
        choose_model(None, device="xpu")

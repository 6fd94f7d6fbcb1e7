"""Motion modules in the UNet: published files, bases, LoRAs and noise schedules together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from rearview.config import ModelConfig, load_config
from rearview.contract.settings import Settings
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.sampling import Schedule
from rearview.engine.networks.unet import StreamingUNet
from rearview.engine.weights.adapters import NO_ADAPTERS
from rearview.engine.weights.checkpoint import load_denoiser, load_denoisers, load_model
from rearview.engine.weights.formats import Additions, LoraFile, find_checkpoint
from rearview.engine.weights.motion_formats import is_motion, is_table, read_motion
from rearview.errors import ConfigError
from rearview.replica.build import additions as configured
from support.loras import CONV, LINEAR, OUT, TEXT, random_lora, write_kohya, write_peft
from support.original import write_single_file, write_tiny_kl
from support.tiny import LATENT_CHANNELS, SCHEDULER, whole_chain, write_tiny_checkpoint
from support.tiny_depth import write_tiny_depth
from support.tiny_motion_files import (
    SD15,
    TINY,
    Weights,
    depth_branch,
    expected_name,
    original_motion,
    write_motion_adapter,
    write_motion_file,
)

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
V1 = original_motion()
LIVE2DIFF = {**V1, **depth_branch()}
MODULE = "down_blocks.0.motion_modules.0"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint without motion modules."""
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_depth(tmp_path_factory.mktemp("depth")))


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_motion_file(tmp_path_factory.mktemp("v1") / "mm.ckpt", V1)


def load(
    base: Path, additions: Additions | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Denoiser]:
    additions = additions or Additions()
    return load_denoisers(find_checkpoint(str(base), ["unet"], additions), CPU, dtype, additions)


def weights(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = denoiser.unet.state_dict()
    return {key: value for key, value in found.items() if not is_table(key)}


def moving(found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in found.items() if is_motion(key)}


def still(found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in found.items() if not is_motion(key)}


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [key for key, value in left.items() if not torch.equal(value, right[key])] == []


def expected(original: Weights) -> Weights:
    return {expected_name(key): value for key, value in original.items() if "pos_encoder" not in key}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_l14_the_released_layout_loads_with_nothing_missing_and_nothing_left(
    base: Path, depth: str, tmp_path: Path, suffix: str
) -> None:
    bare = suffix == ".safetensors"
    file = write_motion_file(tmp_path / f"live2diff{suffix}", LIVE2DIFF, bare=bare, prefix="module.")
    loaded = weights(load(base, Additions(motion=str(file), depth=depth))[NO_ADAPTERS])
    assert_same(moving(loaded), expected(LIVE2DIFF))
    assert_same(still(loaded), load(base)[NO_ADAPTERS].unet.state_dict())


def test_l14_the_names_for_stable_diffusion_are_those_of_the_file() -> None:
    """No values: 20 modules of 26 weights and 16 of the depth branch, beside the 686 of the UNet."""
    layout = {**original_motion(SD15, 2, device="meta"), **depth_branch(SD15[0], 4, device="meta")}
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        plain = unet.state_dict().keys()
        found = StreamingUNet(unet, heads=8, norm_groups=32, max_frames=24, depth=True).state_dict()
    assert len(layout) == 576
    assert len(plain) == 686
    shapes = {key: value.shape for key, value in moving(found).items() if not is_table(key)}
    assert shapes == {key: value.shape for key, value in expected(layout).items()}
    assert still(found).keys() == plain


def test_the_names_are_those_of_diffusers_motion_unet(base: Path, v1: Path) -> None:
    """Its keys, its buffers aside: what is trained or converted for one fits the other."""
    streaming = load(base, Additions(motion=str(v1)))[NO_ADAPTERS].unet
    unet = load(base)[NO_ADAPTERS].unet
    oracle = UNetMotionModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        block_out_channels=TINY,
        layers_per_block=1,
        cross_attention_dim=unet.config.cross_attention_dim,
        norm_num_groups=4,
        num_attention_heads=2,
        motion_num_attention_heads=8,
        motion_max_seq_length=24,
        use_motion_mid_block=False,
    ).state_dict()
    shapes = {key: value.shape for key, value in oracle.items() if not is_table(key)}
    found = {key: value.shape for key, value in streaming.state_dict().items() if not is_table(key)}
    assert found == shapes


@pytest.mark.parametrize("frames", [24, 32])
def test_animatediff_files_load(base: Path, tmp_path: Path, frames: int) -> None:
    original = original_motion(frames=frames, seed=frames)
    file = write_motion_file(tmp_path / "mm.ckpt", original)
    assert_same(moving(weights(load(base, Additions(motion=str(file)))[NO_ADAPTERS])), expected(original))


def test_a_checkpoints_own_modules_load_unless_others_are_named(base: Path, v1: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(base, tmp_path / "whole"))
    own = dict(read_motion(write_motion_adapter(whole / "motion_adapter")).tensors)
    assert_same(moving(weights(load(whole)[NO_ADAPTERS])), own)
    assert_same(moving(weights(load_denoiser(whole, CPU, torch.float32))), own)
    assert_same(moving(weights(load(whole, Additions(motion=str(v1)))[NO_ADAPTERS])), expected(V1))
    assert type(load(base)[NO_ADAPTERS].unet) is UNet2DConditionModel


def test_modules_take_the_asked_precision(base: Path, v1: Path) -> None:
    loaded = weights(load(base, Additions(motion=str(v1)), torch.bfloat16)[NO_ADAPTERS])
    assert {value.dtype for value in loaded.values()} == {torch.bfloat16}


def test_modules_have_the_heads_norms_and_positions_that_they_were_trained_with(
    base: Path, v1: Path, tmp_path: Path
) -> None:
    """Original files say none of these but the table's length."""
    folder = write_motion_adapter(tmp_path / "motion", frames=20, heads=4, motion_norm_num_groups=2)
    for motion, expected_sizes in ((v1, (8, 4, 24)), (folder, (4, 2, 20))):
        unet = load(base, Additions(motion=str(motion)))[NO_ADAPTERS].unet
        for block in (*unet.down_blocks, *unet.up_blocks):
            for module in block.motion_modules:
                attention = module.transformer_blocks[0].attn1
                assert (attention.heads, module.norm.num_groups, attention.max_frames) == expected_sizes


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("less", r"lacks 1 weights that the UNet has, for instance .*proj_in\.bias"),
        ("layers", r"has 104 weights that the UNet has not"),
        ("blocks", r"has \d+ weights that the UNet has not, for instance down_blocks\.2"),
        ("width", r"another base model"),
    ],
)
def test_l14_files_that_do_not_fit_the_unet_are_refused_by_option_and_file(
    base: Path, tmp_path: Path, change: str, complaint: str
) -> None:
    original = {
        "less": {
            key: value
            for key, value in V1.items()
            if not key.startswith(f"{MODULE}.temporal_transformer.proj_in.bias")
        },
        "layers": original_motion(layers=2),
        "blocks": original_motion((16, 32, 32)),
        "width": original_motion((32, 64)),
    }[change]
    file = write_motion_file(tmp_path / "odd.ckpt", original)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(base, Additions(motion=str(file)))
    assert str(caught.value).startswith(f"model.motion: {file}")


def test_depth_and_modules_must_fit_each_other(base: Path, depth: str, v1: Path, tmp_path: Path) -> None:
    with_depth = write_motion_file(tmp_path / "live2diff.ckpt", LIVE2DIFF)
    with pytest.raises(ConfigError, match=r"live2diff\.ckpt were trained with depth: .*model\.depth"):
        load(base, Additions(motion=str(with_depth)))
    with pytest.raises(ConfigError, match=r"mm\.ckpt know no depth: .*model\.depth"):
        load(base, Additions(motion=str(v1), depth=depth))
    with pytest.raises(ConfigError, match=r"model\.depth"):
        load(base, Additions(depth=depth))


def test_heads_that_do_not_divide_the_channels_are_refused(base: Path, tmp_path: Path) -> None:
    folder = write_motion_adapter(tmp_path / "motion")
    content = json.loads((folder / "config.json").read_text())
    for name, value in (("motion_num_attention_heads", 3), ("motion_norm_num_groups", 5)):
        (folder / "config.json").write_text(json.dumps({**content, name: value}))
        with pytest.raises(ConfigError, match=r"^model\.motion: "):
            load(base, Additions(motion=str(folder)))


def test_a_dreambooth_file_is_a_base_for_motion(base: Path, v1: Path, tmp_path: Path) -> None:
    folder = write_tiny_kl(Path(shutil.copytree(base, tmp_path / "kl")))
    file = write_single_file(folder, tmp_path / "dreambooth.safetensors")
    additions = Additions(motion=str(v1), single_file_config=str(folder))
    model = load_model(str(file), whole_chain(), CPU, torch.float32, additions)
    assert isinstance(model, DiffusionModel)
    denoiser: Any = model._denoiser
    assert_same(moving(weights(denoiser)), expected(V1))
    assert_same(still(weights(denoiser)), load(folder)[NO_ADAPTERS].unet.state_dict())


@pytest.fixture(scope="module")
def styled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """LoRAs whose alpha is not their rank, and an LCM-LoRA."""
    folder, plain = tmp_path_factory.mktemp("loras"), load(base)[NO_ADAPTERS]
    text: Any = plain.conditioning
    network = {
        **plain.unet.state_dict(),
        **{k.removeprefix("text_model."): v for k, v in text.text_encoder.state_dict().items()},
    }
    oil = write_kohya(folder / "oil.safetensors", random_lora(network, [LINEAR, TEXT, CONV], seed=1), 6.0)
    ink = write_peft(folder / "ink.safetensors", random_lora(network, [LINEAR, OUT], seed=2), 1.5)
    lcm = write_kohya(folder / "lcm.safetensors", random_lora(network, [OUT], seed=3), 1.0)
    sets = {"oil": [LoraFile(str(oil), 0.5)], "ink": [LoraFile(str(ink))]}
    return {"lcm_lora": str(lcm), "merged": sets}


def under(denoisers: Mapping[str, Denoiser], name: str) -> dict[str, torch.Tensor]:
    denoisers[name].unet._sets.activate(name)
    return weights(denoisers[name])


def test_loras_merge_under_motion_as_without_and_never_touch_the_modules(
    base: Path, v1: Path, styled: dict[str, Any]
) -> None:
    plain = load(base, Additions(**styled))
    moved = load(base, Additions(**styled, motion=str(v1)))
    bare = load(base)[NO_ADAPTERS].unet.state_dict()
    for name in (NO_ADAPTERS, "oil", "ink", "oil", NO_ADAPTERS):
        found = under(moved, name)
        assert_same(still(found), under(plain, name))
        assert_same(moving(found), expected(V1))
        assert any(not torch.equal(value, bare[key]) for key, value in still(found).items())


@torch.inference_mode()
def predicted(denoiser: Denoiser, adapters: str = "") -> torch.Tensor:
    """`adapters`: a stacked set."""
    latent, settings = torch.ones(1, LATENT_CHANNELS, 8, 8), Settings(prompt="a", adapters=adapters)
    embeds, more = denoiser.conditioning.embed_frame(settings, 0), denoiser.adapter_rows([settings])
    output: torch.Tensor = denoiser.unet(
        latent, torch.tensor([399]), encoder_hidden_states=embeds, return_dict=False, **more
    )[0]
    return output


def test_sets_switch_live_under_motion(base: Path, v1: Path, styled: dict[str, Any]) -> None:
    """Without a cache the modules are skipped: the picture is the plain UNet's under the same set."""
    plain, moved = (load(base, Additions(**styled, motion=motion)) for motion in ("", str(v1)))
    seen = {}
    for name in (NO_ADAPTERS, "oil", "ink", "oil", NO_ADAPTERS):
        output = predicted(moved[name])
        torch.testing.assert_close(output, predicted(plain[name]), rtol=1e-5, atol=1e-5)
        assert torch.equal(output, seen.setdefault(name, output))
    assert len({float(output.sum()) for output in seen.values()}) == 3


def test_stacked_sets_act_under_motion_as_merged_ones_do(
    base: Path, v1: Path, styled: dict[str, Any]
) -> None:
    sets = {"lcm_lora": styled["lcm_lora"], "adapters": styled["merged"]}
    stacked = load(base, Additions(**sets, motion=str(v1)))[NO_ADAPTERS]
    merged = load(base, Additions(**styled, motion=str(v1)))
    outputs = [predicted(stacked, name) for name in ("", "oil", "ink")]
    for output, name in zip(outputs, (NO_ADAPTERS, "oil", "ink"), strict=True):
        torch.testing.assert_close(output, predicted(merged[name]), rtol=1e-4, atol=1e-4)
    assert len({float(output.sum()) for output in outputs}) == 3


def test_a_cache_finds_its_layers_with_and_without_sets(base: Path, v1: Path, styled: dict[str, Any]) -> None:
    layouts = []
    for options in ({}, styled):
        model = load_model(str(base), whole_chain(), CPU, torch.float32, Additions(**options, motion=str(v1)))
        assert isinstance(model, DiffusionModel)
        layouts.append(model.layouts.cache)
    assert layouts[0] is not None
    assert layouts[0] == layouts[1]
    assert (layouts[0].max_frames, len(layouts[0].layers)) == (24, 12)
    plain = load_model(str(base), whole_chain(), CPU, torch.float32)
    assert isinstance(plain, DiffusionModel)
    assert plain.layouts.cache is None


def test_a_unet_that_motion_modules_do_not_fit_is_refused(base: Path, v1: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    path = other / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "center_input_sample": True}))
    with pytest.raises(ConfigError, match=r"^model\.motion: .*mm\.ckpt: a UNet that centres"):
        load(other, Additions(motion=str(v1)))


def test_a_lora_for_motion_modules_is_refused_by_name(base: Path, v1: Path, tmp_path: Path) -> None:
    layer = f"{MODULE}.transformer_blocks.0.attn1.to_q"
    file = write_peft(
        tmp_path / "pan.safetensors", random_lora({f"{layer}.weight": torch.ones(16, 16)}, [layer]), None
    )
    with pytest.raises(ConfigError, match=rf"model\.adapters\.pan: .*{MODULE}.*has not"):
        load(base, Additions(motion=str(v1), adapters={"pan": [LoraFile(str(file))]}))


def test_l16_linear_betas_and_the_timesteps_of_the_released_configurations(base: Path) -> None:
    """The table of methods 3.10."""
    schedule = load(base, Additions(beta_schedule="linear"))[NO_ADAPTERS].schedule
    assert [step.timestep for step in schedule.steps(Settings(strength=0.4, steps=3))] == [399, 279, 159]
    table = {
        (30, 40): ([399, 199], [0.5399, 0.8418, 0.8218, 0.5698]),
        (30, 36, 42): ([399, 279, 159], [0.5399, 0.8418, 0.7136, 0.7006, 0.8701, 0.4928]),
        (25, 34, 43): ([499, 319, 139], [0.4023, 0.9155, 0.6561, 0.7547, 0.8923, 0.4513]),
        (25, 31, 37, 43): (
            [499, 379, 259, 139],
            [0.4023, 0.9155, 0.5687, 0.8225, 0.7417, 0.6707, 0.8923, 0.4513],
        ),
        (35, 40, 45): ([299, 199, 99], [0.6850, 0.7285, 0.8218, 0.5698, 0.9322, 0.3619]),
    }
    for indices, (timesteps, values) in table.items():
        assert [schedule.timestep(index) for index in indices] == timesteps
        steps = [schedule.coefficients(timestep) for timestep in timesteps]
        found = [value for step in steps for value in (step.alpha, step.beta)]
        assert found == pytest.approx(values, abs=6e-5)
        assert all(step.c_skip < 3e-7 and step.c_out == pytest.approx(1.0, abs=1e-6) for step in steps)


def test_the_checkpoints_own_betas_hold_unless_others_are_named(base: Path) -> None:
    own = load(base)[NO_ADAPTERS].schedule.coefficients(399)
    assert (own.alpha, own.beta) == (pytest.approx(0.6528, abs=6e-5), pytest.approx(0.7576, abs=6e-5))
    assert own == Schedule(SCHEDULER).coefficients(399)
    assert load(base, Additions(beta_schedule="scaled_linear"))[NO_ADAPTERS].schedule.coefficients(399) == own


def test_motion_depth_and_betas_are_configured_with_the_model() -> None:
    config = load_config({"model": {"motion": "mm.ckpt", "depth": "dpt", "beta_schedule": "linear"}})
    additions = configured(config.model)
    assert (additions.motion, additions.depth, additions.beta_schedule) == ("mm.ckpt", "dpt", "linear")
    assert configured(ModelConfig()) == Additions()
    with pytest.raises(ConfigError, match=r"model\.beta_schedule"):
        load_config({"model": {"beta_schedule": "cosine"}})

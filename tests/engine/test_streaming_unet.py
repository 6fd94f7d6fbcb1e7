"""`StreamingUNet`: the stock UNet where time says nothing, diffusers' motion UNet over single frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rearview
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from rearview.engine.networks.attention.processors import BankProcessor, install_processors
from rearview.engine.networks.attention.temporal import ClipAttention, attend_frames, clip_mask
from rearview.engine.networks.motion_module import MotionModule, sinusoidal_table
from rearview.engine.networks.unet import StreamingUNet, motion_state
from support.tiny_motion import (
    CHANNELS,
    HEADS,
    NORM_GROUPS,
    cached,
    clip,
    gap,
    plain_unet,
    run,
    tiny_unet,
    whole_clip,
    window_row,
    with_motion,
)

pytestmark = pytest.mark.unit

POCKET = Path(rearview.__file__).parent / "checkpoints" / "pocket" / "unet"


def motion_unet(unet: UNet2DConditionModel, max_frames: int = 24) -> UNetMotionModel:
    """diffusers' model over the same UNet, with random motion modules."""
    torch.manual_seed(5)
    adapter = MotionAdapter(
        block_out_channels=tuple(unet.config.block_out_channels),
        motion_layers_per_block=unet.config.layers_per_block,
        motion_num_attention_heads=HEADS,
        motion_norm_num_groups=NORM_GROUPS,
        motion_max_seq_length=max_frames,
        use_motion_mid_block=False,
    )
    model = UNetMotionModel.from_unet2d(unet, adapter)
    return model.to(unet.dtype).eval().requires_grad_(False)


def test_l13_single_frame_equals_diffusers_motion_unet() -> None:
    """The whole UNet: one frame at position 0, where joint and per-frame norms are the same."""
    theirs = motion_unet(plain_unet(layers_per_block=2).to(torch.float64))
    ours = StreamingUNet(
        plain_unet(layers_per_block=2).to(torch.float64), heads=HEADS, norm_groups=NORM_GROUPS
    )
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(key.endswith("pos_embed.pe") for key in missing.unexpected_keys)
    latents, prompts = clip(2), torch.randn(2, 3, 8, dtype=torch.float64)
    attend = ClipAttention(1, 1).attend
    with torch.inference_mode():
        expected = theirs(latents[:, :, None], 259, prompts, return_dict=False)[0][:, :, 0]
        found = ours(latents, 259, prompts, attend=attend)[0]
    assert gap(found, expected) <= 1e-12


def test_l13_single_frame_equals_diffusers_module() -> None:
    theirs = motion_unet(plain_unet().to(torch.float64)).up_blocks[0].motion_modules[1]
    ours = MotionModule(32, heads=HEADS, norm_groups=NORM_GROUPS, max_frames=24).to(torch.float64)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.endswith(".pe")})
    x = torch.randn(3, 32, 4, 4, dtype=torch.float64)
    with torch.inference_mode():
        assert gap(ours(x, ClipAttention(1, 1).attend), theirs(x, num_frames=1)) <= 1e-12
        assert gap(ours(x, ClipAttention(1, 1).attend), x) > 1e-3


def test_state_dict_is_that_of_diffusers_motion_unet() -> None:
    unet = plain_unet()
    expected = {k for k in motion_unet(unet).state_dict() if not k.endswith("pos_embed.pe")}
    streaming = StreamingUNet(unet, heads=HEADS, norm_groups=NORM_GROUPS)
    assert set(streaming.state_dict()) == expected
    adapter = MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=HEADS,
        motion_norm_num_groups=NORM_GROUPS,
        use_motion_mid_block=False,
    )
    loaded = adapter.load_state_dict(motion_state(streaming), strict=False)
    assert not loaded.unexpected_keys
    assert all(key.endswith("pos_embed.pe") for key in loaded.missing_keys)


@pytest.mark.parametrize("depth", [False, True])
def test_l11_new_motion_modules_and_depth_branch_change_nothing(depth: bool) -> None:
    """Both end in zeros."""
    stock = plain_unet()
    streaming = StreamingUNet(plain_unet(), heads=HEADS, norm_groups=NORM_GROUPS, depth=depth)
    latents, prompts = clip(8, dtype=torch.float32), torch.randn(8, 3, 8)
    with torch.inference_mode():
        expected = stock(latents, 259, prompts, return_dict=False)[0]
        found = streaming(
            latents,
            torch.full((8,), 259),
            prompts,
            attend=ClipAttention(8, 4).attend,
            depth=torch.randn(8, CHANNELS, 8, 8) if depth else None,
        )[0]
    assert gap(found, expected) <= 1e-5


def test_without_a_cache_the_motion_modules_are_skipped() -> None:
    latents, prompts = clip(2), torch.ones(2, 3, 8, dtype=torch.float64)
    with torch.inference_mode():
        expected = plain_unet().to(torch.float64)(latents, 259, prompts, return_dict=False)[0]
        for kwargs in ({}, {"cross_attention_kwargs": None, "attend": None}):
            assert gap(tiny_unet()(latents, 259, prompts, **kwargs)[0], expected) <= 1e-12


def test_l12_frames_are_normalised_one_by_one() -> None:
    """Without attention's output a module is a function of one frame."""
    unet = with_motion(plain_unet().to(torch.float64))
    for name, weight in unet.named_parameters():
        if ".motion_modules." in name and ".to_out.0." in name:
            weight.zero_()
    latents = clip(8)
    apart = torch.cat([whole_clip(latents[i : i + 1], 1, unet) for i in range(8)])
    assert gap(whole_clip(latents, 8, unet), apart) <= 1e-12


def test_depth_moves_the_prediction() -> None:
    unet = with_motion(plain_unet().to(torch.float64), depth=True)
    latents, prompts = clip(2), torch.ones(2, 3, 8, dtype=torch.float64)
    attend = ClipAttention(2, 2).attend
    near, far = (unet(latents, 259, prompts, attend=attend, depth=clip(2, seed))[0] for seed in (7, 8))
    assert gap(near, far) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_on_the_pocket_unet(dtype: torch.dtype) -> None:
    unet: Any = UNet2DConditionModel.from_pretrained(POCKET, torch_dtype=dtype).eval().requires_grad_(False)
    channels = unet.config.in_channels
    latents = torch.randn(4, channels, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    prompts = torch.randn(4, 5, unet.config.cross_attention_dim, dtype=dtype)
    with torch.inference_mode():
        expected = unet(latents, 259, prompts, return_dict=False)[0]
        install_processors(unet)
        streaming = StreamingUNet(unet, heads=8, norm_groups=unet.config.norm_num_groups)
        torch.nn.Module.to(streaming, memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = streaming(latents, 259, prompts, attend=ClipAttention(4, 2).attend)[0]
    assert found.dtype is dtype
    assert streaming.size_multiple == 4
    allowed = 1e-5 if dtype is torch.float32 else 0.05
    assert gap(found, expected) <= allowed * float(expected.abs().max())


def test_wrapped_modules_stay_the_same_objects_and_keep_their_processors() -> None:
    unet = plain_unet()
    before = dict(unet.named_modules())
    layout = install_processors(unet)
    streaming = StreamingUNet(unet, heads=HEADS, norm_groups=NORM_GROUPS)
    after = dict(streaming.named_modules())
    assert all(after[name] is module for name, module in before.items() if name)
    assert install_processors(streaming) == layout
    assert all(type(after[layer.name].processor) is BankProcessor for layer in layout.layers)


def test_a_unet_of_other_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="class_embedding"):
        StreamingUNet(plain_unet(num_class_embeds=3), heads=HEADS, norm_groups=NORM_GROUPS)
    odd = plain_unet(down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"))
    with pytest.raises(ValueError, match="AttnDownBlock2D"):
        StreamingUNet(odd, heads=HEADS, norm_groups=NORM_GROUPS)
    with pytest.raises(ValueError, match="heads"):
        StreamingUNet(plain_unet(), heads=3, norm_groups=NORM_GROUPS)
    unet = plain_unet()
    StreamingUNet(unet, heads=HEADS, norm_groups=NORM_GROUPS)
    with pytest.raises(ValueError, match="already"):
        StreamingUNet(unet, heads=HEADS, norm_groups=NORM_GROUPS)


def test_sinusoidal_table_is_diffusers() -> None:
    theirs = motion_unet(plain_unet()).down_blocks[0].motion_modules[0].state_dict()
    table = theirs["transformer_blocks.0.pos_embed.pe"][0]
    assert gap(sinusoidal_table(24, 16), table) <= 1e-6


def test_training_mask_is_that_of_the_note() -> None:
    mask = clip_mask(16, 8)
    assert mask[:8, :8].all()
    assert not mask[:8, 8:].any()
    assert all(mask[i].tolist() == [j <= i for j in range(16)] for i in range(8, 16))


def test_gradients_reach_every_motion_weight() -> None:
    unet = with_motion(plain_unet())
    for name, weight in unet.named_parameters():
        weight.requires_grad_(".motion_modules." in name)
    prompts = torch.ones(12, 3, 8)
    found = unet(clip(12, dtype=torch.float32), 259, prompts, attend=ClipAttention(6, 3).attend)[0]
    found.square().mean().backward()
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    assert trained
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in trained)


def test_tables_follow_the_weights() -> None:
    module = MotionModule(16, heads=2, norm_groups=4, max_frames=8).requires_grad_(False)
    attention: Any = module.get_submodule("transformer_blocks.0.attn1")
    before = attention.tables()
    assert attention.tables() is before
    attention.to_k.weight.mul_(2.0)
    assert gap(attention.tables().key, 2 * before.key) <= 1e-5
    assert attention.to(torch.float64).tables().key.dtype is torch.float64


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    unet, left, right = tiny_unet(), clip(6, 1), clip(6, 2)
    both = run(
        {"attend": ClipAttention(6, 3).attend}, [window_row(cached("a"), torch.cat([left, right]))], unet
    )
    assert gap(both[:6], whole_clip(left, 3)) <= 1e-12
    assert gap(both[6:], whole_clip(right, 3)) <= 1e-12


def test_positions_enter_queries_keys_and_values() -> None:
    module = MotionModule(16, heads=2, norm_groups=4, max_frames=8).to(torch.float64).requires_grad_(False)
    attention: Any = module.get_submodule("transformer_blocks.0.attn1")
    x = torch.randn(1, 3, 5, 16, dtype=torch.float64)
    places = torch.arange(3)
    tables = attention.tables()
    query, key, value = attention.to_q(x), attention.to_k(x), attention.to_v(x)
    found = attend_frames(query, key, value, tables, places, places)
    moved = x + sinusoidal_table(8, 16).double()[:3, None]
    query, key, value = (
        p(moved).view(3, 5, 2, 8).permute(1, 2, 0, 3)
        for p in (attention.to_q, attention.to_k, attention.to_v)
    )
    expected = ((query @ key.mT / 8**0.5).softmax(-1) @ value).permute(2, 0, 1, 3).flatten(2)
    assert gap(found[0], expected) <= 1e-6

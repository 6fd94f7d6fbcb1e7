"""The bundled checkpoint loads with the plain loaders, is small, and keeps its styles apart."""

from __future__ import annotations

import json

import pytest
import torch
from rearview.contract.card import BUNDLED_CHECKPOINTS

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from diffusers import AutoencoderTiny, LCMScheduler, UNet2DConditionModel
from rearview_lab.data.photos import held_out_square
from rearview_lab.data.prompts import canonical_prompt
from rearview_lab.data.styles import STYLES
from rearview_lab.training.export import (
    checkpoint_bytes,
    load_pocket,
    random_pocket,
    write_checkpoint,
)
from rearview_lab.training.model import LATENT_CHANNELS, LATENT_STD, TEXT_LENGTH, TEXT_WIDTH
from rearview_lab.training.sampling import Noise, stylise, timesteps
from rearview_lab.training.sheets import to_tensor
from transformers import CLIPTextModel, CLIPTokenizer

pytestmark = pytest.mark.unit

POCKET = BUNDLED_CHECKPOINTS / "pocket"


@pytest.fixture(scope="module")
def pocket():
    return load_pocket(POCKET)


def test_every_part_loads_with_its_own_class():
    vae = AutoencoderTiny.from_pretrained(POCKET, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(POCKET, subfolder="unet")
    text_encoder = CLIPTextModel.from_pretrained(POCKET, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(POCKET, subfolder="tokenizer")
    scheduler = LCMScheduler.from_pretrained(POCKET, subfolder="scheduler")
    assert vae.config.latent_channels == unet.config.in_channels == LATENT_CHANNELS
    assert vae.config.scaling_factor == LATENT_STD
    assert unet.config.cross_attention_dim == text_encoder.config.hidden_size == TEXT_WIDTH
    assert tokenizer.model_max_length == TEXT_LENGTH
    assert len(tokenizer) == text_encoder.config.vocab_size
    assert scheduler.config.prediction_type == "v_prediction"


def test_checkpoint_is_at_most_20_megabytes():
    assert checkpoint_bytes(POCKET) <= 20_000_000


def test_index_names_the_classes_of_the_folders():
    index = json.loads((POCKET / "model_index.json").read_text())
    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        assert (POCKET / part).is_dir()
        assert index[part][0] in {"diffusers", "transformers"}


def test_manifest_lists_every_style_with_its_prompt():
    manifest = json.loads((POCKET / "rearview.json").read_text())
    assert list(manifest["styles"]) == list(STYLES)
    for style, entry in manifest["styles"].items():
        assert entry["prompt"] == canonical_prompt(style) == entry["phrases"][0]
    assert manifest["default_style"] in manifest["styles"]
    first = timesteps(manifest["default_strength"], manifest["default_steps"])[0]
    assert first == 399


def test_our_step_grid_is_the_schedulers():
    scheduler = LCMScheduler.from_pretrained(POCKET, subfolder="scheduler")
    for strength, num_steps in ((0.4, 2), (0.6, 3), (0.8, 4), (0.4, 1)):
        scheduler.set_timesteps(num_steps, strength=strength)
        assert scheduler.timesteps.tolist() == timesteps(strength, num_steps)


def test_autoencoder_keeps_the_picture(pocket):
    picture = to_tensor(held_out_square("coffee", 128))
    with torch.no_grad():
        latent = pocket.vae.encode(picture).latents
        error = (pocket.vae.decode(latent).sample - picture).abs().mean() / 2
    assert float(error) < 0.06
    assert 0.3 < float(latent.std()) < 3


def test_prompts_change_the_picture_and_the_empty_prompt_is_natural(pocket):
    picture = to_tensor(held_out_square("astronaut", 128))
    prompts = [canonical_prompt("natural"), "", *(canonical_prompt(style) for style in STYLES[1:])]
    rows = picture.expand(len(prompts), -1, -1, -1)
    output = stylise(pocket, rows, prompts, noise=Noise.seeded(128, 2, seed=0))
    distances = ((output[1:] - output[:1]).abs().mean(dim=(1, 2, 3)) / 2).tolist()
    assert distances[0] < 0.03, "the empty prompt"
    for style, distance in zip(STYLES[1:], distances[1:], strict=True):
        assert distance > 0.03, f"{style} differs from natural by {distance:.3f}"


def test_exported_folder_loads_to_the_same_weights(tmp_path):
    pocket = random_pocket(seed=1)
    folder = tmp_path / "pocket"
    write_checkpoint(pocket, folder, training={}, card="# card\n")
    write_checkpoint(pocket, folder, training={})
    assert (folder / "README.md").read_text() == "# card\n"
    assert [path.name for path in tmp_path.iterdir()] == ["pocket"]
    loaded = load_pocket(folder)
    for part in ("vae", "unet", "text_encoder"):
        written, read = getattr(pocket, part).state_dict(), getattr(loaded, part).state_dict()
        assert all(torch.equal(written[name].half(), read[name].half()) for name in written)

"""LoRA sets of Stable Diffusion XL, which change two text encoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.contract.settings import Settings, WeightedAdapters
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.weights.adapters import NO_ADAPTERS, Layers, weighted
from rearview.engine.weights.checkpoint import load_denoisers
from rearview.engine.weights.formats import Additions, LoraFile
from safetensors.torch import load_file, save_file
from support.loras import CONV, random_lora, write_kohya
from support.original import write_single_xl
from support.tiny_xl import write_tiny_xl

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
SECOND = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of layers of the UNet, and of both text encoders under the names of published files."""
    denoiser = load_denoisers(folder, CPU, torch.float64, Additions())[NO_ADAPTERS]
    place = tmp_path_factory.mktemp("loras")
    transformer = next(
        name.removesuffix(".weight")
        for name, _ in denoiser.unet.named_parameters()
        if name.endswith("attn1.to_q.weight")
    )
    layers = [transformer, CONV]
    tensors = load_file(
        write_kohya(place / "unet.safetensors", random_lora(denoiser.unet.state_dict(), layers), 1.0)
    )
    for number, text_encoder in enumerate(denoiser.conditioning.text_encoders, 1):
        weights = {key.removeprefix("text_model."): value for key, value in text_encoder.state_dict().items()}
        lora = random_lora(weights, [SECOND], seed=number)
        for name, tensor in load_file(write_kohya(place / "text.safetensors", lora, 1.0)).items():
            tensors[name.replace("lora_te_", f"lora_te{number}_")] = tensor
    save_file(tensors, place / "both.safetensors")
    return place / "both.safetensors"


def latent_under(denoiser: Denoiser, settings: Settings) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    channels = denoiser.unet.config.in_channels
    latent = torch.randn(1, channels, 8, 8, generator=generator, dtype=torch.float64)
    return denoise_latent(denoiser, latent, settings, 0, torch.float64)


def test_a_stacked_set_makes_what_the_merged_sum_makes(folder: Path, file: Path) -> None:
    sets = {"ink": [LoraFile(str(file), 0.8)]}
    stacked = load_denoisers(folder, CPU, torch.float64, Additions(adapters=sets))[NO_ADAPTERS]
    merged = load_denoisers(folder, CPU, torch.float64, Additions(merged={"ink": [LoraFile(str(file), 0.4)]}))
    half = Settings("a boat", strength=0.6, adapter_mix=(WeightedAdapters("ink", 0.5),))
    found, plain = latent_under(stacked, half), latent_under(stacked, Settings("a boat", strength=0.6))
    expected = latent_under(merged["ink"], Settings("a boat", strength=0.6, adapters="ink"))
    assert float((found - expected).abs().max()) <= 1e-9
    assert float((found - plain).square().mean().sqrt()) >= 0.05
    embeds = [stacked.conditioning.embed("a boat", sets) for sets in ((), half.acting_adapters)]
    width = stacked.conditioning.text_encoders[0].config.hidden_size
    assert not torch.equal(embeds[0][..., :width], embeds[1][..., :width]), "the first text encoder"
    assert not torch.equal(embeds[0][..., width:], embeds[1][..., width:]), "the second one"


def test_layers_are_known_by_their_names_in_published_files(tmp_path: Path) -> None:
    """Every one of them, next to the names that a file of the whole model has."""
    folder = write_tiny_xl(tmp_path / "xl", kl=True)
    denoiser = load_denoisers(folder, CPU, torch.float64, Additions())[NO_ADAPTERS]
    layers = Layers(denoiser.unet, denoiser.conditioning.text_encoders)
    published = load_file(write_single_xl(folder, tmp_path / "whole.safetensors"))
    prefix = "model.diffusion_model."
    names = [
        key.removeprefix(prefix).removesuffix(".weight")
        for key, tensor in published.items()
        if key.startswith(prefix) and key.endswith(".weight") and tensor.ndim > 1
    ]
    found = {layers.find(f"lora_unet_{name.replace('.', '_')}") for name in names}
    assert found == {layer for _, layer in weighted(denoiser.unet)}
    by_name = dict(weighted(denoiser.unet))
    assert layers.find("lora_unet_input_blocks_1_0_in_layers_2") is by_name["down_blocks.0.resnets.0.conv1"]

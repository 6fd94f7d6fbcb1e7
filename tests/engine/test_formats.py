"""Loading: folders, single files in the original layout, hub ids, replaced VAEs, and what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from rearview.contract.card import ModelCard, is_hub_id
from rearview.contract.chain import Span
from rearview.contract.settings import Settings
from rearview.engine.calibration import example_payloads
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.reference.frame import translate_frame
from rearview.engine.weights.checkpoint import latent_shape, load_denoiser, load_model, load_vae
from rearview.engine.weights.formats import Additions, find_checkpoint, find_lora, read_weights
from rearview.errors import ConfigError
from safetensors.torch import load_file, save_file
from support.original import write_single_file, write_tiny_kl
from support.tiny import LATENT_CHANNELS, random_frames, session, whole_chain, write_tiny_checkpoint

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with an AutoencoderKL."""
    torch.set_num_threads(1)
    return write_tiny_kl(write_tiny_checkpoint(tmp_path_factory.mktemp("kl")))


@pytest.fixture(scope="module")
def single_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(folder, tmp_path_factory.mktemp("single") / "tiny.safetensors")


@pytest.fixture(scope="module")
def settings_only(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings and tokenizer of the tiny checkpoint, without weights."""
    copy = tmp_path_factory.mktemp("settings") / "config"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    return copy


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is down, and nothing is cached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def weights_of(checkpoint: str, additions: Additions | None = None) -> dict[str, torch.Tensor]:
    model: Any = load_model(checkpoint, whole_chain(), CPU, torch.float32, additions)
    denoiser = model._denoiser
    parts = {"unet": denoiser.unet, "vae": model.vae, "text": denoiser.conditioning.text_encoder}
    return {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [key for key, value in left.items() if not torch.equal(value, right[key])] == []


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_gives_the_weights_of_the_folder(
    folder: Path, settings_only: Path, tmp_path: Path, suffix: str
) -> None:
    file = write_single_file(folder, tmp_path / f"tiny{suffix}")
    additions = Additions(single_file_config=str(settings_only))
    assert_same(weights_of(str(file), additions), weights_of(str(folder)))


def test_a_single_file_gives_the_pictures_of_the_folder(
    folder: Path, single_file: Path, settings_only: Path
) -> None:
    source = find_checkpoint(str(single_file), (), Additions(single_file_config=str(settings_only)))
    frame, settings = random_frames(1)[0], Settings(prompt="a", strength=0.7)
    pictures = [
        translate_frame(
            load_vae(p, CPU, torch.float32),
            load_denoiser(p, CPU, torch.float32),
            frame,
            settings,
            0,
            torch.float32,
        )
        for p in (folder, source)
    ]
    assert torch.equal(*pictures)


def test_a_single_file_takes_the_asked_precision(single_file: Path, settings_only: Path) -> None:
    source = find_checkpoint(str(single_file), (), Additions(single_file_config=str(settings_only)))
    denoiser = load_denoiser(source, CPU, torch.bfloat16)
    assert {value.dtype for value in denoiser.unet.state_dict().values()} == {torch.bfloat16}
    assert denoiser.conditioning.embed("a").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("prefix", "complaint"),
    [
        ("model.diffusion_model.", "holds no unet"),
        ("first_stage_model.", "holds no vae"),
        ("cond_stage_model.", "holds no text_encoder"),
        ("model.diffusion_model.middle_block.1", "does not fit model.single_file_config in unet"),
    ],
)
def test_a_single_file_that_lacks_weights_is_refused_by_name(
    single_file: Path, settings_only: Path, tmp_path: Path, prefix: str, complaint: str
) -> None:
    kept = {key: value for key, value in load_file(single_file).items() if not key.startswith(prefix)}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(ConfigError, match=complaint):
        weights_of(str(tmp_path / "part.safetensors"), Additions(single_file_config=str(settings_only)))


def test_a_single_file_of_another_size_is_refused(
    folder: Path, single_file: Path, settings_only: Path, tmp_path: Path
) -> None:
    other = tmp_path / "config"
    shutil.copytree(settings_only, other)
    content = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps({**content, "block_out_channels": [16, 64]}))
    with pytest.raises(ConfigError, match=r"does not fit model\.single_file_config in unet"):
        weights_of(str(single_file), Additions(single_file_config=str(other)))


def test_a_pickle_that_could_run_code_is_never_read(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Code()}, tmp_path / "bad.ckpt")
    with pytest.raises(ConfigError, match="holds more than weights"):
        read_weights(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_replaced_vae_is_used_and_the_own_one_is_not_needed(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    blocks = {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
    counts = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    taesd = AutoencoderTiny(**blocks, **counts, latent_channels=LATENT_CHANNELS)
    taesd.save_pretrained(tmp_path / "taesd")
    without = tmp_path / "checkpoint"
    shutil.copytree(folder, without, ignore=shutil.ignore_patterns("vae"))
    additions = Additions(vae=str(tmp_path / "taesd"))
    found = weights_of(str(without), additions)
    assert_same(
        {key: value for key, value in found.items() if key.startswith("vae.")},
        {f"vae.{key}": value for key, value in taesd.state_dict().items()},
    )
    assert latent_shape(str(without), 64, 128, additions) == (LATENT_CHANNELS, 8, 16)
    payloads = example_payloads(str(without), whole_chain(), session("s"), additions)
    assert payloads[-1]["latent"].shape == (LATENT_CHANNELS, 8, 8)


def test_a_vae_with_other_latents_is_refused(folder: Path, tmp_path: Path) -> None:
    AutoencoderTiny(latent_channels=4).save_pretrained(tmp_path / "taesd")
    with pytest.raises(ConfigError, match=r"4 channels, the UNet takes 6: .*model\.vae"):
        load_model(str(folder), whole_chain(), CPU, torch.float32, Additions(vae=str(tmp_path / "taesd")))


def test_a_span_loads_only_its_networks(folder: Path, tmp_path: Path) -> None:
    thin = tmp_path / "thin"
    shutil.copytree(folder, thin)
    (thin / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    model = load_model(str(thin), Span.parse("decode", ["decode"]), CPU, torch.float32)
    assert isinstance(model, DiffusionModel)
    with pytest.raises(ConfigError, match="unet"):
        load_model(str(thin), Span.parse("denoise", ["denoise-0"]), CPU, torch.float32)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(folder: Path, tmp_path: Path, part: str) -> None:
    thin = tmp_path / "thin"
    shutil.copytree(folder, thin, ignore=shutil.ignore_patterns(part))
    with pytest.raises(ConfigError, match=part) as caught:
        load_model(str(thin), whole_chain(), CPU, torch.float32)
    assert "huggingface" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_are_named_and_never_drawn_at_random(folder: Path, tmp_path: Path, part: str) -> None:
    thin = tmp_path / "thin"
    shutil.copytree(folder, thin)
    (file,) = (thin / part).glob("*.safetensors")
    weights = load_file(file)
    lost = sorted(weights)[-1]
    del weights[lost]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=part):
        load_model(str(thin), whole_chain(), CPU, torch.float32)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_broken_file_is_named(folder: Path, tmp_path: Path, part: str) -> None:
    thin = tmp_path / "thin"
    shutil.copytree(folder, thin)
    (file,) = (thin / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match=part):
        load_model(str(thin), whole_chain(), CPU, torch.float32)


def test_weights_in_half_precision_only_are_found(folder: Path, tmp_path: Path) -> None:
    thin = tmp_path / "thin"
    shutil.copytree(folder, thin)
    for part in ("unet", "vae"):
        (file,) = (thin / part).glob("*.safetensors")
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert_same(weights_of(str(thin)), weights_of(str(folder)))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    "checkpoint", ["missing", "/missing/folder", "owner/name", "./here/not", "x.safetensors"]
)
def test_a_checkpoint_that_is_nowhere_names_the_option(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.checkpoint") as caught:
        load_model(checkpoint, whole_chain(), CPU, torch.float32)
    assert checkpoint.removeprefix("./") in str(caught.value)
    assert "couldn't connect" not in str(caught.value)


@pytest.mark.usefixtures("no_hub")
def test_an_unreachable_hub_names_the_option(folder: Path, single_file: Path) -> None:
    cases = {
        "model.vae": (folder, Additions(vae="owner/taesd")),
        "model.lcm_lora": (folder, Additions(lcm_lora="owner/lcm")),
        "model.single_file_config": (single_file, Additions()),
    }
    for option, (checkpoint, additions) in cases.items():
        with pytest.raises(ConfigError, match=option) as caught:
            load_model(str(checkpoint), whole_chain(), CPU, torch.float32, additions)
        assert "hub" in str(caught.value)


def write_cached_repo(cache: Path, repo: str, folder: Path) -> None:
    """What the hub's client leaves behind after a download."""
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, place / "snapshots" / ("a" * 40))


@pytest.mark.usefixtures("no_hub")
def test_a_hub_id_is_loaded_from_the_cache_without_the_network(folder: Path, tmp_path: Path) -> None:
    write_cached_repo(tmp_path / "cache", "owner/tiny", folder)
    assert_same(weights_of("owner/tiny"), weights_of(str(folder)))
    assert ModelCard.read("owner/tiny") == ModelCard()


def test_a_hub_that_refuses_connections_ends_in_one_line(folder: Path, tmp_path: Path) -> None:
    program = (
        "import torch\nfrom rearview.engine.weights.checkpoint import load_model\n"
        "from rearview.contract.chain import Span\n"
        "load_model('owner/name', Span.parse('decode', ['decode']), torch.device('cpu'), torch.float32)"
    )
    env = {**os.environ, "HF_ENDPOINT": UNREACHABLE, "HF_HOME": str(tmp_path), "PYTHONPATH": "services"}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, env=env, check=False
    )
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("rearview.errors.ConfigError: model.checkpoint 'owner/name'"), run.stderr


def test_a_path_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "pocket").mkdir(parents=True)
    taken = ["owner/name", "Owner-1/name.v2_x"]
    paths = [
        "out/pocket",
        "out/missing",
        "pocket",
        "/owner/name",
        "a/b/c",
        "../a/b",
        "owner/file.safetensors",
        "a/..",
    ]
    assert [name for name in (*taken, *paths) if is_hub_id(name)] == taken


def test_a_lora_is_found_as_file_as_folder_and_by_its_usual_name(tmp_path: Path) -> None:
    for name in ("style.safetensors", "pytorch_lora_weights.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
        assert find_lora("x", str(tmp_path / name)) == tmp_path / name
        assert find_lora("x", str(tmp_path)) == tmp_path / name
    (tmp_path / "pytorch_lora_weights.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="name one file"):
        find_lora("model.adapters.oil", str(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.adapters\.oil"):
        find_lora("model.adapters.oil", str(tmp_path / "missing"))


def test_weights_under_the_names_of_older_libraries_are_loaded(folder: Path, tmp_path: Path) -> None:
    """As Stable Diffusion 1.5 was published: other names in the VAE's attention, a wrapped text encoder."""
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    (file,) = (old / "vae").glob("*.safetensors")
    vae = load_file(file)
    for new, name in renamed.items():
        for key in [key for key in vae if f"attentions.0.{new}." in key]:
            vae[key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")] = vae.pop(key)
    assert any("proj_attn" in key for key in vae)
    save_file(vae, file, metadata={"format": "pt"})
    (file,) = (old / "text_encoder").glob("*.safetensors")
    text = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    positions = text["text_model.embeddings.position_embedding.weight"].shape[0]
    text["text_model.embeddings.position_ids"] = torch.arange(positions)[None]
    save_file(text, file, metadata={"format": "pt"})
    assert_same(weights_of(str(old)), weights_of(str(folder)))


def test_pickled_weights_of_a_folder_are_loaded(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    names = {
        "unet": "diffusion_pytorch_model.bin",
        "vae": "diffusion_pytorch_model.bin",
        "text_encoder": "pytorch_model.bin",
    }
    for part, name in names.items():
        (file,) = (old / part).glob("*.safetensors")
        torch.save(load_file(file), old / part / name)
        file.unlink()
    assert_same(weights_of(str(old)), weights_of(str(folder)))


NAMES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PICKLE_NAMES = {**NAMES, "text_encoder": "pytorch_model"}


def write_variant(folder: Path, part: str, kind: str) -> None:
    """A part's weights in half precision alone, under one of the names under which they are published."""
    (file,) = (folder / part).glob("*.safetensors")
    weights = {key: value.half().contiguous() for key, value in load_file(file).items()}
    file.unlink()
    name = NAMES[part]
    if kind == "bin":
        torch.save(weights, folder / part / f"{PICKLE_NAMES[part]}.fp16.bin")
        return
    if kind == "whole":
        save_file(weights, folder / part / f"{name}.fp16.safetensors", metadata={"format": "pt"})
        return
    shards = (
        [f"{name}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
        if kind == "shards"
        else [f"{name}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    )
    keys = sorted(weights)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for shard, held in zip(shards, halves, strict=True):
        save_file({key: weights[key] for key in held}, folder / part / shard, metadata={"format": "pt"})
    places = {key: shard for shard, held in zip(shards, halves, strict=True) for key in held}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / part / f"{name}.safetensors.index.fp16.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["whole", "shards", "shards named otherwise", "bin"])
@pytest.mark.parametrize("part", NAMES)
def test_half_precision_of_every_part_is_found_under_every_name(
    folder: Path, tmp_path: Path, part: str, kind: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "half"))
    write_variant(copy, part, kind)
    found, wanted = weights_of(str(copy)), weights_of(str(folder))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(value, wanted[key], atol=1e-2) for key, value in found.items())
    assert any(not torch.equal(value, wanted[key]) for key, value in found.items())

"""Checkpoints of Stable Diffusion XL in every layout that people have, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from huggingface_hub.utils import filter_repo_objects
from rearview.contract.settings import Settings
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.reference.frame import translate_frame
from rearview.engine.weights.checkpoint import load_model, load_vae
from rearview.engine.weights.formats import Additions, find_checkpoint
from rearview.errors import ConfigError
from safetensors.torch import load_file, save_file
from support.original import _vae, write_single_xl
from support.tiny import random_frames, whole_chain
from support.tiny_motion_files import write_motion_adapter
from support.tiny_turbo import write_tiny_turbo
from support.tiny_xl import XL_SCALING, write_tiny_xl
from torch import Tensor

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
PARTS = ("unet", "text_encoder", "text_encoder_2")
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_xl(tmp_path_factory.mktemp("xl") / "checkpoint", kl=True)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def loaded(checkpoint: Path, additions: Additions | None = None, dtype: torch.dtype = torch.float32) -> Any:
    model = load_model(str(checkpoint), whole_chain(), CPU, dtype, additions)
    assert isinstance(model, DiffusionModel)
    return model


def weights_of(model: Any) -> Weights:
    denoiser = model.denoisers[""]
    first, second = denoiser.conditioning.text_encoders
    parts = {"unet": denoiser.unet, "vae": model.vae, "first": first, "second": second}
    return {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }


def translated(model: Any) -> Tensor:
    """A frame by the engine's own operators, one after another."""
    (frame,) = random_frames(1)
    return translate_frame(model.vae, model.denoisers[""], frame, Settings("a"), 0, model._dtype)


def assert_same(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    assert [key for key, value in found.items() if not torch.equal(value, wanted[key])] == []


def whole(weights: Weights, place: Path, base: str, ending: str) -> None:
    save_in(weights, place / (base + ending))


def shards(weights: Weights, place: Path, base: str, ending: str) -> None:
    """Two. `ending`: of the files, with a place for the number."""
    names = sorted(weights)
    where: dict[str, str] = {}
    for number, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = base + ending.format(f"{number:05}-of-00002")
        save_in({name: weights[name] for name in half}, place / file)
        where |= dict.fromkeys(half, file)
    kind = ".safetensors" if ending.endswith(".safetensors") else ".bin"
    variant = ".fp16" if ".fp16" in ending else ""
    index = {"metadata": {"total_size": sum(each.nbytes for each in weights.values())}, "weight_map": where}
    (place / f"{base}{kind}.index{variant}.json").write_text(json.dumps(index))


def save_in(weights: Weights, file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(weights, file, metadata={"format": "pt"})
    else:
        torch.save(weights, file)


def halved(weights: Weights, spared: str = "-") -> Weights:
    """What half-precision files hold; not of the parts whose names begin so."""
    return {
        name: each if name.startswith(spared) or not each.is_floating_point() else each.half()
        for name, each in weights.items()
    }


LAYOUTS: dict[str, tuple[Callable[..., None], str]] = {
    "half": (whole, ".fp16.safetensors"),
    "shards": (shards, "-{}.safetensors"),
    "shards in half": (shards, ".fp16-{}.safetensors"),
    "pickled": (whole, ".bin"),
    "pickled in half": (whole, ".fp16.bin"),
    "pickled shards": (shards, "-{}.bin"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(folder: Path, copy: Path, layout: str) -> None:
    """Of the UNet and of both text encoders."""
    write, ending = LAYOUTS[layout]
    wanted = weights_of(loaded(folder))
    if is_half := ".fp16" in ending:
        wanted = {name: each.float() for name, each in halved(wanted, "vae.").items()}
    for part in PARTS:
        (file,) = (copy / part).glob("*.safetensors")
        weights = load_file(file)
        file.unlink()
        pickled = "diffusion_pytorch_model" if part == "unet" else "pytorch_model"
        base = pickled if ending.endswith(".bin") else file.stem
        write(halved(weights) if is_half else weights, copy / part, base, ending)
    assert_same(weights_of(loaded(copy)), wanted)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_gives_the_weights_of_the_folder(
    folder: Path, copy: Path, tmp_path: Path, suffix: str
) -> None:
    file = write_single_xl(folder, tmp_path / f"xl{suffix}")
    for weights in copy.rglob("*.safetensors"):
        weights.unlink()
    assert_same(weights_of(loaded(file, Additions(single_file_config=str(copy)))), weights_of(loaded(folder)))


def test_settings_of_a_single_file_are_looked_for_in_its_own_family(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    file = write_single_xl(folder, tmp_path / "xl.safetensors")
    with pytest.raises(ConfigError, match=r"model\.single_file_config 'stabilityai/stable-diffusion-xl-base"):
        loaded(file)


def test_of_a_repository_on_the_hub_both_text_encoders_come(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that the hub's client is asked for, filtered as it filters them."""

    def download(repository: str, allow_patterns: list[str]) -> str:
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, tmp_path / name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(weights_of(loaded(Path("owner/xl"))), weights_of(loaded(folder)))
    wanted = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == wanted


def test_a_vae_with_means_of_its_own_is_refused(copy: Path) -> None:
    """Latents of another distribution: every picture would be off."""
    path = copy / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latents_mean": [0.0] * 4}))
    with pytest.raises(ConfigError, match="latents_mean is not supported"):
        loaded(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_weight_that_is_not_finite_is_refused_at_load(copy: Path, part: str) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    weights = load_file(file)
    weights[sorted(weights)[0]].view(-1)[0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"{part}.*: 1 of \d+ weights of .* are not finite"):
        loaded(copy)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
def test_a_missing_part_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(ConfigError, match=f"no part {part}:"):
        loaded(copy)


@pytest.mark.parametrize(
    ("part", "values", "complaint"),
    [
        ("text_encoder_2", {"projection_dim": 28}, "lacks|cannot be loaded|pooled text 28 wide"),
        ("unet", {"projection_class_embeddings_input_dim": 64}, "cannot be loaded|pooled text"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    copy: Path, part: str, values: dict[str, object], complaint: str
) -> None:
    path = copy / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ConfigError, match=complaint):
        loaded(copy)


def test_a_vae_file_is_scaled_as_xl_is(folder: Path, tmp_path: Path) -> None:
    """The same shapes are of other latents in Stable Diffusion 1 and 2: the UNet tells them apart."""
    other = write_tiny_turbo(tmp_path / "turbo")
    file = tmp_path / "vae.safetensors"
    save_file(_vae(AutoencoderKL(norm_num_groups=32, block_out_channels=(32,) * 4).state_dict()), file)
    scalings = [
        find_checkpoint(str(place), (), Additions(vae=str(file))).config("vae")["scaling_factor"]
        for place in (folder, other)
    ]
    assert scalings == [XL_SCALING, 0.18215]


def test_taesd_of_its_own_family_alone_is_taken(folder: Path, tmp_path: Path) -> None:
    tiny = AutoencoderTiny().state_dict()
    for name, family in (("taesd", "turbo"), ("taesdxl", "xl")):
        pair = tmp_path / name
        pair.mkdir()
        for side, shift in (("encoder", 0), ("decoder", 1)):
            layers = {key.split(".", 2)[1:][1]: value for key, value in tiny.items() if key.startswith(side)}
            moved = {
                f"{int(key.split('.')[0]) + shift}.{key.split('.', 1)[1]}": value.contiguous()
                for key, value in layers.items()
            }
            save_file(moved, pair / f"{name}_{side}.safetensors")
        if family == "xl":
            assert loaded(folder, Additions(vae=str(pair))).vae.config.scaling_factor == 1.0
        else:
            with pytest.raises(ConfigError, match="is TAESD of Stable Diffusion 1 and 2: take taesdxl"):
                loaded(folder, Additions(vae=str(pair)))


def test_motion_modules_are_refused_with_a_sentence(folder: Path, tmp_path: Path) -> None:
    motion = write_motion_adapter(tmp_path / "motion")
    with pytest.raises(ConfigError, match="do not fit Stable Diffusion XL"):
        loaded(folder, Additions(motion=str(motion)))


@pytest.mark.parametrize(
    ("said", "dtype", "runs_in"),
    [
        ({"force_upcast": True}, torch.float16, torch.float32),
        ({"force_upcast": None}, torch.float16, torch.float32),
        ({"force_upcast": False}, torch.float16, torch.float16),
        ({"force_upcast": True}, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_vae_that_overflows_in_half_runs_in_float32(
    copy: Path, said: dict[str, object], dtype: torch.dtype, runs_in: torch.dtype
) -> None:
    """As diffusers does it, whose default for this VAE is to."""
    path = copy / "vae" / "config.json"
    settings = {**json.loads(path.read_text()), **said}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    model = loaded(copy, dtype=dtype)
    assert (model.vae.dtype, model.denoisers[""].unet.dtype) == (runs_in, dtype)


def test_a_half_precision_service_shows_no_picture_of_overflow(copy: Path) -> None:
    """Activations of this VAE go beyond float16: only in float32 its pictures are those of float32."""
    (file,) = (copy / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_in.weight"] *= 1e6
    weights["decoder.conv_in.bias"] *= 1e6
    save_file(weights, file, metadata={"format": "pt"})
    half, single = loaded(copy, dtype=torch.float16), loaded(copy)
    assert single.vae.dtype is half.vae.dtype is torch.float32
    assert translated(half).float().sub(translated(single).float()).abs().mean() < 4.0
    narrow = load_vae(find_checkpoint(str(copy)), CPU, torch.float32).half()
    with torch.inference_mode():
        assert not narrow.decode(torch.randn(1, 4, 8, 8).half()).sample.isfinite().all()

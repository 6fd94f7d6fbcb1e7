"""IP-Adapters from their original files: what each cross-attention adds, and what makes tokens of a picture.

A file holds two parts. `ip_adapter` has keys and values of each cross-attention, numbered by its place among
all attentions of the UNet, of which every second one is such: 1, 3, 5. `image_proj` makes tokens of what a
CLIP image encoder sees, which is a folder of its own. By its names it is the plain kind (one linear layer) or
`plus` (a resampler); other kinds are refused by theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rearview.contract.card import is_hub_id
from rearview.contract.family import check_whole
from rearview.engine.networks.reference_image import Given, ReferenceAttention, ReferenceEncoder, References
from rearview.engine.weights.formats import ReferenceFile, read_config, read_pickle, read_weights
from rearview.engine.weights.loading import assigned, checked, local, ready
from rearview.engine.weights.places import find_file, folder_with_config, hub_folder
from rearview.errors import ConfigError

__all__ = ["load_references"]

PARTS = ("image_proj", "ip_adapter")
ENCODER = "CLIPVisionModelWithProjection"
HEAD_CHANNELS = 64
"""Of a resampler, in every file that there is."""
RESAMPLER_NAMES = (
    (r"^(layers\.\d+)\.0\.norm1\.", r"\1.ln0."),
    (r"^(layers\.\d+)\.0\.norm2\.", r"\1.ln1."),
    (r"^(layers\.\d+)\.0\.to_out\.", r"\1.attn.to_out.0."),
    (r"^(layers\.\d+)\.0\.to_", r"\1.attn.to_"),
    (r"^(layers\.\d+)\.1\.0\.", r"\1.ff.0."),
    (r"^(layers\.\d+)\.1\.1\.", r"\1.ff.1.net.0.proj."),
    (r"^(layers\.\d+)\.1\.3\.", r"\1.ff.1.net.2."),
)
"""Of original files, and as diffusers names the same."""

Weights = Mapping[str, Tensor]


def load_references(
    file: ReferenceFile, unet: Any, device: torch.device, dtype: torch.dtype
) -> tuple[References, Given]:
    """Give the cross-attentions of `unet`, which is not wrapped yet, what the adapter adds to them; for
    `take_references` of whatever they end up in. Raises ConfigError for an adapter that does not fit.
    """
    path = find_file("model.reference.path", file.path)
    try:
        image_proj, ip_adapter = _parts(path)
        _check_kind(image_proj, ip_adapter)
        given = Given(len(unet.config.down_block_types))
        _add_attentions(unet, ip_adapter, given, path)
        projection = ready(_projection(image_proj, path).to(dtype), device, path)
    except ConfigError as error:
        told = str(error)
        text = told if told.startswith(str(path)) else f"{path} {told}"
        raise ConfigError(f"model.reference.path: {text}") from None
    network = ready(_image_encoder(file.image_encoder, dtype), device, Path(file.image_encoder))
    reads_layer = "latents" in image_proj
    _check_width(network.config, image_proj, reads_layer=reads_layer)
    encoder = ReferenceEncoder(network, projection, dtype, reads_layer=reads_layer)
    return References(encoder, given.levels, device, dtype), given


def _parts(path: Path) -> tuple[Weights, Weights]:
    if path.suffix == ".safetensors":
        weights, _ = read_weights(path)
        found = [
            {
                name.removeprefix(f"{part}."): each
                for name, each in weights.items()
                if name.startswith(f"{part}.")
            }
            for part in PARTS
        ]
    else:
        content = read_pickle(path)
        parts = [content.get(part) if isinstance(content, dict) else None for part in PARTS]
        found = [
            {str(name): each for name, each in part.items() if isinstance(each, Tensor)}
            if isinstance(part, dict)
            else {}
            for part in parts
        ]
    image_proj, ip_adapter = found
    if not image_proj or not ip_adapter:
        raise ConfigError("is no IP-Adapter in the original layout: it lacks image_proj or ip_adapter")
    return image_proj, ip_adapter


def _check_kind(image_proj: Weights, ip_adapter: Weights) -> None:
    has_loras = any("_lora." in name for name in ip_adapter)
    sees_faces = any(name.startswith("perceiver_resampler.") for name in image_proj)
    if has_loras or sees_faces or {"proj.0.weight", "norm.weight"} <= image_proj.keys():
        raise ConfigError("is a FaceID adapter, which needs a network that recognises faces: not supported")
    if "proj.3.weight" in image_proj:
        raise ConfigError("is a full-face adapter of 257 tokens, which is not supported: take plus-face")
    if "latents" not in image_proj and not {"proj.weight", "norm.weight"} <= image_proj.keys():
        raise ConfigError(f"has an image_proj of no known kind, with {min(image_proj)}")


def _add_attentions(unet: Any, ip_adapter: Weights, given: Given, path: Path) -> None:
    from diffusers.models.attention_processor import Attention

    attentions = [each for each in unet.named_modules() if isinstance(each[1], Attention)]
    crossing = [(name, attention) for name, attention in attentions if name.endswith("attn2")]
    places = range(1, 2 * len(crossing), 2)
    wanted = {f"{place}.{kind}.weight" for place in places for kind in ("to_k_ip", "to_v_ip")}
    if differing := sorted(ip_adapter.keys() ^ wanted):
        count = len({name.partition(".")[0] for name in ip_adapter})
        text = f"is for {count} cross-attentions, the UNet has {len(crossing)} (differing: {differing[0]})"
        raise ConfigError(f"{text}: is it of another base model?")
    for place, (name, attention) in zip(places, crossing, strict=True):
        to_k, to_v = (
            _linear(ip_adapter[f"{place}.{kind}_ip.weight"], attention, name) for kind in ("to_k", "to_v")
        )
        added = ReferenceAttention(to_k, to_v, attention.heads, given)
        attention.reference = ready(added, attention.to_k.weight.device, path)


def _linear(weight: Tensor, attention: Any, name: str) -> nn.Linear:
    """One that has `weight`, shaped and typed as the attention's own."""
    own = attention.to_k.weight
    if weight.shape != own.shape:
        takes = "x".join(map(str, own.shape))
        text = f"{name} takes {takes}, the file has {'x'.join(map(str, weight.shape))}"
        raise ConfigError(f"does not fit: {text} (cross_attention_dim): is it of another base model?")
    linear = nn.Linear(own.shape[1], own.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(own.dtype).contiguous(), requires_grad=False)
    return linear


def _projection(image_proj: Weights, path: Path) -> Any:
    from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection

    misfit = f"{path} has an image_proj that cannot be read"
    try:
        if "latents" not in image_proj:
            width = len(image_proj["norm.weight"])
            outputs, inputs = image_proj["proj.weight"].shape
            named = {re.sub("^proj", "image_embeds", name): each for name, each in image_proj.items()}
            with torch.device("meta"):
                plain = ImageProjection(inputs, width, outputs // width)
            return assigned(plain, named, torch.float32, misfit)
        named = _of_resampler(image_proj)
        _, queries, hidden = image_proj["latents"].shape
        depth = 1 + max(int(found[1]) for name in named if (found := re.match(r"layers\.(\d+)\.", name)))
        with torch.device("meta"):
            plus = IPAdapterPlusImageProjection(
                embed_dims=named["proj_in.weight"].shape[1],
                output_dims=named["proj_out.weight"].shape[0],
                hidden_dims=hidden,
                depth=depth,
                dim_head=HEAD_CHANNELS,
                heads=named["layers.0.attn.to_q.weight"].shape[0] // HEAD_CHANNELS,
                num_queries=queries,
            )
        return assigned(plus, named, torch.float32, misfit)
    except (LookupError, ValueError) as error:
        raise ConfigError(f"{misfit}: {error}") from None


def _of_resampler(image_proj: Weights) -> dict[str, Tensor]:
    """A resampler's weights under diffusers' names."""
    named: dict[str, Tensor] = {}
    for name, each in image_proj.items():
        for pattern, ours in RESAMPLER_NAMES:
            name = re.sub(pattern, ours, name)
        if ".to_kv." in name:
            for kind, half in zip(("to_k", "to_v"), each.chunk(2), strict=True):
                named[name.replace("to_kv", kind)] = half
        else:
            named[name] = each
    return named


def _image_encoder(name: str, dtype: torch.dtype) -> Any:
    from transformers import CLIPVisionModelWithProjection

    option = "model.reference.image_encoder"
    place, names = Path(name), name.split("/")
    if not place.is_dir() and len(names) > 1 and is_hub_id(repo := "/".join(names[:2])):
        inner = "/".join(names[2:])
        for weights in ("model.safetensors", "pytorch_model.bin"):
            wanted = [str(Path(inner, each)) for each in ("config.json", weights)]
            place = hub_folder(option, repo, wanted) / inner
            if (place / weights).is_file():
                break
    folder = folder_with_config(option, name, (place,), f"a {ENCODER}")
    try:
        kinds = read_config(folder / "config.json").get("architectures") or [ENCODER]
        if ENCODER not in kinds:
            raise ConfigError(f"{', '.join(kinds)} is not supported; use a {ENCODER}")
        for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
            check_whole(file)
        network, report = local(
            CLIPVisionModelWithProjection.from_pretrained, folder, dtype=dtype, output_loading_info=True
        )
        return checked(network, folder, report["missing_keys"])
    except ConfigError as error:
        raise ConfigError(f"{option}: {name}: {error}") from None


def _check_width(config: Any, image_proj: Weights, *, reads_layer: bool) -> None:
    """Raises ConfigError for an image encoder that the adapter was not trained with."""
    name, has = (
        ("proj_in.weight", config.hidden_size) if reads_layer else ("proj.weight", config.projection_dim)
    )
    if (takes := image_proj[name].shape[1]) != has:
        text = f"gives {has} channels, the adapter takes {takes}: take the encoder that it was trained with"
        raise ConfigError(f"model.reference.image_encoder: it {text}")

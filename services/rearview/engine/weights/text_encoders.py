"""Tokenizers and text encoders of a checkpoint: one of each, or two in Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rearview.engine.networks.conditioning import Conditioning
from rearview.engine.networks.low_rank import AdapterStacks
from rearview.engine.networks.pooled import NUM_SIZES, PooledConditioning
from rearview.engine.weights.formats import Source, from_original, read_weights
from rearview.engine.weights.loading import check_finite, checked, filled, local, variant
from rearview.errors import ConfigError

__all__ = ["TextEncoders", "load_text_encoders"]


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoders:
    """What turns prompts into embeddings."""

    tokenizers: Sequence[Any]
    networks: Sequence[Any]
    dtype: torch.dtype
    clip_skip: int

    def conditioning(self, switched: Callable[[Any], Any], stacks: AdapterStacks) -> Conditioning:
        """Under one merged adapter set, or under those of `stacks`. `switched`: a network under the set."""
        networks = [switched(network) for network in self.networks]
        if len(networks) == 1:
            return Conditioning(self.tokenizers[0], networks[0], self.dtype, stacks, self.clip_skip)
        return PooledConditioning(self.tokenizers, networks, self.dtype, stacks, self.clip_skip)


def load_text_encoders(
    source: Source, device: torch.device, dtype: torch.dtype, clip_skip: int
) -> TextEncoders:
    """Those of a checkpoint. Raises ConfigError."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    kinds: dict[str, Any] = {"text_encoder": CLIPTextModel}
    if source.is_xl:
        kinds["text_encoder_2"] = CLIPTextModelWithProjection
    tokenizers = [
        local(CLIPTokenizer.from_pretrained, source.place(part.replace("text_encoder", "tokenizer")))
        for part in kinds
    ]
    networks = []
    for part, kind in kinds.items():
        network = _load(kind, source, part, dtype).eval().requires_grad_(False).to(device)
        check_finite(network, source.place(part))
        # XL's own never uses the last layer.
        _check_skipped(clip_skip + source.is_xl, network)
        networks.append(network)
    if source.is_xl:
        _check_widths(source, networks)
    return TextEncoders(tokenizers, networks, dtype, clip_skip)


def _load(network: Any, source: Source, part: str, dtype: torch.dtype) -> Any:
    folder, file = source.place(part), source.single_file(part)
    if file is None:
        loaded, report = local(
            network.from_pretrained,
            folder,
            dtype=dtype,
            variant=variant(folder),
            output_loading_info=True,
        )
        return checked(loaded, folder, report["missing_keys"])
    empty = network(local(network.config_class.from_pretrained, folder))
    weights = from_original(part, read_weights(file)[0], source.config(part))
    prefix = "" if hasattr(empty, "text_model") else "text_model."
    weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return filled(empty, file, part, {k: v for k, v in weights.items() if k in empty.state_dict()}, dtype)


def _check_skipped(clip_skip: int, text_encoder: Any) -> None:
    layers = text_encoder.config.num_hidden_layers
    if clip_skip >= layers:
        text = f"{clip_skip} leaves nothing of a text encoder of {layers} layers"
        raise ConfigError(f"model.clip_skip {text}")


def _check_widths(source: Source, networks: Sequence[Any]) -> None:
    """Raises ConfigError unless the UNet takes what both text encoders give."""
    unet = source.config("unet")
    tokens = sum(network.config.hidden_size for network in networks)
    if tokens != unet["cross_attention_dim"]:
        text = f"tokens {tokens} wide, the UNet takes {unet['cross_attention_dim']}"
        raise ConfigError(f"{source.folder}: the text encoders give {text}")
    pooled = networks[-1].config.projection_dim
    taken = unet["projection_class_embeddings_input_dim"] - NUM_SIZES * unet["addition_time_embed_dim"]
    if pooled != taken or pooled > tokens:
        text = f"text {pooled} wide, the UNet takes {taken}"
        raise ConfigError(f"{source.folder}: the second text encoder gives pooled {text}")

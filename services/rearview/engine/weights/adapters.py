"""LoRAs: what is in their files, and sets of them that are merged into weights once, at load.

A set is a named list of LoRAs. Sets that are not merged are stacked (`stacks.py`): rows of several share a
forward. For every layer that some merged set touches the weight of each of them is kept beside the plain
one, so a switch only exchanges which of them the layer points to: it copies nothing, and after switching
back the very same tensors are there again. The price is memory: a set takes the bytes of the layers that it
touches. LoRAs that every session has (LCM-LoRA) are fused into the weights themselves. What surprises: a set
also touches text encoders, so embeddings belong to a set.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Conv2d, Linear, Module, Parameter

from rearview.engine.networks.finite import is_finite
from rearview.engine.weights.formats import LoraFile, find_lora, read_config, read_weights
from rearview.engine.weights.original_names import original_name
from rearview.errors import ConfigError

__all__ = [
    "NO_ADAPTERS",
    "AdapterSets",
    "Change",
    "Layer",
    "Layers",
    "LowRank",
    "Switched",
    "changes_of",
    "merge_adapters",
    "read_lora",
    "weighted",
]

Layer = Linear | Conv2d

NO_ADAPTERS = ""
"""Name of the set without LoRAs."""
ROLES = (
    (re.compile(r"\.lora_down\.weight$"), "down"),  # kohya
    (re.compile(r"\.lora_up\.weight$"), "up"),
    (re.compile(r"\.lora_A(\.\w+)?\.weight$"), "down"),  # peft
    (re.compile(r"\.lora_B(\.\w+)?\.weight$"), "up"),
    (re.compile(r"(\.lora|\.lora_linear_layer|_lora)\.down\.weight$"), "down"),  # diffusers before peft
    (re.compile(r"(\.lora|\.lora_linear_layer|_lora)\.up\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one layer: up @ down times alpha / rank."""

    layer: str
    """As the file spells it, without the ending."""
    down: Tensor
    """(rank, in, ...)."""
    up: Tensor
    """(out, rank, ...)."""
    factor: float
    """alpha / rank; 1 where the file says no alpha."""

    def delta(self, weight: Tensor, scale: float) -> Tensor:
        """What to add to `weight`, of its shape, in its precision. Raises ValueError if it does not fit."""
        up, down = (factor.flatten(1).to(weight) for factor in (self.up, self.down))
        if (up.shape[0], down.shape[1]) != weight.flatten(1).shape:
            raise ValueError(
                f"{self.layer} is {up.shape[0]}x{down.shape[1]}, the layer {tuple(weight.shape)}"
            )
        return (up @ down).reshape(weight.shape) * (scale * self.factor)


def read_lora(path: Path) -> list[LowRank]:
    """The layers of a LoRA file, in kohya's, diffusers' or peft's format. Raises ConfigError."""
    weights, metadata = read_weights(path)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        layer, role = _split(key, path)
        found.setdefault(layer, {})[role] = tensor
    alphas = _Alphas(path, metadata)
    layers = []
    for layer, parts in found.items():
        if not {"down", "up"} <= parts.keys():
            raise ConfigError(f"{path}: {layer} lacks its lora_down or lora_up")
        down, up = parts["down"], parts["up"]
        rank = down.shape[0]
        if up.shape[1] != rank:
            raise ConfigError(f"{path}: {layer} has ranks {rank} and {up.shape[1]}")
        alpha = float(parts["alpha"]) if "alpha" in parts else None
        if not (is_finite(up) and is_finite(down)):
            raise ConfigError(f"{path}: weights of {layer} are not finite: the file is damaged")
        layers.append(LowRank(layer, down, up, alphas.factor(layer, rank, alpha)))
    return layers


Change = tuple[LowRank, float]
"""With its scale."""


class _Alphas:
    """What peft's settings say of scaling, beside the file or in its metadata."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        beside = path.with_name("adapter_config.json")
        self._settings: dict[str, dict[str, Any]] = {}
        """By the first part of a layer's name; that of the empty name holds for all."""
        if path.name == "adapter_model.safetensors" and beside.is_file():
            self._settings[""] = read_config(beside)
        for key, value in _json_object(path, metadata.get("lora_adapter_metadata", "{}")).items():
            network, _, name = key.partition(".")
            self._settings.setdefault(network, {})[name] = value
        if any(settings.get("use_dora") for settings in self._settings.values()):
            raise ConfigError(f"{path}: DoRA is not supported")

    def factor(self, layer: str, rank: int, alpha: float | None) -> float:
        """alpha / rank, or by the root of the rank (rsLoRA); 1 where no alpha is said."""
        settings = self._settings.get(layer.partition(".")[0], self._settings.get("", {}))
        if alpha is None:
            patterns = (settings.get("alpha_pattern") or {}).items()
            named = (value for name, value in patterns if f".{layer}".endswith(f".{name}"))
            alpha = next(named, settings.get("lora_alpha"))
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _json_object(path: Path, text: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: lora_adapter_metadata: {error}") from None
    return content


class AdapterSets:
    """The weights of every set, and which of them the networks use now. For one thread."""

    def __init__(self, layers: Sequence[Layer], weights: Mapping[str, Sequence[Parameter]]) -> None:
        """`weights`: per set the weight of each of `layers`; the set `NO_ADAPTERS` has the plain ones."""
        self._layers = list(layers)
        self._weights = {name: list(own) for name, own in weights.items()}
        self.active = NO_ADAPTERS

    @property
    def names(self) -> Sequence[str]:
        """Of the sets, `NO_ADAPTERS` included."""
        return tuple(self._weights)

    def activate(self, name: str) -> None:
        """Use a set from now on: exchanges pointers, copies nothing. KeyError if there is no such set."""
        weights = self._weights[name]
        if name == self.active:
            return
        for layer, weight in zip(self._layers, weights, strict=True):
            # What `layer.weight = weight` ends in, after checks that only matter for new names.
            layer._parameters["weight"] = weight
        self.active = name

    def bytes(self, name: str) -> int:
        """Memory that a set takes beside the plain weights."""
        plain = self._weights[NO_ADAPTERS]
        pairs = zip(self._weights[name], plain, strict=True)
        return sum(weight.numel() * weight.element_size() for weight, base in pairs if weight is not base)


class Switched:
    """A network under one set: activates it before every call. Else it is the network."""

    def __init__(self, network: Any, sets: AdapterSets, name: str) -> None:
        self._network, self._sets, self._name = network, sets, name

    @property
    def extra_bytes(self) -> int:
        """Memory that the set takes beside the plain weights."""
        return self._sets.bytes(self._name)

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        self._sets.activate(self._name)
        return self._network(*args, **arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


@torch.no_grad()
def merge_adapters(
    unet: Module,
    text_encoders: Sequence[Module],
    fused: Sequence[LoraFile],
    sets: Mapping[str, Sequence[LoraFile]],
) -> AdapterSets:
    """Fuse `fused` into all networks and make the weights of each set. Raises ConfigError.

    Sums are formed in float32 (float64 for such networks) and rounded once.
    """
    layers = Layers(unet, text_encoders)
    always = changes_of(layers, "model.lcm_lora", fused)
    own = {name: changes_of(layers, f"model.adapters.{name}", files) for name, files in sets.items()}
    switching: list[Layer] = []
    weights: dict[str, list[Parameter]] = {name: [] for name in (NO_ADAPTERS, *own)}
    for layer in {layer: None for changes in (always, *own.values()) for layer in changes}:
        exact = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
        if layer in always:
            exact = _added(exact, always[layer])
            layer.weight = _rounded(exact, layer.weight)
        if all(layer not in changes for changes in own.values()):
            continue
        plain = cast(Parameter, layer.weight)
        switching.append(layer)
        weights[NO_ADAPTERS].append(plain)
        for name, changes in own.items():
            is_changed = layer in changes
            weights[name].append(_rounded(_added(exact, changes[layer]), plain) if is_changed else plain)
    return AdapterSets(switching, weights)


def changes_of(layers: Layers, option: str, files: Sequence[LoraFile]) -> dict[Layer, list[Change]]:
    """What the files change, by layer. Raises ConfigError that names `option`."""
    changes: dict[Layer, list[Change]] = {}
    for file in files:
        path = find_lora(option, file.path)
        for change in read_lora(path):
            layer = layers.find(change.layer)
            if layer is None:
                raise ConfigError(f"{option}: {path} changes {change.layer}, which this checkpoint has not")
            try:
                change.delta(layer.weight.to("meta"), 1.0)
            except ValueError as error:
                raise ConfigError(f"{option}: {path}: {error}: is it of another base model?") from None
            changes.setdefault(layer, []).append((change, file.scale))
    return changes


def _added(weight: Tensor, changes: Sequence[Change]) -> Tensor:
    for change, scale in changes:
        weight = weight + change.delta(weight, scale)
    return weight


def _rounded(exact: Tensor, like: Tensor) -> Parameter:
    # `empty_like` keeps the memory format, which convolutions are fast in.
    return Parameter(torch.empty_like(like).copy_(exact), requires_grad=False)


class Layers:
    """Layers by the names under which LoRA files know them."""

    def __init__(self, unet: Module, text_encoders: Sequence[Module]) -> None:
        self._named: dict[str, Layer] = {}
        for path, layer in weighted(unet):
            self._add(layer, f"lora_unet_{path.replace('.', '_')}", f"unet.{path}", path)
            if (original := _original(unet, path)) is not None:
                self._add(layer, f"lora_unet_{original.replace('.', '_')}")
        for number, text_encoder in enumerate(text_encoders, 1):
            for path, layer in weighted(text_encoder):
                self._add(layer, *_names_in_text(path, number))

    def find(self, name: str) -> Layer | None:
        return self._named.get(name)

    def _add(self, layer: Layer, *names: str) -> None:
        self._named.update(dict.fromkeys(names, layer))


def _original(unet: Any, path: str) -> str | None:
    """The original layout's name of a layer, under which kohya's trainer for Stable Diffusion XL saves it."""
    blocks = getattr(unet, "down_blocks", ())
    if not blocks:
        return None
    way, number, _ = (*path.split("."), "", "")[:3]
    block = getattr(unet, way)[int(number)] if way in ("down_blocks", "up_blocks") else None
    attends = bool(getattr(block, "attentions", ()))
    return original_name(path, len(blocks[0].resnets), attends=attends)


def _names_in_text(path: str, number: int) -> Iterator[str]:
    """Of a layer of the text encoder with that number, which the first one may go without."""
    # Some versions of transformers have a wrapper `text_model`, others do not.
    full = path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"
    flat, short = full.replace(".", "_"), full.removeprefix("text_model.")
    named = [(f"te{number}", f"text_encoder_{number}")]
    for kohya, diffusers in [*named, ("te", "text_encoder")] if number == 1 else named:
        yield from (f"lora_{kohya}_{flat}", f"{diffusers}.{full}", f"{diffusers}.{short}")


def weighted(network: Module) -> Iterator[tuple[str, Layer]]:
    """The layers of a network that a LoRA can change, with their paths."""
    for path, layer in network.named_modules():
        if isinstance(layer, Linear | Conv2d):
            yield path, layer


def _split(key: str, path: Path) -> tuple[str, str]:
    """Layer and role of a tensor."""
    for pattern, role in ROLES:
        layer = pattern.sub("", key)
        if layer != key:
            # `module.` is what training on several devices leaves.
            layer = layer.removeprefix("module.").removeprefix("base_model.model.").removeprefix("module.")
            layer = layer.replace(".processor.", ".")
            return (layer + ".0" if layer.endswith(".to_out") else layer), role
    raise ConfigError(
        f"{path}: {key} is not of a LoRA that can be merged (LyCORIS and DoRA are not supported)"
    )

"""The keyword arguments of `Client.open` and `Session.control`, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum
from typing import Any, cast

from rearview.contract.methods import Method
from rearview.contract.opening import OpenRequest, RequestOptions
from rearview.contract.settings import Guidance, NoiseRule, SettingOptions, SettingsChange
from rearview.contract.stream import DropPolicy, ImageFormat

__all__ = ["OpenOptions", "SettingOptions", "change_of", "checked_options", "checked_settings", "request_of"]

WORDS: Mapping[str, type[Enum]] = {
    "method": Method,
    "drop_policy": DropPolicy,
    "answer_format": ImageFormat,
    "noise_rule": NoiseRule,
    "guidance": Guidance,
}
"""Options that may also be said by a word, as on the command line."""
TEXTS = frozenset({"model", "prompt", "negative_prompt", "adapters"})


class OpenOptions(RequestOptions, total=False):
    """The keyword arguments of `Client.open`; all but the prompt, or `prompts`, may be left out."""

    answer_window: int
    """Answers held for a slow reader before the server is stopped. Default 32."""
    send_quality: int
    """JPEG quality of frames sent as arrays, 1 to 100; 0 sends raw RGB. Default 90."""


def checked_options(options: Mapping[str, Any]) -> OpenOptions:
    """Options of a session as they are meant. Raises TypeError for a name that is none of them and for text
    in the place of a number, ValueError for a word that names nothing.
    """
    return cast(OpenOptions, _checked(options, OpenOptions.__annotations__))


def checked_settings(options: Mapping[str, Any]) -> SettingOptions:
    """The same of a change of settings."""
    return cast(SettingOptions, _checked(options, SettingOptions.__annotations__))


def change_of(options: SettingOptions) -> SettingsChange:
    """The settings among the options."""
    return SettingsChange(**_said(options, SettingsChange))


def request_of(options: OpenOptions, answer_credit: int) -> OpenRequest:
    """The session that the options ask for."""
    said = _said(options, OpenRequest)
    return OpenRequest(**{**said, "settings": change_of(options), "answer_credit": answer_credit})


def _said(options: Mapping[str, Any], kind: type[SettingsChange | OpenRequest]) -> dict[str, Any]:
    """The options that are fields of `kind`; one that is None says nothing."""
    names = (one.name for one in fields(kind))
    return {name: value for name in names if (value := options.get(name)) is not None}


def _checked(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _meant(name, value, known) for name, value in options.items()}


def _meant(name: str, value: object, known: Mapping[str, Any]) -> object:
    if name not in known:
        near = get_close_matches(name, known, 1)
        raise TypeError(f"there is no option {name!r}" + (f": is {near[0]!r} meant?" if near else ""))
    if not isinstance(value, str) or name in TEXTS:
        return value
    if name not in WORDS:
        raise TypeError(f"{name} cannot be text: {value!r}")
    words = {each.name.lower().replace("_", "-"): each for each in WORDS[name]}
    word = value.lower().replace("_", "-")
    if word not in words:
        raise ValueError(f"{name} is one of {', '.join(words)}, not {value!r}")
    return words[word]

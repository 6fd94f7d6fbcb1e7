"""The keyword arguments of `Client.open` and `Session.control`, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rearview.contract.opening import OpenRequest, RequestOptions
from rearview.contract.settings import SettingOptions, SettingsChange

__all__ = ["OpenOptions", "SettingOptions", "change_of", "request_of"]


class OpenOptions(RequestOptions, total=False):
    """The keyword arguments of `Client.open`; all but the prompt, or `prompts`, may be left out."""

    answer_window: int
    """Answers held for a slow reader before the server is stopped. Default 32."""
    send_quality: int
    """JPEG quality of frames sent as arrays, 1 to 100; 0 sends raw RGB. Default 90."""


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

"""What is said of settings in part: the fields that are named, over the settings in force."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Change"]

SettingsT = TypeVar("SettingsT", bound="DataclassInstance")


class Change(Generic[SettingsT]):
    """Base of dataclasses whose fields are those of `SettingsT`, or some of them; None says nothing."""

    __slots__ = ()

    def named(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        change = cast("DataclassInstance", self)
        return {one.name: value for one in fields(change) if (value := getattr(change, one.name)) is not None}

    def apply(self, settings: SettingsT) -> SettingsT:
        """`settings` with the named fields changed. Raises InvalidRequest where these refuse them."""
        return replace(settings, **self.named())

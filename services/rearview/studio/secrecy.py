"""Secrets that pages show: compared so that how long it takes says nothing."""

from __future__ import annotations

from hmac import compare_digest

__all__ = ["same_secret"]


def same_secret(one: str | None, other: str | None) -> bool:
    """Whether both are the same; None is only itself."""
    if one is None or other is None:
        return one is other
    return compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))

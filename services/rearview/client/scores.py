"""Scores as files."""

from __future__ import annotations

import json
from pathlib import Path

from rearview.client.targets import whole_file
from rearview.contract.score import Score
from rearview.errors import InvalidRequest

__all__ = ["read_score", "write_score"]

MAX_BYTES = 16 << 20
"""An event a frame for an hour is a tenth of it."""


def read_score(path: Path) -> Score:
    """Read a score. Raises OSError, and InvalidRequest for a file that is none; both name it."""
    if path.stat().st_size > MAX_BYTES:
        raise OSError(f"{path}: is too long for a score")
    try:
        return Score.parse(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path}: is no score: {error}") from None
    except InvalidRequest as error:
        raise InvalidRequest(error.reason, f"{path}: {error.message}", metadata=error.metadata) from None


def write_score(path: Path, score: Score) -> None:
    """Write it; a file that is there is replaced when this one is whole. Raises OSError."""
    text = json.dumps(score.plain(), indent=1, ensure_ascii=False) + "\n"
    whole_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))

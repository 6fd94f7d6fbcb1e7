"""How a replica's word about itself travels: JSON."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from rearview.contract.beat import Beat
from rearview.transport.wire import Body, WireError

__all__ = ["decode_beat", "encode_beat"]

_BEAT = TypeAdapter(Beat)


def encode_beat(beat: Beat) -> bytes:
    """Body of a HEARTBEAT."""
    return _BEAT.dump_json(beat)


def decode_beat(body: Body) -> Beat:
    """Undo `encode_beat`. Raises WireError."""
    try:
        return _BEAT.validate_json(body)
    except ValidationError as error:
        raise WireError(f"heartbeat: {error.error_count()} fields cannot be read") from None

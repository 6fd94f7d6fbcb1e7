"""A control of a client, applied or refused: either way the stream goes on."""

from __future__ import annotations

from rearview.errors import InvalidRequest, Refused
from rearview.ingress.bad_frames import BadFrames
from rearview.ingress.messages import control_response, settings_change
from rearview.ingress.service import Ingress
from rearview.ingress.session import IngressSession
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["take_control"]


async def take_control(
    ingress: Ingress, session: IngressSession, message: pb.Control, bad_frames: BadFrames
) -> pb.TranslateResponse:
    """What the client is answered. No frame of the session may be received meanwhile: those that follow are
    under the settings that the control names. Raises LeaseLost.
    """
    asked = message.settings
    try:
        advice = await ingress.change_settings(session, settings_change(asked))
    except (InvalidRequest, Refused) as error:  # A slip of the hand at a live control does not end the video.
        if asked.HasField("width") or asked.HasField("height"):
            bad_frames.size_refused(session.received)
        return control_response(session, message.control_id, error.message, error.reason)
    return control_response(session, message.control_id, advice, None)

"""Imported once by the process that forks all others, so that each of them starts in milliseconds.

It starts no thread and touches no device: what is forked would have neither. The edge is left out: an ingress
imports it for itself, in a third of a second, while a replica loads its model.
"""

from __future__ import annotations

import gc

from rearview.forks import end_with_parent, outlive_parent

__all__: list[str] = []


def _import() -> None:
    """What a replica needs, also what a checkpoint is read with, which else is imported when it is met."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from rearview.local import member
    from rearview.replica import stage

    del AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, CLIPTextModel, CLIPTokenizer, member, stage


end_with_parent()  # A command that is refused while this imports leaves nothing behind.
gc.disable()  # Four thousand modules stay: looking through what they have made takes up to a third more.
_import()
gc.enable()
gc.freeze()  # Else a collection in one process would copy the pages of all that was imported.
outlive_parent()  # From now on it sees by itself when nobody needs it; the parent's thread may end before.

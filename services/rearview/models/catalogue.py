"""The models that are known by a short id: from which repositories, under which licences, for which sizes.

Nothing is said here that only the hub knows. Bytes, commits and names of files are asked of it when a model
is fetched (`listing.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rearview.models.failure import FetchFailed, FetchReason

__all__ = [
    "PARTS",
    "XL_PARTS",
    "KnownModel",
    "Licence",
    "Repository",
    "known_models",
    "model_named",
    "model_of_hub_id",
]

PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")
"""Of a checkpoint in diffusers format, without its VAE."""
XL_PARTS = ("text_encoder_2", "tokenizer_2")
"""What one of Stable Diffusion XL has beside them."""


@dataclass(frozen=True, slots=True)
class Licence:
    """Under what weights may be used. To be shown before they are fetched."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Repository:
    """What is taken from one repository on the hub."""

    hub_id: str
    licence: Licence
    folders: Mapping[str, str]
    """Folder in the repository to folder of the model; the empty name is the repository's own."""
    revision: str = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that can be fetched."""

    id: str
    title: str
    note: str
    """What one gets, in one line."""
    repositories: tuple[Repository, ...]
    steps: int = 4
    """Denoising steps that it is run with."""
    strength: float = 0.5

    @property
    def licences(self) -> tuple[Licence, ...]:
        """Of all that is fetched, the checkpoint's first."""
        return tuple(dict.fromkeys(one.licence for one in self.repositories))


OPENRAIL_M = Licence(
    "CreativeML OpenRAIL-M", "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
)
TAESD = Repository(
    "madebyollin/taesd", Licence("MIT", "https://huggingface.co/madebyollin/taesd"), {"": "vae"}
)
"""The small VAE of Stable Diffusion 1 and 2: a picture in a fraction of the time."""
TAESDXL = Repository(
    "madebyollin/taesdxl", Licence("MIT", "https://huggingface.co/madebyollin/taesdxl"), {"": "vae"}
)
"""The same of Stable Diffusion XL, whose latents are others."""
WHOLE = {part: part for part in PARTS}
WHOLE_XL = WHOLE | {part: part for part in XL_PARTS}

_KNOWN = (
    KnownModel(
        id="sd-turbo",
        title="SD-Turbo",
        note="any prompt in one step; 512x512 is what it was trained for",
        repositories=(
            Repository(
                "stabilityai/sd-turbo",
                Licence(
                    "Stability AI Community License",
                    "https://huggingface.co/stabilityai/sd-turbo/blob/main/LICENSE.md",
                ),
                WHOLE,
            ),
            TAESD,
        ),
        steps=1,
    ),
    KnownModel(
        id="lcm-dreamshaper",
        title="LCM Dreamshaper v7",
        note="any prompt in two to four steps, the scale of guidance built in",
        repositories=(
            Repository(
                "SimianLuo/LCM_Dreamshaper_v7",
                Licence("MIT", "https://huggingface.co/SimianLuo/LCM_Dreamshaper_v7"),
                WHOLE,
            ),
            TAESD,
        ),
        steps=2,
    ),
    KnownModel(
        id="sd15-lcm",
        title="Stable Diffusion 1.5 with LCM-LoRA",
        note="any prompt in two to four steps; motion modules and SD 1.5 LoRAs fit it",
        repositories=(
            Repository("stable-diffusion-v1-5/stable-diffusion-v1-5", OPENRAIL_M, WHOLE),
            Repository(
                "latent-consistency/lcm-lora-sdv1-5",
                Licence("OpenRAIL++", "https://huggingface.co/latent-consistency/lcm-lora-sdv1-5"),
                {"": "lcm_lora"},
            ),
            TAESD,
        ),
        steps=2,
    ),
    KnownModel(
        id="sdxl-turbo",
        title="SDXL-Turbo",
        note="any prompt in one step, finer than SD-Turbo and three times as large; for a GPU",
        repositories=(
            Repository(
                "stabilityai/sdxl-turbo",
                Licence(
                    "Stability AI Community License",
                    "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md",
                ),
                WHOLE_XL,
            ),
            TAESDXL,
        ),
        steps=1,
    ),
)


def known_models() -> Mapping[str, KnownModel]:
    """Every known model by its id."""
    return MappingProxyType({model.id: model for model in _KNOWN})


def model_of_hub_id(hub_id: str, revision: str = "main") -> KnownModel:
    """A whole checkpoint of the hub, with its own VAE and, if it has them, a second text encoder and motion
    modules.
    """
    licence = Licence("see its page", f"https://huggingface.co/{hub_id}")
    folders = {**WHOLE_XL, "vae": "vae", "motion_adapter": "motion_adapter"}
    return KnownModel(
        id=hub_id.replace("/", "--"),
        title=hub_id,
        note="from the Hugging Face hub",
        repositories=(Repository(hub_id, licence, folders, revision),),
    )


def model_named(name: str) -> KnownModel:
    """By its id, or by the hub id of any checkpoint (owner/name). Raises FetchFailed."""
    known = known_models().get(name)
    if known is not None:
        return known
    owner, slash, repository = name.partition("/")
    if slash and owner and repository and "/" not in repository:
        return model_of_hub_id(name)
    ids = ", ".join(known_models())
    raise FetchFailed(FetchReason.UNKNOWN_MODEL, f"there is no model {name!r}; known are {ids}")

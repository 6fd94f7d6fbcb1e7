"""What a client asks for when it opens a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from rearview.contract.memories import BankOptions, CacheOptions
from rearview.contract.methods import Method
from rearview.contract.settings import SettingOptions, SettingsChange
from rearview.contract.similarity import SimilarityOptions
from rearview.contract.stream import DropPolicy, ImageFormat

__all__ = ["OpenRequest", "RequestOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A session to open. Zero and None leave a choice to the service; it checks the rest."""

    settings: SettingsChange = field(default_factory=SettingsChange)
    """What frames are translated under, over the model's own settings, until a control changes it."""
    model: str = ""
    """Empty: the one that the service serves."""
    width: int = 0
    """Pixels, a multiple of 8, where `settings` say nothing of it. 0: the model's."""
    height: int = 0
    """Pixels, as the width."""
    drop_policy: DropPolicy = DropPolicy.LATEST
    """LATEST for live video; LOSSLESS for files."""
    frame_budget_s: float = 0.5
    """For DropPolicy.DEADLINE: the age at which a frame is worthless. Up to 60."""
    frame_rate: float = 30.0
    """Frames per second that the client means to send, for admission. Up to 240."""
    answer_format: ImageFormat = ImageFormat.JPEG
    """How answers carry their image."""
    jpeg_quality: int | None = None
    """JPEG quality of the answers, 1 to 100, where `settings` say nothing of it."""
    max_steps: int = 0
    """The most denoising steps that a control may ask for. 0: the model's."""
    method: Method | None = None
    """None: the deployment's."""
    feature_bank: BankOptions | None = None
    """For Method.STREAMV2V. With Method.LIVE2DIFF: if not None the session has a bank too."""
    similarity_filter: SimilarityOptions | None = None
    """None: every frame is translated, however much it looks like the one before."""
    temporal_cache: CacheOptions | None = None
    """For Method.LIVE2DIFF."""
    answer_credit: int = 0
    """Answers that the client takes before it grants more. 0: no limit but the frame credit."""


class RequestOptions(SettingOptions, total=False):
    """`OpenRequest` as keyword arguments, with its `settings` spread out; what is left out keeps its default.
    A test compares the two.
    """

    model: str
    drop_policy: DropPolicy
    frame_budget_s: float
    frame_rate: float
    answer_format: ImageFormat
    max_steps: int
    method: Method
    feature_bank: BankOptions
    similarity_filter: SimilarityOptions
    temporal_cache: CacheOptions

"""The client library: async here, blocking in `rearview.client.sync`, video files in `rearview.client.media`.

It imports the stubs, the errors, gRPC, numpy, simplejpeg and (media only) PyAV; never torch or ray.
"""

from rearview.client.aio import Client, Tls
from rearview.client.answers import (
    Answer,
    Continuity,
    ControlApplied,
    Dropped,
    Image,
    ImageFormat,
    Notice,
    NoticeKind,
    Opened,
    SpanTiming,
    Timings,
    Translated,
)
from rearview.client.exchange import Frame, exchange
from rearview.client.faults import Unreachable
from rearview.client.options import OpenOptions, SettingOptions
from rearview.client.reconnect import Reconnect
from rearview.client.session import Session
from rearview.client.sessions import SessionInfo, SessionState
from rearview.client.settings import (
    BankPolicy,
    DropPolicy,
    FeatureBank,
    Guidance,
    Method,
    NoiseRule,
    PromptChange,
    Rewarm,
    Settings,
    SimilarityFilter,
    TemporalCache,
    WeightedPrompt,
)

__all__ = [
    "Answer",
    "BankPolicy",
    "Client",
    "Continuity",
    "ControlApplied",
    "DropPolicy",
    "Dropped",
    "FeatureBank",
    "Frame",
    "Guidance",
    "Image",
    "ImageFormat",
    "Method",
    "NoiseRule",
    "Notice",
    "NoticeKind",
    "OpenOptions",
    "Opened",
    "PromptChange",
    "Reconnect",
    "Rewarm",
    "Session",
    "SessionInfo",
    "SessionState",
    "SettingOptions",
    "Settings",
    "SimilarityFilter",
    "SpanTiming",
    "TemporalCache",
    "Timings",
    "Tls",
    "Translated",
    "Unreachable",
    "WeightedPrompt",
    "exchange",
]

"""The client library: async here, blocking in `rearview.client.sync`, video files in `rearview.client.media`.

What is asked and what is in force are the contract's own classes: settings that were read can be sent. It
imports the contract, the stubs and their table, the errors, gRPC, numpy, simplejpeg and (media only) PyAV;
never torch or ray.
"""

from rearview.client.aio import Client, Tls
from rearview.client.answers import (
    Answer,
    ControlApplied,
    Dropped,
    Image,
    Notice,
    Opened,
    SpanTiming,
    Timings,
    Translated,
)
from rearview.client.exchange import Frame, exchange
from rearview.client.kinds import PictureKind
from rearview.client.losses import Unreachable
from rearview.client.options import OpenOptions
from rearview.client.reconnect import Reconnect
from rearview.client.session import Session
from rearview.client.sessions import SessionInfo
from rearview.client.tokens import Token
from rearview.client.translator import Translator, connect
from rearview.contract.controls import WeightedControl
from rearview.contract.memories import (
    BankOptions,
    BankPolicy,
    CacheOptions,
    CacheSettings,
    PromptChange,
    Rewarm,
)
from rearview.contract.methods import Method
from rearview.contract.model import Model, Style
from rearview.contract.reference import ImageFile
from rearview.contract.settings import (
    Guidance,
    NoiseRule,
    SettingOptions,
    Settings,
    SettingsChange,
    WeightedAdapters,
    WeightedPrompt,
)
from rearview.contract.similarity import SimilarityOptions
from rearview.contract.stream import Continuity, DropPolicy, ImageFormat, NoticeKind, SessionState

__all__ = [
    "Answer",
    "BankOptions",
    "BankPolicy",
    "CacheOptions",
    "CacheSettings",
    "Client",
    "Continuity",
    "ControlApplied",
    "DropPolicy",
    "Dropped",
    "Frame",
    "Guidance",
    "Image",
    "ImageFile",
    "ImageFormat",
    "Method",
    "Model",
    "NoiseRule",
    "Notice",
    "NoticeKind",
    "OpenOptions",
    "Opened",
    "PictureKind",
    "PromptChange",
    "Reconnect",
    "Rewarm",
    "Session",
    "SessionInfo",
    "SessionState",
    "SettingOptions",
    "Settings",
    "SettingsChange",
    "SimilarityOptions",
    "SpanTiming",
    "Style",
    "Timings",
    "Tls",
    "Token",
    "Translated",
    "Translator",
    "Unreachable",
    "WeightedAdapters",
    "WeightedControl",
    "WeightedPrompt",
    "connect",
    "exchange",
]

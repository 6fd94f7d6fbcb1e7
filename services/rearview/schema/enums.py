"""Members of our enums ⇄ numbers of the proto's, by name: LATEST is DROP_POLICY_LATEST."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import EnumDescriptor

from rearview.contract.memories import BankPolicy, PromptChange, Rewarm
from rearview.contract.methods import Method
from rearview.contract.settings import Guidance, NoiseRule
from rearview.contract.stream import Continuity, DropPolicy, ImageFormat, NoticeKind, SessionState
from rearview.errors import DropReason, Reason, out_of_range
from rearview.v1 import error_reason_pb2 as errors_pb
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb

__all__ = [
    "BANK_POLICIES",
    "CONTINUITIES",
    "DROP_POLICIES",
    "DROP_REASONS",
    "ENUMS",
    "GUIDANCES",
    "IMAGE_FORMATS",
    "METHODS",
    "NOISE_RULES",
    "NOTICE_KINDS",
    "PROMPT_CHANGES",
    "REASONS",
    "REWARMS",
    "SESSION_STATES",
    "EnumMap",
]

MemberT = TypeVar("MemberT", bound=Enum)
UNSPECIFIED = "UNSPECIFIED"


@dataclass(frozen=True)
class EnumMap(Generic[MemberT]):
    """One enum. The proto's zero, `…_UNSPECIFIED`, is nobody's member: it says nothing."""

    ours: type[MemberT]
    theirs: EnumDescriptor
    unsent: frozenset[MemberT] = frozenset()
    """Members that never travel."""

    def number(self, member: MemberT | None) -> Any:
        """What stands for `member` on the wire; None is `…_UNSPECIFIED`."""
        return 0 if member is None else self._numbers[member]

    def member(self, number: int) -> MemberT | None:
        """None for `…_UNSPECIFIED`, and for what a newer peer knows."""
        return self._members.get(number)

    def write(self, value: MemberT) -> Any:
        """As `number`: the converter of a row."""
        return self.number(value)

    def read(self, value: int, field: str, *, refuses: bool) -> MemberT | None:
        """As `member`. Raises InvalidRequest(SETTING_OUT_OF_RANGE) for an unknown one if it `refuses`."""
        if refuses and value and value not in self._members:
            raise out_of_range(field, f"{field} is not served")
        return self.member(value)

    @cached_property
    def prefix(self) -> str:
        """What the proto puts before each name."""
        return self.theirs.values_by_number[0].name.removesuffix(UNSPECIFIED)

    @cached_property
    def _numbers(self) -> dict[MemberT, int]:
        sent = (member for member in self.ours if member not in self.unsent)
        return {member: self.theirs.values_by_name[self.prefix + member.name].number for member in sent}

    @cached_property
    def _members(self) -> dict[int, MemberT]:
        return {number: member for member, number in self._numbers.items()}


NOISE_RULES = EnumMap(NoiseRule, settings_pb2.NoiseRule.DESCRIPTOR)
GUIDANCES = EnumMap(Guidance, settings_pb2.Guidance.DESCRIPTOR)
METHODS = EnumMap(Method, pb.Method.DESCRIPTOR)
DROP_POLICIES = EnumMap(DropPolicy, pb.DropPolicy.DESCRIPTOR)
IMAGE_FORMATS = EnumMap(ImageFormat, pb.ImageFormat.DESCRIPTOR)
CONTINUITIES = EnumMap(Continuity, pb.Continuity.DESCRIPTOR)
BANK_POLICIES = EnumMap(BankPolicy, pb.FeatureBank.Policy.DESCRIPTOR)
PROMPT_CHANGES = EnumMap(PromptChange, pb.FeatureBank.PromptChange.DESCRIPTOR)
REWARMS = EnumMap(Rewarm, pb.TemporalCache.Rewarm.DESCRIPTOR)
NOTICE_KINDS = EnumMap(NoticeKind, pb.Notice.Kind.DESCRIPTOR, frozenset({NoticeKind.RESUMED}))
SESSION_STATES = EnumMap(
    SessionState, sessions_pb.Session.State.DESCRIPTOR, frozenset({SessionState.UNKNOWN})
)
REASONS = EnumMap(Reason, errors_pb.ErrorReason.DESCRIPTOR, frozenset({Reason.UNREACHABLE}))
DROP_REASONS = EnumMap(DropReason, errors_pb.DropReason.DESCRIPTOR)

ENUMS: tuple[EnumMap[Any], ...] = (
    NOISE_RULES,
    GUIDANCES,
    METHODS,
    DROP_POLICIES,
    IMAGE_FORMATS,
    CONTINUITIES,
    BANK_POLICIES,
    PROMPT_CHANGES,
    REWARMS,
    NOTICE_KINDS,
    SESSION_STATES,
    REASONS,
    DROP_REASONS,
)
"""All of the proto's."""

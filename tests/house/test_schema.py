"""The one table between our vocabulary and the proto leaves nothing out; a breach of each law is caught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import pytest
from google.protobuf.descriptor import EnumDescriptor, FileDescriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from rearview.config import BankConfig, CacheConfig
from rearview.contract.change import Change
from rearview.contract.memories import (
    BankOptions,
    BankPolicy,
    BankSettings,
    CacheOptions,
    CacheSettings,
    MergeMetric,
    PromptChange,
    Rewarm,
)
from rearview.contract.settings import Settings, SettingsChange
from rearview.contract.similarity import SimilarityOptions, SimilaritySettings
from rearview.errors import InvalidRequest
from rearview.schema import EnumMap, Row, Table, duration, from_message, seconds
from rearview.schema.enums import DROP_POLICIES, ENUMS, GUIDANCES, NOTICE_KINDS, SESSION_STATES
from rearview.schema.table import FLOAT32, IMAGE_FILE, PLAIN, SECONDS, Held, Listed, Nested
from rearview.schema.tables import FEATURE_BANK, OPEN, SETTINGS, TABLES, TEMPORAL_CACHE
from rearview.v1 import error_reason_pb2, model_service_pb2, session_service_pb2, settings_pb2
from rearview.v1 import translation_service_pb2 as pb

pytestmark = pytest.mark.unit

IN_FORCE: list[tuple[type[Change[Any]], type]] = [
    (SettingsChange, Settings),
    (BankOptions, BankSettings),
    (CacheOptions, CacheSettings),
    (SimilarityOptions, SimilaritySettings),
]
FILES = (
    pb.DESCRIPTOR,
    settings_pb2.DESCRIPTOR,
    model_service_pb2.DESCRIPTOR,
    session_service_pb2.DESCRIPTOR,
    error_reason_pb2.DESCRIPTOR,
)


def named(kind: type) -> set[str]:
    return {one.name for one in fields(kind)}


def faults(table: Table[Any]) -> Iterator[str]:
    """What a table forgets, says twice, or makes up."""
    theirs = {field.name: field for field in table.message.DESCRIPTOR.fields}
    for side, names in (("theirs", theirs.keys()), *((kind.__name__, named(kind)) for kind in table.ours)):
        rows = Counter(row.theirs if side == "theirs" else row.ours for row in table.rows)
        yield from (f"{side}: {name} has {count} rows" for name, count in rows.items() if count != 1)
        yield from (f"{side}: no field {name}" for name in rows.keys() - names)
        yield from (f"{side}: {name} has no row" for name in names - rows.keys() - table.inside)
    for row in table.rows:
        if (field := theirs.get(row.theirs)) is not None and not fits(row, field):
            yield f"{row.theirs}: converted as another type"


def fits(row: Row, field: Field) -> bool:
    """Whether a row's converter is one for the type of the proto's field."""
    is_listed = isinstance(row.convert, Listed)
    convert = row.convert.each if isinstance(row.convert, Listed) else row.convert
    if is_listed != field.is_repeated:
        return False
    if field.enum_type is not None:
        return isinstance(convert, EnumMap) and convert.theirs is field.enum_type
    if field.message_type is not None:
        if isinstance(convert, Held):
            return convert.message.DESCRIPTOR is field.message_type
        if isinstance(convert, Nested):
            return convert.table.message.DESCRIPTOR is field.message_type
        return convert is SECONDS
    special = {Field.TYPE_FLOAT: FLOAT32, Field.TYPE_BYTES: IMAGE_FILE}
    return convert is special.get(field.type, PLAIN)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.message.DESCRIPTOR.name)
def test_every_field_on_both_sides_has_one_row(table: Table[Any]) -> None:
    assert list(faults(table)) == []


ROWS = SETTINGS.rows
BREACHES: dict[str, tuple[Table[Any], set[str]]] = {
    "a row forgotten": (
        replace(SETTINGS, rows=ROWS[:-1]),
        {
            "theirs: jpeg_quality has no row",
            "SettingsChange: jpeg_quality has no row",
            "Settings: jpeg_quality has no row",
        },
    ),
    "a field kept back": (replace(SETTINGS, inside=frozenset({"blend"})), {"Settings: scene has no row"}),
    "a row twice": (
        replace(FEATURE_BANK, rows=(*FEATURE_BANK.rows, FEATURE_BANK.rows[1])),
        {"theirs: interval has 2 rows", "BankOptions: interval has 2 rows"},
    ),
    "a field made up": (
        replace(TEMPORAL_CACHE, rows=(*TEMPORAL_CACHE.rows, Row("colour", "colour", PLAIN))),
        {"theirs: no field colour", "CacheOptions: no field colour", "CacheSettings: no field colour"},
    ),
    "a float taken as it comes": (
        replace(SETTINGS, rows=(ROWS[0], replace(ROWS[1], convert=PLAIN), *ROWS[2:])),
        {"strength: converted as another type"},
    ),
    "another enum": (
        replace(SETTINGS, rows=(*ROWS[:4], replace(ROWS[4], convert=GUIDANCES), *ROWS[5:])),
        {"noise_rule: converted as another type"},
    ),
    "a message taken as it comes": (
        replace(OPEN, rows=(replace(OPEN.rows[0], convert=PLAIN), *OPEN.rows[1:])),
        {"settings: converted as another type"},
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_table_is_caught(breach: str) -> None:
    table, expected = BREACHES[breach]
    assert set(faults(table)) == expected


def unmapped(files: tuple[FileDescriptor, ...], enums: tuple[EnumMap[Any], ...]) -> set[str]:
    """Enums of the protos that no map is for."""
    known = {one.theirs.full_name for one in enums}
    found: list[EnumDescriptor] = []
    for file in files:
        found += file.enum_types_by_name.values()
        for message in file.message_types_by_name.values():
            found += message.enum_types
    return {one.full_name for one in found} - known


def test_every_enum_of_the_protos_is_mapped_and_one_left_out_is_noticed() -> None:
    assert unmapped(FILES, ENUMS) == set()
    assert unmapped(FILES, ENUMS[1:]) == {"rearview.v1.NoiseRule"}


def enum_faults(one: EnumMap[Any]) -> set[str]:
    """Names that only one side has."""
    ours = {member.name for member in one.ours if member not in one.unsent}
    theirs = {value.name.removeprefix(one.prefix) for value in one.theirs.values} - {"UNSPECIFIED"}
    return ours ^ theirs


@pytest.mark.parametrize("one", ENUMS, ids=lambda one: one.ours.__name__)
def test_an_enum_has_the_names_of_the_protos(one: EnumMap[Any]) -> None:
    assert enum_faults(one) == set()
    for member in one.ours:
        assert member in one.unsent or one.member(one.number(member)) is member


def test_a_member_that_the_proto_lacks_is_caught() -> None:
    class Policy(Enum):
        LATEST = 1
        LOSSLESS = 2
        OLDEST = 4

    assert enum_faults(replace(DROP_POLICIES, ours=Policy)) == {"OLDEST", "DEADLINE"}


def test_a_number_that_nobody_knows_is_nobodys_member() -> None:
    assert [GUIDANCES.member(number) for number in (0, 99, -1)] == [None] * 3
    assert {one.name for one in NOTICE_KINDS.unsent | SESSION_STATES.unsent} == {"RESUMED", "UNKNOWN"}


@pytest.mark.parametrize(("asked", "kind"), IN_FORCE, ids=lambda kind: kind.__name__)
def test_what_is_asked_are_fields_of_what_is_in_force(asked: type[Change[Any]], kind: type) -> None:
    assert named(asked) <= named(kind)
    assert asked().named() == {}
    assert asked().apply(kind()) == kind()


def test_the_configuration_speaks_of_the_contracts_enums() -> None:
    bank, cache = (
        {name: field.annotation for name, field in section.model_fields.items()}
        for section in (BankConfig, CacheConfig)
    )
    assert (bank["policy"], bank["metric"]) == (BankPolicy, MergeMetric)
    assert bank["prompt_change"] is PromptChange
    assert (cache["prompt_change"], cache["scene_cut"]) == (Rewarm, Rewarm)
    assert BankConfig.model_validate({"policy": "queue"}).model_dump(mode="json")["policy"] == "queue"


@dataclass(frozen=True)
class Unknown:
    """A message with an enum value that nobody knows, and the field by which it is refused."""

    table: Table[Any]
    message: Any
    field: str


UNKNOWN = [
    Unknown(SETTINGS, settings_pb2.Settings(guidance=99), "guidance"),  # type: ignore[arg-type]
    Unknown(OPEN, pb.Open(settings=settings_pb2.Settings(noise_rule=99)), "noise_rule"),  # type: ignore[arg-type]
    Unknown(OPEN, pb.Open(feature_bank=pb.FeatureBank(policy=99)), "feature_bank.policy"),  # type: ignore[arg-type]
    Unknown(OPEN, pb.Open(method=99), "method"),  # type: ignore[arg-type]
    Unknown(
        OPEN,
        pb.Open(temporal_cache=pb.TemporalCache(scene_cut=99)),  # type: ignore[arg-type]
        "temporal_cache.scene_cut",
    ),
]


@pytest.mark.parametrize("unknown", UNKNOWN, ids=lambda unknown: unknown.field)
def test_an_unknown_value_is_refused_by_its_field_or_read_as_nothing_said(unknown: Unknown) -> None:
    kind = unknown.table.ours[0]
    with pytest.raises(InvalidRequest) as caught:
        from_message(unknown.table, kind, unknown.message, refuses=True)
    assert caught.value.metadata == {"field": unknown.field}
    read = from_message(unknown.table, kind, unknown.message, refuses=False)
    said = [field.name for field, _ in unknown.message.ListFields() if field.message_type is not None]
    empty = unknown.table.message()
    for name in said:
        getattr(empty, name).SetInParent()
    assert read == from_message(unknown.table, kind, empty, refuses=True)


@pytest.mark.parametrize("written", [0.4, 0.1, 1.1, 0.98, 1e-7, 100.7, 1000.0, 1 / 3])
def test_a_float_comes_back_as_the_shortest_decimal_that_it_can_be(written: float) -> None:
    message = settings_pb2.Settings.FromString(settings_pb2.Settings(strength=written).SerializeToString())
    read = from_message(SETTINGS, SettingsChange, message, refuses=True).strength
    assert read is not None
    assert read == pytest.approx(written, rel=1e-7)
    assert len(repr(read)) <= len(repr(written))
    assert settings_pb2.Settings(strength=read) == message, "sent again, it is the same number"


@pytest.mark.parametrize("value", [0.0, 0.5, 1e-9, -1.25, 59.999999999])
def test_durations_keep_nanoseconds(value: float) -> None:
    assert seconds(duration(value)) == pytest.approx(value, abs=5e-10)

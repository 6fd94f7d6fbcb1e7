"""`rearview usage`: what tenants have used, summed up from the records that ingresses write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rearview.cli.failure import fails_in_one_line
from rearview.cli.printing import JsonOption, print_json, table_console
from rearview.contract.usage import Sum, UsageRecord, read_record, summed

__all__ = ["usage"]

PATTERN = "usage-*.jsonl"


class Interval(StrEnum):
    """Over what is summed."""

    ALL = "all"
    DAY = "day"
    HOUR = "hour"


_LENGTHS = {Interval.ALL: 0, Interval.DAY: len("2026-01-01"), Interval.HOUR: len("2026-01-01T00")}
"""Of the part of a record's time by which it is told apart."""


@fails_in_one_line
def usage(
    folders: Annotated[list[Path], typer.Argument(help="Folders of records, or files.")],
    by: Annotated[Interval, typer.Option("--by", help="Apart for each day or hour, UTC.")] = Interval.ALL,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of this one alone.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="From this time on (UTC, 2026-01-31).")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Before this time.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Sum up what tenants have used: frames, pixel-steps, seconds of device time."""
    records = _read(folders)
    begins, ends = _time(since, "--since"), _time(until, "--until")

    def key(record: UsageRecord) -> tuple[str, str]:
        return record.tenant, record.time[: _LENGTHS[by]]

    def is_wanted(record: UsageRecord) -> bool:
        in_time = begins <= record.time and (not ends or record.time < ends)
        return in_time and tenant in (None, record.tenant)

    sums = _only(summed(records, lambda one: key(one) if is_wanted(one) else ("", "")))
    if as_json:
        print_json(list(map(_as_json, sums.items())))
    elif not sums:
        typer.echo("no usage")
    else:
        _print(sums, by)


def _only(sums: Mapping[tuple[str, str], Sum]) -> Mapping[tuple[str, str], Sum]:
    """Without those that nobody has asked for, which say all the same what is missing of others."""
    return {key: total for key, total in sums.items() if key[0]}


def _read(folders: Sequence[Path]) -> list[UsageRecord]:
    """Raises OSError."""
    files = [file for one in folders for file in (sorted(one.glob(PATTERN)) if one.is_dir() else [one])]
    return [record for file in files for record in _records(file)]


def _records(file: Path) -> Iterator[UsageRecord]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (record := read_record(line)) is not None:
                yield record


def _time(text: str | None, option: str) -> str:
    """As records write it, or a beginning of that."""
    if text is None:
        return ""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option} is a date or a time, as 2026-01-31 or 2026-01-31T12:00") from None
    utc = time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(timespec="seconds")


def _as_json(entry: tuple[tuple[str, str], Sum]) -> Mapping[str, object]:
    (tenant, interval), total = entry
    return {
        "tenant": tenant,
        "interval": interval or None,
        "sessions": len(total.sessions),
        "frames": dict(sorted(total.frames.items())),
        "frames_total": total.frames.total(),
        "unrecorded_frames": total.unrecorded,
        "pixel_steps": total.pixel_steps,
        "device_seconds": round(total.device_s, 6),
    }


def _print(sums: Mapping[tuple[str, str], Sum], by: Interval) -> None:
    from rich.table import Table

    named = () if by is Interval.ALL else (by.value,)
    columns = ("sessions", "translated", "dropped", "unrecorded", "pixel-steps", "device s")
    table = Table(box=None, pad_edge=False)
    for column in ("tenant", *named):
        table.add_column(column, no_wrap=True, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    for (tenant, interval), total in sums.items():
        translated, frames = total.frames["translated"], total.frames.total()
        counts = len(total.sessions), translated, frames - translated, total.unrecorded, total.pixel_steps
        table.add_row(tenant, *([interval] if named else []), *map(_whole, counts), f"{total.device_s:,.1f}")
    table_console().print(table)


_whole: Callable[[int], str] = "{:,}".format

"""Our settings and enums as messages of `rearview.v1`: one table, both directions, both sides.

    contract class ──to_message──▶ pb message ──from_message──▶ contract class
                     (client: what it asks; ingress: what is in force)

A row names a field of ours, a field of the proto and what converts between them. Presence is settled here
alone: None is absent, what is absent keeps the default of the class that is read. The ingress refuses an
enum value that it does not know; the client leaves it at that default, since a stream must not break because
a newer server knows more.

A new live setting touches four files, and then `make stubs`:

1. `contract/settings.py`: the field in `Settings` (default, range, what it does), in `SettingsChange` and in
   `SettingOptions`;
2. `proto/rearview/v1/settings.proto`: an `optional` field of `Settings` with its comment;
3. `schema/tables.py`: its row in `SETTINGS`;
4. the file in which it acts. What acts on answers alone is left out by `Settings.pictured`, so that no engine
   hears of it.

Forget one of 1 to 3 and `tests/house/test_schema.py` names what is missing.
"""

from rearview.schema.durations import duration, seconds, write_duration
from rearview.schema.enums import EnumMap
from rearview.schema.table import Row, Table, from_message, to_message

__all__ = ["EnumMap", "Row", "Table", "duration", "from_message", "seconds", "to_message", "write_duration"]

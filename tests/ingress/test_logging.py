"""What a log line holds, and what it never does."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from rearview.errors import DropReason, Fault, Reason
from rearview.telemetry.logging import configure_logging, log_fault, new_error_id

pytestmark = pytest.mark.unit

SECRET = "a fox in the style of a tenant's secret prompt"
LOG = logging.getLogger("rearview.test")


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logger = logging.getLogger("rearview")
    before = (logger.handlers[:], logger.level, logger.propagate)
    configure_logging("DEBUG", "json", stream)
    yield stream
    logger.handlers[:], logger.level, logger.propagate = before


def lines(output: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def raised(fail: Callable[[], object]) -> Exception:
    try:
        fail()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def fail_with(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_line_is_one_json_object_with_its_fields(output: io.StringIO) -> None:
    fields = {"session_id": "s1", "frames": 3, "latency_s": 0.5, "reason": DropReason.LATE, "ok": True}
    LOG.info("session closed", extra={"fields": fields})
    (line,) = lines(output)
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "rearview.test",
        "message": "session closed",
        **fields,
        "reason": "late",
    }


def test_fields_cannot_replace_what_a_line_always_has(output: io.StringIO) -> None:
    LOG.info("real", extra={"fields": {"message": "forged", "level": "error", "exception": "forged"}})
    (line,) = lines(output)
    assert (line["message"], line["level"]) == ("real", "info")
    assert "exception" not in line


def test_frames_show_as_their_type_only(output: io.StringIO) -> None:
    fields = {
        "image": b"\xff\xd8pixels",
        "array": np.zeros(3),
        "settings": {"prompt": SECRET},
        "many": [SECRET],
    }
    LOG.info("frame", extra={"fields": fields})
    (line,) = lines(output)
    assert {key: line[key] for key in fields} == {
        "image": "<bytes>",
        "array": "<ndarray>",
        "settings": "<dict>",
        "many": "<list>",
    }


def test_numbers_that_json_lacks_are_text(output: io.StringIO) -> None:
    LOG.info("odd", extra={"fields": {"strength": float("nan"), "rate": float("inf")}})
    assert "NaN" not in output.getvalue()
    assert (lines(output)[0]["strength"], lines(output)[0]["rate"]) == ("nan", "inf")


def test_long_text_is_cut(output: io.StringIO) -> None:
    LOG.info("long", extra={"fields": {"text": "x" * 10_000}})
    assert len(str(lines(output)[0]["text"])) < 250


def test_the_text_of_foreign_exceptions_stays_out(output: io.StringIO) -> None:
    def fail() -> None:
        try:
            {}[SECRET]
        except KeyError:
            raise ValueError(f"cannot encode {SECRET}") from None

    log_fault(LOG, "stream ended", raised(fail))
    assert SECRET not in output.getvalue()
    exception = str(lines(output)[0]["exception"])
    assert "ValueError" in exception
    assert "test_logging.py" in exception


def test_causes_are_told_without_their_text(output: io.StringIO) -> None:
    def fail() -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise Fault(message="row failed twice") from error

    log_fault(LOG, "frame dropped", raised(fail))
    exception = str(lines(output)[0]["exception"])
    assert exception.index("KeyError") < exception.index("Fault: row failed twice")
    assert SECRET not in exception


@pytest.mark.parametrize(
    "error",
    [
        Fault(Reason.INTERNAL, "slot 3 of 2"),
        AssertionError("slot 3 of 2"),
        RuntimeError("slot 3 of 2"),
        OSError(28, "slot 3 of 2"),
    ],
)
def test_our_own_and_the_systems_texts_are_kept(output: io.StringIO, error: Exception) -> None:
    log_fault(LOG, "fault", raised(fail_with(error)))
    assert "slot 3 of 2" in str(lines(output)[0]["exception"])


def test_a_fault_gets_an_id_that_client_and_operator_share(output: io.StringIO) -> None:
    error_id = log_fault(LOG, "fault", raised(fail_with(Fault())), session_id="s1")
    (line,) = lines(output)
    assert (line["error_id"], line["session_id"], line["level"]) == (error_id, "s1", "error")


def test_error_ids_differ() -> None:
    assert len({new_error_id() for _ in range(1_000)}) == 1_000


def test_text_style_is_one_line_of_pairs(output: io.StringIO) -> None:
    configure_logging("INFO", "text", output)
    LOG.info("opened", extra={"fields": {"tenant": "alpha", "slots": 2}})
    assert output.getvalue().endswith(' info rearview.test opened tenant="alpha" slots=2\n')


@pytest.mark.parametrize("style", ["json", "text"])
def test_line_breaks_forge_no_line(output: io.StringIO, style: str) -> None:
    configure_logging("INFO", style, output)  # type: ignore[arg-type]
    forged = "x\n2026 error rearview forged\r\u2028\x1b[2J"
    LOG.info("message %s", forged, extra={"fields": {"tenant": forged, forged: 1}})
    assert len(output.getvalue().splitlines()) == 1
    assert "\x1b" not in output.getvalue()


def test_configuring_twice_writes_each_line_once(output: io.StringIO) -> None:
    configure_logging("INFO", "json", output)
    LOG.info("once")
    assert len(lines(output)) == 1


def test_levels_below_the_configured_one_are_silent(output: io.StringIO) -> None:
    configure_logging("WARNING", "json", output)
    LOG.info("quiet")
    assert output.getvalue() == ""

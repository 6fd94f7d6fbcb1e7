"""Every error of redis-py has one meaning."""

from __future__ import annotations

import inspect

import pytest
from rearview.directory.redis_errors import KIND_OF, Kind, kind_of
from redis import exceptions

pytestmark = pytest.mark.unit

CLASSES = {
    name: found
    for name, found in vars(exceptions).items()
    if inspect.isclass(found) and issubclass(found, Exception)
}


def made(kind: type[BaseException]) -> BaseException:
    """One of that class, however it is constructed."""
    return kind.__new__(kind)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_redis_py_is_in_the_table(name: str) -> None:
    assert CLASSES[name] in KIND_OF
    assert kind_of(made(CLASSES[name])) is KIND_OF[CLASSES[name]]


def test_a_class_that_is_not_in_the_table_counts_as_its_nearest_base() -> None:
    newer = type("NewerError", (exceptions.ReadOnlyError,), {})
    assert kind_of(made(newer)) is Kind.UNAVAILABLE


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "MISCONF Redis is configured to save RDB snapshots, but it's unable to.",
            "unavailable",
        ),
        ("NOREPLICAS Not enough good replicas to write.", "unavailable"),
        ("BUSY Redis is busy running a script.", "unavailable"),
        ("UNKILLABLE Sorry the script already executed write commands.", "unavailable"),
        ("ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed", "unavailable"),
        ("ERR Error running script (call to f_1): @user_script:9: -READONLY You can't write", "unavailable"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "retry"),
        ("ERR unknown command 'EVALSHA'", "bug"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "bug"),
        ("ERR user_script:3: MISCONFIGURED", "bug"),
        ("", "bug"),
    ],
)
def test_an_answer_without_a_class_of_its_own_is_judged_by_its_code(text: str, kind: str) -> None:
    assert kind_of(exceptions.ResponseError(text)) is Kind(kind)


@pytest.mark.parametrize(("error", "kind"), [(ConnectionResetError(), Kind.RETRY), (KeyError("x"), Kind.BUG)])
def test_what_is_not_of_redis_py_is_judged_too(error: BaseException, kind: Kind) -> None:
    assert kind_of(error) is kind

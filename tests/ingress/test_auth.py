"""Tokens → tenants."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
import yaml
from rearview.config import TenantConfig
from rearview.errors import ConfigError, InvalidRequest, Reason
from rearview.ingress.auth import LOCAL_TENANT, MAX_TOKEN_BYTES, Tenants

pytestmark = pytest.mark.unit

TOKENS = {"alpha": "alpha-token-0123456789", "beta": "beta-token-0123456789"}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tenants() -> Tenants:
    return Tenants([TenantConfig(name=name, token_sha256=sha256(token)) for name, token in TOKENS.items()])


def refusal(metadata: list[tuple[str, str | bytes]]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        tenants().authenticate(metadata)
    assert caught.value.reason is Reason.TOKEN_INVALID
    assert caught.value.status == "UNAUTHENTICATED"
    return caught.value


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_names_its_tenant(name: str) -> None:
    metadata = [("user-agent", "x"), ("authorization", f"Bearer {TOKENS[name]}"), ("trace-bin", b"\x00")]
    assert tenants().authenticate(metadata).tenant.name == name


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
def test_the_scheme_is_read_without_regard_to_case(scheme: str) -> None:
    assert tenants().authenticate([("Authorization", f"{scheme} {TOKENS['alpha']}")]).tenant.name == "alpha"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer  " + TOKENS["alpha"],
        "Bearer " + TOKENS["alpha"] + " ",
        "Bearer " + TOKENS["alpha"] + "\n",
        "Bearer " + TOKENS["alpha"][:-1],
        "Bearer " + TOKENS["alpha"] + "0",
        "Bearer " + TOKENS["alpha"].upper(),
        "Bearer " + sha256(TOKENS["alpha"]),
        "Bearer " + TOKENS["alpha"] + "," + TOKENS["beta"],
        "Bearer\t" + TOKENS["alpha"],
        "Basic " + TOKENS["alpha"],
        "Token " + TOKENS["alpha"],
        TOKENS["alpha"],
        "Bearer ä" + TOKENS["alpha"],
        "Bearer \x00",
        "Bearer " + "x" * (MAX_TOKEN_BYTES + 1),
        ("Bearer " + TOKENS["alpha"]).encode(),
    ],
)
def test_anything_but_a_whole_token_is_refused(value: str | bytes) -> None:
    refusal([("authorization", value)])


def test_no_header_is_refused() -> None:
    refusal([])
    refusal([("x-authorization", f"Bearer {TOKENS['alpha']}")])
    refusal([("authorization-bin", f"Bearer {TOKENS['alpha']}".encode())])


def test_two_headers_are_refused_even_if_both_are_right() -> None:
    header = ("authorization", f"Bearer {TOKENS['alpha']}")
    refusal([header, header])
    refusal([header, ("Authorization", "Bearer wrong")])


def test_every_refusal_reads_the_same_and_shows_no_token() -> None:
    texts = {refusal(m).message for m in ([], [("authorization", "Bearer secret")], [("authorization", "?")])}
    assert len(texts) == 1
    assert "secret" not in texts.pop()


def test_every_tenant_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def spy(left: str, right: str) -> bool:
        compared.append(right)
        return original(left, right)

    original = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", spy)
    for token in (TOKENS["alpha"], TOKENS["beta"]):
        compared.clear()
        tenants().authenticate([("authorization", f"Bearer {token}")])
        assert compared == [sha256(t) for t in TOKENS.values()]


def test_a_token_is_changed_while_both_are_good() -> None:
    first, second = (f"alpha-token-number-{n}" for n in (1, 2))

    def names(*tokens: str) -> list[bool]:
        known = Tenants([TenantConfig(name="alpha", token_sha256=tuple(map(sha256, tokens)))])
        found = []
        for token in (first, second):
            try:
                found.append(
                    known.authenticate([("authorization", f"Bearer {token}")]).tenant.name == "alpha"
                )
            except InvalidRequest:
                found.append(False)
        return found

    assert [names(first), names(first, second), names(second)] == [[True, False], [True, True], [False, True]]


def test_without_a_file_everyone_is_local() -> None:
    everyone = Tenants.load(None)
    assert everyone.authenticate([]).tenant == LOCAL_TENANT
    two = [("authorization", "Bearer x"), ("authorization", "y")]
    assert everyone.authenticate(two).tenant.name == "local"


def test_with_a_file_nobody_is_local(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump([{"name": "alpha", "token_sha256": sha256("one"), "max_streams": 2}]))
    loaded = Tenants.load(path)
    assert loaded.authenticate([("authorization", "Bearer one")]).tenant.max_streams == 2
    with pytest.raises(InvalidRequest):
        loaded.authenticate([])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "list"),
        ("[]", "nobody"),
        ("name: alpha", "list"),
        ("- name: alpha\n", "token_sha256"),
        (f"- {{name: A, token_sha256: {sha256('x')}}}", "name"),
        (f"- {{name: a, token_sha256: {sha256('x')}, quota: 3}}", "quota"),
        (f"[{{name: a, token_sha256: {sha256('x')}}}, {{name: a, token_sha256: {sha256('y')}}}]", "name"),
        (f"[{{name: a, token_sha256: {sha256('x')}}}, {{name: b, token_sha256: {sha256('x')}}}]", "sha256"),
        ("- {name: a, token_sha256: not-a-hash-but-a-token}", "token_sha256"),
        ("- {name: a, token_sha256: [not-a-hash-but-a-token]}", "token_sha256"),
        ("- {name: a, token_sha256: []}", "token_sha256"),
        (f"- {{name: a, token_sha256: [{sha256('x')}, {sha256('x')}]}}", "sha256"),
        (f"[{{name: a, token_sha256: [{sha256('x')}]}}, {{name: b, token_sha256: {sha256('x')}}}]", "sha256"),
        ("- [", "cannot be read"),
        ("\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_cannot_work_is_refused_by_name(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        Tenants.load(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "not-a-hash-but-a-token" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Tenants.load(tmp_path / "none.yaml")

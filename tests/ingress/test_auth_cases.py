"""A hundred ways in that are none, tried on every method and port: 0 come through."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2
from rearview.access import JwtConfig
from rearview.client.call import Call
from rearview.errors import InvalidRequest, Reason
from rearview.ingress.auth import MAX_TOKEN_BYTES, Tenants
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.fuzz import mutants, tries
from support.raw_stream import RawStream, eventually, running
from support.service import InProcessService
from support.tokens import AUDIENCE, ISSUER, Registry, sha256

pytestmark = pytest.mark.integration

Headers = list[tuple[str, str | bytes]]
ALPHA, BETA = "alpha-token", "beta-token"


def bearer(token: str) -> Headers:
    return [("authorization", f"Bearer {token}")]


def part(content: Any) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(registry: Registry, algorithm: str, signature: str = "") -> str:
    return (
        f"{part({'alg': algorithm, 'typ': 'JWT', 'kid': 'rsa'})}.{part(registry.issuer.claims())}.{signature}"
    )


def shared(registry: Registry, key: bytes, **headers: Any) -> str:
    """A public key, taken for a shared secret."""
    head = {"alg": "HS256", "typ": "JWT", "kid": "rsa", **headers}
    content = f"{part(head)}.{part(registry.issuer.claims())}"
    return f"{content}.{part(hmac.digest(key, content.encode(), 'sha256'))}"


def stranger(kid: str | None, algorithm: str = "RS256", **headers: Any) -> Callable[[Registry], str]:
    """Signed with a key that is nobody's."""
    key = STRANGER if algorithm.startswith(("RS", "PS")) else ec.generate_private_key(ec.SECP256R1())
    named = {**({} if kid is None else {"kid": kid}), **headers}
    return lambda registry: jwt.encode(registry.issuer.claims(), key, algorithm, named)


def own(**changes: Any) -> Callable[[Registry], str]:
    """Signed by the issuer, with other claims."""
    return lambda registry: registry.issuer.token(**changes)


def headed(kid: str = "rsa", **headers: Any) -> Callable[[Registry], str]:
    return lambda registry: registry.issuer.token(kid, headers=headers)


def spoiled(spoil: Callable[[list[str]], Sequence[str]]) -> Callable[[Registry], str]:
    """A good token whose three parts were changed afterwards."""
    return lambda registry: ".".join(spoil(registry.issuer.token().split(".")))


STRANGER = rsa.generate_private_key(65537, 2048)
PRIVATE = STRANGER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
NOW = time.time()
DAY_S = 86_400

HEADERS: dict[str, Headers] = {
    "none": [],
    "empty": [("authorization", "")],
    "scheme alone": [("authorization", "Bearer")],
    "scheme and a space": [("authorization", "Bearer ")],
    "two spaces": [("authorization", f"Bearer  {ALPHA}")],
    "a space behind": [("authorization", f"Bearer {ALPHA} x")],
    "a colon": [("authorization", f"Bearer:{ALPHA}")],
    "no scheme": [("authorization", ALPHA)],
    "Basic": [("authorization", f"Basic {ALPHA}")],
    "Basic, encoded": [("authorization", "Basic " + base64.b64encode(f"alpha:{ALPHA}".encode()).decode())],
    "Digest": [("authorization", f"Digest {ALPHA}")],
    "Token": [("authorization", f"Token {ALPHA}")],
    "two schemes": [("authorization", f"Bearer Bearer {ALPHA}")],
    "a comma": [("authorization", f"Bearer {ALPHA},{BETA}")],
    "a semicolon": [("authorization", f"Bearer {ALPHA};")],
    "quotes": [("authorization", f'Bearer "{ALPHA}"')],
    "wrong": bearer("wrong"),
    "a letter less": bearer(ALPHA[:-1]),
    "a letter more": bearer(ALPHA + "x"),
    "upper case": bearer(ALPHA.upper()),
    "its hash": bearer(sha256(ALPHA)),
    "a hash in Base64": bearer(base64.b64encode(hashlib.sha256(ALPHA.encode()).digest()).decode()),
    "the name": bearer("alpha"),
    "the hash of LOCAL_TENANT": bearer("0" * 64),
    "oversize": bearer("x" * (MAX_TOKEN_BYTES + 1)),
    "oversize, a good start": bearer(ALPHA + "x" * MAX_TOKEN_BYTES),
    "null": bearer("null"),
    "undefined": bearer("undefined"),
    "percent": bearer("alpha%2Dtoken"),
    "an injection": bearer("' OR '1'='1"),
    "a format": bearer("{tenant.token_sha256}"),
    "a wildcard": bearer("*"),
    "two headers, both right": bearer(ALPHA) + bearer(ALPHA),
    "two headers, right and wrong": bearer(ALPHA) + bearer("wrong"),
    "two headers, wrong and right": bearer("wrong") + bearer(ALPHA),
    "two headers, two tenants": bearer(ALPHA) + bearer(BETA),
    "two headers, an empty one": [*bearer(ALPHA), ("authorization", "")],
    "another header": [("x-authorization", f"Bearer {ALPHA}")],
    "proxy-authorization": [("proxy-authorization", f"Bearer {ALPHA}")],
    "binary header": [("authorization-bin", f"Bearer {ALPHA}".encode())],
    "a cookie": [("cookie", f"authorization=Bearer {ALPHA}")],
    "access_token": [("access_token", ALPHA)],
    "token": [("token", ALPHA)],
    "api key": [("x-api-key", ALPHA)],
    "a tenant by name": [("x-tenant", "alpha"), ("tenant", "alpha")],
    "forwarded": [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("forwarded", "for=localhost"),
    ],
    "forwarded authorization": [("x-forwarded-authorization", f"Bearer {ALPHA}")],
    "a client certificate by header": [("x-forwarded-client-cert", "By=alpha;URI=spiffe://alpha")],
    "a method by header": [("x-http-method-override", "/grpc.health.v1.Health/Check")],
}
SIGNED: dict[str, Callable[[Registry], str]] = {
    "alg none": lambda registry: unsigned(registry, "none"),
    "alg None": lambda registry: unsigned(registry, "None"),
    "alg NONE": lambda registry: unsigned(registry, "NONE"),
    "alg nOnE": lambda registry: unsigned(registry, "nOnE"),
    "alg none with a signature": lambda registry: unsigned(
        registry, "none", registry.issuer.token().split(".")[2]
    ),
    "alg empty": lambda registry: unsigned(registry, ""),
    "alg unknown": lambda registry: unsigned(registry, "RS999", "AAAA"),
    "alg a list": lambda registry: (
        f"{part({'alg': ['none', 'RS256'], 'kid': 'rsa'})}.{part(registry.issuer.claims())}."
    ),
    "alg absent": lambda registry: f"{part({'typ': 'JWT', 'kid': 'rsa'})}.{part(registry.issuer.claims())}.",
    "HS with the public key in PEM": lambda registry: shared(registry, registry.issuer.pem("rsa")),
    "HS with the public key, no newline": lambda registry: shared(
        registry, registry.issuer.pem("rsa").strip()
    ),
    "HS with the JWK": lambda registry: shared(registry, json.dumps(registry.issuer.public("rsa")).encode()),
    "HS with the EC key": lambda registry: shared(registry, registry.issuer.pem("ec"), kid="ec"),
    "HS with the modulus": lambda registry: shared(registry, registry.issuer.public("rsa")["n"].encode()),
    "HS with nothing": lambda registry: shared(registry, b""),
    "HS with the key id": lambda registry: shared(registry, b"rsa"),
    "HS without a key id": lambda registry: shared(registry, registry.issuer.pem("rsa"), kid=None),
    "a stranger's RSA key": stranger("rsa"),
    "a stranger's EC key": stranger("ec", "ES256"),
    "a stranger without a key id": stranger(None),
    "a stranger's own key id": stranger("stranger"),
    "PS where RS is allowed": stranger("rsa", "PS256"),
    "RS512, not allowed": lambda r: jwt.encode(
        r.issuer.claims(), r.issuer.keys["rsa"], "RS512", {"kid": "rsa"}
    ),
    "PS256, not allowed": lambda r: jwt.encode(
        r.issuer.claims(), r.issuer.keys["rsa"], "PS256", {"kid": "rsa"}
    ),
    "RSA key under the EC key's id": lambda r: jwt.encode(
        r.issuer.claims(), r.issuer.keys["rsa"], "RS256", {"kid": "ec"}
    ),
    "EC key under the RSA key's id": lambda r: jwt.encode(
        r.issuer.claims(), r.issuer.keys["ec"], "ES256", {"kid": "rsa"}
    ),
    "jwk in the header": stranger(
        "rsa", jwk=jwt.algorithms.RSAAlgorithm.to_jwk(STRANGER.public_key(), as_dict=True)
    ),
    "jku in the header": stranger("rsa", jku="https://evil.example/jwks.json"),
    "x5u in the header": stranger("rsa", x5u="https://evil.example/cert.pem"),
    "x5c in the header": stranger("rsa", x5c=["AAAA"]),
    "an unknown key id": lambda r: r.issuer.token(headers={"kid": "rsa2"}),
    "no key id among several": lambda r: r.issuer.token(headers={"kid": None}),
    "key id a path": lambda r: r.issuer.token(headers={"kid": "../../../dev/null"}),
    "key id a query": lambda r: r.issuer.token(headers={"kid": "x' UNION SELECT 'k"}),
    "key id empty": lambda r: r.issuer.token(headers={"kid": ""}),
    "an extension that must be understood": headed(crit=["exp2"], exp2=1),
    "wrong audience": own(aud="another"),
    "audience in another case": own(aud=AUDIENCE.upper()),
    "audience a prefix": own(aud=AUDIENCE[:-1]),
    "audience a list of others": own(aud=["a", "b"]),
    "audience empty": own(aud=""),
    "no audience": own(aud=None),
    "wrong issuer": own(iss="https://evil.example"),
    "issuer with a slash": own(iss=ISSUER + "/"),
    "issuer without TLS": own(iss=ISSUER.replace("https", "http")),
    "no issuer": own(iss=None),
    "expired": own(exp=NOW - 1),
    "expired long ago": own(exp=0),
    "expires before the year 1970": own(exp=-DAY_S),
    "no expiry": own(exp=None),
    "expiry is text": own(exp="never"),
    "expiry by another name": own(exp=None, expires=NOW + DAY_S),
    "not valid yet": own(nbf=NOW + DAY_S),
    "not-before is text": own(nbf="now"),
    "issued in the future": own(iat=NOW + DAY_S),
    "no time of issue": own(iat=None),
    "time of issue is text": own(iat="yesterday"),
    "an unknown tenant": own(sub="gamma"),
    "no tenant": own(sub=None),
    "tenant empty": own(sub=""),
    "tenant in upper case": own(sub="ALPHA"),
    "tenant with a space": own(sub="alpha "),
    "tenant with a zero": own(sub="alpha\0"),
    "tenant the local one": own(sub="local"),
    "another claim names the tenant": own(sub=None, tenant="alpha"),
    "the signature cut": spoiled(lambda p: [p[0], p[1], p[2][:-8]]),
    "the signature empty": spoiled(lambda p: [p[0], p[1], ""]),
    "the signature zero": spoiled(lambda p: [p[0], p[1], part(bytes(256))]),
    "the signature absent": spoiled(lambda p: p[:2]),
    "a part too many": spoiled(lambda p: [*p, p[2]]),
    "the claims of another": spoiled(
        lambda p: [
            p[0],
            part({"iss": ISSUER, "aud": AUDIENCE, "sub": "beta", "exp": NOW + 99, "iat": NOW}),
            p[2],
        ]
    ),
    "the header of another": spoiled(lambda p: [part({"alg": "ES256", "kid": "ec"}), *p[1:]]),
    "the header no JSON": spoiled(lambda p: [part(b"{"), *p[1:]]),
    "the claims no JSON": spoiled(lambda p: [p[0], part(b"{"), p[2]]),
    "the claims a list": spoiled(lambda p: [p[0], part([1]), p[2]]),
    "dots alone": lambda registry: "..",
    "a private key": lambda registry: PRIVATE.replace("\n", ""),
    "the public keys": lambda registry: registry.issuer.path.read_text().replace(" ", ""),
}


@pytest_asyncio.fixture
async def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest_asyncio.fixture
async def service(registry: Registry) -> AsyncIterator[InProcessService]:
    async with running(**registry.sections, ingress={"reflection": True}) as service:
        yield service


OPEN = pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a")))
METHODS: dict[str, Message] = {
    "/rearview.v1.TranslationService/Translate": OPEN,
    "/rearview.v1.SessionService/GetSession": sessions_pb.GetSessionRequest(session_id="0" * 32),
    "/rearview.v1.SessionService/ListSessions": sessions_pb.ListSessionsRequest(),
    "/rearview.v1.SessionService/CloseSession": sessions_pb.CloseSessionRequest(session_id="0" * 32),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
        list_services="*"
    ),
}
HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")


async def code_of(
    channel: grpc.aio.Channel, method: str, request: bytes, headers: Headers
) -> grpc.StatusCode:
    """How the call ends, or OK if it is answered."""
    call = Call(channel.stream_stream(method)(metadata=headers))
    await call.write(request)
    try:
        answer = await call.read()
    except grpc.aio.AioRpcError as failure:
        return failure.code()
    if answer is not None:
        call.leave()
    return grpc.StatusCode.OK


async def tried(
    service: InProcessService, cases: dict[str, Headers]
) -> dict[tuple[str, str], grpc.StatusCode]:
    """Every case on every method that asks who calls."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        return {
            (name, method): await code_of(channel, method, request.SerializeToString(), headers)
            for name, headers in cases.items()
            for method, request in METHODS.items()
        }


def test_there_are_a_hundred_cases() -> None:
    assert len(HEADERS) + len(SIGNED) >= 100


async def test_no_header_comes_in_on_any_method(service: InProcessService) -> None:
    codes = await tried(service, HEADERS)
    assert {case: code for case, code in codes.items() if code is not grpc.StatusCode.UNAUTHENTICATED} == {}
    assert len(codes) == len(HEADERS) * len(METHODS)
    assert len(service.sessions) == 0


async def test_no_signed_token_comes_in_on_any_method(service: InProcessService, registry: Registry) -> None:
    codes = await tried(service, {name: bearer(token(registry)) for name, token in SIGNED.items()})
    assert {case: code for case, code in codes.items() if code is not grpc.StatusCode.UNAUTHENTICATED} == {}
    assert len(service.sessions) == 0


async def test_good_tokens_come_in_on_every_method(service: InProcessService, registry: Registry) -> None:
    good = {
        "hashed": bearer(ALPHA),
        "scheme in lower case": [("authorization", f"bearer {ALPHA}")],
        "RSA": bearer(registry.issuer.token("rsa")),
        "EC": bearer(registry.issuer.token("ec")),
        "audience in a list": bearer(registry.issuer.token(aud=["another", AUDIENCE])),
        "valid since a while": bearer(registry.issuer.token(nbf=NOW - DAY_S)),
    }
    codes = await tried(service, good)  # type: ignore[arg-type]
    assert set(codes.values()) == {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
    assert all(
        code is grpc.StatusCode.OK for (_, m), code in codes.items() if m.endswith(("Translate", "Info"))
    )


async def test_health_is_open_and_says_nothing_but_health(service: InProcessService) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        for method in HEALTH:
            assert await code_of(channel, method, b"", []) is grpc.StatusCode.OK
        for method in ("/rearview.v1.TranslationService/Nothing", "/grpc.health.v1.Health/List", "/", "/x/y"):
            code = await code_of(channel, method, b"", [])
            assert code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.OK), method
            assert code is not grpc.StatusCode.OK or method.endswith("List")
        for method in (
            "/grpc.health.v1.Health/../rearview.v1.SessionService/ListSessions",
            "/Rearview.v1.SessionService/ListSessions",
        ):
            assert await code_of(channel, method, b"", []) is grpc.StatusCode.UNIMPLEMENTED


async def test_a_token_in_the_message_or_of_a_session_is_no_token(service: InProcessService) -> None:
    async with RawStream(service.address, ALPHA) as stream:
        opened = await stream.start()
        resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
        for request, headers in (
            (pb.TranslateRequest(resume=resume), []),
            (pb.TranslateRequest(resume=resume), bearer(opened.resume_token)),
            (pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt=f"Bearer {ALPHA}"))), []),
        ):
            async with grpc.aio.insecure_channel(service.address) as channel:
                code = await code_of(
                    channel, "/rearview.v1.TranslationService/Translate", request.SerializeToString(), headers
                )
            assert code is grpc.StatusCode.UNAUTHENTICATED
        await stream.frame(1)
        await stream.read_answers(1)


async def test_another_tenants_session_is_not_there(service: InProcessService, registry: Registry) -> None:
    others = [BETA, registry.issuer.token(sub="beta"), registry.issuer.token("ec", sub="beta")]
    async with RawStream(service.address, ALPHA) as stream:
        opened = await stream.start()
        requests = {
            "Translate": pb.TranslateRequest(
                resume=pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
            ),
            "GetSession": sessions_pb.GetSessionRequest(session_id=opened.session_id),
            "CloseSession": sessions_pb.CloseSessionRequest(session_id=opened.session_id),
        }
        async with grpc.aio.insecure_channel(service.address) as channel:
            for token in others:
                for name, request in requests.items():
                    method = next(method for method in METHODS if method.endswith(name))
                    code = await code_of(channel, method, request.SerializeToString(), bearer(token))
                    assert code is grpc.StatusCode.NOT_FOUND, name
        await stream.frame(1)
        await stream.read_answers(1)


async def test_a_resume_token_is_of_use_once_its_session_is_closed_to_nobody(
    service: InProcessService,
) -> None:
    async with RawStream(service.address, ALPHA) as stream:
        opened = await stream.start()
        await stream.half_close()
        await stream.read_to_end()
    await eventually(lambda: len(service.sessions) == 0)
    async with RawStream(service.address, ALPHA) as replay:
        resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
        await replay.write(pb.TranslateRequest(resume=resume))
        assert (await replay.read_to_end()).reason is Reason.SESSION_UNKNOWN


@pytest.mark.parametrize("kind", ["hashed", "signed"])
def test_a_token_that_was_changed_anywhere_is_no_token(tmp_path: Path, kind: str) -> None:
    registry = Registry(tmp_path)
    tenants = Tenants.load(registry.path, JwtConfig(**registry.jwt))
    good = [ALPHA] if kind == "hashed" else [registry.issuer.token("rsa"), registry.issuer.token("ec")]
    assert all(tenants.authenticate(bearer(token)) for token in good)
    for content in mutants([token.encode() for token in good], tries(1000)):
        token = content.decode("latin-1")
        if token.strip() in good or same_bits(token, good):
            continue
        with pytest.raises(InvalidRequest) as refused:
            tenants.authenticate(bearer(token))
        assert refused.value.reason is Reason.TOKEN_INVALID


def same_bits(token: str, good: Sequence[str]) -> bool:
    """Whether only bits differ that Base64 does not use."""

    def decoded(each: str) -> list[bytes] | None:
        try:
            return [base64.urlsafe_b64decode(p + "=" * (-len(p) % 4)) for p in each.split(".")]
        except ValueError:
            return None

    return "." in token and decoded(token) in [decoded(each) for each in good]


async def test_the_metrics_port_is_behind_its_token_beside_all_this(registry: Registry) -> None:
    sections = registry.sections
    sections["access"]["metrics"] = {"token_sha256": sha256("scraper")}
    async with running(**sections) as service:

        def scrape(url: str, token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(url, headers=headers), timeout=10
                ) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        urls = [*service.metrics_urls, *(stage.describe()["metrics_url"] for stage in service.stages)]
        for url in urls:
            for token in (None, ALPHA, registry.issuer.token(), sha256("scraper")):
                assert await asyncio.to_thread(scrape, url, token) == 401
            assert await asyncio.to_thread(scrape, url, "scraper") == 200

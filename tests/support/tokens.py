"""Tokens of the tests: hashed ones in a tenants file, and those that an issuer signs."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["AUDIENCE", "ISSUER", "Issuer", "Registry", "sha256"]

ISSUER, AUDIENCE = "https://issuer.example", "rearview"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def replace(path: Path, content: str) -> None:
    """At once, as mounted secrets are."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    fresh.replace(path)


@dataclass
class Issuer:
    """Signs; its public keys are in a file."""

    path: Path
    keys: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add("rsa", rsa.generate_private_key(65537, 2048))
        self.add("ec", ec.generate_private_key(ec.SECP256R1()))

    def add(self, kid: str, key: Any) -> None:
        self.keys[kid] = key
        self.publish(*self.keys)

    def publish(self, *kids: str) -> None:
        """Only these keys hold from now on."""
        replace(self.path, json.dumps({"keys": [self.public(kid) for kid in kids]}))

    def public(self, kid: str) -> dict[str, Any]:
        algorithm = jwt.algorithms.RSAAlgorithm if kid.startswith("rsa") else jwt.algorithms.ECAlgorithm
        jwk: dict[str, Any] = algorithm.to_jwk(self.keys[kid].public_key(), as_dict=True)
        return {**jwk, "kid": kid, "alg": self.algorithm(kid)}

    def pem(self, kid: str) -> bytes:
        public: bytes = (
            self.keys[kid].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        return public

    def algorithm(self, kid: str) -> str:
        return "RS256" if kid.startswith("rsa") else "ES256"

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Of a good token of `alpha`; a change to None leaves a claim out."""
        now = time.time()
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alpha", "iat": now - 1, "exp": now + 300}
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def token(self, kid: str = "rsa", *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        named = {"kid": kid, **(headers or {})}
        headers = {name: value for name, value in named.items() if value is not None}
        return jwt.encode(self.claims(**changes), self.keys[kid], self.algorithm(kid), headers)


@dataclass
class Registry:
    """A folder with a tenants file and an issuer's keys, and the sections of a config that name them."""

    folder: Path
    tenants: dict[str, str | None] = field(
        default_factory=lambda: {"alpha": "alpha-token", "beta": "beta-token"}
    )
    """Token of each tenant; None: it comes with signed ones alone."""

    def __post_init__(self) -> None:
        self.path = self.folder / "tenants.yaml"
        self.issuer = Issuer(self.folder / "jwks.json")
        self.write()

    def write(self) -> None:
        """What `tenants` says holds from now on."""
        entries = [
            {"name": name, **({} if token is None else {"token_sha256": sha256(token)})}
            for name, token in self.tenants.items()
        ]
        replace(self.path, yaml.safe_dump(entries))

    @property
    def jwt(self) -> dict[str, Any]:
        return {
            "keys_file": str(self.issuer.path),
            "algorithms": ["RS256", "ES256"],
            "audience": AUDIENCE,
            "issuer": ISSUER,
        }

    @property
    def sections(self) -> dict[str, Any]:
        return {"tenants_file": str(self.path), "access": {"jwt": self.jwt}}

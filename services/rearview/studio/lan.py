"""What `--lan` needs: this machine's addresses, a certificate and a key that stay, and a QR code of the link.

Browsers give a camera to secure pages alone, so other machines come by TLS. The certificate is signed by
itself: a phone asks once, and remembers it for as long as the files stay.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import ipaddress
import os
import secrets
import socket
import ssl
from collections.abc import Collection
from pathlib import Path

import segno
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["addresses", "kept_key", "qr_svg", "qr_text", "tls_context"]

VALID_DAYS = 825
"""The longest that phones take from a certificate that they are asked about."""
RENEW_DAYS = 30


def addresses() -> tuple[str, ...]:
    """This machine's IPv4 addresses that others may reach, the one of the default route first."""
    found: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # a documentation address: nothing is sent
        found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    return tuple(dict.fromkeys(each for each in found if not ipaddress.ip_address(each).is_loopback))


def kept_key(folder: Path) -> str:
    """The key of the link; the same as long as its file stays. Raises OSError."""
    path = folder / "key"
    if path.exists() and (key := path.read_text(encoding="utf-8").strip()):
        return key
    key = secrets.token_urlsafe(18)
    _write(path, key.encode())
    return key


def tls_context(folder: Path, hosts: Collection[str]) -> ssl.SSLContext:
    """With the certificate in `folder`, made anew if it is old or lacks a host. Raises OSError."""
    cert_file, key_file = folder / "cert.pem", folder / "cert.key"
    if not (cert_file.exists() and key_file.exists() and _serves(cert_file.read_bytes(), hosts)):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(key, hosts)
        _write(key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        _write(cert_file, certificate.public_bytes(Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert_file, key_file)
    return context


def qr_svg(text: str) -> str:
    """A QR code to be shown in a page."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(out, kind="svg", scale=8, border=3, light="#fff")
    return out.getvalue().decode("utf-8")


def qr_text(text: str) -> str:
    """A QR code in half blocks, for a terminal; its dark modules are the background's."""
    out = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out, border=2, compact=True)
    return out.getvalue()


def _serves(content: bytes, hosts: Collection[str]) -> bool:
    """Whether a certificate is good for all hosts, and for a while."""
    try:
        certificate = x509.load_pem_x509_certificate(content)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    known = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    return left > datetime.timedelta(days=RENEW_DAYS) and set(hosts) <= known


def _certificate(key: ec.EllipticCurvePrivateKey, hosts: Collection[str]) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rearview studio on this network")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, content: bytes) -> None:
    """For this user alone, and whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    fresh.replace(path)

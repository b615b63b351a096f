"""Makes the keys of a federation: a CA, the server's certificate, and a key pair for each node.

They are in the very form that Flower reads: PEM for TLS, OpenSSH's for nodes. Node keys are bare
keys, no certificates: the server knows a node because its public key was registered there.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedcl.core.errors import ConfigError

LOCAL = ("localhost", "127.0.0.1")
DAYS = 365
_CA_DAYS = 3650  # beyond the server's certificate, which can so be renewed without a new CA
_SKEW = timedelta(hours=1)  # of a device's clock behind the one that makes certificates
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")


def make_keys(
    folder: Path, nodes: int = 0, hosts: Sequence[str] = (), days: int | None = None
) -> tuple[bool, tuple[int, ...]]:
    """Makes what a folder lacks of `ca`, `server` and keys of further nodes; overwrites nothing.

    Args:
        folder: Made with mode 0700 when it is not there. Private keys have mode 0600.
        nodes: Number of node keys to add to those that are there; they count on from the last one.
        hosts: DNS names and IP addresses of the server beside `LOCAL`.
        days: How long the server's certificate is valid; None for `DAYS`.

    Returns:
        Whether the server's certificate is new, and the numbers of the new nodes.

    Raises:
        ConfigError: A value is out of range, or the folder holds something else, nothing to add to,
            or what was asked for.
    """
    if nodes < 0:
        raise ConfigError(f"--nodes must be at least 0, not {nodes}")
    if days is not None and not 1 <= days <= 36500:
        raise ConfigError(f"--days must be from 1 to 36500, not {days}")
    names = [_general_name(host) for host in dict.fromkeys((*LOCAL, *hosts))]
    found = _found(folder)
    new_ca, new_server = "ca.pem" not in found, "server.pem" not in found
    if new_ca and found:
        raise ConfigError(
            f"folder {folder} holds other things and no ca.pem: name a new or an empty one"
        )
    if not new_server and (hosts or days is not None):
        raise ConfigError(
            f"folder {folder} holds server.pem already, for hosts and days of its own: move it and "
            "server.key away to have a new one from the same CA"
        )
    if not new_server and not nodes:
        raise ConfigError(f"folder {folder} holds its keys already: add nodes with --nodes N")
    if new_server and not new_ca and "ca.key" not in found:
        raise ConfigError(
            f"folder {folder} has no ca.key to sign a server's certificate with: bring it back"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if new_ca:
        folder.chmod(0o700)
        _make_ca(folder, (days or DAYS) + _CA_DAYS)
    if new_server:
        _make_server(folder, names, days or DAYS)
    first = 1 + max((int(n[5:-4]) for n in found if re.fullmatch(r"node-\d+\.pub", n)), default=-1)
    numbers = tuple(range(first, first + nodes))
    for number in numbers:
        _make_node(folder, number)
    return new_server, numbers


def _found(folder: Path) -> set[str]:
    """Returns the names of what is in a folder; none where it is not there."""
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: name a new or an empty one")
    return {path.name for path in folder.iterdir()}


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if len(host) > 253 or not _NAME.fullmatch(host):
            raise ConfigError(
                f"--host {host!r} is neither a DNS name nor an IP address: leave out scheme and "
                "port, such as --host fed.example.org"
            ) from None
        return x509.DNSName(host)


def _make_ca(folder: Path, days: int) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedcl CA")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _begun(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )
    _write_private(folder / "ca.key", key, serialization.PrivateFormat.PKCS8)
    _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _make_server(folder: Path, names: Sequence[x509.GeneralName], days: int) -> None:
    try:
        ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        ca_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"ca.pem or ca.key in folder {folder} cannot be read: {error}; name another folder"
        ) from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey) or ca_key.public_key() != ca.public_key():
        raise ConfigError(f"ca.key in folder {folder} is not the key of ca.pem: bring it back")
    if datetime.now(UTC) + timedelta(days=days) > ca.not_valid_after_utc:
        raise ConfigError(
            f"--days {days} is beyond the CA in folder {folder}, which ends on "
            f"{ca.not_valid_after_utc:%Y-%m-%d}: choose fewer, or a new folder"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedcl server")])
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    issuer = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _begun(name, ca.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False
        )
        .sign(ca_key, hashes.SHA384())
    )
    _write_private(folder / "server.key", key, serialization.PrivateFormat.PKCS8)
    _write(folder / "server.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _begun(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """Returns what CA and server certificates have in common."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(subject_name=name, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _make_node(folder: Path, number: int) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(folder / f"node-{number}.key", key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write(folder / f"node-{number}.pub", public + f" node-{number}\n".encode(), 0o644)


def _write_private(
    path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat
) -> None:
    plain = serialization.NoEncryption()
    _write(path, key.private_bytes(serialization.Encoding.PEM, form, plain), 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Writes a new file that had its mode from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)

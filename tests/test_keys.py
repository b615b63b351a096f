"""`fedcl keys`: certificates that TLS accepts, node keys that Flower reads, nothing overwritten."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.commands import assert_refused, call, contents


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Keys for a server of three names, and two nodes."""
    folder = tmp_path / "keys"
    words = ("--nodes", "2", "--host", "fed.example.org", "--host", "::1", "--days", "30")
    assert call("keys", folder, *words).status == 0
    return folder


def handshake(keys: Path, name: str, trusted: Path) -> None:
    """Lets a server with these keys and a client meet; the client looks for a name."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / "server.pem", keys / "server.key")
    client = ssl.create_default_context(cafile=str(trusted))
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # as Python 3.13 does by itself
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "fed.example.org", "::1"])
def test_a_client_accepts_the_server_under_each_of_its_names(keys: Path, name: str) -> None:
    handshake(keys, name, keys / "ca.pem")


def test_a_client_refuses_another_name_and_another_ca(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(keys, "other.example.org", keys / "ca.pem")
    call("keys", tmp_path / "others")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"local issuer|signature"):
        handshake(keys, "localhost", tmp_path / "others" / "ca.pem")


def test_the_certificate_ends_after_the_days_asked_for_and_the_ca_later(keys: Path) -> None:
    for name, days in (("server.pem", 30), ("ca.pem", 30 + 3650)):
        certificate = x509.load_pem_x509_certificate((keys / name).read_bytes())
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=days, minutes=-10) < left <= timedelta(days=days)
        assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=50)


def test_node_keys_are_pairs_in_the_form_that_flower_reads(keys: Path) -> None:
    seen = set()
    for number in range(2):
        private = serialization.load_ssh_private_key(
            (keys / f"node-{number}.key").read_bytes(), None
        )
        public = serialization.load_ssh_public_key((keys / f"node-{number}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public
        seen.add(private.private_numbers().private_value)
    assert len(seen) == 2


def test_private_files_are_their_owners_alone(keys: Path) -> None:
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        "ca.key",
        "server.key",
        "node-0.key",
        "node-1.key",
    }
    assert {name for name in modes if name.endswith(".key")} == {
        name for name, mode in modes.items() if not mode & 0o077
    }


def test_nodes_are_added_and_nothing_else_changes(keys: Path) -> None:
    before = contents(keys)
    called = call("keys", keys, "--nodes", "2")
    assert called.status == 0 and "node-{2..3}.key" in called.out
    after = contents(keys)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {
        f"node-{n}.{end}" for n in (2, 3) for end in ("key", "pub")
    }


def test_a_new_server_certificate_comes_from_the_same_ca(keys: Path) -> None:
    before = contents(keys)
    (keys / "server.pem").unlink()
    (keys / "server.key").unlink()
    assert call("keys", keys, "--host", "new.example.org").status == 0
    assert contents(keys)["ca.pem"] == before["ca.pem"]
    handshake(keys, "new.example.org", keys / "ca.pem")


def test_what_it_says_names_the_files(keys: Path, tmp_path: Path) -> None:
    called = call("keys", tmp_path / "more", "--nodes", "1")
    lines = called.out.splitlines()
    assert lines[0] == "server certificate for localhost, 127.0.0.1"
    for file in ("ca.pem", "server.pem", "server.key", "ca.key", "node-0.key", "node-0.pub"):
        assert any(str(tmp_path / "more" / file) in line for line in lines), file
    assert len(lines) == 8


# --- Bad input. ---


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--nodes", "-1"], ("--nodes must be at least 0, not -1",)),
        (["--nodes", "two"], ("'two' is not a valid int", "fedcl keys --help")),
        (["--days", "0"], ("--days must be from 1 to 36500, not 0",)),
        (["--days", "36501"], ("not 36501",)),
        (["--host", "https://fed.example.org"], ("'https://fed.example.org' is neither", "port")),
        (["--host", "fed.example.org:8000"], ("neither a DNS name nor an IP address",)),
        (["--host", ""], ("--host '' is neither",)),
    ],
)
def test_bad_words_are_refused_and_leave_nothing(
    words: list[str], fragments: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(call("keys", tmp_path / "keys", *words), *fragments)
    assert not (tmp_path / "keys").exists()


def test_what_is_there_is_not_overwritten(keys: Path, tmp_path: Path) -> None:
    before = contents(keys)
    assert_refused(call("keys", keys), "holds its keys already", "--nodes")
    assert_refused(call("keys", keys, "--days", "9"), "holds server.pem already", "server.key away")
    assert_refused(call("keys", keys, "--host", "a", "--nodes", "1"), "holds server.pem already")
    assert contents(keys) == before
    assert_refused(call("keys", tmp_path), f"folder {tmp_path} holds other things", "empty one")
    assert_refused(call("keys", keys / "ca.pem"), "is no folder")
    assert {path.name for path in tmp_path.iterdir()} == {"keys"}


def test_a_ca_that_cannot_sign_is_refused(keys: Path, tmp_path: Path) -> None:
    (keys / "server.pem").unlink()
    (keys / "server.key").unlink()
    assert_refused(call("keys", keys, "--days", "9000"), "--days 9000 is beyond the CA")
    call("keys", tmp_path / "others")
    (keys / "ca.key").write_bytes((tmp_path / "others" / "ca.key").read_bytes())
    assert_refused(call("keys", keys), "is not the key of ca.pem", "bring it back")
    (keys / "ca.key").write_text("no key")
    assert_refused(call("keys", keys), "cannot be read", "name another folder")
    (keys / "ca.key").unlink()
    assert_refused(call("keys", keys), "has no ca.key to sign", "bring it back")
    assert not (keys / "server.key").exists()

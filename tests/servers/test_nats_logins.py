"""Every way to log in to a NATS server, and what a user may not do there."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.certificates import make_certificates
from fixtures.clients import HEAD, PATIENT, client_of, put, refused
from fixtures.nats_accounts import make_accounts
from fixtures.nats_server import NATSServer, nats_server
from pyrep.errors import ConfigError, ReplicaError, ReplicaPermanentError
from pyrep.storage import nats_bucket
from pyrep.storage.registry import ReplicaSpec, connect

pytestmark = pytest.mark.nats


@pytest.fixture
def bucket(nats: NATSServer) -> Iterator[str]:
    name = nats.make_bucket()
    yield name
    nats.remove_bucket(name)


def works(spec: ReplicaSpec) -> None:
    with client_of(spec) as client:
        info = put(client, data=HEAD)
        assert client.open_ltx(info).read() == HEAD
        assert list(client.list_ltx(0)) == [info]
        client.delete_ltx([info])


def test_wrong_credentials_are_permanent_errors(nats: NATSServer, bucket: str) -> None:
    for keys in ({"password": "SECRET"}, {"username": None}, {"username": None, "token": "SECRET"}):
        error = refused(nats.spec(bucket, "t", **keys), "(?i)authorization")
        assert error.hint.startswith("Check the user and password")
    refused(
        nats.spec(bucket, "t", username=None, creds="/no/such/SECRET.creds"[:8]), "cannot write"
    )


def test_the_users_of_a_url_count(nats: NATSServer, bucket: str) -> None:
    url = f"127.0.0.1:{nats.port}/{bucket}/t"
    works(ReplicaSpec("nats", "", f"nats://u:S3CRET@{url}"))
    refused(ReplicaSpec("nats", "", f"nats://u:SECRET@{url}"), "(?i)authorization")


def test_a_token(tmp_path: Path) -> None:
    extra = "authorization { token: S3CRET }"
    with nats_server(tmp_path, extra=extra, options={"token": "S3CRET"}) as server:
        bucket = server.make_bucket()
        works(server.spec(bucket, "t"))
        works(ReplicaSpec("nats", "t", f"nats://S3CRET@127.0.0.1:{server.port}/{bucket}"))
        refused(server.spec(bucket, "t", token="SECRET"), "(?i)authorization")


def test_an_nkey(tmp_path: Path) -> None:
    import nkeys

    seed = nkeys.encode_seed(random.Random(7).randbytes(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    users = f"{{ nkey: {public} }}, {{ user: u, password: S3CRET }}"
    extra = f"authorization {{ users: [ {users} ] }}"
    options = {"username": "u", "password": "S3CRET"}
    with nats_server(tmp_path, extra=extra, options=options) as server:
        bucket = server.make_bucket()
        server.options = {}
        for keys in ({"seed": seed.decode()}, {"nkey": seed.decode()}):
            works(server.spec(bucket, "t", **keys))
        other = nkeys.encode_seed(random.Random(8).randbytes(32), nkeys.PREFIX_BYTE_USER)
        refused(server.spec(bucket, "t", seed=other.decode()), "(?i)authorization")


def test_a_credentials_file_and_its_parts(tmp_path: Path) -> None:
    """Log in by a signed token of an operator's account, from a file and from the keys."""
    accounts, others = make_accounts(), make_accounts()
    creds, wrong = tmp_path / "user.creds", tmp_path / "other.creds"
    creds.write_text(accounts.creds)
    wrong.write_text(others.creds)
    options = {"creds": str(creds)}
    with nats_server(tmp_path, extra=accounts.config, options=options) as server:
        bucket = server.make_bucket()
        works(server.spec(bucket, "t"))
        # The token wins over the file, the file over user and password.
        works(server.spec(bucket, "t", creds=str(wrong), jwt=accounts.jwt, seed=accounts.seed))
        works(server.spec(bucket, "t", username="u", password="SECRET"))
        error = refused(server.spec(bucket, "t", creds=str(wrong)), "(?i)authorization")
        assert others.seed not in str(error)
        stolen = server.spec(bucket, "t", jwt=accounts.jwt, seed=others.seed)
        error = refused(stolen, "(?i)authorization")
        assert others.seed not in str(error)
        works(server.spec(bucket, "t"))
        half = accounts.creds.partition("-----BEGIN USER")
        for content in ("no credentials", half[0], half[1] + half[2], accounts.creds[:-60]):
            creds.write_text(content)
            error = refused(server.spec(bucket, "t"), "user.creds has no")
            assert error.hint == "Check the credentials of the replica."
        creds.write_text(accounts.creds.replace(accounts.seed, "SUSECRET"))
        refused(server.spec(bucket, "t"), "no valid seed")
        refused(server.spec(bucket, "t", jwt=accounts.jwt, seed="SUSECRET"), "no valid seed")
        creds.write_text(accounts.creds.replace("\n", "\r\n"))
        works(server.spec(bucket, "t"))


def test_renewed_credentials_are_read_when_the_server_comes_back(tmp_path: Path) -> None:
    accounts, creds = make_accounts(), tmp_path / "user.creds"
    creds.write_text(accounts.creds)
    options = {"creds": str(creds)}
    with nats_server(tmp_path, extra=accounts.config, options=options) as server:
        spec = server.spec(server.make_bucket(), "t", reconnect_wait=0)
        with client_of(spec, PATIENT) as client:
            put(client)
            server.stop()
            creds.write_text("half a fi")  # whoever renews it is at it
            server.start()
            with pytest.raises(ReplicaPermanentError, match="has no part"):
                list(client.list_ltx(0))
            creds.write_text(accounts.creds)
            assert len(list(client.list_ltx(0))) == 1


def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    extra = (
        f'tls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", '
        f'ca_file: "{tmp_path}/ca.pem", verify: true }}'
    )
    keys = {
        "root_cas": (str(tmp_path / "ca.pem"),),
        "client_cert": str(tmp_path / "client.pem"),
        "client_key": str(tmp_path / "client.key"),
    }
    options = {key.replace("_", "-"): value for key, value in keys.items()}
    with nats_server(tmp_path, extra=extra, options=options) as server:
        bucket = server.make_bucket()
        server.options = {}
        works(server.spec(bucket, "t", **keys))
        untrusted = {key: value for key, value in keys.items() if key != "root_cas"}
        error = refused(server.spec("b", "t", **untrusted), "(?i)certificate")
        assert error.hint == "Trust its certificate with root-cas."
        nobody = {"root_cas": keys["root_cas"]}
        with client_of(server.spec("b", "t", **nobody)) as client, pytest.raises(ReplicaError):
            list(client.list_ltx(0))
        refused(server.spec("b", "t", root_cas=("/no/such.pem",), tls=True), "cannot be used")


def test_nothing_secret_is_said_in_clear_text(nats: NATSServer, bucket: str) -> None:
    """Refuse a server that takes no TLS before it has heard who we are."""
    error = refused(nats.spec(bucket, "t", tls=True), "secure connection not available")
    assert error.hint.startswith("Give the server a certificate")
    heard = bytearray()
    greeting = {"server_id": "x", "version": "2.9.10", "max_payload": 1 << 20, "auth_required": 1}
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(f"INFO {json.dumps(greeting)}\r\n".encode())
                while piece := connection.recv(1000):
                    heard.extend(piece)

        thread = threading.Thread(target=listen)
        thread.start()
        port = listener.getsockname()[1]
        refused(nats.spec(bucket, "t", port=port, tls=True), "secure connection not available")
        thread.join()
    assert heard == b""


def test_what_a_user_may_not_do_is_a_permanent_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say what is denied: the server answers nothing to the request itself."""
    monkeypatch.setattr(nats_bucket, "_PUBLISH_SECONDS", 1.0)
    rights = '{ publish: ["$JS.API.>"], subscribe: ["_INBOX.>"] }'
    users = (
        "{ user: u, password: S3CRET }, "
        f"{{ user: reader, password: S3CRET, permissions: {rights} }}"
    )
    with nats_server(tmp_path, extra=f"authorization {{ users: [ {users} ] }}") as server:
        spec = server.spec(server.make_bucket(), "t", username="reader")
        error = refused(spec, "permissions violation for publish")
        assert "docs/storage.md" in error.hint
        with client_of(spec) as client:
            assert list(client.list_ltx(0)) == []


def test_no_path_is_so_long_that_the_server_ends_the_connection(
    nats: NATSServer, bucket: str
) -> None:
    with client_of(nats.spec(bucket, "t")) as other:
        put(other)
        works(nats.spec(bucket, "x" * 2800))
        with pytest.raises(ConfigError, match="2801 bytes is longer than 2800"):
            connect(nats.spec(bucket, "x" * 2801))
        assert len(list(other.list_ltx(0))) == 1

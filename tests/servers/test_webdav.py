"""What only WebDAV has: folders, moves, and servers that differ; and one that goes and comes."""

from __future__ import annotations

import hashlib
import io
import os
import random
import secrets
import subprocess
from pathlib import Path

import pytest

from fixtures.apache import WebDAVServer, apache
from fixtures.clients import HEAD, PATIENT, Calling, client_of, everybody_works, put, refused
from fixtures.fault_proxy import TCPProxy
from fixtures.ltxbytes import build_ltx
from pyrep.errors import ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.storage.registry import ReplicaSpec

pytestmark = pytest.mark.webdav

LARGE = HEAD + bytes(3 << 20)


@pytest.fixture
def top() -> str:
    """Return the name of a folder that nobody else has."""
    return secrets.token_hex(8)


def test_a_file_has_its_name_only_when_it_is_whole(webdav_server: WebDAVServer, top: str) -> None:
    folder = webdav_server.data / top / "ltx/0"
    seen: list[list[str]] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            seen.append(os.listdir(folder) if folder.exists() else [])
            return super().read(size)

    with client_of(webdav_server.spec(top)) as client:
        data = HEAD + random.Random(1).randbytes(3 << 20)
        info = client.write_ltx(0, TXID(1), TXID(1), Watched(data), create_only=True)
        assert not any(name.endswith(".ltx") for names in seen for name in names)
        assert os.listdir(folder) == [info.name]
        assert (folder / info.name).read_bytes() == data
        assert list(client.list_ltx(0, exact_times=True)) == [info]
        (listed,) = client.list_ltx(0)
        assert listed.timestamp_ms % 1000 == 0


def test_an_upload_that_is_cut_leaves_no_name_and_is_tidied_up(
    webdav_server: WebDAVServer, top: str
) -> None:
    folder = webdav_server.data / top / "ltx/0"
    data = HEAD + bytes(6 << 20)
    with (
        TCPProxy(webdav_server.port) as proxy,
        client_of(webdav_server.spec(top, port=proxy.port)) as client,
    ):
        with pytest.raises(ReplicaTemporaryError, match=r"0001\.ltx: cannot write"):
            put(client, data=Calling(data, 2 << 20, proxy.cut), create_only=True)
        assert list(client.list_ltx(0)) == []
        info = put(client, data=data, create_only=True)
        assert [name for name in os.listdir(folder) if "pyrep" in name] == []
        assert client.open_ltx(info).read() == data


def test_what_a_dead_writer_left_is_removed_after_a_day(
    webdav_server: WebDAVServer, top: str
) -> None:
    old, young = f".pyrep-{'0' * 16}-{0x60000000:08x}.tmp", f".pyrep-{'1' * 16}-{1 << 40:08x}.tmp"
    for name in (old, young, ".pyrep-x.tmp"):
        webdav_server.write(f"{top}/ltx/0/{name}", b"x")
    folder = webdav_server.data / top / "ltx/0"
    with client_of(webdav_server.spec(top)) as client:
        assert list(client.list_ltx(0)) == []
        assert (folder / old).exists()  # a listing changes nothing
        info = put(client)
    assert sorted(os.listdir(folder)) == sorted([young, ".pyrep-x.tmp", info.name])


def test_folders_that_are_removed_meanwhile_are_made_again(
    webdav_server: WebDAVServer, top: str
) -> None:
    with client_of(webdav_server.spec(top), PATIENT) as client:
        info = put(client)
        with client_of(webdav_server.spec(top)) as other:
            other.delete_all()
        assert not (webdav_server.data / top / "ltx").exists()
        assert put(client) == info


# --- who we are -----------------------------------------------------------------------------------


def test_wrong_credentials_are_permanent_errors(webdav_server: WebDAVServer, top: str) -> None:
    for keys in ({"webdav_password": "SECRET"}, {"webdav_username": None, "webdav_password": None}):
        error = refused(
            webdav_server.spec(top, **keys), "the server answered 401", names=top, data=LARGE
        )
        assert error.hint == "Check webdav-username and webdav-password."
    assert not (webdav_server.data / top).exists()


def test_users_of_a_url_count(webdav_server: WebDAVServer, top: str) -> None:
    url = f"webdav://u:S3CRET@127.0.0.1:{webdav_server.port}/{top}"
    with client_of(ReplicaSpec(url=url)) as client:
        put(client)
        assert client.url == f"webdav://127.0.0.1:{webdav_server.port}/{top}"


def test_a_digest_login(top: str) -> None:
    """Log in without saying the password; a server that was started again asks anew."""
    extra = (
        "<Location />\nAuthType Digest\nAuthName dav\nAuthDigestProvider file\n"
        "AuthUserFile {folder}/htdigest\nRequire valid-user\n</Location>\n"
    )
    data = HEAD + random.Random(1).randbytes(2 << 20)
    with apache(extra=extra, modules=("auth_digest",)) as server:
        secret = hashlib.md5(b"u:dav:S3CRET", usedforsecurity=False).hexdigest()
        (server.folder / "htdigest").write_text(f"u:dav:{secret}\n")
        with client_of(server.spec(f"{top}/team a")) as client:
            everybody_works(client)
        with client_of(server.spec(f"{top}/team b"), PATIENT) as client:
            for _ in range(2):
                info = put(client, data=data)
                server.stop()
                server.start()
                assert client.open_ltx(info).read() == data
                server.stop()
                server.start()
        refused(server.spec(top, webdav_password="SECRET"), "answered 401", names=top)


def test_a_folder_that_is_no_webdav_says_so(webdav_server: WebDAVServer) -> None:
    webdav_server.write("plain.txt", b"x")
    refused(webdav_server.spec("plain.txt"), "the server answered", names="plain.txt", data=LARGE)


def test_tls_with_a_root_and_a_client_certificate(tmp_path: Path, top: str) -> None:
    key = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    key += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    key += ["-addext", "subjectAltName=IP:127.0.0.1"]
    for name in ("server", "client"):
        files = ["-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"]
        subprocess.run([*key, *files], check=True, capture_output=True)
    extra = (
        f"SSLEngine on\nSSLCertificateFile {tmp_path}/server.pem\n"
        f"SSLCertificateKeyFile {tmp_path}/server.key\n"
        f"SSLVerifyClient require\nSSLCACertificateFile {tmp_path}/client.pem\n"
    )
    keys = {
        "root_cas": (str(tmp_path / "server.pem"),),
        "client_cert": str(tmp_path / "client.pem"),
        "client_key": str(tmp_path / "client.key"),
    }
    with apache(extra=extra, modules=("ssl", "socache_shmcb")) as server:
        server.scheme = "https"
        with client_of(server.spec(top, **keys)) as client:
            info = put(client)
            assert client.open_ltx(info).read() == build_ltx(1, 1)
            assert client.url.startswith("webdavs://")
        untrusted = {name: value for name, value in keys.items() if name != "root_cas"}
        error = refused(server.spec(top, **untrusted), "(?i)certificate", names=top, data=LARGE)
        assert "root-cas" in error.hint
        with client_of(server.spec(top, **untrusted, skip_verify=True)) as client:
            assert len(list(client.list_ltx(0))) == 1


# --- connections ----------------------------------------------------------------------------------


def test_a_server_that_is_down_is_a_temporary_error(webdav_server: WebDAVServer, top: str) -> None:
    with TCPProxy(webdav_server.port) as proxy:
        port = proxy.port
    refusal = pytest.raises(ReplicaTemporaryError, match="cannot list")
    with client_of(webdav_server.spec(top, port=port)) as client, refusal:
        list(client.list_ltx(0))

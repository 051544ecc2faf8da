"""Passwords of SFTP, as a server wants them; and one that never answers, or hosts badly written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.clients import FILE, HEAD, ONCE, client_of, put, refused
from fixtures.ssh_logins import PasswordServer, password_server
from pyrep.errors import ReplicaExistsError, ReplicaTemporaryError
from pyrep.storage import sftp_session

pytestmark = pytest.mark.sftp


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PasswordServer]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with password_server(tmp_path) as running:
        yield running


@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_a_password_logs_in(server: PasswordServer, method: str) -> None:
    server.method = method
    with client_of(server.spec("r")) as client:
        info = put(client, data=HEAD, create_only=True)
        assert (server.data / "r/ltx/0" / FILE).read_bytes() == HEAD
        assert list(client.list_ltx(0, exact_times=True)) == [info]
        with client.open_ltx(info, 10, 20) as stream:
            assert stream.read() == HEAD[10:30]
        with pytest.raises(ReplicaExistsError):
            put(client, create_only=True)
        client.delete_ltx([info])
        assert list(client.list_ltx(0)) == []
    error = refused(server.spec("r", password="SECRET"), r"refuses user u \(tried: password\)")
    assert error.hint.startswith("Check the user, the key or password")


def test_a_password_in_a_url_logs_in(server: PasswordServer, tmp_path: Path) -> None:
    port = server.listener.getsockname()[1]
    (tmp_path / ".ssh").mkdir()
    line = f"[127.0.0.1]:{port} {server.key.get_name()} {server.key.get_base64()}\n"
    (tmp_path / ".ssh/known_hosts").write_text(line)
    from pyrep.storage.registry import ReplicaSpec

    with client_of(ReplicaSpec(url=f"sftp://u:S3CRET@127.0.0.1:{port}/r")) as client:
        put(client)
        assert "S3CRET" not in client.url


def test_a_server_that_never_grants_a_channel_is_given_up(
    server: PasswordServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp_session, "_SUBSYSTEM_SECONDS", 0.2)
    server.silent = True
    refusal = pytest.raises(ReplicaTemporaryError, match="no sftp channel")
    with client_of(server.spec("r"), ONCE) as client, refusal:
        put(client)


def test_known_hosts_that_cannot_be_read_are_named(server: PasswordServer, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/known_hosts").write_text("host ssh-ed25519 AAAAnot-base64\n")
    refused(server.spec("r"), "known_hosts has a line without a valid key: host ssh-ed25519")

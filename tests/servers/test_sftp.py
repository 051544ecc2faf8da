"""What only SFTP has: host keys, logins, temporary names; and a server that goes and comes."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fixtures import effort
from fixtures.clients import HEAD, PATIENT, Calling, client_of, everybody_works, put, refused
from fixtures.fakeclock import FakeClock
from fixtures.fault_proxy import Fault, TCPProxy
from fixtures.ltxbytes import build_ltx
from fixtures.sshd import SFTPServer, sshd
from pyrep.errors import (
    ConfigError,
    LTXNotFoundError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage import sftp_session
from pyrep.storage.registry import connect

pytestmark = pytest.mark.sftp


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a home directory of its own, and no agent."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return folder


# --- the server's key -----------------------------------------------------------------------------


def test_an_unknown_host_is_refused_with_the_line_to_paste(
    sftp_server: SFTPServer, tmp_path: Path, home: Path
) -> None:
    spec = sftp_server.spec(str(tmp_path / "r"), host_key=None)
    with client_of(spec) as client:
        with pytest.raises(ReplicaPermanentError, match="is not known") as caught:
            list(client.list_ltx(0))
        assert "SHA256:" in str(caught.value)
        hint = caught.value.hint
        # Both ways that the hint names work as they are written.
        line = hint.rpartition("known_hosts: ")[2]
        (home / ".ssh/known_hosts").write_text(f"# comment\n{line}\n")
        assert list(client.list_ltx(0)) == []
    (home / ".ssh/known_hosts").unlink()
    pinned = hint.partition('host-key: "')[2].partition('"')[0]
    with client_of(sftp_server.spec(str(tmp_path / "r"), host_key=pinned)) as client:
        assert list(client.list_ltx(0)) == []


def test_another_key_than_the_known_one_is_refused(
    sftp_server: SFTPServer, tmp_path: Path, home: Path
) -> None:
    other = (sftp_server.folder / "id_ed25519.pub").read_text()
    refused(sftp_server.spec("r", host_key=other), "not the one that is known")
    (home / ".ssh/known_hosts").write_text(f"{sftp_server.known_host} {other}")
    refused(sftp_server.spec("r", host_key=None), "not the one that is known")
    assert not (sftp_server.data / "r").exists()
    with client_of(sftp_server.spec(str(tmp_path / "r"), insecure_host_key=True)) as client:
        put(client)


def test_a_key_of_another_type_is_asked_for(
    sftp_server: SFTPServer, tmp_path: Path, home: Path
) -> None:
    rsa = sftp_server.host_key("hostkey_rsa")
    with client_of(sftp_server.spec(str(tmp_path / "r"), host_key=rsa)) as client:
        put(client)
    # known_hosts with hashed names, as Debian's ssh writes them
    known = home / ".ssh/known_hosts"
    known.write_text(f"{sftp_server.known_host} {rsa}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    with client_of(sftp_server.spec(str(tmp_path / "r"), host_key=None)) as client:
        put(client)


# --- logins ---------------------------------------------------------------------------------------


def test_wrong_credentials_are_permanent_errors(sftp_server: SFTPServer, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    error = refused(sftp_server.spec("r", key_path=str(key)), r"refuses user \w+ \(tried: key\)")
    assert "authorized_keys" in error.hint
    tried = r"\(tried: key, password\)"
    refused(sftp_server.spec("r", key_path=str(key), password="SECRET"), tried)
    refused(sftp_server.spec("r", user="nobody-of-that-name"), "refuses user nobody-of-that-name")
    error = refused(sftp_server.spec("r", key_path=None), "no credentials")
    assert "key-path or password" in error.hint
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "SECRET", "-f", locked], check=True)
    refused(sftp_server.spec("r", key_path=str(locked)), "needs a passphrase")
    refused(sftp_server.spec("r", key_path=str(tmp_path / "none")), "no such file")
    refused(sftp_server.spec("r", key_path=str(key) + ".pub"), "cannot be used")
    assert not (sftp_server.data / "r").exists()


def test_an_agents_key_logs_in(
    sftp_server: SFTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = effort.program("ssh-agent", "apt-get install openssh-client")
    sock = tmp_path / "agent"
    running = subprocess.Popen([agent, "-D", "-a", sock], stdout=subprocess.DEVNULL)
    try:
        effort.wait_until(sock.exists, "the agent's socket")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        subprocess.run(["ssh-add", "-q", sftp_server.key_path], check=True)
        with client_of(sftp_server.spec(str(tmp_path / "r"), key_path=None)) as client:
            put(client)
            subprocess.run(["ssh-add", "-q", "-D"], check=True)
        refused(sftp_server.spec("x", key_path=None), "no credentials")
    finally:
        running.terminate()
        running.wait()


def test_a_missing_package_is_named_with_its_extra(
    sftp_server: SFTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyrep.storage.sftp", "pyrep.storage.sftp_session", "paramiko"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(ConfigError, match="needs the package paramiko") as caught:
        connect(sftp_server.spec("r"))
    assert caught.value.hint == "Install it with: pip install 'pyrep[sftp]'"


# --- files ----------------------------------------------------------------------------------------


def test_a_file_has_its_name_only_when_it_is_whole(sftp_server: SFTPServer, tmp_path: Path) -> None:
    root = tmp_path / "r"
    seen: list[list[str]] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            seen.append(sorted(os.listdir(root / "ltx/0")) if root.exists() else [])
            return super().read(size)

    with client_of(sftp_server.spec(str(root))) as client:
        data = HEAD + random.Random(1).randbytes(3 << 20)
        info = client.write_ltx(0, TXID(1), TXID(1), Watched(data))
        assert [len(names) for names in seen[1:]] == [1] * (len(seen) - 1)
        assert all(name.startswith(".pyrep-") for names in seen for name in names)
        path = root / "ltx/0" / info.name
        assert os.listdir(path.parent) == [info.name]
        assert path.read_bytes() == data
        assert path.stat().st_mtime_ns == 1_700_000_000 * 10**9  # the protocol has seconds
        assert path.stat().st_mode & 0o777 == 0o600
        assert root.stat().st_mode & 0o777 == 0o700
        assert next(client.list_ltx(0)).timestamp_ms == 1_700_000_000_000
        assert list(client.list_ltx(0, exact_times=True)) == [info]


def test_an_upload_that_is_cut_leaves_no_name_and_is_tidied_up(
    sftp_server: SFTPServer, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    data = HEAD + bytes(4 << 20)
    with (
        TCPProxy(sftp_server.port) as proxy,
        client_of(sftp_server.spec(str(root), port=proxy.port)) as client,
    ):
        with pytest.raises(ReplicaTemporaryError, match=r"0001\.ltx: cannot write"):
            put(client, data=Calling(data, 2 << 20, proxy.cut), create_only=True)
        assert list(client.list_ltx(0)) == []
        assert [name[:7] for name in os.listdir(root / "ltx/0")] == [".pyrep-"]
        info = put(client, data=data, create_only=True)
        assert os.listdir(root / "ltx/0") == [info.name]


def test_what_a_dead_writer_left_is_removed_after_a_day(
    sftp_server: SFTPServer, tmp_path: Path
) -> None:
    folder = tmp_path / "r/ltx/0"
    folder.mkdir(parents=True)
    clock = FakeClock()
    now = int(clock.now().timestamp())
    old = f".pyrep-{'0' * 16}-{now - 90_000:08x}.tmp"
    young = f".pyrep-{'1' * 16}-{now - 80_000:08x}.tmp"
    others = ["0000000000000001-0000000000000001.ltx.77.88.tmp", ".pyrep-x.tmp"]
    for name in (old, young, *others):
        (folder / name).write_bytes(b"")
    from pyrep.storage.sftp import SFTPReplicaClient
    from pyrep.storage.sftp_config import sftp_settings

    spec = sftp_server.spec(str(tmp_path / "r"))
    settings = sftp_settings(url=None, path=spec.path, options=spec.options)
    session = sftp_session.SFTPSession(settings.account)
    client = SFTPReplicaClient(settings, session, release=session.close, clock=clock)
    with closing(client):
        assert list(client.list_ltx(0)) == []
        assert (folder / old).exists()  # a listing changes nothing
        info = put(client)
    assert sorted(os.listdir(folder)) == sorted([young, *others, info.name])


def test_a_file_in_the_way_of_a_directory_is_a_permanent_error(
    sftp_server: SFTPServer, tmp_path: Path
) -> None:
    (tmp_path / "r").write_bytes(b"")
    with client_of(sftp_server.spec(str(tmp_path / "r/a/b"))) as client:
        with pytest.raises(ReplicaPermanentError, match="/r: is not a directory") as caught:
            put(client)
        assert caught.value.hint.startswith("Move the file away")
    (tmp_path / "s/ltx/0/0000000000000001-0000000000000001.ltx").mkdir(parents=True)
    with client_of(sftp_server.spec(str(tmp_path / "s"))) as client:
        assert list(client.list_ltx(0)) == []
        with pytest.raises(LTXNotFoundError):
            client.open_ltx(FileInfo(0, TXID(1), TXID(1)))


def test_a_relative_path_is_below_the_login_directory(sftp_server: SFTPServer) -> None:
    with client_of(sftp_server.spec("relative/x")) as client:
        put(client)
    try:
        assert (sftp_server.data / "relative/x/ltx/0").is_dir()
    finally:
        shutil.rmtree(sftp_server.data / "relative")


def test_writes_one_by_one_and_replacing_without_the_extension(
    sftp_server: SFTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("can_replace", "can_fsync"):
        monkeypatch.setattr(sftp_session.SFTPChannel, name, False)
    spec = sftp_server.spec(str(tmp_path / "r"), concurrent_writes=False)
    with client_of(spec) as client:
        data = [HEAD + random.Random(seed).randbytes(200_000) for seed in (1, 2)]
        for one in data:
            info = put(client, data=one)
            assert client.open_ltx(info).read() == one
        with pytest.raises(ReplicaExistsError):
            put(client, data=data[0], create_only=True)
        assert client.open_ltx(info).read() == data[1]


# --- connections ----------------------------------------------------------------------------------


def test_every_cut_of_a_short_life_is_survived(sftp_server: SFTPServer, tmp_path: Path) -> None:
    """Cut the connection after ever more bytes, from the banner to the end of the work."""
    root = tmp_path / "r"
    for after in (0, 20, 300, 1500, 2500, 3300, 4000, 5000, 6000, 8000):
        for way in ("cut_up", "cut_down"):
            with TCPProxy(sftp_server.port) as proxy:
                fault = Fault(**{way: after})
                proxy.plan = lambda number, fault=fault: fault if number == 1 else None
                spec = sftp_server.spec(str(root), port=proxy.port)
                with client_of(spec, PATIENT) as client:
                    info = put(client)
                    assert client.open_ltx(info).read() == build_ltx(1, 1)
                    client.delete_ltx([info])
                    assert list(client.list_ltx(0)) == []


def test_a_server_that_is_down_is_a_temporary_error(sftp_server: SFTPServer) -> None:
    with TCPProxy(sftp_server.port) as proxy:
        port = proxy.port
    specs = {
        "refused": sftp_server.spec("r", port=port),
        "name cannot be resolved": sftp_server.spec("r", host="no-such-host.invalid"),
    }
    for message, spec in specs.items():
        with client_of(spec) as client, pytest.raises(ReplicaTemporaryError, match=message):
            list(client.list_ltx(0))


def test_a_server_that_does_not_greet_is_given_up(
    sftp_server: SFTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp_session, "_HANDSHAKE_SECONDS", 0.5)
    with ExitStack() as stack:
        crawl = Fault(pace=1.0)
        proxy = TCPProxy(sftp_server.port, lambda number: crawl if number < 3 else None)
        port = stack.enter_context(proxy).port
        client = stack.enter_context(client_of(sftp_server.spec(str(tmp_path / "r"), port=port)))
        for _ in range(2):
            with pytest.raises(ReplicaTemporaryError, match="cannot list: no connection to"):
                list(client.list_ltx(0))
        assert list(client.list_ltx(0)) == []


def test_a_server_that_stops_answering_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_HANDSHAKE_SECONDS", "_ANSWER_SECONDS"):
        monkeypatch.setattr(sftp_session, name, 1.0)
    folder = tmp_path / "sshd"
    folder.mkdir()
    with sshd(folder) as server, client_of(server.spec("r")) as client:
        info = put(client)
        stopped = server.sessions()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ReplicaTemporaryError, match="the server stopped answering"):
            list(client.list_ltx(0))
        with pytest.raises(ReplicaTemporaryError, match="no sftp channel: timeout opening"):
            list(client.list_ltx(0))
        assert list(client.list_ltx(0, exact_times=True)) == [info]  # over a new connection


def test_a_server_that_grants_one_channel_serves_all_threads(tmp_path: Path) -> None:
    folder = tmp_path / "sshd"
    folder.mkdir()
    with sshd(folder, sessions=1) as server, client_of(server.spec("r"), PATIENT) as client:
        everybody_works(client, threads=8, size=150_000)

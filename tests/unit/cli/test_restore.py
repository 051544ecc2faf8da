"""``pyrep restore`` of one database: what is restored where, and what is refused."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from fixtures.cli import Terminal, pyrep
from fixtures.replicas import History
from pyrep import daemon
from pyrep.catalog import Catalog, TenantRow
from pyrep.cli import output
from pyrep.cli.output import Terminated
from pyrep.cli.restoring import interruptible
from pyrep.config.load import load
from pyrep.storage.file import FileReplicaClient


@pytest.fixture
def history() -> History:
    """Return a database of five states."""
    return History().run(5)


@pytest.fixture
def replica(history: History, tmp_path: Path) -> Path:
    """Return the path of a file replica that holds it."""
    path = tmp_path / "replica"
    put(history, path)
    return path


@pytest.fixture
def config(replica: Path, tmp_path: Path) -> Path:
    """Return a configuration with one database and with a directory beside it."""
    folder = tmp_path / "dir"
    folder.mkdir()
    path = tmp_path / "pyrep.yml"
    path.write_text(
        f"dbs:\n"
        f"  - path: {tmp_path}/app.db\n    replica: {{type: file, path: {replica}}}\n"
        f"  - dir: {folder}\n    pattern: '*.db'\n    recursive: true\n"
        f"    replica: {{type: file, path: {tmp_path}/replicas}}\n"
    )
    return path


def put(history: History, path: Path) -> None:
    """Store every state of a database on a file replica."""
    client = FileReplicaClient(str(path))
    history.put_singles(client)
    client.close()


def test_a_url_is_restored_to_a_path(replica: Path, history: History, tmp_path: Path) -> None:
    done = pyrep("restore", "-o", tmp_path / "out.db", replica.as_uri())
    assert done.code == 0
    assert (tmp_path / "out.db").read_bytes() == history.image(5)
    assert done.out.startswith(f"restored {tmp_path}/out.db from {replica.as_uri()}: txid ")
    assert done.out.endswith("database checksum proven\n")


def test_a_txid_or_a_time_is_restored(replica: Path, history: History, tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    done = pyrep("restore", "-o", output, "-txid", f"{2:016x}", replica.as_uri())
    assert (done.code, output.read_bytes()) == (0, history.image(2))
    time = "1970-01-01T00:00:03.999Z"
    done = pyrep("restore", "-force", "-o", output, "-timestamp", time, replica.as_uri())
    assert (done.code, output.read_bytes()) == (0, history.image(3))


def test_a_time_after_the_newest_is_said(replica: Path, history: History, tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    time = "2030-01-01T00:00:00Z"
    done = pyrep("restore", "-o", output, "-timestamp", time, replica.as_uri())
    assert (done.code, output.read_bytes()) == (0, history.image(5))
    assert "1970-01-01T00:00:05.000Z" in done.err


def test_a_time_before_the_oldest_names_it(replica: Path, tmp_path: Path) -> None:
    time = "1970-01-01T00:00:00Z"
    done = pyrep("restore", "-o", tmp_path / "out.db", "-timestamp", time, replica.as_uri())
    assert done.code == 6
    assert "1970-01-01T00:00:01.000Z" in done.error


def test_what_is_there_is_kept_without_force(replica: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    output.write_bytes(b"precious")
    done = pyrep("restore", "-o", output, replica.as_uri())
    assert (done.code, output.read_bytes()) == (7, b"precious")
    assert done.error == (
        f"cannot restore, output path already exists and is not empty: {output}. "
        "Use -force to overwrite"
    )


def test_if_db_not_exists_skips_without_looking_at_the_replica(tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    output.write_bytes(b"precious")
    done = pyrep("restore", "-if-db-not-exists", "-o", output, "file:///nowhere")
    assert (done.code, done.out, output.read_bytes()) == (0, "", b"precious")
    assert "already exists, skipping" in done.err


def test_if_replica_exists_skips_an_empty_replica(tmp_path: Path) -> None:
    output, url = tmp_path / "out.db", (tmp_path / "none").as_uri()
    done = pyrep("restore", "-o", output, url)
    assert (done.code, done.error) == (6, "no matching backup files available")
    done = pyrep("restore", "-if-replica-exists", "-json", "-o", output, url)
    assert (done.code, output.exists()) == (0, False)
    assert done.json["db_path"] == str(output)
    assert "no matching backups found" in done.json["skipped"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(replica: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    done = pyrep("restore", "-dry-run", "-o", output, replica.as_uri())
    assert (done.code, output.exists()) == (0, False)
    lines = done.out.splitlines()
    assert lines[:4] == [
        f"source:      {replica.as_uri()}",
        f"target:      {output}",
        "replica:     file",
        f"txid range:  {1:016x} to {5:016x}",
    ]
    assert lines[6].split() == ["level", "file", "min_txid", "max_txid", "size", "timestamp"]
    assert len(lines) == 12


def test_a_bad_file_is_no_database(replica: Path, tmp_path: Path) -> None:
    (victim,) = (replica / "ltx" / "0").glob(f"{3:016x}-*")
    data = bytearray(victim.read_bytes())
    data[-40] ^= 1
    victim.write_bytes(data)
    done = pyrep("restore", "-o", tmp_path / "out.db", replica.as_uri())
    assert (done.code, (tmp_path / "out.db").exists()) == (4, False)


def test_a_configured_database_is_restored_to_its_place(
    config: Path, history: History, tmp_path: Path
) -> None:
    done = pyrep("restore", "-config", config, tmp_path / "app.db")
    assert done.code == 0
    assert (tmp_path / "app.db").read_bytes() == history.image(5)
    assert (tmp_path / ".app.db-pyrep" / "state.json").exists()


def test_elsewhere_no_state_is_written(config: Path, tmp_path: Path) -> None:
    done = pyrep("restore", "-config", config, "-o", tmp_path / "copy.db", tmp_path / "app.db")
    assert done.code == 0
    assert not list(tmp_path.glob(".*-pyrep"))


def test_a_database_of_a_directory_is_found_by_its_path(
    config: Path, history: History, tmp_path: Path
) -> None:
    put(history, tmp_path / "replicas" / "team a" / "x#1.db")
    path = tmp_path / "dir" / "team a" / "x#1.db"
    done = pyrep("restore", "-config", config, path)
    assert (done.code, path.read_bytes()) == (0, history.image(5))


def test_an_unknown_database_is_named(config: Path, tmp_path: Path) -> None:
    done = pyrep("restore", "-config", config, tmp_path / "other.db")
    assert (done.code, done.error) == (2, f"database not found in config: {tmp_path}/other.db")
    assert f"pyrep databases -config {config}" in done.err


@pytest.fixture
def managed(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make it look as if a daemon ran; return the path of the database that it manages."""
    settings = load(config)
    path = daemon.catalog_path(settings)
    path.parent.mkdir(parents=True)
    catalog = Catalog(path)
    catalog.save_tenant(TenantRow(path=str(tmp_path / "app.db"), status="parked"))
    catalog.save_tenant(TenantRow(path=str(tmp_path / "dir" / "gone.db"), status="absent"))
    catalog.close()
    monkeypatch.setattr(daemon, "running_pid", lambda config: 4711)
    return tmp_path / "app.db"


def test_a_database_that_a_daemon_manages_is_refused(config: Path, managed: Path) -> None:
    done = pyrep("restore", "-config", config, managed)
    assert (done.code, managed.exists()) == (3, False)
    assert done.error == f"{managed}: the running daemon (pid 4711) manages this database"
    assert "Stop the daemon" in done.err


def test_a_url_does_not_go_around_the_daemon(
    config: Path, managed: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYREP_CONFIG", str(config))
    for form in (["-o", managed, replica.as_uri()], ["-all", "-o", managed.parent, "file:///"]):
        if form[0] == "-all":
            form[-1] = (replica.parent / "tree").as_uri()
            put(History().run(1), replica.parent / "tree" / managed.name)
        done = pyrep("restore", *form)
        assert (done.code, managed.exists()) == (3, False)


def test_a_dry_run_and_other_paths_go_beside_the_daemon(
    config: Path, managed: Path, tmp_path: Path
) -> None:
    assert pyrep("restore", "-config", config, "-dry-run", managed).code == 0
    assert pyrep("restore", "-config", config, "-o", tmp_path / "copy.db", managed).code == 0


def test_a_database_that_the_daemon_has_lost_is_restored(
    config: Path, managed: Path, history: History
) -> None:
    gone = managed.parent / "dir" / "gone.db"
    put(history, managed.parent / "replicas" / "gone.db")
    assert pyrep("restore", "-config", config, gone).code == 0
    assert gone.read_bytes() == history.image(5)


def test_sigterm_ends_a_restore_as_sigint_does() -> None:
    cancel = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), interruptible(cancel):
        signal.raise_signal(signal.SIGTERM)
    assert cancel.is_set()
    assert signal.getsignal(signal.SIGTERM) == before


def test_progress_is_shown_on_a_terminal(
    replica: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_TERMINAL_SECONDS", 0.0)
    stream = Terminal()
    done = pyrep("restore", "-o", tmp_path / "out.db", replica.as_uri(), err=stream)
    assert "restoring: 100%, 5 of 5 files, " in done.err
    assert done.err.endswith(" \r")  # the line is gone when the result is printed
    assert pyrep("restore", "-o", tmp_path / "b.db", replica.as_uri()).err == ""

"""``reset`` and ``park``: what they do themselves, and what they ask of a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.cli import pyrep
from pyrep import daemon
from pyrep.catalog import Catalog, TenantRow
from pyrep.config.load import load
from pyrep.tenant.position import SyncState
from pyrep.tenant.statedir import StateDir


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return a database file with state beside it; its content does not matter here."""
    path = tmp_path / "app.db"
    path.write_bytes(b"SQLite format 3\0" + bytes(4080))
    save(path, SyncState(7))
    return path


@pytest.fixture
def config(database: Path, tmp_path: Path) -> Path:
    """Return a configuration of the database and of another one."""
    path = tmp_path / "pyrep.yml"
    path.write_text(
        f"dbs:\n  - path: {database}\n    replica: {{path: {tmp_path}/r1}}\n"
        f"  - path: {tmp_path}/other.db\n    replica: {{path: {tmp_path}/r2}}\n"
    )
    return path


def save(database: Path, state: SyncState) -> None:
    """Write a database's position."""
    folder = StateDir(database.with_name(f".{database.name}-pyrep"))
    folder.create(database.stat())
    folder.save(state, None)


def state(database: Path) -> SyncState | None:
    """Return a database's position."""
    return StateDir(database.with_name(f".{database.name}-pyrep")).load()


def fill_catalog(config: Path, status: str, *databases: Path) -> None:
    """Write the rows that a daemon would."""
    path = daemon.catalog_path(load(config))
    path.parent.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(path)
    for database in databases:
        catalog.save_tenant(TenantRow(path=str(database), status=status, node_id=7))
    catalog.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Make it look as if a daemon ran; return what it is asked."""
    requests: list[tuple[object, ...]] = []

    def request(_config: object, verb: str, argument: str, timeout: float) -> str:
        requests.append((verb, argument, timeout))
        return f"{argument} is done"

    monkeypatch.setattr(daemon, "running_pid", lambda config: 4711)
    monkeypatch.setattr(daemon, "request", request)
    return requests


def test_a_reset_removes_the_state_and_keeps_the_rest(config: Path, database: Path) -> None:
    content = database.read_bytes()
    done = pyrep("reset", "-config", config, database)
    folder = database.with_name(".app.db-pyrep")
    assert done.code == 0
    assert done.out.splitlines()[0] == f"removed {folder}/state.json"
    assert database.read_bytes() == content
    after = state(database)
    assert after is None or after.node_id == 7  # the lineage is no local knowledge to forget


def test_a_reset_needs_no_configuration(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(database.parent)
    assert pyrep("reset", "app.db").out.startswith("removed ")


def test_a_dry_run_removes_nothing(config: Path, database: Path) -> None:
    done = pyrep("reset", "-dry-run", "-config", config, database)
    assert done.out == f"would remove {database.parent}/.app.db-pyrep/state.json\n"
    assert state(database) == SyncState(7)


def test_without_state_there_is_nothing_to_reset(config: Path, tmp_path: Path) -> None:
    (tmp_path / "other.db").touch()
    done = pyrep("reset", "-config", config, tmp_path / "other.db")
    assert (done.code, len(done.out.splitlines())) == (0, 2)


def test_a_missing_database_is_not_reset(config: Path, tmp_path: Path) -> None:
    done = pyrep("reset", "-config", config, tmp_path / "other.db")
    assert (done.code, done.error) == (3, f"database does not exist: {tmp_path}/other.db")


def test_a_reset_is_refused_while_a_daemon_manages_it(
    config: Path, database: Path, asked: list[tuple[object, ...]]
) -> None:
    fill_catalog(config, "parked", database)
    done = pyrep("reset", "-config", config, database)
    assert (done.code, asked) == (3, [])
    assert state(database) == SyncState(7)


def test_take_over_ends_fencing_without_a_daemon(config: Path, database: Path) -> None:
    save(database, SyncState(7, fenced="another writer"))
    fill_catalog(config, "fenced", database)
    dry = pyrep("reset", "-dry-run", "-config", config, "-take-over", database)
    assert dry.out == f"would take over the replica of {database}\n"
    assert state(database) == SyncState(7, fenced="another writer")
    done = pyrep("reset", "-config", config, "-take-over", f"{database.parent}/*.db")
    assert (done.code, done.err) == (0, "")
    assert state(database) == SyncState(7, take_over=True)


def test_a_glob_takes_over_only_what_is_fenced(config: Path, database: Path) -> None:
    fill_catalog(config, "parked", database)
    pattern = f"{database.parent}/*.db"
    done = pyrep("reset", "-config", config, "-take-over", pattern)
    message = f"no such database, and no fenced one that matches: {pattern}"
    assert (done.code, done.error) == (2, message)
    assert state(database) == SyncState(7)
    assert pyrep("reset", "-config", config, "-take-over", database).code == 0
    assert state(database) == SyncState(7, take_over=True)


def test_the_daemon_is_asked_to_take_over(
    config: Path, database: Path, asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(database.parent)
    done = pyrep("reset", "-config", config, "-take-over", "*.db")
    assert (done.code, done.out) == (0, f"{database.parent}/*.db is done\n")
    assert asked == [("reset-take-over", f"{database.parent}/*.db", 60.0)]


def test_the_daemon_is_asked_to_park(
    config: Path, database: Path, asked: list[tuple[object, ...]]
) -> None:
    done = pyrep("park", "-config", config, "-timeout", "5", database)
    assert (done.code, done.out) == (0, f"{database} is done\n")
    assert asked == [("park", str(database), 5)]


def test_without_a_daemon_nothing_is_parked(config: Path, database: Path) -> None:
    done = pyrep("park", "-config", config, database)
    assert done.code == 0
    assert "nothing to park" in done.out


def test_an_unknown_database_is_neither_parked_nor_reset(config: Path) -> None:
    for verb in ("park", "reset"):
        done = pyrep(verb, "-config", config, "/nowhere.db")
        assert (done.code, done.error) == (2, "database not found in config: /nowhere.db")

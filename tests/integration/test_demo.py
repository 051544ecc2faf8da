"""``make run``: what it shows is what is there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fixtures import effort
from fixtures.app import App, Writer
from fixtures.servers import S3Server
from fixtures.sources import ROOT

_DEMO = ROOT / "benchmarks" / "demo.py"
SAMPLES = ("db1.db", "team-a/db2.db", "team-b/east/db3.db", "shared/db4.db")
StartApp = Callable[..., App]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("demo", _DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    return module


def _run(tmp_path: Path, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "TMPDIR": str(temporary)}
    environment |= environ
    return subprocess.run(
        [sys.executable, str(_DEMO), *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _verdicts(output: str) -> dict[str, str]:
    """Return the last column of the closing table by tenant."""
    table = output[output.rindex("identical") :].splitlines()[1:]
    rows = [re.split(r" {2,}", line.strip()) for line in table if line.strip()]
    return {row[0]: row[-1] for row in rows if len(row) > 2}


@pytest.mark.slow
def test_samples_are_restored_identical(tmp_path: Path) -> None:
    done = _run(tmp_path, "--for", "5")
    assert _verdicts(done.stdout) == dict.fromkeys(SAMPLES, "yes"), done.stdout + done.stderr
    assert done.returncode == 0
    assert "rows written" in done.stdout


@pytest.mark.slow
def test_given_directory_is_replicated_and_not_written_to(tmp_path: Path) -> None:
    source = tmp_path / "tenants"
    source.mkdir()
    with Writer(source / "a.db", rate=200, duration=0.5) as writer:
        writer.finish()
    (source / "notes.db").write_text("no database")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    replica, work = str(tmp_path / "replica"), str(tmp_path / "work")
    for _ in range(2):  # the second run goes on where the first one ended
        flags = ["--dir", str(source), "--replica", replica, "--work", work, "--for", "3"]
        done = _run(tmp_path, *flags)
        assert _verdicts(done.stdout) == {"a.db": "yes"}, done.stdout + done.stderr
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert len(list((tmp_path / "replica").rglob("*.ltx"))) == 1


@pytest.mark.slow
@pytest.mark.s3
def test_a_bucket_can_be_the_replica(tmp_path: Path, moto_server: S3Server) -> None:
    url = moto_server.url(moto_server.make_bucket(), "some/place")
    done = _run(tmp_path, "--for", "4", "--replica", url, **moto_server.environ)
    assert set(_verdicts(done.stdout).values()) == {"yes"}, done.stdout + done.stderr
    assert done.returncode == 0
    moto_server.close()


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.interop
def test_a_server_is_started_and_its_bucket_shown(tmp_path: Path) -> None:
    effort.program("moto_server", "pip install 'moto[server,s3]'")
    programs = str(Path(sys.executable).parent)  # radosgw is not among them
    done = _run(tmp_path, "--s3", "--for", "6", PATH=programs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting    moto" in done.stdout
    shown = done.stdout.partition("the bucket, as moto lists it")[2].partition("tenant  ")[0]
    assert re.findall(r"^    (\S+)/$", shown, re.MULTILINE) == sorted(SAMPLES)
    for level in ("0000", "0001", "0002", "0009"):
        assert len(re.findall(rf"^        {level}/  ", shown, re.MULTILINE)) == len(SAMPLES)
    table = done.stdout.partition("by Litestream")[2]
    assert re.findall(r"yes +yes$", table, re.MULTILINE) == ["yes        yes"] * len(SAMPLES)


def test_comparison_tells_equal_from_different(
    demo: ModuleType, start_app: StartApp, tmp_path: Path
) -> None:
    app = start_app(tmp_path / "a.db")
    app.script("create table t (v); insert into t values (1)")
    app.exit()
    tenant = demo.Tenant(tmp_path / "a.db", "a.db")
    restored = tmp_path / "restored.db"
    assert demo._compare(tenant, restored, tmp_path / "0.db") == (0, "no: not restored")
    shutil.copyfile(tenant.path, restored)
    assert demo._compare(tenant, restored, tmp_path / "1.db") == (1, "yes")
    other = start_app(restored)
    other.execute("insert into t values (2)")
    other.exit()
    assert demo._compare(tenant, restored, tmp_path / "2.db") == (2, "no: pages differ")
    start_app(tenant.path)
    rows, verdict = demo._compare(tenant, restored, tmp_path / "3.db")
    assert (rows, verdict) == (2, "unknown: the source is in use and has moved on")


def test_status_is_understood_in_each_form(demo: ModuleType) -> None:
    new = {"schema": 1, "databases": [{"path": "/a.db", "state": "parked", "lag_seconds": 0.25}]}
    old = [{"database": "/a.db", "status": "ok", "local_txid": "000000000000001f"}]
    assert dict(demo._parse_status(new)) == {"/a.db": demo.Progress(state="parked", lag="0.25 s")}
    assert dict(demo._parse_status(old)) == {"/a.db": demo.Progress(state="ok", local="1f")}


def test_problems_in_the_log_are_counted(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "pyrep.log"
    log.write_text('level=INFO msg="replicating to"\nlevel=WARN msg="slow disk" db=a.db\n')
    assert demo._show_problems(log) == 1
    assert capsys.readouterr().out == 'log: level=WARN msg="slow disk" db=a.db\n'
    log.write_text("Error: it never started\n")
    assert demo._show_problems(log) == 0
    assert "it never started" in capsys.readouterr().out

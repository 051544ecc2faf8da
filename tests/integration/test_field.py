"""The field scenario with the real daemon, stopped in the middle of load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fixtures import effort
from fixtures.apache import WebDAVServer
from fixtures.field import field_run
from fixtures.nats_server import NATSServer
from fixtures.server_hosts import NATSHost, WebDAVHost, sftp_host
from fixtures.servers import S3Server
from fixtures.sshd import SFTPServer
from fixtures.store_host import StoreHost

_FEW_READS = 59  # of 40 operations a second; in three seconds chance could leave too few writes


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize(("seconds", "seed"), [(8.0, 100), (8.0, 124), (8.0, 156)])
def test_field_scenario(
    tmp_path: Path, seconds: float, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell(field_run(tmp_path, seed=seed, seconds=seconds), capsys)


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.s3
def test_field_scenario_in_a_bucket(
    tmp_path: Path, radosgw_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = 8.0 if effort.SCALE > 1 else 3.0
    _tell(field_run(tmp_path, seed=_FEW_READS, seconds=seconds, server=radosgw_server), capsys)


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.sftp
def test_field_scenario_on_sftp(
    tmp_path: Path, sftp_server: SFTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell(
        field_run(tmp_path, seed=_FEW_READS, seconds=3.0, on=sftp_host(tmp_path, sftp_server)),
        capsys,
    )


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.webdav
def test_field_scenario_on_webdav(
    tmp_path: Path, webdav_server: WebDAVServer, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell(
        field_run(tmp_path, seed=_FEW_READS, seconds=3.0, on=WebDAVHost(tmp_path, webdav_server)),
        capsys,
    )


@pytest.mark.slow
@pytest.mark.nats
def test_field_scenario_on_nats(
    tmp_path: Path, nats: NATSServer, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell(field_run(tmp_path, seed=_FEW_READS, seconds=3.0, on=NATSHost(tmp_path, nats)), capsys)


@pytest.fixture(
    scope="session",
    params=[pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("gcs", "abs", "oss")],
)
def store(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.mark.slow
@pytest.mark.interop
def test_field_scenario_on_other_storages(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in store.environ.items():
        monkeypatch.setenv(name, value)
    seconds = 8.0 if effort.SCALE > 1 else 3.0
    _tell(
        field_run(tmp_path, seed=_FEW_READS, seconds=seconds, on=StoreHost(tmp_path, store)), capsys
    )


def _tell(reports: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        rates = ", ".join(f"{name} {report['rate']:g}" for name, report in reports.items())
        worst = max(report["commit_ms"]["max"] for report in reports.values())
        print(f"\nwrites/s: {rates}; slowest commit {worst:g} ms")

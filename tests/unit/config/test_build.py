"""What a file means, and every way in which its keys can contradict each other."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest

from pyrep.config.keys import GLOBAL_KEYS, OPTION_KEYS, REPLICA_KEYS
from pyrep.config.load import loads
from pyrep.config.model import (
    CompactionLevel,
    Config,
    DatabaseConfig,
    LoggingConfig,
    ReplicaConfig,
    Secret,
    SnapshotConfig,
)
from pyrep.errors import ConfigError

# A litestream.yml with every key that Litestream 0.5 has, except those that pyrep refuses.
LITESTREAM_YML = """
access-key-id: AKID
secret-access-key: $SECRET
region: eu-west-1
sync-interval: 2s
max-sync-ltx-files: 100
auto-recover: true
skip-verify: true
addr: ":9090"
socket:
  enabled: true
  path: /run/litestream.sock
  permissions: 0600
levels:
  - interval: 30s
  - interval: 5m
snapshot:
  interval: 12h
  retention: 168h
validation:
  interval: 6h
l0-retention: 10m
l0-retention-check-interval: 30s
verify-compaction: true
retention:
  enabled: false
heartbeat-url: https://hc.example/ping
heartbeat-interval: 2m
exec: /usr/bin/app -flag "a b"
logging:
  level: debug
  type: json
  stderr: true
  source: yes
mcp-addr: ":3001"
shutdown-sync-timeout: 0
shutdown-sync-interval: 1s
dbs:
  - path: /var/lib/app.db
    meta-path: /var/lib/meta
    monitor-interval: 500ms
    checkpoint-interval: 0s
    busy-timeout: 2s
    min-checkpoint-page-count: 10
    truncate-page-n: -1
    max-sync-wal-bytes: 0
    restore-if-db-not-exists: true
    snapshot:
      interval: 1h
    replica:
      type: s3
      bucket: b
      path: app
      endpoint: http://minio:9000
      force-path-style: true
      sign-payload: false
      require-content-md5: false
      skip-verify: false
      storage-class: STANDARD_IA
      part-size: 5MB
      concurrency: 2
      sse-customer-algorithm: AES256
      sse-customer-key: c2VjcmV0
      sse-customer-key-path: ~/key
      sse-kms-key-id: kms
  - dir: /var/lib/tenants
    pattern: "*.db"
    recursive: true
    watch: true
    meta-dir: /var/lib/tenants-meta
    replicas:
      - url: file:///backup/tenants
        name: old
        validation-interval: 1h
  - path: /1.db
    replica: {url: "gs://bucket/path"}
  - path: /2.db
    replica: {type: gs, bucket: b, path: p}
  - path: /3.db
    replica: {url: "abs://account@container/path", account-key: a2V5}
  - path: /4.db
    replica: {type: abs, account-name: a, account-key: k, sas-token: s, bucket: c, endpoint: e}
  - path: /5.db
    replica: {url: "sftp://u:pw@host:22/p", key-path: /k, host-key: "ssh-rsa AA"}
  - path: /6.db
    replica: {type: sftp, host: "h:22", user: u, password: pw, path: p, concurrent-writes: no}
  - path: /7.db
    replica: {url: "webdavs://u:p@host/p"}
  - path: /8.db
    replica:
      {type: webdav, webdav-url: "https://h", webdav-username: u, webdav-password: p, path: /p}
  - path: /9.db
    replica:
      url: nats://host:4222/bucket
      jwt: j
      seed: s
      creds: /c
      nkey: n
      username: u
      password: p
      token: t
      tls: true
      root-cas: [/ca.pem]
      client-cert: /c.pem
      client-key: /k.pem
      max-reconnects: -1
      reconnect-wait: 2s
      timeout: 10s
  - path: /10.db
    replica: {url: "oss://bucket.oss-cn-hangzhou.aliyuncs.com/p"}
  - path: /11.db
    max-checkpoint-page-count: 10000
    replica:
      {type: oss, bucket: b, path: p, region: r, endpoint: e, access-key-id: a,
       secret-access-key: s, part-size: 1MiB, concurrency: 3}
  - path: /12.db
    replica: {path: /backup/12, retention: 72h, retention-check-interval: 1h, snapshot-interval: 4h}
  - path: /13.db
    replica: {url: "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/name/key"}
"""


@pytest.fixture(scope="module")
def litestream() -> Config:
    return loads(LITESTREAM_YML, environ={"SECRET": "s3cret", "HOME": "/h"})


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loads(text, environ={})
    return str(caught.value)


def one(entry: str, top: str = "") -> Config:
    return loads(f"{top}\ndbs: [{{{entry}}}]", environ={})


def test_a_litestream_file_loads_unchanged(litestream: Config) -> None:
    assert len(litestream.dbs) == 15
    assert [entry.index for entry in litestream.dbs] == list(range(1, 16))
    kinds = [entry.replica.type for entry in litestream.dbs]
    known = "s3 file gs gs abs abs sftp sftp webdav webdav nats oss oss file s3"
    assert " ".join(kinds) == known


def test_the_example_holds_every_key_of_litestream() -> None:
    ours = {"state-dir", "max-attached", "reconcile-interval", "spool-limit-total", "age"}
    ours |= {"compression", "compression-level", "requests-per-second", "bytes-per-second"}
    ours |= {"connection-string", "insecure-host-key"}
    known = {*GLOBAL_KEYS, *REPLICA_KEYS, *OPTION_KEYS} - ours
    assert [key for key in sorted(known) if f"{key}:" not in LITESTREAM_YML] == []


def test_global_values(litestream: Config) -> None:
    assert litestream.levels == (
        CompactionLevel(level=1, interval=timedelta(seconds=30)),
        CompactionLevel(level=2, interval=timedelta(minutes=5)),
    )
    assert litestream.snapshot == SnapshotConfig(
        interval=timedelta(hours=12), retention=timedelta(hours=168)
    )
    assert litestream.logging == LoggingConfig(level="DEBUG", type="json", stderr=True, source=True)
    assert litestream.socket.permissions == 0o600
    assert litestream.shutdown_sync_timeout == timedelta()
    assert litestream.exec == '/usr/bin/app -flag "a b"'
    assert litestream.retention.enabled is False


def test_database_values(litestream: Config) -> None:
    entry = litestream.dbs[0]
    assert entry.path == Path("/var/lib/app.db")
    assert entry.truncate_page_n == -1
    assert entry.max_sync_wal_bytes == 0
    assert entry.checkpoint_interval == timedelta()
    assert entry.restore_if_db_not_exists is True
    assert litestream.dbs[1].watch is True
    assert litestream.dbs[1].meta_dir == Path("/var/lib/tenants-meta")


def test_replica_values(litestream: Config) -> None:
    replica = litestream.dbs[0].replica
    assert (replica.sync_interval, replica.max_sync_ltx_files) == (timedelta(seconds=2), 100)
    assert replica.options["part-size"] == 5_000_000
    assert replica.options["access-key-id"] == "AKID"
    assert replica.options["secret-access-key"] == Secret("s3cret")
    nats = litestream.dbs[10].replica
    assert nats.options["root-cas"] == ("/ca.pem",)
    assert nats.options["max-reconnects"] == -1
    assert nats.options["timeout"] == timedelta(seconds=10)


def test_every_key_without_effect_gives_one_warning(litestream: Config) -> None:
    told = [warning.partition(":")[0] for warning in litestream.warnings]
    assert told == [
        "max-sync-ltx-files",
        "auto-recover",
        "addr",
        "socket.enabled",
        "validation",
        "verify-compaction",
        "heartbeat-url",
        "heartbeat-interval",
        "mcp-addr",
        "dbs[/11.db].max-checkpoint-page-count",
        "dbs[/var/lib/tenants].replicas[0].name",
        "dbs[/var/lib/tenants].replicas[0].validation-interval",
        "dbs[/12.db].replica.retention",
        "dbs[/12.db].replica.retention-check-interval",
        "dbs[/12.db].replica.snapshot-interval",
    ]
    assert litestream.warnings[-3] == (
        "dbs[/12.db].replica.retention: left over from Litestream 0.3; "
        "snapshot.retention and l0-retention decide what is deleted"
    )


def test_a_value_that_is_in_effect_anyway_gives_no_warning() -> None:
    config = one(
        "path: /x, replica: {path: /r, compression: lz4}",
        "socket: {enabled: false}\nretention: {enabled: false}\nl0-retention: 0\n"
        "verify-compaction: false\naddr: ''\nsnapshot: {}\nvalidation:\nage: {identities: []}",
    )
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("key", "value", "policy"),
    [
        ("validation-interval", "1h", "left over from Litestream 0.3; replicas are not validated"),
        ("name", "x", "left over from Litestream 0.3; a database has one replica"),
    ],
)
def test_a_warning_names_the_policy_in_effect(key: str, value: str, policy: str) -> None:
    (warning,) = one(f"path: /x, replica: {{path: /r, {key}: {value}}}").warnings
    assert warning.startswith(f"dbs[/x].replica.{key}: {policy}")


def test_many_equal_warnings_are_one() -> None:
    entries = ", ".join(f"{{path: /{i}, replica: {{path: /r, name: x}}}}" for i in range(1000))
    (warning,) = loads(f"dbs: [{entries}]").warnings
    assert warning.startswith("dbs[/0].replica.name (and 999 more): left over")


def test_restoring_a_directory_at_start_gives_a_warning() -> None:
    config = one("dir: /d, pattern: x, restore-if-db-not-exists: true, replica: {path: /r}")
    assert "no effect on a directory" in config.warnings[0]


def test_defaults() -> None:
    config = one("path: /x, replica: {path: /r}")
    assert config.dbs == (DatabaseConfig(path=Path("/x"), replica=ReplicaConfig(path="/r")),)
    assert config.levels == (
        CompactionLevel(level=1, interval=timedelta(seconds=30)),
        CompactionLevel(level=2, interval=timedelta(minutes=5)),
        CompactionLevel(level=3, interval=timedelta(hours=1)),
    )
    assert one("path: /x, truncate-page-n: 0, replica: {path: /r}").dbs == config.dbs
    assert one("dir: /d, pattern: x, replica: {path: /r}").dbs[0].watch is True
    assert one("dir: /d, pattern: x, watch: no, replica: {path: /r}").dbs[0].watch is False


def test_directory_means_dir() -> None:
    entry = one("directory: /d, pattern: '*.db', replica: {path: /r}").dbs[0]
    assert entry.dir == Path("/d")
    assert entry.label == "dbs[/d]"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("path: /x, dir: /d", "cannot specify both 'path' and 'dir'"),
        ("dir: /x, directory: /d", "cannot specify both 'dir' and 'directory'"),
        ("pattern: x", "must specify either 'path' or 'dir'"),
        ("path: '', replica: {path: /r}", "must specify either 'path' or 'dir'"),
        ("dir: /d", "'pattern' is required when using 'dir'"),
        ("dir: /d, pattern: ''", "'pattern' is required when using 'dir'"),
        ("path: /x, watch: true", "'watch' can only be enabled with a directory"),
        ("path: /x, meta-dir: /m", "'meta-dir' can only be used with a directory"),
        ("path: /x, pattern: '*'", "'pattern' can only be used with a directory"),
        ("path: /x, recursive: true", "'recursive' can only be used with a directory"),
        (
            "dir: /d, pattern: x, meta-dir: /m, meta-path: /n",
            "cannot specify both 'meta-path' and 'meta-dir'",
        ),
        ("path: /x", "must specify replica for database"),
        ("path: /x, replica: ", "must specify replica for database"),
        ("path: /x, replicas: []", "must specify replica for database"),
        ("path: /x, replicas: [~]", "must specify replica for database"),
        (
            "path: /x, replica: {path: /r}, replicas: [{path: /s}]",
            "cannot specify 'replica' and 'replicas' on a database",
        ),
        (
            "path: /x, replicas: [{path: /r}, {path: /s}]",
            "multiple replicas on a single database are no longer supported",
        ),
        ("dir: /d, pattern: '[', replica: {path: /r}", "malformed pattern '[' at character 2"),
        ("dir: /d, pattern: 'a/*', replica: {path: /r}", "a pattern matches file names"),
        ("path: ~\\0, replica: {path: /r}", None),
        ("path: /x, replica: {}", "file replica path required"),
        ("path: /x, replica: {type: file}", "file replica path required"),
        ("path: /x, replica: {path: ''}", "file replica path required"),
        ("dir: /d, pattern: x, replica: {type: file}", "file replica path required"),
        ("path: /x, replica: {type: ftp, path: /r}", 'unknown replica type in config: "ftp"'),
        ("path: /x, replica: {type: webdavs}", 'unknown replica type in config: "webdavs"'),
        ("path: /x, replica: {url: 'ftp://h/p'}", 'unknown replica type in config: "ftp"'),
        ("path: /x, replica: {url: /backup}", "replica url scheme required: /backup"),
        ("path: /x, replica: {url: 'a-b://h'}", "replica url scheme required: a-b://h"),
        ("path: /x, replica: {path: 's3://b/p'}", "replica path cannot be a url: s3://b/p"),
        ("path: /x, replica: {url: 's3://b/a#b'}", "replica url has a fragment: s3://b/a#b"),
        ("path: /x, replica: {url: 'file://h/p'}", "file replica url names a host: file://h/p"),
        (
            "path: /x, replica: {url: 'file:///a%zz'}",
            "file replica url has a bad escape: file:///a%zz",
        ),
        (
            "path: /x, replica: {url: 'file:///a', path: /b}",
            "cannot specify url & path for file replica",
        ),
        ("path: /x, replica: {type: s3, path: p}", "bucket required for s3 replica"),
        ("path: /x, replica: {type: gs}", "bucket required for gs replica"),
        ("path: /x, replica: {type: abs}", "bucket required for abs replica"),
        ("path: /x, replica: {type: oss}", "bucket required for oss replica"),
        ("path: /x, replica: {type: nats}", "bucket required for nats replica"),
        ("path: /x, replica: {url: 'nats://h'}", "bucket required for nats replica"),
        ("path: /x, replica: {url: 's3:///p'}", "bucket required for s3 replica"),
        ("path: /x, replica: {type: sftp}", "host required for sftp replica"),
        ("path: /x, replica: {type: sftp, host: h}", "user required for sftp replica"),
        ("path: /x, replica: {url: 'sftp://h/p'}", "user required for sftp replica"),
        ("path: /x, replica: {type: webdav}", "webdav-url required for webdav replica"),
        *(
            (
                f"path: /x, replica: {{url: '{kind}://u@b/p', {key}: k}}",
                f"cannot specify url & {key} for {kind} replica",
            )
            for kind, key in [
                ("s3", "path"),
                ("s3", "bucket"),
                ("gs", "path"),
                ("gs", "bucket"),
                ("abs", "path"),
                ("abs", "bucket"),
                ("oss", "path"),
                ("oss", "bucket"),
                ("sftp", "host"),
                ("sftp", "path"),
                ("webdav", "path"),
                ("webdav", "webdav-url"),
            ]
        ),
    ],
)
def test_conflicts_name_the_entry(entry: str, message: str | None) -> None:
    text = f"dbs: [{{path: /ok, replica: {{path: /r}}}}, {{{entry}}}]"
    if message is None:
        text, message = text.replace("~\\0", '"/x\\0"'), "a path cannot contain a NUL character"
    assert refused(text).startswith(f"database config #2: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("snapshot: {interval: 0s}", "snapshot.interval: must be greater than 0 (got 0s)"),
        ("snapshot: {retention: -1h}", "snapshot.retention: must be greater than 0 (got -1h)"),
        (
            "levels: [{interval: 30s}, {interval: 0}]",
            "levels[1].interval: must be greater than 0 (got 0s)",
        ),
        ("levels: [{}]", "levels[0].interval: must be greater than 0 (got 0s)"),
        ("levels: 30s", "levels: must be a list (got 30s)"),
        ("levels: [30s]", "levels[0]: must be a mapping (got 30s)"),
        ("l0-retention: -1s", "l0-retention: must not be negative (got -1s)"),
        (
            "l0-retention-check-interval: 0s",
            "l0-retention-check-interval: must be greater than 0 (got 0s)",
        ),
        ("shutdown-sync-timeout: -1s", "shutdown-sync-timeout: must be >= 0 (got -1s)"),
        ("shutdown-sync-interval: 0s", "shutdown-sync-interval: must be greater than 0 (got 0s)"),
        ("heartbeat-url: ftp://h", "heartbeat-url: must be a valid HTTP(S) URL"),
        ("heartbeat-interval: 59s", "heartbeat-interval: must be at least 1 minute (got 59s)"),
        ("sync-interval: 0s", "sync-interval: must be greater than 0 (got 0s)"),
        ("reconcile-interval: 0s", "reconcile-interval: must be greater than 0 (got 0s)"),
        ("max-attached: 0", "max-attached: must be >= 1 (got 0)"),
        ("logging: {level: loud}", "logging.level: unknown log level 'loud'"),
        ("logging: {type: xml}", "logging.type: must be text or json or pretty (got xml)"),
        ("logging: on", "logging: must be a mapping (got on)"),
        ("retention: 72h", "retention: must be a mapping (got 72h)"),
        ("dbs: {path: /x}", "dbs: must be a list (got a mapping)"),
        ("dbs: [/x]", "dbs[#1]: must be a mapping (got /x)"),
        ("- a", "must be a mapping"),
        ("age: {identities: [k]}", "age: age encryption is not supported"),
        ("age: on", "age: age encryption is not supported"),
        (
            "dbs: [{path: /x, snapshot: {interval: 0s}, replica: {path: /r}}]",
            "dbs[/x].snapshot.interval: must be greater than 0 (got 0s)",
        ),
        (
            "dbs: [{path: /x, replica: {path: /r, sync-interval: 0s}}]",
            "dbs[/x].replica.sync-interval: must be greater than 0 (got 0s)",
        ),
        (
            "dbs: [{dir: /d, pattern: x, replicas: [{path: /r, sync-interval: -1s}]}]",
            "dbs[/d].replicas[0].sync-interval: must be greater than 0 (got -1s)",
        ),
        (
            "dbs: [{path: /x, replica: {path: /r, age: {recipients: [k]}}}]",
            "dbs[/x].replica.age: age encryption is not supported",
        ),
        (
            "dbs: [{path: /x, replica: /r}]",
            "dbs[/x].replica: must be a mapping (got /r)",
        ),
    ],
)
def test_field_errors(text: str, message: str) -> None:
    assert refused(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("db: []", "db: unknown key, did you mean 'dbs'?"),
        ("loging: {}", "loging: unknown key, did you mean 'logging'?"),
        ("xyzzy: 1", "xyzzy: unknown key"),
        ("path: /x", "path: unknown key"),
        ("logging: {levle: x}", "logging.levle: unknown key, did you mean 'level'?"),
        ("levels: [{intervall: 1s}]", "levels[0].intervall: unknown key, did you mean 'interval'?"),
        ("dbs: [{pth: /x}]", "dbs[#1].pth: unknown key, did you mean 'path'?"),
        (
            "dbs: [{path: /x, replica: {path: /r, sync-intervall: 1s}}]",
            "dbs[/x].replica.sync-intervall: unknown key, did you mean 'sync-interval'?",
        ),
        (
            "dbs: [{path: /x, replicas: [{acces-key-id: x}]}]",
            "dbs[/x].replicas[0].acces-key-id: unknown key, did you mean 'access-key-id'?",
        ),
        (
            "dbs: [{path: /x, sync-interval: 1s}]",
            "dbs[/x].sync-interval: unknown key",
        ),
        (
            "dbs: [{path: /x, replica: {path: /r, bucket: b}}]",
            "dbs[/x].replica.bucket: not a key of a file replica (type: s3 or gs or abs or nats",
        ),
        (
            "dbs: [{path: /x, replica: {type: s3, bucket: b, user: u}}]",
            "dbs[/x].replica.user: not a key of a s3 replica (type: sftp)",
        ),
    ],
)
def test_unknown_keys_are_refused_with_their_path(text: str, message: str) -> None:
    assert refused(text).startswith(message)


def test_an_unknown_key_is_found_by_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        loads("dbs:\n  - path: /x\n    replica:\n      path: /r\n      pat: /r\n")
    assert caught.value.hint == "Correct line 5 of the configuration file."


def test_global_settings_are_inherited_where_the_type_knows_them() -> None:
    top = "bucket: g\naccess-key-id: G\npart-size: 8MiB\nhost-key: K\nsync-interval: 9s"
    s3 = one("path: /x, replica: {type: s3, path: p, part-size: 5MiB}", top).dbs[0].replica
    assert s3.options == {"access-key-id": "G", "bucket": "g", "part-size": 5 << 20}
    assert s3.sync_interval == timedelta(seconds=9)
    sftp = one("path: /x, replica: {url: 'sftp://u@h/p'}", top).dbs[0].replica
    assert sftp.options == {"host-key": "K"}
    file = one("path: /x, replica: {path: /r, sync-interval: 1s}", top).dbs[0].replica
    assert file == ReplicaConfig(path="/r")


def test_a_global_bucket_does_not_break_a_url() -> None:
    replica = one("path: /x, replica: {url: 's3://own/p'}", "bucket: global").dbs[0].replica
    assert replica.options == {}


def test_skip_verify_can_be_switched_off_again() -> None:
    entry = "path: /x, replica: {type: s3, bucket: b, skip-verify: false}"
    assert one(entry, "skip-verify: true").dbs[0].replica.options["skip-verify"] is False


def test_the_scheme_of_a_url_beats_the_type_with_a_warning() -> None:
    config = one("path: /x, replica: {type: s3, url: 'gs://b/p'}")
    assert config.dbs[0].replica.type == "gs"
    assert config.warnings == ("dbs[/x].replica.type: the url decides: this replica is of type gs",)
    assert one("path: /x, replica: {type: webdav, url: 'webdavs://h/p'}").warnings == ()


def test_an_empty_base_of_a_directory_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    replica = one("dir: /d, pattern: x, replica: {path: ''}").dbs[0].replica
    assert replica.path == str(tmp_path)


def test_a_database_has_its_own_snapshot_schedule() -> None:
    config = loads(
        """
snapshot: {interval: 6h}
dbs:
  - {path: /a, replica: {path: /ra}, snapshot: {interval: 1h, retention: 48h}}
  - {path: /b, replica: {path: /rb}, snapshot: {retention: 2h}}
  - {path: /c, replica: {path: /rc}}
"""
    )
    hours = [
        tuple(span / timedelta(hours=1) for span in (entry.interval, entry.retention))
        for entry in (config.snapshot, *(db.snapshot for db in config.dbs))
    ]
    assert hours == [(6, 24), (1, 48), (6, 2), (6, 24)]
    assert config.warnings == ()


def test_there_are_at_most_eight_levels() -> None:
    assert len(loads(f"levels: [{', '.join(['{interval: 1h}'] * 8)}]").levels) == 8
    message = refused(f"levels: [{', '.join(['{interval: 1h}'] * 9)}]")
    assert message.startswith("levels: must be at most 8 levels")


def test_every_field_of_the_model_can_be_set() -> None:
    plain = {field.name.replace("_", "-") for field in fields(Config)}
    assert plain - set(GLOBAL_KEYS) == {"source", "warnings", "inherited"}
    replica = {field.name.replace("_", "-") for field in fields(ReplicaConfig)}
    assert replica - set(REPLICA_KEYS) == {"options"}


# --- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replica", "top", "kind", "level"),
    [
        ("", "", "lz4", None),
        ("compression: zstd", "", "zstd", 3),
        ("compression: zstd, compression-level: 19", "", "zstd", 19),
        ("", "compression: zstd\ncompression-level: 7", "zstd", 7),
        ("compression-level: 5", "compression: zstd\ncompression-level: 7", "zstd", 5),
        # A replica's own word wins, and the level at the top is not meant for it then.
        ("compression: lz4", "compression: zstd\ncompression-level: 7", "lz4", None),
    ],
)
def test_compression(replica: str, top: str, kind: str, level: int | None) -> None:
    config = one(f"path: /x, replica: {{path: /r, {replica}}}", top)
    (entry,) = config.dbs
    assert (entry.replica.compression, entry.replica.compression_level) == (kind, level)
    assert entry.replica.zstd_level == level
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("replica", "message"),
    [
        ("compression: gzip", "must be lz4 or zstd"),
        ("compression: zstd, compression-level: 0", "must be from 1 to 22"),
        ("compression: zstd, compression-level: 23", "must be from 1 to 22"),
        ("compression: zstd, compression-level: fast", "must be an integer"),
        ("compression-level: 3", "lz4 has no levels"),
        ("compression: lz4, compression-level: 3", "lz4 has no levels"),
    ],
)
def test_wrong_compression(replica: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one(f"path: /x, replica: {{path: /r, {replica}}}")

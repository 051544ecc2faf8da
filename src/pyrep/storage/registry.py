"""The one place that turns a configured replica into a client."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import unquote_to_bytes, urlsplit

from pyrep.clock import Clock, SystemClock
from pyrep.errors import ConfigError
from pyrep.storage.base import ReplicaClient
from pyrep.storage.budget import NO_LIMITS, Budget, Limits
from pyrep.storage.file import FileReplicaClient
from pyrep.storage.host_url import parse_host_url, split_bucket
from pyrep.storage.limit import LimitedClient
from pyrep.storage.object_url import (
    ABS_PARAMETERS,
    GCS_PARAMETERS,
    OSS_PARAMETERS,
    parse_object_url,
)
from pyrep.storage.observe import ObservedClient, Operation
from pyrep.storage.retry import RetryingClient, RetryPolicy
from pyrep.storage.s3_url import parse_s3_url
from pyrep.storage.shared import Closeable, Shared

__all__ = ["ReplicaSpec", "ReplicaURL", "connect", "is_url", "parse_url", "registered"]

_IS_URL = re.compile(r"\w+://")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """Describe one tenant's replica: ``path`` or ``url``, and the keys of its type.

    A ``url`` decides the type; else ``type`` does; else it is ``file``.  ``limits`` hold for all
    who use the same endpoint with the same credential, together.
    """

    type: str = ""
    path: str = ""
    url: str | None = field(default=None, repr=False)
    options: Mapping[str, object] = field(default_factory=dict)
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class ReplicaURL:
    """Hold the parts of a replica URL that pyrep can use; ``path`` is decoded and cleaned."""

    scheme: str
    path: str


# A client and all who share its endpoint and credential use one budget: the given one if they
# are the first, who keep it with what else they share (by endpoint, credential and ``stop``).
Factory = Callable[[ReplicaSpec, Budget], ReplicaClient]


def is_url(text: str) -> bool:
    """Tell whether a text is meant as a URL: letters, digits or ``_``, then ``://``."""
    return _IS_URL.match(text) is not None


def parse_url(url: str) -> ReplicaURL:
    """Read a replica URL.

    :raises ConfigError: no scheme, one without a client, or a URL that names no place
    """
    if not is_url(url):
        raise ConfigError(f"replica url scheme required: {url}")
    scheme = url.partition("://")[0].lower()
    if scheme == "file":
        return ReplicaURL(scheme, _file_path(url))
    if scheme == "s3":
        return ReplicaURL(scheme, parse_s3_url(url).path)
    if scheme == "nats":
        return ReplicaURL(scheme, split_bucket(parse_host_url(url).path)[1])
    if scheme in ("sftp", "webdav", "webdavs"):
        return ReplicaURL(scheme.removesuffix("s"), parse_host_url(url).path)
    if scheme == "gs":
        return ReplicaURL(scheme, parse_object_url(scheme, url, parameters=GCS_PARAMETERS).path)
    if scheme == "oss":
        return ReplicaURL(scheme, parse_object_url(scheme, url, parameters=OSS_PARAMETERS).path)
    if scheme == "abs":
        parsed = parse_object_url(scheme, url, parameters=ABS_PARAMETERS, user_key="account-name")
        return ReplicaURL(scheme, parsed.path)
    raise ConfigError(f'unsupported replica URL scheme: "{scheme}"')


def connect(
    spec: ReplicaSpec,
    *,
    clock: Clock | None = None,
    stop: threading.Event | None = None,
    policy: RetryPolicy | None = None,
    observe: Callable[[Operation], None] | None = None,
) -> ReplicaClient:
    """Build the client of a replica, wrapped so that it retries temporary failures.

    ``observe`` is told of each attempt when it has ended.

    Nothing is read or written yet.  ``stop`` ends all waits: between attempts, and for a turn
    within the limits; only clients with the same ``stop`` share what an endpoint is given.

    :raises ConfigError: the replica cannot be built as configured
    """
    kind = parse_url(spec.url).scheme if spec.url else spec.type or "file"
    factory = _factories.get(kind)
    if factory is None:
        raise ConfigError(f'unknown replica type in config: "{kind}"')
    stop = stop if stop is not None else _NEVER
    client = factory(spec, Budget(clock=clock, stop=stop))
    if observe is not None:
        client = ObservedClient(client, clock or SystemClock(), observe)
    return RetryingClient(client, policy=policy, clock=clock, stop=stop)


@contextlib.contextmanager
def registered(kind: str, factory: Factory) -> Iterator[None]:
    """Make ``connect`` build another type inside a ``with`` block (tests only)."""
    if kind in _factories:
        raise ValueError(f"replica type {kind} is registered already")
    _factories[kind] = factory
    try:
        yield
    finally:
        del _factories[kind]


def _connect_file(spec: ReplicaSpec, budget: Budget) -> ReplicaClient:
    if spec.url and spec.path:
        raise ConfigError("cannot specify url & path for file replica")
    if is_url(spec.path):
        raise ConfigError(
            f"replica path cannot be a url: {spec.path}",
            hint="Use the key 'url' for it instead of 'path'.",
        )
    path = parse_url(spec.url).path if spec.url else spec.path
    if not path:
        raise ConfigError("file replica path required")
    if "\0" in path:
        raise ConfigError(f"file replica path has a NUL character: {path!r}")
    return _limited(FileReplicaClient(path), "file", "file", spec.limits, budget)


def _limited(
    client: ReplicaClient, endpoint: str, account: Hashable, limits: Limits, budget: Budget
) -> ReplicaClient:
    """Keep a client within limits that all of an account share; without any it is as it was."""
    if limits == NO_LIMITS:
        return client
    key, budget.endpoint = (account, budget.stop), endpoint
    shared = _budgets.acquire(key, lambda: budget)
    shared.tighten(limits)
    return LimitedClient(client, shared, release=lambda: _budgets.release(key))


def _connect_s3(spec: ReplicaSpec, budget: Budget) -> ReplicaClient:
    """Build a client on the session of its endpoint and credential, loaded at the first use."""
    from pyrep.storage.s3 import S3ReplicaClient
    from pyrep.storage.s3_config import s3_settings
    from pyrep.storage.s3_session import S3Session

    settings = s3_settings(url=spec.url, path=spec.path, options=spec.options, environ=os.environ)
    account = settings.account
    key = (account, budget.stop)
    session = cast(S3Session, _sessions.acquire(key, lambda: S3Session(account, budget)))
    session.budget.tighten(spec.limits)
    return S3ReplicaClient(settings, session, release=lambda: _sessions.release(key))


def _connect_sftp(spec: ReplicaSpec, budget: Budget) -> ReplicaClient:
    """Build a client on the connection of its server and user."""
    from pyrep.storage.sftp_config import sftp_settings

    settings = sftp_settings(url=spec.url, path=spec.path, options=spec.options)
    with _extra("sftp"):
        from pyrep.storage.sftp import SFTPReplicaClient
        from pyrep.storage.sftp_session import SFTPSession
    account = settings.account
    session = _sessions.acquire(account, lambda: SFTPSession(account))
    client = SFTPReplicaClient(
        settings, cast(SFTPSession, session), release=lambda: _sessions.release(account)
    )
    return _limited(client, f"sftp://{account.host}", account, spec.limits, budget)


def _connect_webdav(spec: ReplicaSpec, budget: Budget) -> ReplicaClient:
    """Build a client on the connections of its server and user."""
    from pyrep.storage.webdav import WebDAVReplicaClient
    from pyrep.storage.webdav_config import webdav_settings
    from pyrep.storage.webdav_session import WebDAVSession

    settings = webdav_settings(url=spec.url, path=spec.path, options=spec.options)
    account = settings.account
    key = (account, budget.stop)
    session = cast(WebDAVSession, _sessions.acquire(key, lambda: WebDAVSession(account, budget)))
    session.budget.tighten(spec.limits)
    return WebDAVReplicaClient(session, settings.path, release=lambda: _sessions.release(key))


def _connect_gs(spec: ReplicaSpec, budget: Budget) -> ReplicaClient:
    """Build a client on the session of its endpoint."""
    from pyrep.storage.gcs_config import gcs_settings

    settings = gcs_settings(url=spec.url, path=spec.path, options=spec.options, environ=os.environ)
    with _extra("gcs", kind="gs"):
        from pyrep.storage.gcs import GCSBucket
        from pyrep.storage.gcs_session import GCSSession
        from pyrep.storage.objects import ObjectReplicaClient
    account = settings.account
    key = (account, budget.stop)
    session = cast(GCSSession, _sessions.acquire(key, lambda: GCSSession(account, budget)))
    session.budget.tighten(spec.limits)
    bucket = GCSBucket(settings.bucket, session)
    return ObjectReplicaClient(bucket, settings.path, release=lambda: _sessions.release(key))


def _connect_nats(spec: ReplicaSpec, budget: Budget) -> ReplicaClient:
    """Build a client on the connection of its servers and account."""
    from pyrep.storage.nats_config import nats_settings

    settings = nats_settings(url=spec.url, path=spec.path, options=spec.options)
    with _extra("nats"):
        from pyrep.storage.nats import NATSReplicaClient
        from pyrep.storage.nats_session import NATSSession
    account = settings.account
    session = _sessions.acquire(account, lambda: NATSSession(account))
    client = NATSReplicaClient(
        settings, cast(NATSSession, session), release=lambda: _sessions.release(account)
    )
    return _limited(client, account.servers[0], account, spec.limits, budget)


def _connect_abs(spec: ReplicaSpec, budget: Budget) -> ReplicaClient:
    """Build a client on the session of its account and credential."""
    from pyrep.storage.abs import ABSContainer
    from pyrep.storage.abs_config import abs_settings
    from pyrep.storage.abs_session import ABSSession
    from pyrep.storage.objects import ObjectReplicaClient

    settings = abs_settings(url=spec.url, path=spec.path, options=spec.options, environ=os.environ)
    account = settings.account
    key = (account, budget.stop)
    session = cast(ABSSession, _sessions.acquire(key, lambda: ABSSession(account, budget)))
    session.budget.tighten(spec.limits)
    container = ABSContainer(settings.container, session)
    return ObjectReplicaClient(container, settings.path, release=lambda: _sessions.release(key))


def _connect_oss(spec: ReplicaSpec, budget: Budget) -> ReplicaClient:
    """Build a client of S3's kind on a session that speaks OSS."""
    from pyrep.storage.oss_config import oss_settings
    from pyrep.storage.oss_session import OSSSession
    from pyrep.storage.s3 import S3ReplicaClient

    account, settings = oss_settings(
        url=spec.url, path=spec.path, options=spec.options, environ=os.environ
    )
    key = (account, budget.stop)
    session = cast(OSSSession, _sessions.acquire(key, lambda: OSSSession(account, budget)))
    session.budget.tighten(spec.limits)
    return S3ReplicaClient(settings, session, release=lambda: _sessions.release(key))


@contextlib.contextmanager
def _extra(name: str, *, kind: str = "") -> Iterator[None]:
    """Turn a package that is missing into an error that names what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"replica type {kind or name} needs the package {error.name}, which is not installed",
            hint=f"Install it with: pip install 'pyrep[{name}]'",
        ) from error


def _file_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc:
        raise ConfigError(
            f"file replica url names a host: {url}",
            hint="Write three slashes before an absolute path: file:///path.",
        )
    if parts.query or parts.fragment or url[-1] in "?#":
        raise ConfigError(
            f"file replica url has a query or fragment: {url}",
            hint="Write %3F for a question mark and %23 for a hash sign in a path.",
        )
    if _BAD_ESCAPE.search(parts.path):
        raise ConfigError(
            f"file replica url has a bad escape: {url}",
            hint="Write %25 for a percent sign in a path.",
        )
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path:
        raise ConfigError("file replica path required")
    if "\0" in path:
        raise ConfigError(f"file replica path has a NUL character: {path!r}")
    return "/" + posixpath.normpath(path).lstrip("/")


_factories: dict[str, Factory] = {
    "abs": _connect_abs,
    "file": _connect_file,
    "gs": _connect_gs,
    "oss": _connect_oss,
    "nats": _connect_nats,
    "s3": _connect_s3,
    "sftp": _connect_sftp,
    "webdav": _connect_webdav,
}
# What the clients of one endpoint and credential have in common, whatever its type.
_sessions: Shared[Closeable] = Shared()
_budgets: Shared[Budget] = Shared()
_NEVER = threading.Event()

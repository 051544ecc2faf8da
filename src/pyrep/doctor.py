"""Find out what a storage can do, by doing it below a scratch path.

Everything goes through the protocol that replication uses.  Nothing outside the scratch path is
written, read or deleted, and nothing is left in it.
"""

from __future__ import annotations

import io
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from pyrep._ltx import FLAG_NO_CHECKSUM, HEADER_SIZE, Encoder, Header
from pyrep.config.paths import join_url
from pyrep.errors import (
    LTXCorruptError,
    LTXNotFoundError,
    PyrepError,
    ReplicaExistsError,
    ReplicaPermanentError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.layout import join_replica_path
from pyrep.storage.registry import ReplicaSpec

__all__ = ["CHECKS", "Finding", "examine", "scratch_spec"]

_PAGE_SIZE = 65536
_LARGE_PAGES = 144  # 9 MiB: more than any storage takes in one part
_WRITERS = 8
_ROUNDS = 3
# A time of day in 2001, so that none of the storage's own is taken for it.
_TIME_MS = 1_000_000_000_123


@dataclass(frozen=True, slots=True)
class Finding:
    """Say what a check found: ``result`` is ok, limited (it works, within a limit) or failed."""

    check: str
    result: str
    detail: str
    milliseconds: int
    hint: str = ""


class _LimitedError(Exception):
    """Carry what a storage does not guarantee."""


class _WrongError(Exception):
    """Carry what a storage answered wrongly."""


def scratch_spec(spec: ReplicaSpec) -> tuple[ReplicaSpec, str]:
    """Return a replica below another one's path that nobody has, and its name."""
    name = f".pyrep-doctor-{secrets.token_hex(8)}"
    if spec.url:
        return replace(spec, url=join_url(spec.url, name)), name
    return replace(spec, path=join_replica_path(spec.path, name)), name


def examine(client: ReplicaClient, name: str) -> Iterator[Finding]:
    """Yield a finding for each check, in order; the scratch path is emptied in the end.

    ``client`` is of :func:`scratch_spec`, ``name`` what that returned.  When files cannot even be
    written, the other checks are left out.

    :raises ReplicaPermanentError: the client's place is not the scratch path
    """
    if name not in client.url:
        raise ReplicaPermanentError(
            f"{client.url}: the storage has no place for a scratch path",
            hint="Check it with a replica whose path pyrep can choose.",
        )
    try:
        for title, check in CHECKS:
            finding = _run(title, check, client)
            yield finding
            if finding.result == "failed" and check in (_reach, _write):
                break
    finally:
        # Also what a check that failed has left; another failure is that of the check below.
        last = _run("clean up", _clean_up, client)
    yield last


def _run(title: str, check: Callable[[ReplicaClient], str], client: ReplicaClient) -> Finding:
    start = time.monotonic()
    hint = ""
    try:
        result, detail = "ok", check(client)
    except _LimitedError as error:
        result, detail = "limited", str(error)
    except _WrongError as error:
        result, detail = "failed", str(error)
    except PyrepError as error:
        result, detail, hint = "failed", str(error), error.hint
    return Finding(title, result, detail, round((time.monotonic() - start) * 1000), hint)


def _reach(client: ReplicaClient) -> str:
    _require(list(client.list_ltx(0)) == [], "a path that nobody has used is not empty")
    return "an unused path is empty"


def _write(client: ReplicaClient) -> str:
    sizes = [_put(client, txid).size for txid in (1, 2, 3, 0x10)]
    return f"{len(sizes)} files of {sizes[0]} bytes"


def _read(client: ReplicaClient) -> str:
    with client.open_ltx(_info(1)) as stream:
        _require(stream.read() == _file(1), "other bytes than were written")
    return "the same bytes"


def _ranges(client: ReplicaClient) -> str:
    data = _file(1)
    for offset, size in ((0, 100), (7, 50), (len(data) - 24, None)):
        with client.open_ltx(_info(1), offset, size) as stream:
            wanted = data[offset:] if size is None else data[offset : offset + size]
            _require(stream.read() == wanted, f"wrong bytes for {size} from {offset}")
    try:
        client.open_ltx(_info(1), len(data), 1).close()
    except LTXCorruptError:
        return "exact; one past the end is refused"
    raise _WrongError("a range past the end is no error")


def _missing(client: ReplicaClient) -> str:
    try:
        client.open_ltx(_info(99)).close()
    except LTXNotFoundError:
        return "a missing file is told from a failure"
    raise _WrongError("a file that is not there can be read")


def _listing(client: ReplicaClient) -> str:
    found = [int(info.min_txid) for info in client.list_ltx(0)]
    _require(found == [1, 2, 3, 16], f"files {found} instead of [1, 2, 3, 16]")
    found = [int(info.min_txid) for info in client.list_ltx(0, TXID(2))]
    _require(found == [2, 3, 16], f"files {found} from 2 on instead of [2, 3, 16]")
    return "complete, in order, from a TXID on"


def _times(client: ReplicaClient) -> str:
    times = {info.timestamp_ms for info in client.list_ltx(0, exact_times=True)}
    if times == {_TIME_MS}:
        return "kept to the millisecond"
    if all(abs(found - _TIME_MS) <= 1000 for found in times):
        raise _LimitedError("kept to the second: a restore by time is as exact as that")
    raise _WrongError("not kept: a restore by time finds the time of upload")


def _create_only(client: ReplicaClient) -> str:
    try:
        _put(client, 1, time_ms=_TIME_MS + 1, create_only=True)
    except ReplicaExistsError:
        _read(client)
        return "an existing file is kept"
    raise _WrongError("an existing file was overwritten: another writer goes unnoticed")


def _race(client: ReplicaClient) -> str:
    """Let several writers create the same file at once."""
    most, start = 0, threading.Barrier(_WRITERS)

    def created(txid: int, number: int) -> bool:
        start.wait()
        try:
            _put(client, txid, time_ms=_TIME_MS + number, create_only=True)
        except ReplicaExistsError:
            return False
        return True

    with ThreadPoolExecutor(_WRITERS, "pyrep-doctor") as pool:
        for txid in range(100, 100 + _ROUNDS):
            most = max(most, sum(pool.map(partial(created, txid), range(_WRITERS))))
    if most > 1:
        raise _LimitedError(
            f"{most} of {_WRITERS} writers at the same moment succeed: fencing is best effort"
        )
    if not client.capabilities.conditional_put:
        raise _LimitedError("the storage looks before it writes: fencing is best effort")
    return f"of {_WRITERS} writers at the same moment one succeeds"


def _replace(client: ReplicaClient) -> str:
    _put(client, 2, time_ms=_TIME_MS + 5)
    with client.open_ltx(_info(2)) as stream:
        _require(stream.read() == _file(2, _TIME_MS + 5), "the old bytes are still there")
    return "a reader sees the new file at once"


def _large(client: ReplicaClient) -> str:
    data = _file(1, pages=_LARGE_PAGES)
    info = client.write_ltx(9, TXID(1), TXID(1), io.BytesIO(data), create_only=True)
    middle = len(data) // 2
    with client.open_ltx(info, middle, 1000) as stream:
        _require(stream.read() == data[middle : middle + 1000], "wrong bytes in the middle")
    with client.open_ltx(info) as stream:
        _require(stream.read() == data, "other bytes than were written")
    return f"{len(data)} bytes, in parts where the storage has them"


def _search(client: ReplicaClient) -> str:
    _require("" in client.look_below().replicas, "its files are not found")
    return "a replica is found by looking for it (restore -all)"


def _delete(client: ReplicaClient) -> str:
    client.delete_ltx([_info(1), _info(3), _info(77)])
    found = [int(info.min_txid) for info in client.list_ltx(0) if info.min_txid < 20]
    _require(found == [2, 16], f"files {found} are left instead of [2, 16]")
    return "several at once; one that is missing is no error"


def _clean_up(client: ReplicaClient) -> str:
    client.delete_all()
    left = sum(1 for level in range(10) for _ in client.list_ltx(level))
    _require(left == 0, f"{left} files are left below {client.url}")
    return "nothing is left"


CHECKS: tuple[tuple[str, Callable[[ReplicaClient], str]], ...] = (
    ("reach", _reach),
    ("write", _write),
    ("read", _read),
    ("ranges", _ranges),
    ("missing file", _missing),
    ("list", _listing),
    ("times", _times),
    ("create only", _create_only),
    ("create race", _race),
    ("replace", _replace),
    ("large file", _large),
    ("search", _search),
    ("delete", _delete),
)


def _require(is_right: bool, otherwise: str) -> None:
    if not is_right:
        raise _WrongError(otherwise)


def _info(txid: int) -> FileInfo:
    return FileInfo(0, TXID(txid), TXID(txid))


def _put(
    client: ReplicaClient, txid: int, *, time_ms: int = _TIME_MS, create_only: bool = False
) -> FileInfo:
    source = io.BytesIO(_file(txid, time_ms))
    return client.write_ltx(0, TXID(txid), TXID(txid), source, create_only=create_only)


def _file(txid: int, time_ms: int = _TIME_MS, *, pages: int = 1) -> bytes:
    """Return an LTX file, the same for the same arguments."""
    page_size = _PAGE_SIZE if pages > 1 else 512
    header = Header(
        page_size=page_size,
        commit=pages,
        min_txid=txid,
        max_txid=txid,
        timestamp_ms=time_ms,
        flags=FLAG_NO_CHECKSUM,
        wal_offset=32,
    )
    encoder, rng = Encoder(header), random.Random(txid)
    out = bytearray(encoder.max_frame_size())
    body = bytearray(HEADER_SIZE)
    for pgno in range(1, pages + 1):
        body += memoryview(out)[: encoder.add_page(pgno, rng.randbytes(page_size), out)]
    head, tail = encoder.finish(0, 0)
    body[: len(head)] = head
    return bytes(body) + tail

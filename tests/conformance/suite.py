"""What every storage must do, as functions of a backend; ``CHECKS`` lists them.

A backend is little more than a way to open clients and to look at what is stored behind their
back.  ``test_replica_clients.py`` runs each check on each backend.
"""

from __future__ import annotations

import contextlib
import io
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Protocol, cast

import pytest

from fixtures.ltxbytes import build_ltx
from pyrep.errors import (
    LTXCorruptError,
    LTXNotFoundError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import MAX_TXID, SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import Below, ReplicaClient
from pyrep.storage.search import find_replicas

__all__ = ["CHECKS", "ODD_PATHS", "Backend", "listed", "put", "read"]

ODD_PATHS = [
    "",
    "a",
    "a b",
    "ab",
    "a/b",
    "a/b.db",
    " leading and trailing ",
    "100%",
    "%41",
    "what?x=1&y=2",
    "hash#tag",
    "plus+sign",
    "semi;colon,comma=equals",
    'it\'s "quoted" `here`',
    "back\\slash",
    "star*[brackets]{braces}$HOME",
    "emoji-\N{SNOWMAN}-\N{PILE OF POO}",
    "precomposed-\N{LATIN SMALL LETTER E WITH ACUTE}",
    "combining-e\N{COMBINING ACUTE ACCENT}",
    "\N{CJK UNIFIED IDEOGRAPH-6F22}\N{CJK UNIFIED IDEOGRAPH-5B57}/db",
    "-dash",
    ".hidden/..double",
    "0000000000000001-0000000000000001.ltx",
    "ltx/0",
]


class Backend(Protocol):
    """Open clients of replica paths, and see and plant objects without them."""

    def client(self, path: str = "tenant") -> ReplicaClient:
        """Return a new client of a replica path."""

    def objects(self) -> dict[str, bytes]:
        """Return everything that is stored, by name."""

    def plant(self, path: str, name: str, data: bytes) -> None:
        """Store an object below a replica path: ``name`` may be any, even an LTX name."""

    def name(self, path: str, info: FileInfo) -> str:
        """Return an object's name as ``objects`` has it."""


class _Source(io.RawIOBase):
    """Give bytes in small reads, without a way to seek, then end or fail."""

    def __init__(self, data: bytes, error: Exception | None = None, step: int = 70) -> None:
        self._data = io.BytesIO(data)
        self._error = error
        self._step = step

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = self._data.read(self._step if size < 0 else min(size, self._step))
        if not found and self._error is not None:
            raise self._error
        return found


class _Shrinking(io.BytesIO):
    """Promise more bytes than reading gives, as a file that is cut off meanwhile does."""

    def __init__(self, data: bytes, given: int) -> None:
        super().__init__(data)
        self._given = given

    def read(self, size: int | None = -1) -> bytes:
        left = self._given - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


def put(
    client: ReplicaClient,
    min_txid: int,
    max_txid: int | None = None,
    *,
    level: int = 0,
    data: bytes | None = None,
    create_only: bool = False,
) -> FileInfo:
    """Store a file, a small one that fits its name unless ``data`` is given."""
    max_txid = max_txid if max_txid is not None else min_txid
    data = data if data is not None else build_ltx(min_txid, max_txid)
    return client.write_ltx(
        level, TXID(min_txid), TXID(max_txid), io.BytesIO(data), create_only=create_only
    )


def read(client: ReplicaClient, info: FileInfo) -> bytes:
    """Return a whole file."""
    with client.open_ltx(info) as stream:
        return stream.read()


def listed(client: ReplicaClient, level: int = 0, seek: int = 0) -> list[FileInfo]:
    """Return a level's files with the times of their headers."""
    return list(client.list_ltx(level, TXID(seek), exact_times=True))


def _info(min_txid: int, max_txid: int | None = None, level: int = 0) -> FileInfo:
    return FileInfo(level, TXID(min_txid), TXID(max_txid if max_txid is not None else min_txid))


def _plant(backend: Backend, infos: Sequence[FileInfo]) -> None:
    """Store many small files of one replica without a client."""

    files = {
        backend.name("", info): build_ltx(info.min_txid, info.max_txid, pages={}) for info in infos
    }
    plant_many = getattr(backend, "plant_many", None)
    if plant_many is not None:
        plant_many("tenant", files)
        return
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: backend.plant("tenant", *item), files.items()))


def _places(infos: Sequence[FileInfo]) -> list[tuple[int, int]]:
    return [(int(info.min_txid), int(info.max_txid)) for info in infos]


def _stream(data: bytes, error: Exception | None = None) -> BinaryIO:
    return cast(BinaryIO, _Source(data, error))


def check_what_is_written_is_read(backend: Backend) -> None:
    client = backend.client()
    data = build_ltx(3, 7, timestamp_ms=1_700_000_000_123)
    info = put(client, 3, 7, level=1, data=data)
    assert info == FileInfo(1, TXID(3), TXID(7), len(data), 1_700_000_000_123)
    assert listed(client, 1) == [info]
    assert read(client, info) == data
    assert backend.objects() == {backend.name("tenant", info): data}


def check_another_client_sees_the_same(backend: Backend) -> None:
    info = put(backend.client(), 1)
    other = backend.client()
    assert listed(other) == [info]
    assert read(other, info) == build_ltx(1, 1)


def check_times_survive_to_the_millisecond(backend: Backend) -> None:
    client = backend.client()
    times = [0, 1, 999, 1_000, 1_700_000_000_001, 1_700_000_000_999, 4_102_444_799_999]
    for txid, time in enumerate(times, 1):
        assert put(client, txid, data=build_ltx(txid, txid, timestamp_ms=time)).timestamp_ms == time
    assert [info.timestamp_ms for info in listed(client)] == times


def check_a_source_is_read_from_its_offset_to_its_end(backend: Backend) -> None:
    client = backend.client()
    data = build_ltx(1, 1)
    source = io.BytesIO(b"before" + data)
    source.seek(6)
    info = client.write_ltx(0, TXID(1), TXID(1), source)
    assert read(client, info) == data
    assert source.read() == b""
    assert not source.closed


def check_a_source_need_not_seek(backend: Backend) -> None:
    client = backend.client()
    data = build_ltx(1, 1)
    info = client.write_ltx(0, TXID(1), TXID(1), _stream(data))
    assert info.size == len(data)
    assert read(client, info) == data


def check_a_large_file_is_stored_whole(backend: Backend) -> None:
    client = backend.client()
    data = build_ltx(1, 1) + random.Random(4).randbytes(3_500_000)
    info = put(client, 1, data=data)
    assert info.size == len(data)
    assert read(client, info) == data
    with client.open_ltx(info, 1_000_001, 2_000_003) as stream:
        assert stream.read() == data[1_000_001:3_000_004]


def check_a_failing_source_leaves_nothing(backend: Backend) -> None:
    client = backend.client()
    whole = build_ltx(1, 1)
    errors = [OSError("the source's disk"), ReplicaTemporaryError("the source's network")]
    for error in errors:
        for given in (0, 50, 100, 400, len(whole)):
            source = _stream(whole[:given], error)
            with pytest.raises(type(error), match="the source's"):
                client.write_ltx(0, TXID(1), TXID(1), source)
            assert list(client.list_ltx(0)) == []
            assert backend.objects() == {}


def check_a_failing_source_leaves_the_old_file(backend: Backend) -> None:
    client = backend.client()
    old, new = build_ltx(1, 1), build_ltx(1, 1, timestamp_ms=5)
    info = put(client, 1, data=old)
    source = _stream(new[:400], OSError("the source's disk"))
    with pytest.raises(OSError, match="the source's disk"):
        client.write_ltx(0, TXID(1), TXID(1), source)
    assert listed(client) == [info]
    assert backend.objects() == {backend.name("tenant", info): old}


def check_a_source_cut_short_is_refused(backend: Backend) -> None:
    client = backend.client()
    whole = build_ltx(1, 1)
    for given in (100, 400, len(whole) - 1):
        with pytest.raises(LTXCorruptError, match=f"source gave {given} of {len(whole)} bytes"):
            client.write_ltx(0, TXID(1), TXID(1), _Shrinking(whole, given))
    assert backend.objects() == {}


def check_only_ltx_files_are_stored(backend: Backend) -> None:
    client = backend.client()
    good = build_ltx(1, 1)
    bad = {
        "too short for an ltx header": good[:99],
        "source of 0 bytes": b"",
        "too short for an ltx file": good[:130],
        "not an ltx file": b"SQLite format 3\0" + good[16:],
        "header says transactions 0000000000000001 to 0000000000000002": build_ltx(1, 2),
        "header says transactions 0000000000000002": build_ltx(2, 2),
        "impossible time": build_ltx(1, 1, timestamp_ms=1 << 63),
    }
    for message, data in bad.items():
        with pytest.raises(LTXCorruptError, match=message) as caught:
            put(client, 1, data=data)
        found = caught.value
        assert (found.op, found.level, found.min_txid, found.max_txid) == ("write", 0, 1, 1)
        assert "0000000000000001-0000000000000001.ltx" in found.path
    assert backend.objects() == {}


def check_ranges_are_exact(backend: Backend) -> None:
    client = backend.client()
    data = build_ltx(1, 1)
    info, end = put(client, 1, data=data), len(data)
    ranges = [
        (0, None),
        (0, end),
        (0, 100),
        (100, 50),
        (end - 24, None),
        (end - 1, 1),
        (7, end - 7),
    ]
    for offset, size in ranges:
        with client.open_ltx(info, offset, size) as stream:
            wanted = data[offset:] if size is None else data[offset : offset + size]
            assert stream.read() == wanted, (offset, size)
            assert stream.read(1) == b""


def check_an_empty_range_is_empty(backend: Backend) -> None:
    client = backend.client()
    info = put(client, 1)
    for offset, size in [(0, 0), (5, 0), (info.size, 0), (info.size, None)]:
        with client.open_ltx(info, offset, size) as stream:
            assert stream.read() == b"", (offset, size)


def check_a_range_past_the_end_is_an_error(backend: Backend) -> None:
    client = backend.client()
    end = put(client, 1).size
    ranges = [(0, end + 1), (end - 1, 2), (end, 1), (end + 1, None), (end + 1, 0), (1 << 40, 1)]
    for offset, size in ranges:
        with pytest.raises(LTXCorruptError, match="past the end") as caught:
            client.open_ltx(_info(1), offset, size)
        assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (0, 1, 1)


def check_a_negative_range_is_an_error(backend: Backend) -> None:
    client = backend.client()
    info = put(client, 1)
    for offset, size in [(-1, None), (-1, 5), (0, -1)]:
        with pytest.raises(ReplicaPermanentError, match="negative range"):
            client.open_ltx(info, offset, size)


def check_streams_are_read_in_pieces(backend: Backend) -> None:
    client = backend.client()
    data = build_ltx(1, 1)
    info = put(client, 1, data=data)
    with client.open_ltx(info, 10) as stream:
        pieces = [stream.read(7) for _ in range(10)]
        rest = stream.read()
    assert b"".join(pieces) + rest == data[10:]
    assert [len(piece) for piece in pieces] == [7] * 10


def check_a_missing_file_is_not_found(backend: Backend) -> None:
    client = backend.client()
    for info in (_info(1), _info(1, 2, SNAPSHOT_LEVEL)):
        with pytest.raises(LTXNotFoundError, match="no such ltx file") as caught:
            client.open_ltx(info)
        assert info.name in caught.value.path
        assert (caught.value.level, caught.value.min_txid) == (info.level, info.min_txid)
    put(client, 1)
    with pytest.raises(LTXNotFoundError):
        client.open_ltx(_info(1, level=1))
    with pytest.raises(LTXNotFoundError):
        client.open_ltx(_info(1, 2))


def check_an_empty_replica_lists_nothing(backend: Backend) -> None:
    client = backend.client()
    for level in range(SNAPSHOT_LEVEL + 1):
        assert list(client.list_ltx(level)) == []
    assert backend.objects() == {}


def check_many_files_are_listed_in_order(backend: Backend) -> None:
    client = backend.client()
    places = [(txid, txid) for txid in range(2, 5_002, 2)]
    random.Random(9).shuffle(places)
    _plant(backend, [_info(low, high) for low, high in places])
    places.sort()
    found = list(client.list_ltx(0))
    assert len(found) == 2_500
    assert _places(found) == places
    assert {info.size for info in found} == {len(build_ltx(2, 2, pages={}))}
    for seek in (0, 1, 2, 3, 2_000, 2_001, 4_999, 5_000, 5_001, MAX_TXID):
        wanted = [place for place in places if place[0] >= seek]
        assert _places(list(client.list_ltx(0, TXID(seek)))) == wanted, seek


def check_order_is_by_number_then_by_range(backend: Backend) -> None:
    client = backend.client()
    places = [(1, 1), (1, 9), (1, 16), (2, 3), (9, 9), (10, 10), (16, 16), (255, 4096), (256, 256)]
    for low, high in reversed(places):
        put(client, low, high, level=2)
    assert _places(list(client.list_ltx(2))) == places
    assert _places(list(client.list_ltx(2, TXID(10)))) == places[5:]


def check_the_largest_transaction_ids(backend: Backend) -> None:
    client = backend.client()
    info = put(client, MAX_TXID - 1, MAX_TXID)
    assert info.name == "fffffffffffffffe-ffffffffffffffff.ltx"
    assert listed(client, 0, MAX_TXID - 1) == [info]
    assert list(client.list_ltx(0, TXID(MAX_TXID))) == []
    assert read(client, info) == build_ltx(MAX_TXID - 1, MAX_TXID)


def check_levels_are_apart(backend: Backend) -> None:
    client = backend.client()
    for level in range(SNAPSHOT_LEVEL + 1):
        put(client, level + 1, level + 10, level=level)
    for level in range(SNAPSHOT_LEVEL + 1):
        (info,) = client.list_ltx(level)
        assert (info.level, info.min_txid) == (level, level + 1)
    client.delete_ltx([_info(4, 13, level=3)])
    assert [len(list(client.list_ltx(level))) for level in range(10)] == [1, 1, 1, 0] + [1] * 6


def check_places_that_cannot_be_are_refused(backend: Backend) -> None:
    client = backend.client()
    data = io.BytesIO(build_ltx(1, 1))
    for level in (-1, 10, 16, 1 << 20):
        match = f"level {level} is not one of 0 to 9"
        with pytest.raises(ReplicaPermanentError, match=match):
            client.list_ltx(level)
        with pytest.raises(ReplicaPermanentError, match=match):
            client.open_ltx(_info(1, level=level))
        with pytest.raises(ReplicaPermanentError, match=match):
            client.write_ltx(level, TXID(1), TXID(1), data)
        with pytest.raises(ReplicaPermanentError, match=match):
            client.delete_ltx([_info(1, level=level)])
    for low, high in [(0, 0), (0, 1), (2, 1), (1, MAX_TXID + 1)]:
        with pytest.raises(ReplicaPermanentError, match="no ltx file can hold"):
            client.write_ltx(0, TXID(low), TXID(high), data)
    assert backend.objects() == {}
    assert data.tell() == 0


def check_odd_paths_are_kept_apart(backend: Backend) -> None:
    for number, path in enumerate(ODD_PATHS, 1):
        put(backend.client(path), number)
    assert len(backend.objects()) == len(ODD_PATHS)
    for number, path in enumerate(ODD_PATHS, 1):
        client = backend.client(path)
        (info,) = client.list_ltx(0)
        assert info.min_txid == number, path
        assert read(client, info) == build_ltx(number, number), path
        client.delete_ltx([info])
        assert list(client.list_ltx(0)) == []
    assert backend.objects() == {}


FOREIGN = [
    "README",
    "lock.json",
    "ltx/notes.txt",
    "ltx/0/0000000000000001-0000000000000001.ltx.tmp",
    "ltx/0/0000000000000001-0000000000000001.LTX",
    "ltx/0/000000000000000A-000000000000000A.ltx",
    "ltx/0/0000000000000002-0000000000000001.ltx",
    "ltx/0/0000000000000000-0000000000000001.ltx",
    "ltx/0/1-1.ltx",
    "ltx/0/deeper/0000000000000001-0000000000000001.ltx",
    "ltx/10/0000000000000001-0000000000000001.ltx",
    "ltx/00/0000000000000001-0000000000000001.ltx",
    "ltx/x/0000000000000001-0000000000000001.ltx",
    "ltx/0000000000000001-0000000000000001.ltx",
    "0/0000000000000001-0000000000000001.ltx",
    "000a/0000000000000001-0000000000000001.ltx",
    "00/0000000000000001-0000000000000001.ltx",
    "0000/0000000000000001-0000000000000001.ltx.tmp",
    "0000/1-1.ltx",
    "0000/deeper/0000000000000001-0000000000000001.ltx",
    "generations/0123456789abcdef/snapshots/00000000.snapshot.lz4",
]


def check_foreign_objects_are_ignored_and_kept(backend: Backend) -> None:
    client = backend.client()
    for name in FOREIGN:
        backend.plant("tenant", name, b"not ours")
    planted = backend.objects()
    assert len(planted) == len(FOREIGN)
    info = put(client, 1)
    assert [listed(client, level) for level in range(10)] == [[info]] + [[]] * 9
    client.delete_ltx([info, _info(1, level=1)])
    assert backend.objects() == planted
    put(client, 1)
    client.delete_all()
    assert backend.objects() == planted


def check_deleting_what_is_missing_succeeds(backend: Backend) -> None:
    client = backend.client()
    client.delete_ltx([])
    client.delete_ltx([_info(1), _info(1, 2, 9)])
    kept = put(client, 2)
    client.delete_ltx([_info(1), put(client, 3), _info(4)])
    assert listed(client) == [kept]


def check_many_files_are_deleted(backend: Backend) -> None:
    client = backend.client()
    infos = [_info(txid) for txid in range(1, 1_205)]
    _plant(backend, infos)
    client.delete_ltx(infos[:-2])
    assert _places(list(client.list_ltx(0))) == [(1_203, 1_203), (1_204, 1_204)]


def check_delete_all_is_of_one_replica(backend: Backend) -> None:
    paths = ["tenant", "tenant/below", "tenant2", "ten", ""]
    for path in paths:
        for level in (0, 1, SNAPSHOT_LEVEL):
            put(backend.client(path), 1, level=level)
    client = backend.client("tenant")
    client.delete_all()
    client.delete_all()
    for path in paths:
        left = [info for level in range(10) for info in backend.client(path).list_ltx(level)]
        assert len(left) == (0 if path == "tenant" else 3), path
    info = put(client, 5)
    assert listed(client) == [info]


def check_a_write_replaces(backend: Backend) -> None:
    client = backend.client()
    put(client, 1)
    data = build_ltx(1, 1, timestamp_ms=77, pages={1: bytes(512), 2: bytes(512)}, commit=2)
    info = put(client, 1, data=data)
    assert put(client, 1, data=data) == info
    assert listed(client) == [info]
    assert backend.objects() == {backend.name("tenant", info): data}


def check_create_only_never_replaces(backend: Backend) -> None:
    client = backend.client()
    first = build_ltx(1, 1)
    info = put(client, 1, data=first, create_only=True)
    for data in (first, build_ltx(1, 1, timestamp_ms=5)):
        for other in (client, backend.client()):
            with pytest.raises(ReplicaExistsError, match="already there") as caught:
                put(other, 1, data=data, create_only=True)
            assert info.name in str(caught.value)
    assert listed(client) == [info]
    assert backend.objects() == {backend.name("tenant", info): first}
    client.delete_ltx([info])
    assert put(client, 1, data=first, create_only=True) == info


def check_one_of_many_creators_wins(backend: Backend) -> None:
    shared = backend.client()
    threads = 16
    for txid in range(1, 6):
        barrier = threading.Barrier(threads)

        def create(number: int, txid: int = txid, barrier: threading.Barrier = barrier) -> bool:
            client = shared if number % 2 else backend.client()
            data = build_ltx(txid, txid, timestamp_ms=number + 1)
            barrier.wait()
            try:
                put(client, txid, data=data, create_only=True)
            except ReplicaExistsError:
                return False
            return True

        with ThreadPoolExecutor(threads) as pool:
            winners = [number for number, won in enumerate(pool.map(create, range(threads))) if won]
        assert len(winners) == 1
        wanted = build_ltx(txid, txid, timestamp_ms=winners[0] + 1)
        assert read(shared, _info(txid)) == wanted
    assert len(backend.objects()) == 5


def check_one_client_serves_many_threads(backend: Backend) -> None:
    client = backend.client()

    def work(number: int) -> int:
        for step in range(6):
            txid = number * 100 + step + 1
            data = build_ltx(txid, txid)
            info = put(client, txid, data=data, create_only=True)
            assert read(client, info) == data
            assert info in listed(client, 0, txid)
            if step % 2:
                client.delete_ltx([info])
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    wanted = [(number * 100 + step + 1,) * 2 for number in range(8) for step in (0, 2, 4)]
    assert _places(list(client.list_ltx(0))) == wanted


def check_readers_never_see_a_part(backend: Backend) -> None:
    client, reader = backend.client(), backend.client()
    done = threading.Event()
    # NATS deletes what is replaced under its readers, and says so
    told = (ReplicaTemporaryError,) if reader.scheme == "nats" else ()
    tail = random.Random(5).randbytes(300_000)
    versions = [build_ltx(1, 1, timestamp_ms=time) + tail * time for time in (1, 2)]

    def write() -> None:
        for turn in range(20):
            put(client, 1, data=versions[turn % 2])
        done.set()

    def look() -> int:
        seen = 0
        while not done.is_set() or not seen:
            for info in reader.list_ltx(0):
                with contextlib.suppress(*told):
                    assert read(reader, info) in versions
                    assert info.size in (len(versions[0]), len(versions[1]))
                    seen += 1
        return seen

    with ThreadPoolExecutor(2) as pool:
        writing, looking = pool.submit(write), pool.submit(look)
        writing.result()
        assert looking.result() > 0


def check_replicas_below_are_found(backend: Backend) -> None:
    # Some are named like parts of a layout, some lie below others.
    odd = {path for path in ODD_PATHS if path}
    odd |= {"0000", "0003/0009", "ltx", "ltx/9/ltx", "a/b/c/d", "9"}
    for path in sorted(odd):
        put(backend.client(f"base/{path}"), 1)
    put(backend.client("base-not/x"), 1)
    put(backend.client("other"), 1)
    backend.plant("base/strange", "notes.txt", b"?")
    backend.plant("base/strange/0000", "0000000000000001.ltx", b"?")
    backend.plant("base/strange/ltx/0", "tmp-0000000000000001-0000000000000001.ltx", b"?")
    backend.plant("base/strange", "ltx/99/0000000000000001-0000000000000001.ltx", b"?")
    backend.plant("base/strange", "0011/0000000000000001-0000000000000001.ltx", b"?")
    found = find_replicas(backend.client("base"))
    assert set(found.replicas) == odd
    assert found.failures == ()
    assert find_replicas(backend.client("base/a/b")).replicas == ("", "c/d")


def check_a_replica_has_others_below_it(backend: Backend) -> None:
    for path in ("base", "base/x", "base/x/y/z"):
        put(backend.client(path), 1, level=9)
        put(backend.client(path), 1, level=2)
    assert find_replicas(backend.client("base")).replicas == ("", "x", "x/y/z")


def check_nothing_below_is_no_error(backend: Backend) -> None:
    assert backend.client("empty").look_below() == Below()
    assert backend.client("empty").look_below("far/below") == Below()
    put(backend.client("emptied"), 1)
    backend.client("emptied").delete_all()
    assert find_replicas(backend.client("emptied")).replicas == ()


def check_without_a_path_all_are_found(backend: Backend) -> None:
    for path in ("x.db", "team/y.db", "0000"):
        put(backend.client(path), 1)
    assert find_replicas(backend.client("")).replicas == ("0000", "team/y.db", "x.db")
    put(backend.client(""), 1)
    assert find_replicas(backend.client("")).replicas == ("", "0000", "team/y.db", "x.db")


def check_a_closed_client_is_closed(backend: Backend) -> None:
    client = backend.client()
    info = put(client, 1)
    client.close()
    client.close()
    calls: list[Callable[[], object]] = [
        lambda: client.list_ltx(0),
        lambda: client.open_ltx(info),
        lambda: put(client, 2),
        lambda: client.delete_ltx([info]),
        client.delete_all,
        client.look_below,
    ]
    for call in calls:
        with pytest.raises(ReplicaPermanentError, match="closed"):
            call()
    assert listed(backend.client()) == [info]


def check_a_client_describes_itself(backend: Backend) -> None:
    client = backend.client("team a/db#1")
    assert client.url.startswith(f"{client.scheme}://")
    assert "team" in client.url
    assert client.capabilities.connections >= 1


CHECKS = [check for name, check in sorted(globals().items()) if name.startswith("check_")]

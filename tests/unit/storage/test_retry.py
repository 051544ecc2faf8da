"""Patience of the retrying client, on a clock that does not wait."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

import pytest

from fixtures.ltxbytes import build_ltx
from pyrep.errors import (
    LTXNotFoundError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import NO_TXID
from pyrep.storage.memory import MemoryReplicaClient
from pyrep.storage.retry import RetryingClient, RetryPolicy


class FakeClock:
    """Note the waits instead of waiting; ``on_wait`` runs during each."""

    def __init__(self, on_wait: Callable[[], None] = lambda: None) -> None:
        self.waits: list[float] = []
        self._on_wait = on_wait

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return sum(self.waits)

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self._on_wait()
        return event.is_set()


class Script:
    """Fail the calls of one step as listed: an error is raised, None passes."""

    def __init__(self, step: str, *results: Exception | None) -> None:
        self._step = step
        self._results = list(results)
        self.calls = 0

    def __call__(self, op: str, info: FileInfo | None) -> None:
        if op != self._step:
            return
        self.calls += 1
        result = self._results.pop(0) if self._results else None
        if result is not None:
            raise result


BUSY = ReplicaTemporaryError("busy")


def retrying(script: Script, **settings: Any) -> tuple[RetryingClient, FakeClock]:
    clock = settings.pop("clock", None) or FakeClock()
    settings.setdefault("policy", RetryPolicy(attempts=4, base=1.0, cap=60.0))
    client = MemoryReplicaClient(faults=script)
    return RetryingClient(client, clock=clock, rng=random.Random(1), **settings), clock


def write(client: RetryingClient, source: BinaryIO | None = None) -> FileInfo:
    source = source if source is not None else io.BytesIO(build_ltx(1, 1))
    return client.write_ltx(0, TXID(1), TXID(1), source, create_only=True)


def test_temporary_failures_are_retried() -> None:
    script = Script("write", BUSY, BUSY)
    client, clock = retrying(script)
    info = write(client)
    assert script.calls == 3
    assert len(clock.waits) == 2
    assert client.open_ltx(info).read() == build_ltx(1, 1)


def test_waits_grow_with_jitter_up_to_the_cap() -> None:
    script = Script("list", *[BUSY] * 9)
    client, clock = retrying(script, policy=RetryPolicy(attempts=10, base=1.0, cap=8.0))
    client.list_ltx(0)
    for wait, full in zip(clock.waits, [1, 2, 4, 8, 8, 8, 8, 8, 8], strict=True):
        assert full / 2 <= wait <= full
    assert len(set(clock.waits[3:])) == 6


def test_attempts_are_counted() -> None:
    script = Script("write", *[BUSY] * 9)
    client, clock = retrying(script)
    with pytest.raises(ReplicaTemporaryError, match="busy"):
        write(client)
    assert script.calls == 4
    assert len(clock.waits) == 3


def test_a_stop_ends_the_wait() -> None:
    stop = threading.Event()
    script = Script("write", *[BUSY] * 9)
    client, clock = retrying(script, stop=stop, clock=FakeClock(on_wait=stop.set))
    with pytest.raises(ReplicaTemporaryError, match="busy"):
        write(client)
    assert (script.calls, len(clock.waits)) == (1, 1)
    with pytest.raises(ReplicaTemporaryError, match="busy"):
        write(client)
    assert (script.calls, len(clock.waits)) == (2, 1)


@pytest.mark.parametrize(
    "error", [ReplicaPermanentError("no"), LTXNotFoundError("no"), OSError("no")]
)
def test_other_errors_are_not_retried(error: Exception) -> None:
    script = Script("write", error)
    client, clock = retrying(script)
    with pytest.raises(type(error), match="no"):
        write(client)
    assert (script.calls, clock.waits) == (1, [])


def test_a_source_is_rewound_to_where_it_was() -> None:
    source = io.BytesIO(b"before" + build_ltx(1, 1))
    source.seek(6)
    calls: list[int] = []

    class Reading(MemoryReplicaClient):
        def write_ltx(self, *args: Any, **kwargs: Any) -> FileInfo:
            calls.append(source.tell())
            if len(calls) < 3:
                source.read(100)
                raise BUSY
            return super().write_ltx(*args, **kwargs)

    client = RetryingClient(Reading(), clock=FakeClock())
    assert client.open_ltx(write(client, source)).read() == build_ltx(1, 1)
    assert calls == [6, 6, 6]


def test_a_source_that_cannot_seek_is_given_once() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    script = Script("write", BUSY)
    client, clock = retrying(script)
    with pytest.raises(ReplicaTemporaryError, match="busy"):
        write(client, Pipe(build_ltx(1, 1)))
    assert (script.calls, clock.waits) == (1, [])


def test_a_lost_answer_shows_as_an_existing_file() -> None:
    client, clock = retrying(Script("write-answer", BUSY))
    with pytest.raises(ReplicaExistsError):
        write(client)
    assert len(clock.waits) == 1
    (info,) = client.list_ltx(0)
    assert client.open_ltx(info).read() == build_ltx(1, 1)


def test_deletes_are_retried() -> None:
    for step in ("delete", "delete_all"):
        script = Script(step, BUSY)
        client, _ = retrying(script)
        info = write(client)
        client.delete_ltx([info]) if step == "delete" else client.delete_all()
        assert script.calls == 2
        assert list(client.list_ltx(0)) == []


def test_opening_is_retried() -> None:
    script = Script("open", BUSY, None, LTXNotFoundError("gone"))
    client, _ = retrying(script)
    info = write(client)
    with client.open_ltx(info, 5, 50) as stream:
        assert stream.read() == build_ltx(1, 1)[5:55]
    with pytest.raises(LTXNotFoundError, match="gone"):
        client.open_ltx(info)
    assert script.calls == 3


class _Breaking(io.RawIOBase):
    """Give some bytes, then fail."""

    def __init__(self, data: bytes, error: Exception) -> None:
        super().__init__()
        self._data = io.BytesIO(data)
        self._error = error

    def read(self, size: int = -1) -> bytes:
        found = self._data.read(size)
        if not found:
            raise self._error
        return found


class _BreakingClient(MemoryReplicaClient):
    """Break every stream after ``given`` bytes, or fail to open at all from the n-th time."""

    def __init__(self, given: int, error: Exception = BUSY) -> None:
        super().__init__()
        self.given = given
        self.error = error
        self.opened: list[tuple[int, int | None]] = []

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        self.opened.append((offset, size))
        data = super().open_ltx(info, offset, size).read()
        if len(data) <= self.given:
            return io.BytesIO(data)
        return cast(BinaryIO, _Breaking(data[: self.given], self.error))


@pytest.mark.parametrize(("offset", "size"), [(0, None), (10, None), (10, 500), (0, 100), (0, 0)])
def test_reads_go_on_where_they_broke_off(offset: int, size: int | None) -> None:
    inner = _BreakingClient(given=123)
    client = RetryingClient(inner, clock=FakeClock(), policy=RetryPolicy(attempts=2))
    info = write(client)
    with client.open_ltx(info, offset, size) as stream:
        wanted = build_ltx(1, 1)[offset:]
        assert stream.read(10_000) == (wanted if size is None else wanted[:size])
    end = None if size is None else offset + size
    for start, length in inner.opened:
        assert (start - offset) % 123 == 0
        assert length == (None if end is None else end - start)


def test_reads_that_never_advance_end() -> None:
    inner = _BreakingClient(given=0)
    clock = FakeClock()
    client = RetryingClient(inner, clock=clock, policy=RetryPolicy(attempts=3))
    info = write(client)
    with pytest.raises(ReplicaTemporaryError, match="busy"), client.open_ltx(info) as stream:
        stream.read()
    assert (len(inner.opened), len(clock.waits)) == (3, 2)


def test_a_broken_read_of_another_kind_goes_up() -> None:
    inner = _BreakingClient(given=10, error=ReplicaPermanentError("revoked"))
    client = RetryingClient(inner, clock=FakeClock())
    info = write(client)
    with (
        pytest.raises(ReplicaPermanentError, match="revoked"),
        client.open_ltx(info) as stream,
    ):
        stream.read()
    assert len(inner.opened) == 1


class _BreakingList(MemoryReplicaClient):
    """Break every listing after ``given`` files."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.given = given
        self.seeks: list[int] = []

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        self.seeks.append(int(seek))
        return self._broken(list(super().list_ltx(level, seek, exact_times=exact_times)))

    def _broken(self, infos: Sequence[FileInfo]) -> Iterator[FileInfo]:
        yield from infos[: self.given]
        if len(infos) > self.given:
            raise BUSY


def test_listings_go_on_where_they_broke_off() -> None:
    inner = _BreakingList(given=3)
    client = RetryingClient(inner, clock=FakeClock(), policy=RetryPolicy(attempts=2))
    places = [(1, 1), (2, 2), (2, 3), (4, 4), (5, 5), (6, 9), (7, 7), (8, 8)]
    for low, high in places:
        client.write_ltx(1, TXID(low), TXID(high), io.BytesIO(build_ltx(low, high)))
    found = [(int(info.min_txid), int(info.max_txid)) for info in client.list_ltx(1, TXID(2))]
    assert found == places[1:]
    assert inner.seeks == [2, 4, 6]


def test_listings_that_never_advance_end() -> None:
    inner = _BreakingList(given=0)
    clock = FakeClock()
    client = RetryingClient(inner, clock=clock, policy=RetryPolicy(attempts=3))
    write(client)
    with pytest.raises(ReplicaTemporaryError, match="busy"):
        list(client.list_ltx(0, TXID(1)))
    assert inner.seeks == [1, 1, 1]
    assert len(clock.waits) == 2


def test_the_wrapped_client_shows() -> None:
    inner = MemoryReplicaClient(path="a")
    client = RetryingClient(inner)
    assert (client.scheme, client.url) == ("memory", "memory://a")
    assert client.capabilities is inner.capabilities
    client.close()
    with pytest.raises(ReplicaPermanentError, match="closed"):
        inner.list_ltx(0)

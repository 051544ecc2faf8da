"""Reading objects: sizes, broken connections, order and bounds of reading ahead."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyrep.errors import (
    LTXCorruptError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
    ShutdownInterruptedError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.source import RETRY_DELAYS, Source, in_order, list_files
from pyrep.storage.memory import MemoryReplicaClient

DATA = bytes(range(256)) * 2000


class Clock:
    """Count waits instead of waiting."""

    def __init__(self):
        self.waits = []

    def monotonic(self):
        return 0.0

    def wait(self, event, timeout):
        self.waits.append(timeout)
        return event.is_set()


class Dropping(io.RawIOBase):
    """Give at most some bytes, then the error; nothing else."""

    def __init__(self, data, limit, error):
        self.data, self.limit, self.error, self.at = data, limit, error, 0

    def readable(self):
        return True

    def read(self, size=-1):
        if self.at >= self.limit and self.error is not None:
            raise self.error
        piece = self.data[self.at : min(self.at + size, self.limit)]
        self.at += len(piece)
        return piece


class Client:
    """Serve one object; ``streams`` makes the stream of each open from its offset."""

    url = "test://replica"

    def __init__(self, make):
        self.make = make
        self.opens = []

    def open_ltx(self, info, offset=0, size=None):
        self.opens.append((offset, size))
        return self.make(len(self.opens), offset, size)


def info(size=512_000):
    return FileInfo(1, TXID(2), TXID(5), size)


def source(make, cancel=None):
    counted = []
    made = Source(Client(make), Clock(), cancel or threading.Event(), counted.append)
    made.counted = counted
    return made


def whole(_n, offset, size):
    return io.BytesIO(DATA[offset : None if size is None else offset + size])


def test_a_whole_object_is_read_and_counted():
    made = source(whole)
    assert made.read(info()) == DATA
    assert sum(made.counted) == len(DATA)
    assert made.client.opens == [(0, None)]


def test_a_range_is_read_and_its_end_is_not_the_objects():
    made = source(whole)
    with made.open_range(info(), 1000, 70_000) as stream:
        assert stream.read() == DATA[1000:71_000]
    assert made.client.opens == [(1000, 70_000)]


def test_a_dropped_connection_is_resumed_where_it_broke():
    def make(n, offset, size):
        return Dropping(DATA[offset:], 100_000, ReplicaTemporaryError("reset") if n < 6 else None)

    made = source(make)
    assert made.read(info()) == DATA
    assert [offset for offset, _ in made.client.opens] == [n * 100_000 for n in range(6)]
    assert made.clock.waits == [RETRY_DELAYS[0]] * 5  # each time bytes had come in between
    assert sum(made.counted) == len(DATA)


def test_without_progress_the_error_is_given_up_to():
    def make(n, offset, size):
        raise ReplicaTemporaryError("no route")

    made = source(make)
    with pytest.raises(ReplicaTemporaryError, match="no route"):
        made.read(info())
    assert made.clock.waits == list(RETRY_DELAYS)
    assert len(made.client.opens) == len(RETRY_DELAYS) + 1


def test_a_permanent_error_is_not_tried_again():
    def make(n, offset, size):
        raise ReplicaPermanentError("forbidden")

    made = source(make)
    with pytest.raises(ReplicaPermanentError):
        made.read(info())
    assert made.clock.waits == []


def test_an_early_end_is_tried_again():
    def make(n, offset, size):
        return io.BytesIO(DATA[offset : 5000 if n == 1 else None])

    assert source(make).read(info()) == DATA


def test_a_short_object_is_an_error():
    made = source(lambda n, offset, size: io.BytesIO(DATA[offset:5000]))
    with pytest.raises(LTXCorruptError) as caught:
        made.read(info())
    assert str(caught.value) == (
        "test://replica level 1 0000000000000002-0000000000000005.ltx: "
        "the object ends after 5000 of 512000 listed bytes"
    )


def test_a_long_object_is_an_error():
    made = source(lambda n, offset, size: io.BytesIO(DATA + b"x"))
    with pytest.raises(LTXCorruptError, match="longer than the 512000 listed bytes"):
        made.read(info())


def test_a_connection_that_breaks_after_the_last_byte_does_no_harm():
    made = source(lambda n, offset, size: Dropping(DATA, len(DATA), ReplicaTemporaryError("reset")))
    assert made.read(info()) == DATA


@pytest.mark.parametrize("size", [0, 1, 130])
def test_a_listed_size_that_no_file_can_have(size):
    with pytest.raises(LTXCorruptError, match=f"only {size} bytes are listed"):
        source(whole).check_size(info(size))


def test_cancel_ends_a_read_and_a_wait():
    cancel = threading.Event()

    def make(n, offset, size):
        cancel.set()
        return Dropping(DATA, 10, ReplicaTemporaryError("reset"))

    with pytest.raises(ShutdownInterruptedError, match="reading was interrupted"):
        source(make, cancel).read(info())


def test_streams_are_closed():
    opened = []

    def make(n, offset, size):
        opened.append(whole(n, offset, size))
        return opened[-1]

    made = source(make)
    with made.open(info()) as stream:
        stream.read(10)
    assert opened[0].closed


def test_in_order_keeps_the_order_and_its_bounds():
    running, most, lock = [0], [0], threading.Lock()
    taken = []

    def call(item):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.001 * (item % 3))
        with lock:
            running[0] -= 1
        return item * 2

    def items():
        for n in range(40):
            assert n - len(taken) <= 5
            yield n

    with ThreadPoolExecutor(8) as pool:
        for item, result in in_order(pool, call, items(), ahead=5):
            taken.append((item, result))
    assert taken == [(n, 2 * n) for n in range(40)]
    assert most[0] <= 5


def test_in_order_bounds_the_cost_and_lets_one_large_item_through():
    begun = []
    with ThreadPoolExecutor(1) as pool:
        results = in_order(
            pool, begun.append, [1, 100, 3, 4, 5], ahead=9, cost=lambda n: n, budget=8
        )
        assert [item for item, _ in results] == [1, 100, 3, 4, 5]
    assert begun == [1, 100, 3, 4, 5]


def test_in_order_raises_at_the_item_and_cancels_the_rest():
    done = []

    def call(item):
        if item == 2:
            raise ReplicaPermanentError("two")
        return item

    def run():
        for item, _ in in_order(pool, call, range(100), ahead=4):
            done.append(item)

    with ThreadPoolExecutor(1) as pool, pytest.raises(ReplicaPermanentError, match="two"):
        run()
    assert done == [0, 1]


def test_levels_are_listed_from_zero_up():
    seen = []
    client = MemoryReplicaClient()
    levels = client.list_ltx

    def list_ltx(level, **more):
        seen.append(level)
        return levels(level, **more)

    client.list_ltx = list_ltx
    assert list_files(client) == []
    assert seen == list(range(10))

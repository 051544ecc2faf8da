"""The fault proxy passes bytes on unchanged, and breaks what it is told to break."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from fixtures.effort import wait_until
from fixtures.fault_proxy import Fault, TCPProxy, seeded

DATA = random.Random(4).randbytes(300_000)


@pytest.fixture
def echo() -> Iterator[int]:
    """Return the port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                connection, _ = server.accept()
                threading.Thread(target=_echo, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        stop.set()
        socket.create_connection(server.getsockname()).close()
        thread.join()


def _echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return  # the proxy cut it


def talk(port: int, data: bytes) -> bytes:
    """Send and return the answer; shorter if the connection ended, by a reset or not."""
    found = bytearray()
    try:
        sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    except ConnectionError:  # a reset can be as quick as that
        return b""
    with sock:
        sender = threading.Thread(target=_send, args=(sock, data))
        sender.start()
        try:
            while len(found) < len(data) and (piece := sock.recv(65536)):
                found += piece
        except ConnectionError:
            pass
        finally:
            sender.join()
    return bytes(found)


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        return  # cut


def test_bytes_pass_unchanged_and_are_counted(echo: int) -> None:
    with TCPProxy(echo) as proxy:
        assert talk(proxy.port, DATA) == DATA
        assert talk(proxy.port, b"x") == b"x"
        wait_until(lambda: proxy.bytes_down == len(DATA) + 1, "all counted")
        assert (proxy.accepted, proxy.bytes_up) == (2, len(DATA) + 1)


@pytest.mark.parametrize("reset", [True, False])
def test_a_connection_is_cut_where_the_plan_says(echo: int, reset: bool) -> None:
    with TCPProxy(echo, lambda number: Fault(cut_down=1000, reset=reset)) as proxy:
        found = talk(proxy.port, DATA)
        assert len(found) <= 1000
        assert DATA.startswith(found)
        if not reset:
            assert len(found) == 1000  # what was sent before arrives
        proxy.plan = lambda number: Fault(cut_up=0)
        assert talk(proxy.port, DATA) == b""
        proxy.plan = lambda number: None
        assert talk(proxy.port, DATA) == DATA


def test_open_connections_are_cut_and_new_ones_refused(echo: int) -> None:
    with TCPProxy(echo) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            assert proxy.cut() == 2  # the client's and the server's side
            with pytest.raises(ConnectionError):
                sock.recv(1)
        proxy.accepting = False
        assert talk(proxy.port, b"b") == b""
        proxy.accepting = True
        assert talk(proxy.port, b"c") == b"c"


def test_a_slow_connection_takes_its_time(echo: int) -> None:
    with TCPProxy(echo, lambda number: Fault(pace=200e3)) as proxy:
        arrived: list[int] = []
        meanwhile = threading.Thread(target=lambda: arrived.append(len(talk(proxy.port, DATA))))
        meanwhile.start()
        wait_until(lambda: 0 < proxy.bytes_down < len(DATA), "a part of it")
        assert not arrived
        meanwhile.join()
        assert arrived == [len(DATA)]


def test_a_seed_gives_the_same_faults_again() -> None:
    def faults(plan: Callable[[int], Fault | None]) -> list[Fault | None]:
        return [plan(number) for number in range(200)]

    one = faults(seeded(1))
    assert one == faults(seeded(1)) != faults(seeded(2))
    cut = [f for f in one if f and (f.cut_up is not None or f.cut_down is not None)]
    slow = [f for f in one if f and f.pace]
    assert 20 < len(cut) < 60
    assert 8 < len(slow) < 40

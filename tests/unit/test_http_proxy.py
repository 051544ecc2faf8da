"""The HTTP proxy passes requests on as they are, names them, and breaks what it is told to."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from fixtures.http_proxy import HTTPProxy, Request, Trouble, seeded
from fixtures.scripted import Reply, ScriptedServer, scripted_server

BODY = bytes(range(256)) * 40


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def proxy(server: ScriptedServer) -> Iterator[HTTPProxy]:
    with HTTPProxy(int(server.endpoint.rpartition(":")[2])) as running:
        yield running


def ask(
    proxy: HTTPProxy, method: str, target: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    try:
        connection.request(method, target, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_requests_pass_as_they_are_and_are_named(server: ScriptedServer, proxy: HTTPProxy) -> None:
    server.script(*[Reply(200, body=BODY)] * 8)
    for method, target in (
        ("PUT", "/bucket/key%20a"),
        ("PUT", "/bucket/key?partNumber=1&uploadId=x"),
        ("GET", "/bucket/key"),
        ("GET", "/bucket?list-type=2&prefix=a"),
        ("HEAD", "/bucket/key"),
        ("DELETE", "/bucket/key"),
        ("POST", "/bucket?delete="),
        ("POST", "/bucket/key?uploads="),
    ):
        expected = b"" if method == "HEAD" else BODY
        body = BODY if method in ("PUT", "POST") else b""
        assert ask(proxy, method, target, body, Host="signed.example") == (200, expected)
    asked = server.asked[0]
    assert (asked.target, asked.headers["host"]) == ("/bucket/key%20a", "signed.example")
    assert asked.body == BODY
    kinds = ["PUT", "PART", "GET", "LIST", "HEAD", "DELETE", "BATCH", "POST"]
    assert [request.kind for request in proxy.seen] == kinds
    assert {request.status for request in proxy.seen} == {200}
    assert proxy.count("PUT", "PART") == 2
    assert proxy.seen[0].path == "/bucket/key%20a"


def test_leave_to_send_a_body_is_given(server: ScriptedServer, proxy: HTTPProxy) -> None:
    server.script(Reply(200))
    assert ask(proxy, "PUT", "/b/k", BODY, Expect="100-continue")[0] == 200
    assert "expect" not in server.asked[0].headers


@pytest.mark.parametrize("trouble", Trouble)
def test_each_trouble(server: ScriptedServer, proxy: HTTPProxy, trouble: Trouble) -> None:
    server.script(Reply(200, body=BODY), Reply(200, body=BODY))
    proxy.plan = lambda request: trouble if request.number == 1 else None
    refusals = {Trouble.ERROR: 500, Trouble.SLOW_DOWN: 503, Trouble.TOO_MANY: 429}
    refusals[Trouble.EXPIRED] = 403
    if trouble in refusals:
        status, body = ask(proxy, "GET", "/b/k")
        assert status == refusals[trouble]
        assert b"<Code>" in body
    elif trouble in (Trouble.SLOW, Trouble.SHORT, Trouble.WRONG_BYTE):
        status, body = ask(proxy, "GET", "/b/k")
        changed = sum(one != other for one, other in zip(body, BODY, strict=False))
        assert (status, len(body), changed) == {
            Trouble.SLOW: (200, len(BODY), 0),
            Trouble.SHORT: (200, len(BODY) // 2, 0),
            Trouble.WRONG_BYTE: (200, len(BODY), 1),
        }[trouble]
    else:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(proxy, "GET", "/b/k", BODY)
    came = trouble not in (*refusals, Trouble.CUT_BEFORE, Trouble.CUT_REQUEST)
    assert len(server.asked) == came
    assert ask(proxy, "GET", "/b/k") == (200, BODY)
    assert proxy.troubles() == {trouble: 1}


def test_a_seed_gives_the_same_troubles_again() -> None:
    requests = [Request(n, "GET" if n % 3 else "PUT", "/b/k", {}, 0) for n in range(5000)]

    def troubles(seed: int) -> list[Trouble | None]:
        plan = seeded(seed)
        return [plan(request) for request in requests]

    one = troubles(1)
    assert one == troubles(1) != troubles(2)
    assert set(one) == {None, *Trouble}
    damaged = [r.method for r, t in zip(requests, one, strict=True) if t is Trouble.WRONG_BYTE]
    assert set(damaged) == {"GET"}

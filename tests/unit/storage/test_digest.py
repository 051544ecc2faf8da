"""What a client answers to a server that asks who it is."""

from __future__ import annotations

import pytest

from pyrep.storage.digest import Login

REALM = 'realm="http-auth@example.org", qop="auth, auth-int"'
NONCE = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
OPAQUE = "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


def digest(algorithm: str) -> str:
    return f'Digest {REALM}, algorithm={algorithm}, nonce="{NONCE}", opaque="{OPAQUE}"'


@pytest.mark.parametrize(
    ("asked", "response"),
    [
        ([digest("MD5")], "8ca523f5e9506fed4657c9700eebdbec"),
        (
            [digest("MD5"), digest("SHA-256"), 'Basic realm="x"'],
            "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
        ),
    ],
)
def test_the_examples_of_the_standard(
    asked: list[str], response: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: CNONCE)
    login = Login("Mufasa", "Circle of Life", at_once=False)
    assert login.headers("GET", "/dir/index.html") == {}
    assert login.learn([", ".join(asked)], "")
    (header,) = login.headers("GET", "/dir/index.html").values()
    assert f'response="{response}"' in header
    assert 'username="Mufasa"' in header
    assert f'opaque="{OPAQUE}"' in header
    assert "nc=00000001" in header
    assert "nc=00000002" in login.headers("GET", "/")["authorization"]
    assert "Circle" not in header


def test_a_login_is_refused_once() -> None:
    """Answer a new nonce, but not the same question twice."""
    login = Login("u", "p", at_once=False)
    for asked in (['Basic realm="x"'], ['Digest realm="x", nonce="1"']):
        assert login.learn(asked, "")
        sent = login.headers("PUT", "/f")["authorization"]
        assert not login.learn(asked, sent)
    assert login.learn(['Digest realm="x", nonce="2", stale=true'], sent)


def test_what_cannot_be_answered() -> None:
    login = Login("u", "p", at_once=True)
    asked = ['Digest realm="x", nonce="1", algorithm=SHA-512-256', "Negotiate"]
    asked += ['Digest realm="x", nonce="1", qop="auth-int"', 'Digest realm="x"']
    assert not login.learn(asked, "")
    assert login.headers("GET", "/")["authorization"].startswith("Basic ")
    nobody = Login("", "", at_once=True)
    assert not nobody.learn(['Basic realm="x"'], "")
    assert nobody.headers("GET", "/") == {}


def test_quotes_are_kept() -> None:
    login = Login('a"b\\c', "p", at_once=False)
    assert login.learn([r'Digest realm="say \"x\"", nonce="1"'], "")
    header = login.headers("GET", "/")["authorization"]
    assert r'username="a\"b\\c"' in header
    assert r'realm="say \"x\""' in header

"""Logins over HTTP as a server wants them: Basic, or Digest (RFC 7616), which hides passwords."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Login"]

_CHALLENGE = re.compile(
    r"\b(Basic|Digest)\s+((?:[\w-]+\s*=\s*(?:\"(?:[^\"\\]|\\.)*\"|[^\s,\"]*)(?:\s*,\s*)?)*)",
    re.IGNORECASE | re.ASCII,
)
_PARAMETER = re.compile(r"([\w-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]*))", re.ASCII)
_ESCAPED = re.compile(r"\\(.)")
_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}  # the better one last


@dataclass(frozen=True, slots=True)
class _Challenge:
    """Hold what a server asks for; without a nonce it is Basic."""

    realm: str = ""
    nonce: str = ""
    opaque: str | None = None
    algorithm: str = ""
    has_qop: bool = False

    @property
    def strength(self) -> int:
        """Return a number that is higher for a better way to log in."""
        return [*_HASHES].index(_base(self.algorithm)) + 1 if self.nonce else 0


class Login:
    """Say who we are in each request, as the server wants it; safe for several threads.

    Over TLS the password is said at once, else only to a server that asks for it.
    """

    def __init__(self, user: str, password: str, *, at_once: bool) -> None:
        self._user = user
        self._password = password
        self._lock = threading.Lock()
        self._challenge = _Challenge() if at_once else None  # guarded by _lock
        self._count = 0  # guarded by _lock: requests with this nonce

    def headers(self, method: str, target: str) -> dict[str, str]:
        """Return what a request carries, nothing as long as nobody asked."""
        with self._lock:
            challenge, self._count = self._challenge, self._count + 1
            count = self._count
        if challenge is None or not (self._user or self._password):
            return {}
        if challenge.nonce:
            return {"authorization": self._digest(challenge, method, target, count)}
        pair = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        return {"authorization": f"Basic {pair}"}

    def learn(self, asked: Sequence[str], sent: str) -> bool:
        """Take the best of a refusal's challenges; return whether it has not been tried.

        ``asked`` are its ``www-authenticate`` headers, ``sent`` what the request carried.
        """
        found = max(_challenges(asked), key=lambda one: one.strength, default=None)
        if found is None or not (self._user or self._password):
            return False
        if (
            sent.startswith("Basic ")
            if not found.nonce
            else f'nonce="{_quoted(found.nonce)}"' in sent
        ):
            return False
        with self._lock:
            self._challenge, self._count = found, 0
        return True

    def _digest(self, challenge: _Challenge, method: str, target: str, count: int) -> str:
        digest = _hash(challenge.algorithm)
        cnonce, number = secrets.token_hex(8), f"{count:08x}"
        secret = digest(f"{self._user}:{challenge.realm}:{self._password}")
        if challenge.algorithm.upper().endswith("-SESS"):
            secret = digest(f"{secret}:{challenge.nonce}:{cnonce}")
        middle = f"{number}:{cnonce}:auth:" if challenge.has_qop else ""
        proof = digest(f"{secret}:{challenge.nonce}:{middle}{digest(f'{method}:{target}')}")
        parts = {"username": self._user, "realm": challenge.realm, "nonce": challenge.nonce}
        parts |= {"uri": target, "response": proof}
        if challenge.opaque is not None:
            parts["opaque"] = challenge.opaque
        if challenge.has_qop or challenge.algorithm.upper().endswith("-SESS"):
            parts["cnonce"] = cnonce
        quoted = [f'{name}="{_quoted(value)}"' for name, value in parts.items()]
        plain = [f"algorithm={challenge.algorithm}"] if challenge.algorithm else []
        plain += ["qop=auth", f"nc={number}"] if challenge.has_qop else []
        return f"Digest {', '.join(quoted + plain)}"


def _challenges(asked: Sequence[str]) -> list[_Challenge]:
    """Return the challenges that we can answer."""
    found = []
    for kind, text in _CHALLENGE.findall(", ".join(asked)):
        given = {
            name.lower(): _ESCAPED.sub(r"\1", quoted) or plain
            for name, quoted, plain in _PARAMETER.findall(text)
        }
        if kind.lower() == "basic":
            found.append(_Challenge())
            continue
        algorithm, qop = given.get("algorithm", ""), given.get("qop", "")
        words = [word.strip().lower() for word in qop.split(",")]
        if given.get("nonce") and _base(algorithm) in _HASHES and (not qop or "auth" in words):
            found.append(
                _Challenge(
                    given.get("realm", ""),
                    given["nonce"],
                    given.get("opaque"),
                    algorithm,
                    bool(qop),
                )
            )
    return found


def _base(algorithm: str) -> str:
    return algorithm.upper().removesuffix("-SESS") or "MD5"


def _hash(algorithm: str) -> Callable[[str], str]:
    make = _HASHES[_base(algorithm)]
    return lambda text: make(text.encode(), usedforsecurity=False).hexdigest()


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')

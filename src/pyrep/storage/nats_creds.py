"""What proves to a NATS server who we are: a signed token (JWT) and the seed of its user."""

from __future__ import annotations

import os
import re

import nkeys
from nats.aio.client import RawCredentials

from pyrep.storage.nats_config import NATSAccount

__all__ = ["credentials", "seed_of"]

_RAW = """\
-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------
-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""
_PART = re.compile(r"-----BEGIN ([A-Z ]+)-----\s+(\S+)\s+------END \1------")
_MAX_FILE = 1 << 20


class _File(RawCredentials):
    """Be the content of a credentials file, which whoever renews it may replace at any time.

    The library's own way to read one never ends at a file without a token.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.expanduser(path)

    @property
    def data(self) -> str:  # type: ignore[override]
        """Return both parts.

        :raises OSError: there is no such file
        :raises ValueError: it holds something else
        """
        with open(self._path, encoding="ascii", errors="replace") as file:
            parts = dict(_PART.findall(file.read(_MAX_FILE)))
        try:
            jwt, seed = parts["NATS USER JWT"], parts["USER NKEY SEED"]
        except KeyError as error:
            raise ValueError(f"{self._path} has no part {error}") from None
        return _RAW.format(jwt=jwt, seed=_checked(seed, self._path))


def credentials(account: NATSAccount) -> RawCredentials | None:
    """Return the token and seed to log in with, None if that is done in another way.

    :raises OSError: the credentials file cannot be read
    :raises ValueError: it holds something else, or the seed is none
    """
    if account.jwt:
        return RawCredentials(_RAW.format(jwt=account.jwt, seed=_checked(account.seed, "seed")))
    if not account.creds:
        return None
    found = _File(account.creds)
    _ = found.data  # what is wrong with it is told now
    return found


def seed_of(account: NATSAccount) -> str:
    """Return the seed of a key that needs no token, an empty text if there is none.

    :raises ValueError: it is no seed
    """
    return _checked(account.seed, "seed") if account.seed and not account.jwt else ""


def _checked(seed: str, what: str) -> str:
    seed = seed.strip()
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except (nkeys.NkeysError, ValueError, TypeError):
        raise ValueError(f"{what} has no valid seed of a user's key") from None
    return seed

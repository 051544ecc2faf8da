"""How much an endpoint is asked for: one budget of requests and bytes for all who share it.

Whoever waits holds one place in the line, for one request or one piece of a body, so that a
small file passes a large one between two of its pieces.  A storage that says "slow down" gets a
pause and then half of the requests; what it is given grows again slowly.
"""

from __future__ import annotations

import io
import logging
import math
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import BinaryIO

from pyrep.clock import Clock, SystemClock
from pyrep.errors import ReplicaTemporaryError, ReplicaThrottledError
from pyrep.log import RateLimiter

__all__ = [
    "NO_LIMITS",
    "THROTTLING",
    "Budget",
    "Counts",
    "Limits",
    "PacedReader",
    "Pacer",
    "retry_after",
]

THROTTLING = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

_BURST_SECONDS = 0.1  # so much of a rate may come at once after a rest
_PIECE = 64 << 10
_PIECES_PER_SECOND = 16  # small enough that nobody's connection rests for long
_LEAST_PIECE = 256
_MEASURED_SECONDS = 1.0
_LEAST_REQUESTS = 10.0  # a second, however often the storage complains: then pauses help
_DOUBLING_SECONDS = 20.0
_FORGOTTEN_DOUBLINGS = 10.0
_FIRST_PAUSE = 0.5
_MAX_PAUSE = 30.0
_LONGEST_PAUSE = 300.0  # even if the storage asks for more
_PATIENCE = 10.0  # longer pauses are the caller's: a thread has other endpoints to serve
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Say how much an endpoint may be used in a second; None: as much as it takes."""

    requests: float | None = None
    bytes: float | None = None

    def strictest(self, other: Limits) -> Limits:
        """Return what keeps within both."""
        return Limits(_least(self.requests, other.requests), _least(self.bytes, other.bytes))


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Counts:
    """Say what was used so far."""

    requests: int = 0
    throttled: int = 0


class Pacer:
    """Space units at a rate; times are the caller's, in seconds."""

    def __init__(self) -> None:
        self._free = -math.inf

    def take(self, amount: float, rate: float, now: float) -> float:
        """Take so many units; return the time from which on they may be used."""
        begin = max(self._free, now - _BURST_SECONDS)
        self._free = begin + amount / rate
        return max(begin, now)

    def hold(self, until: float) -> None:
        """Give nothing before a time."""
        self._free = max(self._free, until)


class Budget:
    """Give each request and each piece of a body its turn; safe for several threads.

    ``stop`` ends every wait at once; what needs no wait goes on.  ``endpoint`` names it in logs.
    """

    endpoint = ""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        stop: threading.Event | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.clock = clock if clock is not None else SystemClock()
        self.stop = stop if stop is not None else threading.Event()
        self._rng = rng if rng is not None else random.Random()
        self._limiter = RateLimiter(now=self.clock.monotonic)
        self._lock = threading.Lock()
        self._limits = Limits()  # guarded by _lock, as all below
        self._requests = Pacer()
        self._bytes = Pacer()
        self._counts = Counts()
        self._recent = 0.0  # requests, fading
        self._recent_at = 0.0
        self._allowed = math.inf  # requests per second, as of _throttled_at
        self._throttled_at = -math.inf
        self._paused_until = -math.inf
        self._in_a_row = 0

    @property
    def counts(self) -> Counts:
        """Return what was used so far."""
        return self._counts

    def close(self) -> None:
        """Log what was used."""
        counts = self._counts
        extra = {"endpoint": self.endpoint, "requests": counts.requests}
        _log.debug("storage was used", extra={**extra, "throttled": counts.throttled})

    def tighten(self, limits: Limits) -> None:
        """Keep within these limits too: of those who share an endpoint the strictest counts."""
        with self._lock:
            self._limits = self._limits.strictest(limits)

    # --- requests ---------------------------------------------------------------------------------

    def request(self, where: str, *, urgent: bool = False) -> float:
        """Wait until a request may be sent; return when that was, for ``answered``.

        ``where`` names the object in errors.  An ``urgent`` one is counted and does not wait.

        :raises ReplicaThrottledError: the storage wants a longer pause than is worth a wait
        :raises ReplicaTemporaryError: stopped meanwhile
        """
        asked = self._line_up(where, urgent=urgent)
        while self.clock.monotonic() < asked:
            self._wait(where, asked)
            if self._paused_until > asked:  # the storage wants a pause: all line up anew
                asked = self._line_up(where, urgent=urgent)
        with self._lock:
            now = self.clock.monotonic()
            self._recent = self._measured(now) * _MEASURED_SECONDS + 1
            self._recent_at = now
            self._counts = replace(self._counts, requests=self._counts.requests + 1)
        return asked

    def _line_up(self, where: str, *, urgent: bool) -> float:
        """Take a place in the line; return the time of its turn."""
        with self._lock:
            now = self.clock.monotonic()
            pause = self._paused_until - now
            if urgent:
                return now
            if pause <= _PATIENCE:
                rate = self._rate(now)
                at = now if math.isinf(rate) else self._requests.take(1, rate, now)
                return max(at, self._paused_until)
        raise ReplicaThrottledError(
            f"{where}: not asked, because the storage wants a pause of {pause:.0f} seconds"
        )

    def answered(self, asked: float, status: int, headers: Mapping[str, str]) -> None:
        """Note the status of the answer to a request admitted at ``asked``."""
        if status in THROTTLING:
            self.throttled(asked, retry_after(headers.get("retry-after", ""), self.clock))
        elif self._in_a_row and asked >= self._throttled_at:
            with self._lock:
                self._in_a_row = 0

    def throttled(self, asked: float | None = None, wanted: float | None = None) -> None:
        """Pause, and halve the rate; ``wanted`` are the seconds that the storage asked for.

        Answers to requests that were under way at the last time belong to it.
        """
        with self._lock:
            now = self.clock.monotonic()
            asked = now if asked is None else asked
            self._counts = replace(self._counts, throttled=self._counts.throttled + 1)
            if asked > self._throttled_at:
                self._in_a_row += 1
                used = min(self._rate(now), self._measured(now))
                self._allowed = max(_LEAST_REQUESTS, used / 2)
                self._throttled_at = now
                pause = min(_MAX_PAUSE, _FIRST_PAUSE * 2.0 ** (self._in_a_row - 1))
                self._pause(now, pause * self._rng.uniform(0.5, 1.0))
            if wanted is not None:
                self._pause(now, min(wanted, _LONGEST_PAUSE))
            allowed, pause = self._allowed, self._paused_until - now
        if count := self._limiter.failed("throttled"):
            extra = {"endpoint": self.endpoint, "rate": f"{allowed:.1f}/s"}
            extra |= {"pause": f"{pause:.1f}s", "failures": str(count)}
            _log.warning("storage asks for fewer requests", extra=extra)

    def _pause(self, now: float, seconds: float) -> None:
        self._paused_until = max(self._paused_until, now + seconds)
        self._requests.hold(self._paused_until)

    def _measured(self, now: float) -> float:
        """Return the requests per second of the last moments."""
        faded = math.exp((self._recent_at - now) / _MEASURED_SECONDS)
        return self._recent * faded / _MEASURED_SECONDS

    def _rate(self, now: float) -> float:
        """Return the requests per second that are allowed now."""
        limit = math.inf if self._limits.requests is None else self._limits.requests
        if math.isinf(self._allowed):
            return limit
        doublings = (now - self._throttled_at) / _DOUBLING_SECONDS
        if doublings >= _FORGOTTEN_DOUBLINGS:
            self._allowed = math.inf
            return limit
        return min(limit, self._allowed * math.pow(2.0, doublings))

    # --- bytes ------------------------------------------------------------------------------------

    def spend(self, where: str, count: int) -> None:
        """Wait until so many bytes may pass, piece by piece, in turn with the others.

        :raises ReplicaTemporaryError: stopped meanwhile
        """
        while count > 0:
            with self._lock:
                rate = self._limits.bytes
                if rate is None:
                    return
                piece = min(count, _piece(rate))
                at = self._bytes.take(piece, rate, self.clock.monotonic())
            self._wait(where, at)
            count -= piece

    def body(self, where: str, data: bytes | BinaryIO) -> bytes | BinaryIO | PacedReader:
        """Return a request's body as it may be sent: in pieces if bytes are limited."""
        if self._limits.bytes is None:
            return data
        return PacedReader(io.BytesIO(data) if isinstance(data, bytes) else data, self, where)

    def _wait(self, where: str, at: float) -> None:
        left = at - self.clock.monotonic()
        if left > 0 and self.clock.wait(self.stop, left):
            raise ReplicaTemporaryError(f"{where}: stopped while it waited for its turn")


class PacedReader(io.RawIOBase):
    """Read a stream as fast as a budget allows; an ``owned`` one is closed with this."""

    def __init__(
        self, stream: BinaryIO, budget: Budget, where: str, *, owned: bool = False
    ) -> None:
        super().__init__()
        self._stream = stream
        self._owned = owned
        self._budget = budget
        self._where = where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        data = self._stream.read(min(len(view), _PIECE))
        self._budget.spend(self._where, len(data))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._owned:
            self._stream.close()
        super().close()


def retry_after(text: str, clock: Clock) -> float | None:
    """Read the header Retry-After, seconds or a date; return seconds, None if it says nothing."""
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment - clock.now()).total_seconds())
    except (ValueError, TypeError):
        return None


def _piece(rate: float) -> int:
    return int(min(_PIECE, max(_LEAST_PIECE, rate / _PIECES_PER_SECOND)))


def _least(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)

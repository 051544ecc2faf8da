"""A tenant that leaves holds nobody up: not the stop, not who comes in its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from pyrep.errors import ReplicaTemporaryError
from pyrep.log import RateLimiter
from pyrep.schedule.backoff import Backoff
from pyrep.store.entry import Leaving
from pyrep.store.leaving import Departures


def test_the_last_attempt_is_not_put_off_beyond_the_deadline() -> None:
    """It was tried in vain for hours already, so that the next pause would be minutes."""
    pauses: list[float] = []
    shared = SimpleNamespace(
        clock=SimpleNamespace(monotonic=lambda: 1000.0),
        limiter=RateLimiter(now=lambda: 1000.0),
        random=lambda: 0.5,
        schedule=lambda kind, name, delay: pauses.append(delay),
    )
    status = SimpleNamespace(replica="memory:")
    tenant = SimpleNamespace(name="/data/a.db", deleted=False, status=lambda: status)
    entry = SimpleNamespace(tenant=tenant, upload_backoff=Backoff(failures=20))
    leaving = Leaving(done=lambda tenant: None, deadline=1012.0)
    departures = Departures(cast(Any, shared), lambda entry: None, 30.0)
    departures.upload_failed(cast(Any, entry), leaving, ReplicaTemporaryError("no route to host"))
    assert pauses == [12.0]

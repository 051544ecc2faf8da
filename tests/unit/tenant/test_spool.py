"""All tenants together never write past the common limit, at any instant."""

from __future__ import annotations

import threading

from pyrep.tenant.spool import Spool


def test_what_is_claimed_is_not_left_for_others() -> None:
    spool = Spool(100)
    spool.hold("a", 40)
    assert spool.claim("b", 50)
    assert spool.left == 10
    assert not spool.claim("c", 11), "nothing is taken by half"
    assert spool.claim("b", 10)
    assert spool.left == 0
    spool.hold("b", 60)
    spool.unclaim("b")
    assert spool.left == 0, "what was written is held"
    spool.unclaim("b")
    spool.hold("b", 0)
    assert spool.left == 60


def test_many_threads_never_get_more_than_there_is() -> None:
    spool, granted = Spool(1000), []

    def claim(name: str) -> None:
        granted.extend(7 for _ in range(200) if spool.claim(name, 7))

    threads = [threading.Thread(target=claim, args=(f"{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 994
    for number in range(8):
        spool.unclaim(f"{number}")
    assert spool.left == 1000

"""Ask a running daemon for something, through its catalog; and the daemon's side of it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyrep.catalog import Access, Catalog, Request
from pyrep.clock import Clock, SystemClock
from pyrep.config.model import Config
from pyrep.daemon.folder import catalog_path, running_pid
from pyrep.errors import PyrepError

if TYPE_CHECKING:
    from pyrep.store import Store

__all__ = ["PARK", "RELIST", "TAKE_OVER", "request", "serve"]

PARK = "park"
TAKE_OVER = "reset-take-over"
RELIST = "relist"
_PAUSE_SECONDS = 0.05
_log = logging.getLogger(__name__)


def request(
    config: Config,
    verb: str,
    argument: str,
    timeout: float = 30.0,
    *,
    clock: Clock | None = None,
) -> str:
    """Let the daemon of a configuration do something; return its answer.

    ``verb`` is ``park``, ``relist`` or ``reset-take-over``, ``argument`` the path of a database
    (or, for the last, a glob), ``timeout`` in seconds.

    :raises PyrepError: no daemon runs, it refused, or it did not answer in time
    """
    clock = clock or SystemClock()
    pid = running_pid(config)
    if pid is None:
        raise PyrepError(
            "no daemon runs with this configuration",
            hint="Start it with: pyrep replicate",
        )
    catalog = Catalog(catalog_path(config), access=Access.JOIN)
    try:
        number = catalog.submit_request(verb, argument)
        _signal(pid)
        return _await_answer(catalog, number, pid, timeout, clock)
    finally:
        catalog.close()


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGUSR1)
    except ProcessLookupError as error:
        raise PyrepError(f"the daemon (pid {pid}) has just ended") from error
    except PermissionError as error:
        raise PyrepError(
            f"the daemon (pid {pid}) cannot be reached: it belongs to another user",
            hint="Run the command as the user that runs the daemon.",
        ) from error


def _await_answer(catalog: Catalog, number: int, pid: int, timeout: float, clock: Clock) -> str:
    deadline = clock.monotonic() + timeout
    never = threading.Event()
    while True:
        answer = catalog.answer(number)
        if answer is not None:
            if answer.ok:
                return answer.text
            raise PyrepError(answer.text)
        if clock.monotonic() >= deadline:
            raise PyrepError(
                f"the daemon (pid {pid}) did not answer within {timeout:g} s",
                hint="It may still do what was asked; look at pyrep status and its log.",
            )
        clock.wait(never, _PAUSE_SECONDS)


def serve(catalog: Catalog, store: Store, taken: set[int]) -> None:
    """Act on the open requests that are not in ``taken`` yet; answers come when they are ready."""
    for each in catalog.open_requests():
        if each.id not in taken:
            taken.add(each.id)
            extra = {"op": each.verb, "argument": each.argument}
            _log.info("request received", extra=extra)
            _act(each, store, _answerer(catalog, each))


def _act(each: Request, store: Store, answer: Callable[[bool, str], None]) -> None:
    if each.verb == PARK:
        store.park(each.argument, answer)
    elif each.verb == RELIST:
        store.list_again(each.argument, answer)
    elif each.verb == TAKE_OVER:
        store.take_over(each.argument, answer)
    else:
        answer(False, f"this daemon does not know the request {each.verb!r}")


def _answerer(catalog: Catalog, each: Request) -> Callable[[bool, str], None]:
    def answer(ok: bool, text: str) -> None:
        catalog.answer_request(each.id, ok, text)

    return answer

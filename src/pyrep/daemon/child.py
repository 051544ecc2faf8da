"""The command of ``-exec``: runs as long as the daemon, and the daemon as long as it."""

from __future__ import annotations

import logging
import shlex
import subprocess
import threading

from pyrep.daemon.events import Event, Events
from pyrep.errors import ConfigError, PyrepError

__all__ = ["Child"]

_KILL_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Child:
    """Run a command, split as a shell would but without one; standard input is empty."""

    def __init__(self, command: str, events: Events) -> None:
        self._command = command
        self._events = events
        self._asked = False
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"cannot be split into words: {error}", field="exec") from None
        if not words:
            raise ConfigError("no command given", field="exec")
        try:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        except OSError as error:
            reason = error.strerror or str(error)
            raise PyrepError(f"cannot exec {words[0]}: {reason}") from error
        self._thread = threading.Thread(target=self._wait, name="pyrep-child", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        self._process.wait()
        self._events.put(Event.CHILD_ENDED)

    @property
    def running(self) -> bool:
        """Return whether the command has not ended yet."""
        return self._process.poll() is None

    def forward(self, number: int) -> None:
        """Send a signal on; how the command ends after that is no error."""
        self._asked = True
        if self.running:
            _log.info("sending signal to exec process", extra={"op": "exec", "signal": number})
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the command by force, if it still runs, and wait for it."""
        if self.running:
            self._asked = True
            self._process.kill()
        self._thread.join(_KILL_SECONDS)

    def check(self) -> None:
        """Raise ``PyrepError`` (``exit status N``) if the command failed by itself."""
        status = self._process.returncode
        if status is None or status == 0:
            return
        if status < 0 and self._asked:
            return
        raise PyrepError(f"exit status {status}" if status > 0 else f"signal: {-status}")

"""Read the configuration again while the daemon runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace

from pyrep.config.model import Config
from pyrep.errors import PyrepError

__all__ = ["Load", "reread"]

_FREE = frozenset(  # what a running daemon can change; all else it was built with
    (
        "dbs",
        "source",
        "warnings",
        "inherited",
        "reconcile_interval",
        "shutdown_sync_timeout",
        "shutdown_sync_interval",
    )
)
_log = logging.getLogger(__name__)

Load = Callable[[], Config]


def reread(config: Config, load: Load | None) -> Config | None:
    """Return the configuration to go over to, None to stay with ``config``; say why.

    Settings that need a restart keep their values until then.
    """
    if load is None:
        _log.warning("there is no configuration file to read again", extra={"op": "reload"})
        return None
    try:
        new = load()
    except PyrepError as error:
        extra = {"op": "reload", "error": str(error)}
        if error.hint:
            extra["hint"] = error.hint
        _log.error("the configuration stays as it was, the new one is wrong", extra=extra)
        return None
    for warning in new.warnings:
        if warning not in config.warnings:
            _log.warning(warning)
    fixed = {f.name: getattr(config, f.name) for f in fields(Config) if f.name not in _FREE}
    changed = [name for name, value in fixed.items() if getattr(new, name) != value]
    if changed:
        names = ", ".join(name.replace("_", "-") for name in changed)
        extra = {"op": "reload", "settings": names}
        _log.warning("some settings take effect after a restart only", extra=extra)
    return replace(new, **fixed)

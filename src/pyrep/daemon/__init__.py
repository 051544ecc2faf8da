"""Reach a daemon that runs; what runs one is ``pyrep.daemon.run``, and costs more to import."""

from pyrep.daemon.folder import catalog_path, running_pid, state_folder
from pyrep.daemon.requests import request

__all__ = ["catalog_path", "request", "running_pid", "state_folder"]

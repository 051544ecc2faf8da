"""Run the daemon, and reach one that runs."""

from pyrep.daemon.folder import catalog_path, running_pid, state_folder
from pyrep.daemon.requests import request
from pyrep.daemon.run import run

__all__ = ["catalog_path", "request", "run", "running_pid", "state_folder"]

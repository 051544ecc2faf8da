"""Replicate from within a program: the store runs in a child process, this one only asks.

Nothing here opens a database: two SQLite libraries in one process would drop each other's locks.
"""

from pyrep.embed.client import Replicator, start, start_directory

__all__ = ["Replicator", "start", "start_directory"]

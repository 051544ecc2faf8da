"""``pyrep-bench``: make databases, load them as applications do, and check what a replica gives.

It is an application beside pyrep: it opens databases with the interpreter's own SQLite and must
not run in the process of a daemon.
"""

__all__: list[str] = []

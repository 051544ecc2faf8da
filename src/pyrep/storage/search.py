"""Find the replicas below a path: the walk over a storage, and what backends share for a look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pyrep.errors import PyrepError
from pyrep.ltxfile import FileInfo, parse_name
from pyrep.storage.base import Below, ReplicaClient
from pyrep.storage.layout import LTX_DIR, parse_hex_level, parse_level

__all__ = [
    "Entries",
    "ReplicaSearch",
    "find_replicas",
    "look_at_keys",
    "look_hex",
    "look_plain",
]

# The names in a folder of the storage, each with whether it is a folder; nothing for one that
# is not there.  The folder is named as the backend likes, ending in a slash or empty.
Entries = Callable[[str], Iterable[tuple[str, bool]]]

_NO_NAMES = ("", ".", "..")


@dataclass(frozen=True, slots=True)
class ReplicaSearch:
    """Hold the replicas found, sorted, and the folders that could not be looked into."""

    replicas: tuple[str, ...]
    failures: tuple[tuple[str, PyrepError], ...] = ()


def find_replicas(
    client: ReplicaClient, *, on_look: Callable[[int, int], None] | None = None
) -> ReplicaSearch:
    """Find every replica at and below a client's path.

    Looks run side by side, as many as the storage likes.  ``on_look`` is called after each with
    the numbers of folders seen and of replicas found.  A folder that cannot be looked into stops
    no other.

    :raises PyrepError: the path itself cannot be looked into
    """

    def look(path: str) -> Below | PyrepError:
        try:
            return client.look_below(path)
        except PyrepError as error:
            return error

    found: set[str] = set()
    failures: list[tuple[str, PyrepError]] = []
    looks, wave = 0, [""]
    with ThreadPoolExecutor(client.capabilities.connections, "pyrep-search") as pool:
        while wave:
            paths, wave = wave, []
            for path, below in zip(paths, pool.map(look, paths), strict=True):
                looks += 1
                if isinstance(below, Below):
                    found.update(below.replicas)
                    wave += below.folders
                elif path:
                    failures.append((path, below))
                else:
                    raise below
                if on_look is not None:
                    on_look(looks, len(found))
    return ReplicaSearch(tuple(sorted(found)), tuple(failures))


def look_plain(path: str, place: str, entries: Entries) -> Below:
    """Look into one folder of a storage with the layout ``ltx/<level>/<name>``.

    ``path`` is relative to the client's, ``place`` the same folder as ``entries`` takes it.
    """
    names = _folders(entries, place)
    if LTX_DIR in names:
        ltx = f"{place}{LTX_DIR}/"
        levels = [name for name in _folders(entries, ltx) if parse_level(name) is not None]
        if _hold_ltx(ltx, levels, entries):
            names.remove(LTX_DIR)
            return Below((path,), _under(path, names))
    return Below((), _under(path, names))


def look_hex(path: str, place: str, entries: Entries, *, own: str | None = None) -> Below:
    """Look into one folder of a storage with the layout ``<level as 4 hex digits>/<name>``.

    ``own`` is where the levels of the path itself are, if that is not ``place``.  Folders of a
    replica that are named like levels are its levels.
    """
    names = _folders(entries, place)
    around = names if own is None else _folders(entries, own)
    levels = [name for name in around if parse_hex_level(name) is not None]
    if not _hold_ltx(place if own is None else own, levels, entries):
        return Below((), _under(path, names))
    others = names if own is not None else [name for name in names if name not in levels]
    return Below((path,), _under(path, others))


def look_at_keys(keys: Iterable[str], parse: Callable[[str], FileInfo | None]) -> Below:
    """Look at all keys at once, for a storage that has no folders.

    ``keys`` are relative to the client's path; ``parse`` reads one relative to its replica.
    """
    found = set()
    for key in keys:
        parts = key.split("/")
        for depth in (2, 3):  # of the hex and of the plain layout
            path = parts[:-depth]
            if parse("/".join(parts[-depth:])) and not any(name in _NO_NAMES for name in path):
                found.add("/".join(path))
    return Below(tuple(sorted(found)))


def _folders(entries: Entries, place: str) -> list[str]:
    # No replica has such names on its path: paths are cleaned of them before they are used.
    return [name for name, is_folder in entries(place) if is_folder and name not in _NO_NAMES]


def _hold_ltx(place: str, levels: Sequence[str], entries: Entries) -> bool:
    """Return whether a level has an LTX file; the levels with the fewest files come first."""
    return any(
        parse_name(name) is not None
        for level in sorted(levels, reverse=True)
        for name, is_folder in entries(f"{place}{level}/")
        if not is_folder
    )


def _under(path: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{path}/{name}" if path else name for name in names)

"""Write a restored database beside its place and publish it in one step.

The new file grows as ``<output>.tmp-<8 hex>``.  A file that is to be replaced is moved aside
first, with its sidecars, as ``<file>.pyrep-old-<n>``: an old ``-wal`` beside a new database
would be applied by SQLite, with no error.  So a crash leaves one of these:

- everything as it was, and a temporary file (the next restore to that place removes it);
- no file under the name, and the old set under its aside names, some of its sidecars perhaps
  still under their own: rename each aside name back to get the old database, or restore again
  with force, which replaces the set;
- the new database, and the old set or parts of it under the aside names, to be deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyrep import osfs
from pyrep.errors import OutputExistsError, PyrepError

__all__ = ["Ownership", "Target", "TempFile", "describe_os_errors"]

SIDECARS = ("-wal", "-shm", "-journal")
_ASIDE = ".pyrep-old-"
_TEMP = ".tmp-"
_TEMP_END = re.compile(r"\.tmp-[0-9a-f]{8}\Z")
_DIR_MODE = 0o750
_FILE_MODE = 0o600

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ownership:
    """Say whose a restored file is to be where it replaces none; None leaves it to the parent."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@contextlib.contextmanager
def describe_os_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an ``OSError`` into a :class:`PyrepError` that names the file and what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise PyrepError(f"{path}: {doing} failed: {reason}", hint=_advice(path, error)) from error


def _advice(path: Path, error: OSError) -> str:
    where = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"Make room for the whole database in {where}, or restore to another place."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Restore as a user who may write in {where}, or to another place."
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP):
        return "Choose another output path."
    return f"Check the disk below {where} and the kernel's log, then restore again."


class Target:
    """Stand for the place of a restored database."""

    def __init__(self, output: Path, *, force: bool) -> None:
        self.output = Path(os.path.realpath(output.parent)) / output.name
        self.force = force

    def check(self) -> None:
        """Refuse a place that a restore would have to overwrite; warn about left-over files.

        :raises OutputExistsError: something is there and ``force`` is not set; or a directory,
            a link or a special file is there
        """
        with describe_os_errors(self.output, "examining the output path"):
            status = _lstat(self.output)
            if status is not None:
                self._check_kind(status)
            elif not self.force:
                self._check_interrupted()
            self._check_free(status)
            self._warn_of_left_overs(status)

    def _check_kind(self, status: os.stat_result) -> None:
        kind = "a special file"
        if stat.S_ISREG(status.st_mode):
            return
        hint = "Give the path of a file."
        if stat.S_ISDIR(status.st_mode):
            kind = "a directory"
        elif stat.S_ISLNK(status.st_mode):
            kind = "a symbolic link"
            hint = f"Give the path it points to: {os.path.realpath(self.output)}"
        raise OutputExistsError(f"cannot restore, output path is {kind}: {self.output}", hint=hint)

    def _check_free(self, status: os.stat_result | None) -> None:
        if self.force:
            return
        hint = "Use -force to overwrite"
        if status is not None and status.st_size:
            raise OutputExistsError(
                "cannot restore, output path already exists and is not empty: "
                f"{self.output}. {hint}",
                hint=f"{hint}; the old file is replaced only when the new one is proven.",
            )
        for suffix in SIDECARS:
            path = self._beside(suffix)
            if _lstat(path) is not None:
                raise OutputExistsError(
                    f"cannot restore, SQLite sidecar path already exists: {path}. {hint}",
                    hint=f"{hint}; without its database the file is of no use to SQLite.",
                )

    def _check_interrupted(self) -> None:
        n = self._interrupted()
        if n:
            aside = self._aside("", n)
            raise OutputExistsError(
                f"{self.output}: an interrupted restore moved the old database aside to {aside}",
                hint=f"Rename it and its sidecars back (without {_ASIDE}{n}), or use -force to "
                "replace it.",
            )

    def _warn_of_left_overs(self, status: os.stat_result | None) -> None:
        adopted = 0 if status is not None else self._interrupted()
        for n in self._aside_sets():
            names = ", ".join(str(path) for path in self._aside_files(n))
            if n != adopted:
                _log.warning("%s: an earlier restore left replaced files: %s", self.output, names)

    def replaced(self) -> os.stat_result | None:
        """Describe the file that is to be replaced, None if there is none."""
        with describe_os_errors(self.output, "examining the output path"):
            status = _lstat(self.output)
            n = self._interrupted() if status is None else 0
            return _lstat(self._aside("", n)) if n else status

    def make_parent(self, ownership: Ownership) -> None:
        """Create the missing directories above the place, durably, for the owner of the file."""
        parent = self.output.parent
        with describe_os_errors(self.output, "creating its directory"):
            for folder in osfs.make_dirs("restore.mkdir", parent, _DIR_MODE):
                owner = folder.parent.stat()
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    _chown(folder, fd, ownership, owner)
                finally:
                    os.close(fd)
                osfs.fsync_dir("restore.fsync_dir", folder.parent)

    def publish(self, temp: TempFile, guard: Callable[[Path], None]) -> None:
        """Give the proven ``temp`` the wanted name, moving what is there aside and deleting it.

        ``guard`` is called with a file that is about to be replaced and raises if it is in use.

        :raises OutputExistsError: something has come there meanwhile, and ``force`` is not set
        :raises PyrepError: the file system failed; the old file is back in its place, unless
            the message says otherwise
        """
        with describe_os_errors(self.output, "examining the output path"):
            status = _lstat(self.output)
            if status is not None:
                self._check_kind(status)
                guard(self.output)
            self._check_free(status)
            old = self._old_set(status)
        with describe_os_errors(self.output, "replacing the old database"):
            with self._moved_aside(old):
                osfs.replace("restore.rename", temp.path, self.output)
            temp.published = True
        with describe_os_errors(
            self.output, "the restored database is in place, but making it durable"
        ):
            osfs.fsync_dir("restore.fsync_dir", self.output.parent)
        self._delete(old)

    def _old_set(self, status: os.stat_result | None) -> _OldSet:
        """Find the files to move aside and the number they get."""
        adopted = self._interrupted() if status is None else 0
        n = adopted or max(self._aside_sets(), default=0) + 1
        main = [""] if status is not None else []
        here = main + [s for s in SIDECARS if _lstat(self._beside(s)) is not None]
        if here == [""] and status is not None and status.st_size == 0:
            here = []  # an empty file alone is replaced by the rename itself
        return _OldSet(n, tuple(here), bool(adopted))

    @contextlib.contextmanager
    def _moved_aside(self, old: _OldSet) -> Iterator[None]:
        """Move the old files aside; move them back if that or the block fails.

        The database goes first and comes back last: without it SQLite finds nothing there,
        while a database without its ``-wal`` would show an old state.
        """
        moved: list[str] = []
        try:
            for suffix in old.suffixes:
                osfs.replace("restore.aside", self._beside(suffix), self._aside(suffix, old.n))
                moved.append(suffix)
            if moved:
                # Before the new name: a power cut must not keep an old -wal beside the new file.
                osfs.fsync_dir("restore.fsync_dir", self.output.parent)
            yield
        except BaseException:
            self._move_back(reversed(moved), old.n)
            raise

    def _move_back(self, suffixes: Iterator[str], n: int) -> None:
        for suffix in suffixes:
            aside = self._aside(suffix, n)
            try:
                osfs.replace("restore.move_back", aside, self._beside(suffix))
            except OSError as error:
                raise PyrepError(
                    f"{self.output}: restoring failed, and so did moving {aside} back: "
                    f"{error.strerror}",
                    hint=f"Rename it and its sidecars back by hand (without {_ASIDE}{n}).",
                ) from error

    def _delete(self, old: _OldSet) -> None:
        """Delete the files moved aside, the database first: what is left then is no whole set."""
        suffixes = ("", *SIDECARS) if old.adopted else old.suffixes
        for suffix in suffixes:
            aside = self._aside(suffix, old.n)
            try:
                osfs.unlink("restore.unlink", aside, missing_ok=True)
            except OSError as error:
                _log.warning(
                    "%s: restored, but the replaced file %s cannot be deleted: %s",
                    self.output,
                    aside,
                    error.strerror,
                )

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(self.output.name + suffix)

    def _aside(self, suffix: str, n: int) -> Path:
        return self.output.with_name(f"{self.output.name}{suffix}{_ASIDE}{n}")

    def _interrupted(self) -> int:
        """Return the number of the newest set with a database in it, 0 if there is none."""
        whole = [n for n in self._aside_sets() if _lstat(self._aside("", n)) is not None]
        return max(whole, default=0)

    def _aside_sets(self) -> list[int]:
        """Return the numbers of sets moved aside, oldest first."""
        sidecar = "|".join(re.escape(suffix) for suffix in SIDECARS)
        wanted = re.compile(
            f"{re.escape(self.output.name)}(?:{sidecar})?{re.escape(_ASIDE)}([0-9]+)"
        )
        found = map(wanted.fullmatch, _names(self.output.parent))
        return sorted({int(name[1]) for name in found if name})

    def _aside_files(self, n: int) -> list[Path]:
        paths = [self._aside(suffix, n) for suffix in ("", *SIDECARS)]
        return [path for path in paths if _lstat(path) is not None]


@dataclass(frozen=True, slots=True)
class _OldSet:
    """Name the files to move aside; ``adopted``: an interrupted restore has moved some before."""

    n: int
    suffixes: tuple[str, ...]
    adopted: bool


class TempFile:
    """Hold the growing file; as a context manager, remove it unless it was published.

    A lock on the descriptor tells other restores that its writer lives; one that nobody holds
    belongs to a process that died, and is removed by the next restore to the same place.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self.published = False
        self.path = output
        self.fd = -1

    def __enter__(self) -> TempFile:
        with describe_os_errors(self._output, "creating a temporary file"):
            self._remove_stale()
            while self.fd < 0:
                self._create()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.published:
            return
        try:
            osfs.unlink("restore.discard", self.path, missing_ok=True)
        except OSError as error:
            _log.warning("%s: the temporary file cannot be deleted: %s", self.path, error.strerror)

    def finish(self, ownership: Ownership, replaced: os.stat_result | None) -> None:
        """Set owner and mode (those of ``replaced`` first) and make the content durable.

        The descriptor is closed here, before the file gets its name: closing it later would
        drop the locks of a connection that this process may have opened by then.
        """
        with describe_os_errors(self.path, "setting owner and mode"):
            if replaced is None:
                _chown(self.path, self.fd, ownership, self._output.parent.stat())
                mode = _FILE_MODE if ownership.mode is None else ownership.mode
            else:
                wanted = Ownership(replaced.st_uid, replaced.st_gid)
                _chown(self.path, self.fd, wanted, replaced)
                mode = replaced.st_mode
            osfs.chmod("restore.chmod", self.fd, mode & 0o777)
        with describe_os_errors(self.path, "making the database durable"):
            osfs.fsync("restore.fsync", self.fd)
            self.close()

    def keep_as(self, path: Path) -> None:
        """Rename the file to ``path`` instead of removing it."""
        with describe_os_errors(self.path, "keeping the damaged database"):
            osfs.replace("restore.keep", self.path, path)
        self.published = True

    def close(self) -> None:
        """Close the descriptor, if it is open."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _create(self) -> None:
        self.path = self._output.with_name(f"{self._output.name}{_TEMP}{secrets.token_hex(4)}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = osfs.open_file("restore.open", self.path, flags, _FILE_MODE)
        if _lock(fd) is not False and _is_at(fd, self.path):
            self.fd = fd
        else:
            os.close(fd)  # another restore took it for a dead one's before it was locked

    def _remove_stale(self) -> None:
        parent, prefix = self._output.parent, self._output.name
        for name in _names(parent):
            if name.startswith(prefix) and _TEMP_END.fullmatch(name[len(prefix) :]):
                _remove_if_dead(parent / name)


def _remove_if_dead(path: Path) -> None:
    """Remove a temporary file whose lock nobody holds."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        _log.info("%s: a temporary file is left as it is: %s", path, error.strerror)
        return
    try:
        if not _lock(fd):
            _log.info("%s: a temporary file of a running restore is left as it is", path)
            return
        osfs.unlink("restore.unlink_stale", path, missing_ok=True)
        _log.info("%s: removed what an interrupted restore left", path)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool | None:
    """Lock a temporary file; False: a living process has it, None: there are no locks here."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(fd: int, path: Path) -> bool:
    status = _lstat(path)
    return status is not None and os.path.samestat(os.fstat(fd), status)


def _chown(path: Path, fd: int, wanted: Ownership, fallback: os.stat_result) -> None:
    """Give a file its owner; where that is not allowed, say so and go on."""
    have = os.fstat(fd)
    uid = fallback.st_uid if wanted.uid is None else wanted.uid
    gid = fallback.st_gid if wanted.gid is None else wanted.gid
    if (uid, gid) == (have.st_uid, have.st_gid):
        return
    try:
        osfs.chown("restore.chown", fd, uid, gid)
    except PermissionError:
        asked = wanted.uid is not None or wanted.gid is not None
        level = logging.WARNING if asked else logging.DEBUG
        _log.log(
            level,
            "%s: not allowed to give the file to uid %d, gid %d; it stays with uid %d, gid %d",
            path,
            uid,
            gid,
            have.st_uid,
            have.st_gid,
        )


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _names(folder: Path) -> list[str]:
    """Return the names in a directory; one that does not exist has none."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []

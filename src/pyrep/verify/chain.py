"""Walk a replica's files from the first state to the newest, and prove each against the others.

From each state the walk goes on with the smallest step there is, so that every state that any
file ends in is reached; each larger file is applied, in thought, where it begins, and the
database checksum it leads to is compared when the walk gets there.  So each file is read once,
and two that speak of the same transactions must agree, also where no checksum travelled with
them.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pyrep._ltx import Header
from pyrep.errors import LTXError, LTXNotFoundError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.plan import gaps
from pyrep.verify.findings import Finding, Severity
from pyrep.verify.replay import FilePages, PageState

__all__ = ["Read", "Verification", "file_name", "verify_files"]

Read = Callable[[FileInfo], FilePages]

_WAL_FIRST = 32  # where the first frame of a WAL lies


@dataclass(frozen=True, slots=True)
class Verification:
    """Say what a replica holds and what is wrong with it.

    ``txid`` is the newest state that files lead to from TXID 1 (0: none), ``checksum`` its
    database checksum, ``proven`` whether a checksum that travelled with the files says the same.
    """

    files: int
    bytes: int
    txid: TXID
    timestamp_ms: int
    checksum: int
    proven: bool
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Return whether every state that should be there can be restored."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def file_name(info: FileInfo) -> str:
    """Return how findings name a file."""
    return f"level {info.level} {info.name}"


def verify_files(files: Iterable[FileInfo], read: Read) -> Verification:
    """Verify the files of one listing; ``read`` decodes and verifies one by itself.

    What ``read`` raises of :class:`~pyrep.errors.LTXError` is a finding; errors of the storage
    go up.
    """
    ordered = sorted(files, key=lambda info: (info.min_txid, info.max_txid, info.level))
    walk = _Walk(ordered, read)
    walk.run()
    findings = [*walk.findings, *_gaps(ordered), *_holes(ordered)]
    if not ordered:
        findings.append(Finding("empty", "", "there are no ltx files"))
    return Verification(
        files=len(ordered),
        bytes=sum(info.size for info in ordered),
        txid=walk.head,
        timestamp_ms=walk.head_ms,
        checksum=walk.checksum,
        proven=walk.head_proven,
        findings=tuple(findings),
    )


def _gaps(ordered: Sequence[FileInfo]) -> list[Finding]:
    return [
        Finding("gap", "", f"no file leads from txid {gap.have} to {gap.next}")
        for gap in gaps(ordered)
    ]


def _holes(ordered: Sequence[FileInfo]) -> list[Finding]:
    """Find what a level lacks between its own files, where other levels lead across.

    A snapshot that begins a chain anew after damage leaves such a hole: it was said then.
    """
    whole = {gap.have for gap in gaps(ordered)}
    found = []
    for level in range(SNAPSHOT_LEVEL):
        reached: TXID | None = None
        for info in (each for each in ordered if each.level == level):
            if reached is not None and info.min_txid > reached + 1 and reached not in whole:
                text = f"level {level} has no file from txid {TXID(reached + 1)} to "
                text += f"{TXID(info.min_txid - 1)}; other levels lead across"
                found.append(Finding("hole", "", text, Severity.WARNING))
            reached = max(reached or TXID(0), info.max_txid)
    return found


@dataclass(frozen=True, slots=True, order=True)
class _Step:
    """Hold a file that leads on, and the database checksum that it leads to; the nearest first."""

    end: TXID
    level: int
    info: FileInfo
    header: Header = field(compare=False)
    checksum: int = field(compare=False)


class _Walk:
    """Hold where the walk is, what it found, and what is known of the newest state reached."""

    def __init__(self, ordered: Sequence[FileInfo], read: Read) -> None:
        self._ordered = ordered
        self._read = read
        self._at = 0  # the first file that was not looked at
        self._state = PageState()
        self._steps: list[_Step] = []  # a heap
        self._logs: list[tuple[FileInfo, Header, bool]] = []  # of level 0; True: every page
        self.findings: list[Finding] = []
        self.head, self.head_ms, self.head_proven = TXID(0), 0, False

    @property
    def checksum(self) -> int:
        """Return the database checksum of the newest state reached, 0 if none is."""
        return self._state.checksum if self.head else 0

    def run(self) -> None:
        """Go from TXID 0 as far as files lead; what lies beyond is verified file by file."""
        fresh = self._look_around()
        while self._steps:
            step = self._steps[0]
            pages = fresh.get(step.info) or self._load(step.info)
            if pages is None:
                heapq.heappop(self._steps)  # it went bad between two looks
                continue
            self._state.apply(pages)
            self._arrive(step.end)
            fresh = self._look_around()
        for info in self._ordered[self._at :]:
            self._load(info)
        self._check_logs()

    def _look_around(self) -> dict[FileInfo, FilePages]:
        """Read every file that begins here or before and was not read yet.

        Returns the pages of those that may come next.
        """
        fresh: dict[FileInfo, FilePages] = {}
        passed = []
        while self._at < len(self._ordered):
            info = self._ordered[self._at]
            if info.min_txid > self.head + 1:
                break
            self._at += 1
            pages = self._load(info)
            if pages is None:
                continue
            if info.max_txid <= self.head:
                passed.append((info, pages))
            elif (step := self._step(info, pages)) is not None:
                heapq.heappush(self._steps, step)
                fresh[info] = pages
        nearest = self._steps[0].info if self._steps else None
        self._compare_passed(passed)
        return {info: pages for info, pages in fresh.items() if info == nearest}

    def _step(self, info: FileInfo, pages: FilePages) -> _Step | None:
        """Find out where a file leads from here; None if it cannot belong here."""
        header, before = pages.header, self.checksum
        follows = info.min_txid == self.head + 1
        if follows and before and header.pre_checksum not in (0, before):
            self._say(
                "foreign",
                info,
                f"it continues a database with the checksum {header.pre_checksum:016x}, but txid "
                f"{self.head} has {before:016x}",
            )
            return None
        try:
            checksum = self._state.after(pages)
        except LTXError as error:
            self._say("foreign", info, error.message)
            return None
        if header.post_checksum not in (0, checksum):
            self._say(
                "foreign",
                info,
                f"it leads to the database checksum {checksum:016x}, but its header says "
                f"{header.post_checksum:016x}",
            )
            return None
        return _Step(info.max_txid, info.level, info, header, checksum)

    def _arrive(self, txid: TXID) -> None:
        """Go on to a state; every file that ends there must lead to it."""
        ends = []
        while self._steps and self._steps[0].end <= txid:
            ends.append(heapq.heappop(self._steps))
        for each in ends[1:]:
            if each.checksum != self._state.checksum:
                self._say(
                    "overlap",
                    each.info,
                    f"it leads to another state of txid {txid} than {file_name(ends[0].info)}",
                )
        self.head = txid
        self.head_ms = min(each.header.timestamp_ms for each in ends)
        self.head_proven = any(each.header.post_checksum for each in ends)

    def _compare_passed(self, passed: list[tuple[FileInfo, FilePages]]) -> None:
        """Compare files that end in or before the state reached with that, the newest first.

        A page must be as the state has it unless a later file of these has it too; where later
        transactions are in none of them, nothing can be said.
        """
        covered = self.head  # all after it is in the files that were compared
        newer: set[int] = set()
        for info, pages in sorted(passed, key=lambda each: each[0].max_txid, reverse=True):
            if info.max_txid < covered:
                return
            wrong = self._differing(pages, newer)
            if wrong:
                text = f"page {wrong} is not that of txid {self.head}, which other files lead to"
                self._say("overlap", info, text)
                return
            newer.update(pages.pgnos)
            covered = min(covered, TXID(info.min_txid - 1))

    def _differing(self, pages: FilePages, newer: set[int]) -> int:
        """Return the first page that the state has otherwise and no newer file has, else 0."""
        crcs = self._state.crcs
        for pgno, crc in zip(pages.pgnos, pages.crcs, strict=True):
            if pgno <= len(crcs) and pgno not in newer and crcs[pgno - 1] != crc:
                return pgno
        return 0

    # --- one file ---

    def _load(self, info: FileInfo) -> FilePages | None:
        """Read a file; what is wrong with it by itself is a finding, and None comes back."""
        try:
            pages = self._read(info)
        except LTXNotFoundError:
            self._say("unreadable", info, "it is listed but not there")
            return None
        except LTXError as error:
            self._say("damaged", info, error.message)
            return None
        header = pages.header
        if (header.min_txid, header.max_txid) != (info.min_txid, info.max_txid):
            text = f"its header says txids {header.min_txid:016x} to {header.max_txid:016x}"
            self._say("misnamed", info, text)
            return None
        if info.level == 0:
            self._logs.append((info, header, pages.is_whole))
        return pages

    def _check_logs(self) -> None:
        """Compare each level-0 file with the one before it: lineage, place in the WAL, time."""
        logs = sorted(set(self._logs), key=lambda each: each[0])
        for (_, before, _), (info, header, whole) in itertools.pairwise(logs):
            if header.timestamp_ms < before.timestamp_ms:
                text = "its time is before that of the file before it"
                self._say("times", info, text, Severity.WARNING)
            if header.min_txid != before.max_txid + 1 or whole:
                continue
            if before.node_id and header.node_id and header.node_id != before.node_id:
                text = f"another lineage ({header.node_id:016x}) goes on without every page"
                self._say("foreign", info, text)
            elif not _follows_in_wal(before, header):
                self._say("foreign", info, "it does not follow in the WAL of the file before it")

    def _say(
        self, kind: str, info: FileInfo, text: str, severity: Severity = Severity.ERROR
    ) -> None:
        finding = Finding(kind, file_name(info), text, severity)
        if finding not in self.findings:
            self.findings.append(finding)


def _follows_in_wal(before: Header, header: Header) -> bool:
    """Return whether a file's range of the WAL can come after that of the file before it.

    Within a generation (the same salts) it begins where the other ended or, made by comparing
    pages, at the beginning; another generation is read from its first frame.
    """
    if not before.wal_size or not header.wal_size or header.wal_offset == _WAL_FIRST:
        return True
    same = (header.wal_salt1, header.wal_salt2) == (before.wal_salt1, before.wal_salt2)
    return same and header.wal_offset == before.wal_offset + before.wal_size

"""When is a file that comes into a folder complete, and is it the one that has a row already?"""

import heapq
import os
import queue
import threading
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspectad.end_mark import is_whole
from inspectad.images import read_file
from inspectad.names import NameSet

# How long size and time of change must have stayed the same before a file counts as complete.
_POLL_SECONDS: Final = 0.03  # its end is there, but nobody said that it was closed
_UNMARKED_SECONDS: Final = 0.5  # its format has no end mark
_TRUNCATED_SECONDS: Final = 2.0  # its end is missing: then it is a truncated file, and gets a row that says so
_LOCKED_SECONDS: Final = 30.0  # it cannot be opened: on Windows a program that copies it may hold it for long
_HANGS_SECONDS: Final = 60.0

_MOST_WARNINGS: Final = 20
_TIME_SLACK_NS: Final = 2 * 10**9  # FAT counts in 2 s; Windows notes the last write when the file is closed
_CLOCK_SLACK_NS: Final = 60 * 10**9  # between the clocks of this machine and of a file server

Say = Callable[[str], None]


def stamp_of(stat: os.stat_result) -> int:
    """Size and time of change (ns) of a file in one integer: each row has one, and a tuple takes thrice as much."""
    return stat.st_size << 64 | max(stat.st_mtime_ns, 0)


def _time_ns(stamp: int) -> int:
    return stamp & (2**64 - 1)


def is_changed(known: int, stamp: int, slack_ns: int = _TIME_SLACK_NS) -> bool:
    """Earlier than known is no change: copying programs set the time of the original when they are done."""
    return known >> 64 != stamp >> 64 or _time_ns(stamp) > _time_ns(known) + slack_ns


@dataclass(slots=True)
class _Waiting:
    """A file that is not complete yet.

    Attributes:
        since: when this stamp was first seen.
        due: when to look at it next.
        patience: how long the stamp must stay; None until somebody looked into the file.
    """

    stamp: int
    since: float
    due: float
    closed: bool = False
    patience: float | None = None


class Arrivals:
    """Says of noticed files which are complete, and warns of names that are used again. Never waits itself."""

    def __init__(
        self,
        folder: Path,
        done: Container[str],
        rows_ns: int,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.known: dict[str, int] = {}  # stamps of files that are still here, of those that were given or have a row
        self._gone = NameSet()  # names of files that were given and are no longer here
        self._done = done
        self._rows_ns = rows_ns
        self._say = say
        self._clock = clock
        self._files: dict[str, _Waiting] = {}
        self._due: list[tuple[float, str]] = []  # a heap; entries whose file has another due time are void
        self._listed = False
        self._reused = 0
        self._warned: set[str] = set()

    @property
    def waiting(self) -> int:
        """Files that are not complete yet."""
        return len(self._files)

    def seconds_to_next(self) -> float | None:
        """Until `complete` may have something to say; None: not before the next notice."""
        return max(self._due[0][0] - self._clock(), 0.0) if self._due else None

    def notice(self, name: str, *, closed: bool) -> None:
        """Look at this file; ``closed``: it was just closed after writing, or moved here."""
        if not name:
            self._listed = True
            return
        stamp = self._stamp(name)
        if stamp is None:
            self._files.pop(name, None)
            if self.known.pop(name, None) is not None:
                self._gone.add(name)
        elif name in self.known or name in self._gone or name in self._done:
            self._look_again(name, stamp, closed=closed)
        else:
            self._look(name, stamp, closed=closed)

    def complete(self) -> Iterator[str]:
        """Names of files that are complete now; each is given once and for all."""
        while self._due and self._due[0][0] <= self._clock():
            due, name = heapq.heappop(self._due)
            waiting = self._files.get(name)
            if waiting is None or waiting.due != due:
                continue
            stamp = self._stamp(name)
            if stamp is None:
                del self._files[name]  # taken away before it was complete
            elif stamp != waiting.stamp:
                self._look(name, stamp, closed=False)
            elif self._is_settled(name, waiting):
                del self._files[name]
                self.known[name] = stamp
                yield name
            else:
                self._schedule(name, waiting, self._clock() + _POLL_SECONDS)

    def _stamp(self, name: str) -> int | None:
        try:
            return stamp_of(os.stat(self.folder / name))
        except OSError:
            return None

    def _look(self, name: str, stamp: int, *, closed: bool) -> None:
        now = self._clock()
        waiting = self._files.get(name)
        if waiting is None or waiting.stamp != stamp:
            waiting = self._files[name] = _Waiting(stamp, now, now)
            self._schedule(name, waiting, now if closed else now + _POLL_SECONDS)
        elif closed and not waiting.closed:
            waiting.patience = None
            self._schedule(name, waiting, now)
        waiting.closed |= closed

    def _schedule(self, name: str, waiting: _Waiting, due: float) -> None:
        waiting.due = due
        heapq.heappush(self._due, (due, name))

    def _is_settled(self, name: str, waiting: _Waiting) -> bool:
        if waiting.patience is None:
            waiting.patience = _patience(self.folder / name, closed=waiting.closed)
        return self._clock() >= waiting.since + waiting.patience

    def _look_again(self, name: str, stamp: int, *, closed: bool) -> None:
        """A name is inspected once. Is it still the same file?"""
        known = self.known.get(name)
        if known is None:  # it was gone, or its row was there at the start; one that comes later is another file
            changed = closed or self._listed or _time_ns(stamp) > self._rows_ns + _CLOCK_SLACK_NS
        else:
            changed = is_changed(known, stamp, 0 if closed else _TIME_SLACK_NS)
        if changed or known is None:
            self.known[name] = stamp
        if changed and name not in self._warned:
            self._warn(name, "the file changed since" if known is not None else "a file came again under that name")

    def _warn(self, name: str, what: str) -> None:
        """Each of the first names; later ones only when their number has doubled, as this may run for months."""
        self._reused += 1
        if len(self._warned) < _MOST_WARNINGS:
            self._warned.add(name)
            self._say(
                f"{name}: has a row already, and {what}; a name is inspected once, so give each image a name of its own"
            )
        elif self._reused.bit_count() == 1:
            self._say(
                f"{self._reused} times a file changed or came again that had a row already; none was inspected again"
            )


def _patience(path: Path, *, closed: bool) -> float:
    """Seconds for which a file must stay as it is to count as complete.

    One that cannot be read within `_HANGS_SECONDS` is given at once: the scan has a rule for it (`inspectad.pipeline`),
    and the other files must not wait for it here.
    """
    answer: queue.Queue[bool | Exception | None] = queue.Queue()
    threading.Thread(target=_ask_whether_whole, args=(path, answer), daemon=True).start()
    try:
        whole = answer.get(timeout=_HANGS_SECONDS)
    except queue.Empty:
        return 0.0
    if isinstance(whole, Exception):
        return _LOCKED_SECONDS
    if whole is False:
        return _TRUNCATED_SECONDS
    if closed:
        return 0.0
    return _POLL_SECONDS if whole else _UNMARKED_SECONDS


def _ask_whether_whole(path: Path, answer: "queue.Queue[bool | Exception | None]") -> None:
    """In a thread of its own, which may never end, on a drive that hangs."""
    try:
        answer.put(is_whole(read_file(path, tries=1)))  # `Arrivals` looks again anyway
    except Exception as error:  # somebody waits
        answer.put(error)

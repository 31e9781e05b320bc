"""``scan --watch``: the image files of a folder as they arrive, each given once, when it is complete.

Three threads: `_Observer` (the system's notices) and `_Lister` (a full listing now and then, since notices are lost on
network shares, on overflow and before anybody listens) put names into one queue; `watch_folder` takes them out, and
`Arrivals` judges when a file is complete. A notice only says where to look: the file itself decides.
"""

import logging
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
    FileSystemMovedEvent,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from inspectad.arrivals import Arrivals, Say, is_changed, stamp_of
from inspectad.errors import UsageError
from inspectad.image_files import ImageFile, ImageTree

_LIST_SECONDS: Final = 1.0  # between two listings
_LIST_SHARE: Final = 20  # or so many times what a listing takes, where that is longer
_MOST_UNLISTED: Final = 20  # folders that are named as such
_MOST_NOTICES: Final = 10_000  # beyond which notices are dropped: the next listing finds those files

# Not those of opening and closing for reading: we do that ourselves.
_EVENTS: Final[list[type[FileSystemEvent]]] = [
    FileCreatedEvent,
    FileClosedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]

_Notice = tuple[str, bool]
"""A file's name, and whether it was just closed after writing or moved here. An empty name: a listing is through."""


def watch_folder(
    folder: Path, output: Path, done: Container[str], *, rows_ns: int = 0, say: Say, listing_alone: bool = False
) -> Iterator[ImageFile]:
    """Image files below a folder: those that are there and those to come, for ever; hidden ones and results left out.

    Args:
        done: names that have a row.
        rows_ns: when the last of these rows was written, in ns since 1970; a file changed later is warned of.
        say: told, from a thread of its own, what is amiss.
        listing_alone: do without the system's notices.
    Raises:
        UsageError: there is no such folder.
    """
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder; check the spelling, or give the full path")
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; --watch takes the folder that the images come into")
    if folder.resolve() == output.resolve():
        raise UsageError(f"{folder}: is both input and output; choose another output folder with -o")
    arrivals = Arrivals(folder, done, rows_ns, say)
    return _files(arrivals, _Lister(folder, output, arrivals, say, listing_alone=listing_alone))


def _files(arrivals: Arrivals, lister: "_Lister") -> Iterator[ImageFile]:
    lister.start()
    try:
        while True:
            for name, closed in lister.take(arrivals.seconds_to_next()):
                arrivals.notice(name, closed=closed)
                if arrivals.waiting > _MOST_NOTICES:
                    break
            for name in arrivals.complete():
                yield ImageFile(arrivals.folder / name, name)
    finally:
        lister.stop()


class _Lister(threading.Thread):
    """Lists the whole folder now and then, and keeps the observer running, also when the folder was gone."""

    def __init__(self, folder: Path, output: Path, arrivals: Arrivals, say: Say, *, listing_alone: bool) -> None:
        super().__init__(name="inspectad-lister", daemon=True)
        self._tree = ImageTree(folder, output, self._cannot_list)
        self._known = arrivals.known
        self._say = say
        self._notices: queue.Queue[_Notice | BaseException] = queue.Queue(_MOST_NOTICES)
        self._observer = None if listing_alone else _Observer(self._tree, self._notices, say)
        self._stopped = threading.Event()
        self._unlisted: set[str] = set()
        self._failed = False  # to list some folder, in this listing

    def take(self, timeout: float | None) -> Iterator[_Notice]:
        """Wait for a notice, at most so long, then take what is there."""
        with suppress(queue.Empty):
            notice = self._notices.get(timeout=timeout)
            while True:
                if isinstance(notice, BaseException):
                    raise notice
                yield notice
                notice = self._notices.get_nowait()

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                started = time.monotonic()
                self._list()
                self._stopped.wait(max(_LIST_SECONDS, _LIST_SHARE * (time.monotonic() - started)))
        except BaseException as error:
            self._put(error)  # without listings files would be lost in silence
        finally:
            if self._observer is not None:
                self._observer.stop()

    def _list(self) -> None:
        self._failed = False
        try:
            if self._observer is not None:
                self._observer.keep_running()  # before the listing, so that no file falls between
            listed = {name: stamp_of(stat) for name, stat in self._tree.walk()}
        except OSError as error:
            self._cannot_list("", error)
            return
        if "" in self._unlisted:
            self._unlisted.clear()
            self._say(f"{self._tree.folder}: is back")
        news = sorted(name for name, stamp in listed.items() if self._is_news(name, stamp))
        for name in [*news, *self._gone(listed), ""]:
            self._put((name, False))

    def _gone(self, listed: Container[str]) -> list[str]:
        """Files that were known and are not there any more, if all folders could be listed."""
        return [] if self._failed else [name for name in list(self._known) if name not in listed]

    def _is_news(self, name: str, stamp: int) -> bool:
        known = self._known.get(name)
        return known is None or is_changed(known, stamp)

    def _put(self, notice: _Notice | BaseException) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._notices.put(notice, timeout=0.5)
                return

    def _cannot_list(self, name: str, error: OSError) -> None:
        """Said once for each folder, then tried again with each listing."""
        self._failed = True
        if name not in self._unlisted and (not name or len(self._unlisted) < _MOST_UNLISTED):
            self._unlisted.add(name)
            self._say(f"{self._tree.folder / name}: cannot be listed ({error.strerror}); trying again and again")


class _Observer(FileSystemEventHandler):
    """The system's notices of files that come; started again when the folder was replaced by another."""

    def __init__(self, tree: ImageTree, notices: "queue.Queue[_Notice | BaseException]", say: Say) -> None:
        self._tree = tree
        self._notices = notices
        self._say = say
        self._running: BaseObserver | None = None
        self._identity = (0, 0)
        self._prefix = ""
        self._failed = False
        # What watchdog complains of, the listing mends. It warns of a folder that was made while it began to watch.
        logging.getLogger("watchdog").addHandler(logging.NullHandler())
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)

    def keep_running(self) -> None:
        """Raises: OSError when the folder is gone."""
        stat = os.stat(self._tree.folder)
        identity = (stat.st_dev, stat.st_ino)
        threads = [] if self._running is None else [self._running, *self._running.emitters]
        if len(threads) < 2 or identity != self._identity or not all(t.is_alive() for t in threads):
            self.stop()
            self._identity = identity
            self._start()

    def _start(self) -> None:
        observer = None
        try:
            observer = _new_observer()
            real = os.path.realpath(self._tree.folder)
            self._prefix = os.path.join(real, "")
            observer.schedule(self, real, recursive=True, event_filter=_EVENTS)
            observer.start()
            self._running = observer
        except Exception as error:  # limits of the system, file systems that give no notice: each raises its own kind
            if observer is not None:
                observer.stop()
            if not self._failed:
                self._say(f"{self._tree.folder}: the system does not tell of new files ({error}); looking every second")
            self._failed = True

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Runs in a thread of the observer. A notice that finds no room is dropped: the next listing finds the file."""
        moved = isinstance(event, FileSystemMovedEvent)
        path = os.fsdecode(event.dest_path if moved else event.src_path)
        if event.is_directory or not path.startswith(self._prefix):
            return
        name = path.removeprefix(self._prefix).replace(os.sep, "/")
        if self._tree.is_wanted(name):
            with suppress(queue.Full):
                self._notices.put_nowait((name, moved or isinstance(event, FileClosedEvent)))


def _new_observer() -> BaseObserver:
    if sys.platform != "linux":
        return Observer()
    from watchdog.observers.inotify import InotifyObserver
    from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper

    # A file that is moved out holds all later notices back for so long, lest its other end follow; the 0.5 s that it
    # comes with would be the latency of a line that moves away what was inspected. Both ends come within microseconds.
    InotifyMoveEventGrouper.delay = 0.01
    return InotifyObserver(generate_full_events=True)  # else a file moved here looks like one being written

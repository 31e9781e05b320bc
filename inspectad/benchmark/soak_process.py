"""The scan of a soak: a process of its own, watched while its rows come. Needs psutil, of the extra [benchmark]."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from inspectad.benchmark.soak_images import Mix
from inspectad.benchmark.soak_ledger import Ledger
from inspectad.benchmark.soak_records import WARM_UP, Ending, Sample, SoakRun
from inspectad.image_files import RESULTS_MARKER
from inspectad.progress import Step
from inspectad.results import COLUMNS

_ROWS: Final = "results.csv"
_WARM_UP_SAMPLES: Final = 100
_SAMPLES: Final = 1_000
_MEMORY_S: Final = 0.01
_HERE: Final = 64  # images that lie in a watched folder at a time
_PATIENCE_S: Final = 180.0  # without a row, after which the scan hangs
_LINGER_S: Final = 2.5  # after the last row of a watched folder: it is listed once more meanwhile
_SIGTERM_CODE: Final = 143


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a soak works: images, the scan's output, and what it takes for the folder of temporary files."""

    images: Path
    output: Path
    temporary: Path


def soak(
    command: Sequence[str], mix: Mix, folders: Folders, step: Step, *, watch: bool, patience_s: float = _PATIENCE_S
) -> SoakRun:
    """Run a scan and hold all its rows against what they should be.

    Args:
        command: the scan's command line; its rows come on standard output.
        watch: the scan watches a folder: images come a few at a time and are deleted when they have their row, and
            it is ended by SIGTERM after the last one.
    """
    for folder in (folders.images, folders.output, folders.temporary):
        folder.mkdir(parents=True, exist_ok=True)
    if not watch:
        for number in range(mix.images):
            step("linking images", number, mix.images)
            mix.put(number, folders.images)
    names = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folders.temporary))
    errors = folders.output.with_name("stderr.txt")
    with errors.open("wb") as stderr, subprocess.Popen(  # noqa: S603  # this very program
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, **names},
    ) as process:  # fmt: skip
        try:
            return _Soak(process, mix, folders, step, watch=watch, patience_s=patience_s).run(errors)
        finally:
            process.kill()


class _Soak:
    """One run."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        mix: Mix,
        folders: Folders,
        step: Step,
        *,
        watch: bool,
        patience_s: float,
    ) -> None:
        self._process, self._mix, self._folders, self._step = process, mix, folders, step
        self._watch = watch
        self._patience_s = patience_s
        self._ledger = Ledger(mix, folders.output)
        self._reader = _Reader(process)
        self._sampler = _Sampler(process, folders)
        self._put = 0

    def run(self, errors: Path) -> SoakRun:
        """Until the last row, and the end of the process."""
        problem = self._take_rows()
        begin = time.monotonic()
        if self._watch and not problem:
            self._process.terminate()
        problem = problem or self._wait(errors)
        self._ledger.close()
        return SoakRun(
            images=self._mix.images,
            rows=self._ledger.rows,
            verdicts=dict(self._ledger.verdicts),
            wrong=dict(self._ledger.wrong),
            examples=dict(self._ledger.examples),
            samples=tuple(self._sampler.samples),
            ending=Ending(problem, time.monotonic() - begin, tuple(_left(self._folders))),
        )

    def _take_rows(self) -> str:
        """Returns: what was wrong, if the rows stopped early."""
        while True:
            if self._watch:
                self._feed()
            is_last = self._watch and self._ledger.images == self._mix.images
            try:
                cells = self._reader.rows.get(timeout=_LINGER_S if is_last else self._patience_s)
            except queue.Empty:
                return "" if is_last else f"no row for {self._patience_s:g} s, so it was killed"
            if cells is None:
                return ""
            self._row(cells)

    def _feed(self) -> None:
        while self._put < self._mix.images and self._put - self._ledger.images < _HERE:
            self._mix.put(self._put, self._folders.images, renamed=True)
            self._put += 1

    def _row(self, cells: dict[str, str]) -> None:
        found = self._ledger.row(cells)
        self._step("scanning", self._ledger.rows, self._mix.images, f"{self._ledger.rows} rows")
        self._sampler.look(self._ledger.rows, self._mix.images)
        if self._watch and found is not None:
            path = self._folders.images / cells["image"]
            path.unlink()
            if found[1]:
                path.parent.rmdir()

    def _wait(self, errors: Path) -> str:
        """Returns: what was wrong with its end."""
        try:
            code = self._process.wait(self._patience_s)
        except subprocess.TimeoutExpired:
            return f"it did not end within {self._patience_s:g} s"
        for cells in self._reader.rest():
            self._ledger.row(cells)
        expected = _SIGTERM_CODE if self._watch else 4 if self._ledger.verdicts["UNREADABLE"] else 0
        if code != expected and not (self._watch and os.name == "nt"):  # there, ending a process is killing it
            said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"exit code {code} instead of {expected}; it said: {' '.join(said[-3:])[-300:] or 'nothing'}"
        if self._reader.problem:
            return self._reader.problem
        with contextlib.suppress(OSError), (self._folders.output / _ROWS).open("rb") as file:
            if hashlib.file_digest(file, "sha256").digest() == self._reader.digest:
                return ""
        return f"{_ROWS} is not what came on standard output"


class _Reader:
    """Reads the rows in a thread of its own, so that waiting for one can end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.rows: queue.Queue[dict[str, str] | None] = queue.Queue(100)
        self.problem = ""
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._thread.start()

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that came."""
        return self._hash.digest()

    def rest(self) -> Iterator[dict[str, str]]:
        """What came after the last one that was taken, once the process has ended."""
        while self._thread.is_alive() or not self.rows.empty():
            with contextlib.suppress(queue.Empty):
                if (cells := self.rows.get(timeout=0.1)) is not None:
                    yield cells

    def _read(self, stdout: IO[bytes]) -> None:
        try:
            for cells in csv.DictReader(self._lines(stdout)):
                if tuple(cells) != COLUMNS or None in cells.values():
                    self.problem = f"not a row of ours: {cells}"[:300]
                    break
                self.rows.put(cells)
        except (csv.Error, ValueError) as error:
            self.problem = f"its rows are no CSV ({error})"
        self.rows.put(None)

    def _lines(self, stdout: IO[bytes]) -> Iterator[str]:
        for line in stdout:
            self._hash.update(line)
            yield line.decode("utf-8", "surrogateescape")


class _Sampler:
    """Looks at the process every so many rows, and at its memory all the time: a large image is soon gone again."""

    def __init__(self, process: subprocess.Popen[bytes], folders: Folders) -> None:
        self.samples: list[Sample] = []
        self._process = psutil.Process(process.pid)
        self._folders = folders
        self._began = time.monotonic()
        self._next = 1
        self._highest = 0
        threading.Thread(target=self._watch_memory, args=(process,), daemon=True).start()

    def _watch_memory(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(psutil.Error):
            while process.poll() is None:
                self._highest = max(self._highest, self._process.memory_info().rss)
                time.sleep(_MEMORY_S)

    def look(self, rows: int, images: int) -> None:
        """Take a sample if it is time for one."""
        if rows < self._next:
            return
        step = WARM_UP // _WARM_UP_SAMPLES if rows < WARM_UP else max((images - WARM_UP) // _SAMPLES, 1)
        self._next = rows + step
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # its last rows were in the pipe
            self.samples.append(self._sample(rows))

    def _sample(self, rows: int) -> Sample:
        memory = self._process.memory_full_info()
        times = self._process.cpu_times()
        highest, self._highest = max(self._highest, memory.rss), 0
        return Sample(
            images=rows,
            seconds=time.monotonic() - self._began,
            core_s=times.user + times.system,
            rss=highest,
            uss=memory.uss,
            handles=self._process.num_handles() if os.name == "nt" else self._process.num_fds(),
            threads=self._process.num_threads(),
            disk=sum(size for _, size in _files(self._folders)),
        )


def _files(folders: Folders) -> Iterator[tuple[str, int]]:
    """Path and size of all that the scan has written, but for the rows."""
    for top in (folders.output, folders.temporary):
        for here, _, names in os.walk(top):
            for name in names:
                path = os.path.join(here, name)
                if path not in (str(folders.output / _ROWS), str(folders.output / RESULTS_MARKER)):
                    with contextlib.suppress(FileNotFoundError):  # a temporary file that was renamed
                        yield path, os.stat(path).st_size


def _left(folders: Folders) -> list[str]:
    return sorted(os.path.relpath(path, folders.output.parent) for path, _ in _files(folders))

"""Files that block, vanish, change or are replaced while they are read; and a reader of the rows that does not read."""

import contextlib
import csv
import fcntl
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Trained, cli_environment, command_line

from inspectad import images, pipeline
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError, UnreadableImageError
from inspectad.image_files import find_images
from inspectad.image_limits import MOST_FILE_BYTES
from inspectad.images import read_file
from inspectad.network import share
from inspectad.records import Inspection, Verdict
from inspectad.scan import ScanConfig, scan

DATA = bytes(range(256)) * 40


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(DATA)
    return path


# --- one file ---


def test_a_pipe_that_takes_the_place_of_a_file_blocks_nobody(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(Path, "stat", lambda _: os.stat(file))  # what it was a moment before
    with pytest.raises(UnreadableImageError, match="not a file"):
        read_file(tmp_path / "pipe.png")


def grow(path: Path) -> None:
    with path.open("ab") as handle:
        handle.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def overwrite(path: Path) -> None:
    now = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[1:] + b"x")
    os.utime(path, ns=(now, now + 1_000_000))  # else within one tick of the clock


CHANGES = pytest.mark.parametrize("change", [grow, shrink, overwrite])


def change_while_read(monkeypatch: pytest.MonkeyPatch, path: Path, change, times: int) -> None:
    """Between the look at the opened file and its reading."""
    real, done = os.fstat, []

    def fstat(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        looks_first = os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        if looks_first and os.path.samestat(found, os.stat(path)) and len(done) < times:
            done.append(change)
            monkeypatch.setattr(os, "fstat", real)
            change(path)
            monkeypatch.setattr(os, "fstat", fstat)
        return found

    monkeypatch.setattr(images, "_PAUSE_S", 0.001)
    monkeypatch.setattr(os, "fstat", fstat)


@CHANGES
def test_a_file_that_changes_while_it_is_read_is_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, change
) -> None:
    change_while_read(monkeypatch, file, change, 2)
    found = read_file(file)
    monkeypatch.undo()
    assert found == file.read_bytes() != DATA


@CHANGES
def test_a_file_that_goes_on_changing_is_unreadable(file: Path, monkeypatch: pytest.MonkeyPatch, change) -> None:
    change_while_read(monkeypatch, file, change, 99)
    with pytest.raises(UnreadableImageError, match="changed while it was read"):
        read_file(file)


def test_a_file_that_vanishes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_while_read(monkeypatch, file, Path.unlink, 1)
    assert read_file(file) == DATA  # it was opened before: all of it is still there
    monkeypatch.undo()
    with pytest.raises(UnreadableImageError, match="cannot be opened: No such file"):
        read_file(file)


def test_a_file_larger_than_any_image_is_not_loaded(file: Path) -> None:
    os.truncate(file, MOST_FILE_BYTES + 1)  # sparse
    with pytest.raises(UnreadableImageError, match=f"{MOST_FILE_BYTES + 1} bytes, more than the {MOST_FILE_BYTES}"):
        read_file(file)


# --- a drive that hangs ---


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[set[str], threading.Event]]:
    """Names of files whose reading does not end before the event."""
    names: set[str] = set()
    comes = threading.Event()

    def read(path: Path, on_part: Callable[[], None]) -> bytes:
        if path.name in names:
            assert comes.wait(60)
        return read_file(path, on_part=on_part)

    monkeypatch.setattr(pipeline, "read_file", read)
    monkeypatch.setattr(pipeline, "READ_SECONDS", 2.0)  # long enough for a busy machine
    monkeypatch.setattr(pipeline, "_POLL_SECONDS", 0.05)
    yield names, comes
    comes.set()


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_files_that_do_not_come_become_unreadable_and_the_others_are_judged(
    trained: Trained, tmp_path: Path, hang: tuple[set[str], threading.Event], workers: int, monkeypatch
) -> None:
    monkeypatch.setattr(pipeline, "_IN_FLIGHT_BYTES", 1)  # one image at a time: who is stuck must not hold the room
    names, comes = hang
    names |= {"good_0.png", "good_1.png", "good_4.png"}
    config = ScanConfig(images=(str(trained.good),), output=tmp_path / "out", heatmaps="all", workers=workers)
    summary = scan(config, OnnxDetector.load(trained.model, "cpu", threads=1))
    assert summary.verdicts["UNREADABLE"] == 3
    found = rows_of(tmp_path / "out" / "results.csv")
    assert [row["image"] for row in found] == [f.name for f in find_images(trained.good)]
    for row in found:
        assert ("could not be read within" in row["error"]) == (row["image"] in names)
    comes.set()  # too late: nothing more is made of them
    deadline = time.monotonic() + 20
    while any(t.name == "inspectad-worker" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    made = {p.name.removesuffix(".png") for p in (tmp_path / "out" / "heatmaps").iterdir()}
    assert made == {row["image"] for row in found} - names
    assert rows_of(tmp_path / "out" / "results.csv") == found


def test_a_drive_that_is_gone_ends_the_scan(
    trained: Trained, tmp_path: Path, hang: tuple[set[str], threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_MOST_LEFT_BEHIND", 3)
    hang[0].update(f.name for f in find_images(trained.good))
    config = ScanConfig(images=(str(trained.good),), output=tmp_path / "out", workers=2)
    with pytest.raises(InspectadError, match=r"nor could 3 others: the drive does not answer; go on with --resume"):
        scan(config, OnnxDetector.load(trained.model, "cpu", threads=1))
    assert {row["verdict"] for row in rows_of(tmp_path / "out" / "results.csv")} <= {"UNREADABLE"}


HANG = """
import os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from inspectad import pipeline
real = pipeline.read_file
def read(path, **options):
    if path.name == "good_3.png":
        os.write(2, b"hangs\\n")
        threading.Event().wait()
    return real(path, **options)
pipeline.read_file = read
pipeline.READ_SECONDS = {seconds}
"""


@contextlib.contextmanager
def started(*arguments: object, prelude: str = "", **options: object) -> Iterator["subprocess.Popen[bytes]"]:
    command = command_line(*arguments, prelude=prelude)
    process = subprocess.Popen(command, env=cli_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_program_ends_without_the_file_that_does_not_come(trained: Trained, tmp_path: Path) -> None:
    arguments = ("scan", trained.good, "-m", trained.model, "-o", tmp_path / "out", "--device", "cpu")
    with started(*arguments, prelude=HANG.format(seconds=0.5)) as process:
        assert process.wait(timeout=60) == 4
    assert len(rows_of(tmp_path / "out" / "results.csv")) == 6


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_program_can_be_stopped_while_a_file_does_not_come(
    trained: Trained, tmp_path: Path, number: int, code: int
) -> None:
    arguments = ("scan", trained.good, "-m", trained.model, "-o", tmp_path / "out", "--device", "cpu")
    with started(*arguments, prelude=HANG.format(seconds=600)) as process:
        assert process.stderr is not None
        while process.stderr.readline() != b"hangs\n":
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=60) == code


# --- standard output that nobody reads ---


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_reader_that_does_not_read_holds_the_scan_back_and_cannot_keep_it_from_ending(
    trained: Trained, tmp_path: Path, number: int, code: int
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(300):
        os.link(trained.good / "good_0.png", tmp_path / "in" / f"{i:03}.png")
    options = ("--heatmaps", "--workers", "2", "--device", "cpu")
    arguments = ("scan", tmp_path / "in", "-m", trained.model, "-o", tmp_path / "out", *options)
    usual = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with started(*arguments, prelude=usual) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        results, pictures = tmp_path / "out" / "results.csv", tmp_path / "out" / "heatmaps"
        before, since = -1, time.monotonic()
        while time.monotonic() < since + 5:  # until nothing has moved for so long
            now = (results.stat().st_size + len(list(pictures.iterdir()))) if pictures.exists() else -1
            if now != before or now < 0:
                before, since = now, time.monotonic()
            assert process.poll() is None
            time.sleep(0.05)
        rows = len(rows_of(results))
        assert 10 < rows < 100
        # What is made ahead: four images a worker in the queue, one that is waited for, and those at work.
        assert len(list(pictures.iterdir())) <= rows + 4 * 2 + 1 + 2
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        assert process.stderr is not None
        assert b"stopped by" in process.stderr.read()
    assert len(rows_of(results)) in (rows, rows - 1)
    assert results.read_bytes().endswith(b"\n")


def test_a_slow_drive_is_not_taken_for_one_that_hangs(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is how long nothing came, not how long the whole file takes."""

    def slow(path: Path, on_part: Callable[[], None]) -> bytes:
        for _ in range(8):
            time.sleep(0.5)
            on_part()
        return read_file(path)

    monkeypatch.setattr(pipeline, "read_file", slow)
    monkeypatch.setattr(pipeline, "READ_SECONDS", 3.0)
    monkeypatch.setattr(pipeline, "_POLL_SECONDS", 0.05)
    config = ScanConfig(images=(str(trained.good),), output=tmp_path / "out", workers=6)
    assert scan(config, OnnxDetector.load(trained.model, "cpu", threads=1)).verdicts["UNREADABLE"] == 0


def test_what_waits_for_room_is_not_decoded_when_the_scan_ends(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_IN_FLIGHT_BYTES", 1)
    read: list[str] = []

    def noted(path: Path, on_part: Callable[[], None]) -> bytes:
        read.append(path.name)
        return read_file(path, on_part=on_part)

    monkeypatch.setattr(pipeline, "read_file", noted)
    detector = OnnxDetector.load(trained.model, "cpu", threads=1)
    stopped = threading.Event()

    def finish(prepared: pipeline.Prepared, _scored: object) -> Inspection:
        if len(read) > 1:
            stopped.wait(60)  # the others wait for its room
        return Inspection(image=prepared.file.name, verdict=Verdict.UNREADABLE, error="x")

    with contextlib.closing(share([detector])) as network:
        files = iter(find_images(trained.good))
        rows = pipeline.inspect_files(files, detector.manifest, network, finish, workers=4)
        next(rows)
        while len(read) < 2:
            time.sleep(0.01)
        threading.Timer(0.5, stopped.set).start()
        rows.close()
    assert len(read) == 2

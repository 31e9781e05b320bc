"""`scan --watch`: each file that comes into a folder is inspected once, when it is complete, whatever happens."""

import csv
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import RunCli, Trained, cli_environment, command_line
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectad import watch
from inspectad.arrivals import Arrivals
from inspectad.errors import UsageError
from inspectad.image_files import RESULTS_MARKER, ImageFile, find_images
from inspectad.watch import watch_folder

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
IMAGES = {suffix: cv2.imencode(suffix, PIXELS)[1].tobytes() for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp")}
PNG = IMAGES[".png"]


# --- when a file is complete, and whether it is the one that was inspected: by a clock that stands still ---


class Desk:
    """`Arrivals` of a folder, with a clock that tests move."""

    def __init__(self, folder: Path, done: frozenset[str] = frozenset(), rows_ns: int = 0) -> None:
        self.folder = folder
        self.now = 1000.0
        self.said: list[str] = []
        self.arrivals = Arrivals(folder, done, rows_ns, self.said.append, clock=lambda: self.now)

    def write(self, name: str, data: bytes, *, seconds: float = 0.0) -> None:
        """Write it as if it was changed so many seconds after an arbitrary moment."""
        path = self.folder / name
        path.write_bytes(data)
        os.utime(path, (1e9 + seconds, 1e9 + seconds))

    def given(self, name: str = "", after: float = 0.0, *, closed: bool = False) -> list[str]:
        """What is complete so many seconds after a notice of this file; looked at as often as is asked for."""
        end = self.now + after
        if name:
            self.arrivals.notice(name, closed=closed)
        found = list(self.arrivals.complete())
        while (wait := self.arrivals.seconds_to_next()) is not None and self.now + wait <= end:
            self.now += max(wait, 1e-6)
            found += self.arrivals.complete()
        self.now = end
        return found


@pytest.mark.parametrize("suffix", IMAGES)
def test_a_closed_file_is_complete_at_once(tmp_path: Path, suffix: str) -> None:
    desk = Desk(tmp_path)
    desk.write("a" + suffix, IMAGES[suffix])
    assert desk.given("a" + suffix, closed=True) == ["a" + suffix]
    assert desk.given("a" + suffix, 60, closed=True) == []
    assert desk.said == []


@pytest.mark.parametrize(("suffix", "quiet"), [(".png", 0.03), (".jpg", 0.03), (".tif", 0.5)])
def test_without_word_of_the_closing_a_file_is_complete_when_it_stays_as_it_is(
    tmp_path: Path, suffix: str, quiet: float
) -> None:
    desk = Desk(tmp_path)
    desk.write("a" + suffix, IMAGES[suffix])
    assert desk.given("a" + suffix, quiet * 0.9) == []
    assert desk.given(after=quiet) == ["a" + suffix]


@pytest.mark.parametrize("data", [b"", PNG[:-1], IMAGES[".jpg"][:-2]])
@pytest.mark.parametrize("closed", [True, False])
def test_a_file_without_its_end_is_waited_for_and_given_in_the_end(tmp_path: Path, data: bytes, closed: bool) -> None:
    desk = Desk(tmp_path)
    desk.write("a.png", data)
    assert desk.given("a.png", 1.9, closed=closed) == []
    assert desk.given(after=0.2) == ["a.png"]


def test_a_file_that_grows_is_waited_for_from_its_last_change(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for length in range(0, len(PNG), 200):
        desk.write("a.png", PNG[:length], seconds=length)
        assert desk.given("a.png", 1.9) == []
    desk.write("a.png", PNG, seconds=9999)
    assert desk.given(after=0.1) == ["a.png"]  # without any further notice


def test_a_file_that_cannot_be_opened_is_waited_for_longer(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    os.mkfifo(tmp_path / "a.png")  # a stand-in: root may open everything
    assert desk.given("a.png", 29) == []
    assert desk.given(after=2) == ["a.png"]


def test_a_file_that_vanishes_before_it_is_complete_is_forgotten(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.write("a.png", PNG[:50])
    assert desk.given("a.png", 1) == []
    (tmp_path / "a.png").unlink()
    assert desk.given(after=10) == []
    assert desk.arrivals.waiting == 0
    desk.write("a.png", PNG)
    assert desk.given("a.png", closed=True) == ["a.png"]


@settings(deadline=None)
@given(
    cuts=st.lists(st.integers(0, len(PNG) - 1), max_size=6),
    pauses=st.lists(st.floats(0, 1.9), min_size=7, max_size=7),
    notices=st.lists(st.sampled_from([None, False, True]), min_size=7, max_size=7),
    suffix=st.sampled_from([".png", ".jpg", ".webp"]),
)
def test_however_a_file_is_written_it_is_given_once_and_only_when_it_is_there(
    cuts: list[int], pauses: list[float], notices: list[bool | None], suffix: str
) -> None:
    data = IMAGES[suffix]
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        for i, cut in enumerate(sorted({min(c, len(data) - 1) for c in cuts})):
            desk.write("a" + suffix, data[:cut], seconds=i)
            if notices[i] is not None:
                desk.arrivals.notice("a" + suffix, closed=notices[i])
            assert desk.given(after=pauses[i]) == []
        desk.write("a" + suffix, data, seconds=100)
        assert desk.given("a" + suffix, 0.1, closed=bool(notices[-1])) == ["a" + suffix]
        for notice in (True, False):
            assert desk.given("a" + suffix, 10, closed=notice) == []
        assert desk.said == []


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(("data", "seconds"), [(PNG + b"\0", 0), (PNG, 10)])
def test_a_file_that_changes_after_its_inspection_is_warned_of_once(
    tmp_path: Path, data: bytes, seconds: float, closed: bool
) -> None:
    desk = Desk(tmp_path)
    desk.write("a.png", PNG)
    desk.given("a.png", closed=True)
    for i in range(3):
        desk.write("a.png", data + bytes(i), seconds=seconds + 10 * i)
        assert desk.given("a.png", 10, closed=closed) == []
    assert len(desk.said) == 1
    assert desk.said[0].startswith("a.png: ")
    assert "name of its own" in desk.said[0]


def test_a_copy_that_gets_the_time_of_its_original_has_not_changed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.write("a.png", PNG)
    desk.given("a.png", closed=True)
    desk.write("a.png", PNG, seconds=-1000)
    desk.given("a.png", 10)
    assert desk.said == []


def test_warnings_are_bounded_but_never_end(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for i in range(300):
        desk.write(f"{i}.png", PNG)
        assert desk.given(f"{i}.png", closed=True) == [f"{i}.png"]
        desk.write(f"{i}.png", PNG, seconds=100)
        assert desk.given(f"{i}.png", closed=True) == []
    assert len(desk.said) == 20 + 4
    assert [line.split()[0] for line in desk.said[20:]] == ["32", "64", "128", "256"]


def test_names_that_have_a_row_are_not_given_and_warned_of_when_they_are_of_another_file(tmp_path: Path) -> None:
    names = ["same.png", "later.png", "rewritten.png", "new.png"]
    desk = Desk(tmp_path, frozenset(names), rows_ns=10**18)
    desk.write("same.png", PNG, seconds=-10)
    desk.write("later.png", PNG, seconds=3600)  # changed while nobody watched
    desk.write("rewritten.png", PNG, seconds=-10)
    for name in names:
        assert desk.given(name, 10) == []
    assert [line.split(":")[0] for line in desk.said] == ["later.png"]
    desk.arrivals.notice("", closed=False)  # a listing is through
    desk.write("rewritten.png", PNG, seconds=3600)
    desk.write("new.png", PNG, seconds=-5)  # a camera counts from the beginning again
    for name in names:
        assert desk.given(name, 10) == []
    assert [line.split(":")[0] for line in desk.said] == ["later.png", "rewritten.png", "new.png"]


def test_a_file_that_is_gone_is_forgotten_but_for_its_name(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.write("a.png", PNG)
    assert desk.given("a.png", closed=True) == ["a.png"]
    (tmp_path / "a.png").unlink()
    assert desk.given("a.png") == []  # the listing misses it
    assert desk.arrivals.known == {}
    desk.write("a.png", PNG)
    assert desk.given("a.png", 10, closed=True) == []
    assert desk.said == [
        "a.png: has a row already, and a file came again under that name; a name is inspected once, so give each image "
        "a name of its own"
    ]
    desk.given("a.png", 10)
    assert len(desk.said) == 1


# --- the folder ---


class Watching:
    """`watch_folder` with a thread that takes what it gives."""

    def __init__(self, folder: Path, *, listing_alone: bool, done: frozenset[str] = frozenset()) -> None:
        self.folder = folder
        self.given: list[str] = []
        self.said: list[str] = []
        self._files = watch_folder(
            folder, folder / "results", done, rows_ns=time.time_ns(), say=self.said.append, listing_alone=listing_alone
        )
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        for file in self._files:
            assert file == ImageFile(self.folder / file.name, file.name)
            self.given.append(file.name)
            if file.name == "last.png":
                break
        self._files.close()  # type: ignore[attr-defined]

    def known(self) -> dict[str, int]:
        """What `Arrivals` keeps of files that are here."""
        return self._files.gi_frame.f_locals["arrivals"].known  # type: ignore[attr-defined]

    def until(self, *names: str) -> None:
        wait_until(lambda: set(names) <= set(self.given))

    def finish(self) -> list[str]:
        """All that was given, in order of names."""
        self.folder.mkdir(exist_ok=True)
        put(self.folder / "last.png")
        self._thread.join(60)
        assert not self._thread.is_alive()
        return sorted(name for name in self.given if name != "last.png")


def wait_until(is_so: Callable[[], bool], process: "subprocess.Popen[bytes] | None" = None) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert process is None or process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def put(path: Path, data: bytes = PNG) -> None:
    """As a careful program does: under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.rename(path)


@pytest.fixture(params=[False, True], ids=["observer", "listing alone"])
def start(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watching]]:
    monkeypatch.setattr(watch, "_LIST_SECONDS", 0.05)
    started: list[Watching] = []

    def watching(**options: object) -> Watching:
        started.append(Watching(tmp_path / "in", listing_alone=request.param, **options))  # type: ignore[arg-type]
        return started[-1]

    (tmp_path / "in").mkdir()
    yield watching
    for one in started:
        one.finish()


def test_files_that_are_there_come_and_go(start: Callable[..., Watching], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("b.png", "a/c.PNG", "done.png", ".hidden.png", ".hidden/a.png", "notes.txt", "results/heatmaps/a.png"):
        put(folder / name)
    put(folder / "earlier" / RESULTS_MARKER, b"")
    put(folder / "earlier" / "heatmaps" / "x.png")
    wanted = [f.name for f in find_images(folder, folder / "results") if f.name != "done.png"]
    watching = start(done=frozenset({"done.png"}))
    watching.until(*wanted)
    put(folder / "d.jpg", IMAGES[".jpg"])
    put(folder / "deep" / "er" / "e.tif", IMAGES[".tif"])
    put(folder / "results" / "heatmaps" / "d.jpg.png")
    put(folder / "earlier" / "heatmaps" / "y.png")
    (folder / "written.bmp").write_bytes(IMAGES[".bmp"])
    watching.until("d.jpg", "deep/er/e.tif", "written.bmp")
    (folder / "b.png").unlink()
    shutil.move(folder / "d.jpg", tmp_path / "archive.jpg")
    assert watching.finish() == sorted([*wanted, "d.jpg", "deep/er/e.tif", "written.bmp"])
    assert watching.said == []


def test_a_file_written_in_pieces_is_given_once_and_whole(start: Callable[..., Watching], tmp_path: Path) -> None:
    watching = start()
    with (tmp_path / "in" / "slow.png").open("wb", buffering=0) as file:
        for i in range(0, len(PNG), 300):
            assert watching.given == []
            file.write(PNG[i : i + 300])
            time.sleep(0.05)
    watching.until("slow.png")
    assert watching.finish() == ["slow.png"]
    assert watching.said == []


def test_a_truncated_file_is_given_and_one_that_vanishes_is_not(start: Callable[..., Watching], tmp_path: Path) -> None:
    watching = start()
    (tmp_path / "in" / "short.png").write_bytes(PNG[:100])
    (tmp_path / "in" / "gone.png").write_bytes(PNG[:100])
    time.sleep(0.2)
    (tmp_path / "in" / "gone.png").unlink()
    watching.until("short.png")
    assert watching.finish() == ["short.png"]


def test_a_folder_moved_here_brings_its_files(start: Callable[..., Watching], tmp_path: Path) -> None:
    for i in range(5):
        put(tmp_path / "lot" / "cam" / f"{i}.png")
    watching = start()
    (tmp_path / "lot").rename(tmp_path / "in" / "lot")
    wanted = [f"lot/cam/{i}.png" for i in range(5)]
    watching.until(*wanted)
    assert watching.finish() == wanted


def test_files_that_are_taken_away_are_forgotten(start: Callable[..., Watching], tmp_path: Path) -> None:
    watching = start()
    for i in range(50):
        put(tmp_path / "in" / f"{i % 5}" / f"{i}.png")
    watching.until(*(f"{i % 5}/{i}.png" for i in range(50)))
    for i in range(5):
        shutil.rmtree(tmp_path / "in" / f"{i}")
    put(tmp_path / "in" / "kept.png")
    wait_until(lambda: list(watching.known()) == ["kept.png"])
    assert len(watching.finish()) == 51
    assert watching.said == []


def test_while_a_folder_cannot_be_listed_nothing_is_forgotten(
    start: Callable[..., Watching], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = start()
    put(tmp_path / "in" / "shy" / "a.png")
    watching.until("shy/a.png")
    listings: list[str] = []
    scandir = os.scandir

    def refuse(path: Path) -> object:
        listings.append(os.fspath(path))
        if Path(path).name == "shy":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("inspectad.image_files.os.scandir", refuse)
    wait_until(lambda: sum(path.endswith("shy") for path in listings) > 3)
    monkeypatch.undo()
    assert list(watching.known()) == ["shy/a.png"]
    assert watching.finish() == ["shy/a.png"]
    assert len(watching.said) == 1


def test_many_files_at_once_are_all_given_once(start: Callable[..., Watching], tmp_path: Path) -> None:
    watching = start()
    names = [f"{i % 7}/{i:03}.png" for i in range(300)]
    for name in names:
        put(tmp_path / "in" / name)
    watching.until(*names)
    assert watching.finish() == sorted(names)


def test_more_notices_than_there_is_room_for(
    start: Callable[..., Watching], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_MOST_NOTICES", 3)
    names = [f"{i:03}.png" for i in range(60)]
    for name in names[:30]:
        put(tmp_path / "in" / name)
    watching = start()
    for name in names[30:]:
        put(tmp_path / "in" / name)
    watching.until(*names)
    assert watching.finish() == names


def test_links_lead_out_but_not_round(start: Callable[..., Watching], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "lot_17" / "a.png")
    put(tmp_path / "elsewhere" / "b.png")
    (folder / "latest").symlink_to("lot_17")
    (folder / "loop").symlink_to(".")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling.png").symlink_to("nowhere.png")
    watching = start()
    watching.until("lot_17/a.png", "linked/b.png")
    put(tmp_path / "elsewhere" / "c.png")
    put(folder / "lot_17" / "d.png")
    watching.until("linked/c.png", "lot_17/d.png")
    assert watching.finish() == ["linked/b.png", "linked/c.png", "lot_17/a.png", "lot_17/d.png"]


def test_a_changed_file_is_noticed(start: Callable[..., Watching], tmp_path: Path) -> None:
    watching = start()
    put(tmp_path / "in" / "a.png")
    watching.until("a.png")
    put(tmp_path / "in" / "a.png", PNG + b"another")
    wait_until(lambda: bool(watching.said))
    assert watching.finish() == ["a.png"]
    assert [line.split(":")[0] for line in watching.said] == ["a.png"]


def test_a_folder_that_is_gone_is_waited_for(start: Callable[..., Watching], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "a.png")
    watching = start()
    watching.until("a.png")
    folder.rename(tmp_path / "away")
    wait_until(lambda: len(watching.said) == 1)
    assert "cannot be listed" in watching.said[0]
    time.sleep(0.2)
    (tmp_path / "away").rename(folder)
    wait_until(lambda: len(watching.said) == 2)
    assert watching.said[1].endswith("is back")
    put(folder / "b.png")
    watching.until("b.png")
    shutil.rmtree(folder)
    wait_until(lambda: len(watching.said) == 3)
    folder.mkdir()
    wait_until(lambda: len(watching.said) == 4)
    put(folder / "c.png")
    watching.until("c.png")
    assert watching.finish() == ["a.png", "b.png", "c.png"]


def test_a_subfolder_that_cannot_be_listed_does_not_stop_the_others(
    start: Callable[..., Watching], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "in" / "locked" / "a.png")
    scandir, locked = os.scandir, [True]

    def refuse(path: Path) -> object:  # root may list everything
        if locked and Path(os.fsdecode(path)).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    watching = start()
    put(tmp_path / "in" / "b.png")
    watching.until("b.png")
    wait_until(lambda: bool(watching.said))
    locked.clear()
    watching.until("locked/a.png")
    assert watching.finish() == ["b.png", "locked/a.png"]
    assert [line.endswith("(Permission denied); trying again and again") for line in watching.said] == [True]


def test_without_notices_of_the_system_the_listing_goes_on(
    start: Callable[..., Watching], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_observer() -> object:
        raise OSError("inotify instance limit reached")

    monkeypatch.setattr(watch, "_new_observer", no_observer)
    watching = start()
    put(tmp_path / "in" / "a.png")
    watching.until("a.png")
    assert watching.finish() == ["a.png"]
    assert len(watching.said) <= 1


def test_an_observer_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LIST_SECONDS", 0.05)
    made, new_observer = [], watch._new_observer
    monkeypatch.setattr(watch, "_new_observer", lambda: made.append(new_observer()) or made[-1])
    (tmp_path / "in").mkdir()
    watching = Watching(tmp_path / "in", listing_alone=False)
    wait_until(lambda: len(made) == 1 and made[0].is_alive())
    made[0].stop()
    wait_until(lambda: len(made) == 2)
    put(tmp_path / "in" / "a.png")
    watching.until("a.png")
    assert watching.finish() == ["a.png"]


def test_folders_made_while_the_observer_starts_cost_no_warning(
    start: Callable[..., Watching], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(100):
        (tmp_path / "in" / f"there{i}").mkdir()
    watching = start()
    names = [f"new{i:03}/sub/a.png" for i in range(100)]
    for name in names:
        put(tmp_path / "in" / name)
    watching.until(*names)
    assert watching.finish() == names
    assert watching.said == []
    assert capfd.readouterr().err == ""


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    for folder, output, words in [
        (tmp_path / "misspelt", tmp_path / "out", "no such folder"),
        (tmp_path / "a.png", tmp_path / "out", "is a file"),
        (tmp_path, tmp_path / ".", "both input and output"),
    ]:
        with pytest.raises(UsageError, match=words):
            watch_folder(folder, output, frozenset(), say=print)


# --- the program ---


@pytest.fixture
def start_watch(trained: Trained, tmp_path: Path) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    started = []

    def begin() -> "subprocess.Popen[bytes]":
        # A shell that starts pytest in the background makes its children ignore Ctrl-C.
        usual = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        options = ("-m", trained.model, "-o", tmp_path / "out", "--device", "cpu", "--heatmaps")
        command = command_line("scan", "--watch", tmp_path / "in", *options, prelude=usual)
        with (tmp_path / "stdout").open("ab") as stdout, (tmp_path / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                command, env=cli_environment(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0].decode()
    return list(csv.DictReader(whole.splitlines()))


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_killed_at_any_moment_and_started_again_every_file_has_one_row(
    start_watch: Callable[[], "subprocess.Popen[bytes]"],
    trained: Trained,
    run_cli: RunCli,
    tmp_path: Path,
    number: int,
    code: int,
    words: str,
) -> None:
    folder, results = tmp_path / "in", tmp_path / "out" / "results.csv"
    good = [p.read_bytes() for p in sorted(trained.good.iterdir())]
    names = [f"{i % 3}/{i:03}.png" for i in range(45)]
    for name, i in zip(names[:15], range(15), strict=True):
        put(folder / name, good[i % len(good)])
    process = start_watch()
    wait_until(lambda: len(rows(results)) >= 5, process)
    for i in range(15, 30):
        put(folder / names[i], good[i % len(good)])
    wait_until(lambda: len(rows(results)) >= 18, process)
    process.kill()
    process.wait()
    (folder / "truncated.png").write_bytes(good[0][:999])
    process = start_watch()
    for i in range(30, 45):
        put(folder / names[i], good[i % len(good)])
    wait_until(lambda: len(rows(results)) >= 46, process)
    put(folder / "last.png", good[0])
    wait_until(lambda: len(rows(results)) >= 47, process)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    found = rows(results)
    assert Counter(r["image"] for r in found) == Counter([*names, "truncated.png", "last.png"])
    assert [r["image"] for r in found if r["verdict"] == "UNREADABLE"] == ["truncated.png"]
    assert results.read_bytes().endswith(b"\n")
    said = (tmp_path / "stderr").read_text()
    assert f"stopped by {words}" in said
    assert "NG, " in said
    assert "warning" not in said
    assert "Traceback" not in said
    piped = (tmp_path / "stdout").read_text().splitlines()
    assert set(results.read_text().splitlines()) <= set(piped)
    options = ("-m", trained.model, "-o", tmp_path / "out", "--threshold", "0.125")
    done = run_cli("scan", "--watch", folder, *options)
    assert done.returncode == 1
    assert "another model or threshold; scan into another folder with -o" in done.stderr
    assert rows(results) == found


def test_the_marker_is_there_from_the_first_start_on(
    start_watch: Callable[[], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    process = start_watch()
    wait_until((tmp_path / "out" / RESULTS_MARKER).exists, process)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-"], "--watch takes one folder"),
        (["in", "in2"], "--watch takes one folder"),
        (["in/a.png"], "is a file"),
        (["misspelt"], "no such folder"),
        (["in/*.png"], "no such folder"),
    ],
)
def test_other_arguments_are_refused(
    trained: Trained, run_cli: RunCli, tmp_path: Path, arguments: list[str], words: str
) -> None:
    put(tmp_path / "in" / "a.png")
    (tmp_path / "in2").mkdir()
    done = run_cli("scan", "--watch", *arguments, "-m", trained.model, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_file_that_hangs_while_it_is_looked_at_is_given_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a review: one such file ended a watch in silence."""
    from inspectad import arrivals
    from inspectad.images import read_file

    comes = threading.Event()

    def read(path: Path, tries: int) -> bytes:
        assert path.name != "hangs.png" or comes.wait(60)
        return read_file(path, tries)

    monkeypatch.setattr(arrivals, "read_file", read)
    monkeypatch.setattr(arrivals, "_HANGS_SECONDS", 2.0)
    desk = Desk(tmp_path)
    for name in ("a.png", "hangs.png", "z.png"):
        desk.write(name, PNG)
    assert desk.given("a.png", closed=True) == ["a.png"]
    assert desk.given("hangs.png", closed=True) == ["hangs.png"]
    assert desk.given("z.png", closed=True) == ["z.png"]
    comes.set()

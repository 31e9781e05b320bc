"""Two that write into one output: refused by a lock that ends with its holder. And a model that is replaced."""

import contextlib
import csv
import errno
import io
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from changed_model import change_manifest
from conftest import RunCli, Trained, cli_environment, command_line

from inspectad import lock
from inspectad.api import train
from inspectad.atomic import write_atomically
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError, OutputError
from inspectad.image_files import RESULTS_MARKER
from inspectad.lock import LOCK_NAME, locked
from inspectad.scan import ScanConfig, scan


def test_one_at_a_time_and_nothing_stays(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"
    with locked(output) as warning:
        assert warning == ""
        assert os.listdir(output) == [LOCK_NAME]
        with pytest.raises(OutputError, match=rf"b: another inspectad is writing there \(process {os.getpid()} on "):
            locked(output).__enter__()
        assert os.listdir(output) == [LOCK_NAME]
    assert os.listdir(tmp_path) == []  # nothing was written
    with locked(output):
        (output / "rows").write_text("rows")
    assert os.listdir(output) == ["rows"]


def test_many_that_come_and_go_are_never_in_it_together(tmp_path: Path) -> None:
    """The holder removes the lock's file while others are about to take it."""
    inside, most, entered = 0, 0, 0
    guard = threading.Lock()

    def come_and_go() -> None:
        nonlocal inside, most, entered
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            with contextlib.suppress(OutputError), locked(tmp_path):
                with guard:
                    inside, entered = inside + 1, entered + 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered > 6


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="out: cannot be written"), locked(tmp_path / "out"):
        pass
    assert (tmp_path / "precious").read_text() == "data"


def test_a_file_system_without_locks_is_said_so_and_written_to(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_lock", refuse)
    said: list[str] = []
    config = ScanConfig(images=(str(trained.good),), output=tmp_path / "out")
    assert scan(config, OnnxDetector.load(trained.model, "cpu"), on_warning=said.append).images == 6
    assert said == [f"{tmp_path / 'out'}: its file system has no locks ({os.strerror(errno.ENOLCK)}): "
                    "see to it that nothing else writes there"]  # fmt: skip
    assert LOCK_NAME not in os.listdir(tmp_path / "out")


@pytest.fixture
def watching(trained: Trained, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """``scan --watch`` on a copy of the model, with its first row."""
    shutil.copytree(trained.model, tmp_path / "model")
    (tmp_path / "in").mkdir()
    shutil.copy(trained.good / "good_0.png", tmp_path / "in" / "0.png")
    command = command_line("scan", "--watch", "in", "-m", "model", "-o", "out", "--device", "cpu")
    devnull = subprocess.DEVNULL
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, cwd=tmp_path, env=cli_environment(), stdout=devnull, stderr=stderr)
    try:
        wait_until(lambda: len(rows(tmp_path)) == 1, process)
        yield process
    finally:
        process.kill()
        process.wait()


def rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "out" / "results.csv"
    whole = path.read_bytes().rpartition(b"\n")[0].decode() if path.exists() else ""
    return list(csv.DictReader(io.StringIO(whole, newline="")))


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_while_one_watches_no_other_scan_writes_there_and_after_its_kill_one_does(
    watching: "subprocess.Popen[bytes]", trained: Trained, tmp_path: Path, run_cli: RunCli
) -> None:
    before = (tmp_path / "out" / "results.csv").read_bytes()
    for options in ([], ["--resume"], ["--format", "jsonl"], ["--watch"]):
        done = run_cli("scan", "in", "-m", "model", "-o", "out", "--device", "cpu", *options, cwd=tmp_path)
        assert done.returncode == 1
        assert f"error: out: another inspectad is writing there (process {watching.pid} on " in done.stderr
        assert "wait for its end or stop it, or choose another folder with -o" in done.stderr
    assert (tmp_path / "out" / "results.csv").read_bytes() == before
    watching.kill()
    watching.wait()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    done = run_cli("scan", "in", "-m", "model", "-o", "out", "--device", "cpu", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / LOCK_NAME).exists()


def test_rows_name_the_model_that_judged_them_when_it_is_replaced(
    watching: "subprocess.Popen[bytes]", trained: Trained, tmp_path: Path, run_cli: RunCli
) -> None:
    old = OnnxDetector.load(trained.model, "cpu").digest[:12]
    write_atomically(tmp_path / "model" / "model.onnx", change_manifest(trained.model, seed=7)[0])
    new = OnnxDetector.load(tmp_path / "model", "cpu").digest[:12]
    assert new != old
    shutil.copy(trained.good / "good_1.png", tmp_path / "in" / "1.png")
    wait_until(lambda: len(rows(tmp_path)) == 2, watching)
    watching.terminate()
    assert watching.wait(timeout=60) == 143
    assert [row["model"] for row in rows(tmp_path)] == [old, old]  # loaded once: it goes on with what it has
    before = (tmp_path / "out" / "results.csv").read_bytes()
    for option in ("--watch", "--resume"):
        done = run_cli("scan", "in", "-m", "model", "-o", "out", "--device", "cpu", option, cwd=tmp_path)
        assert done.returncode == 1
        assert "its rows were made by another model or threshold; scan" in done.stderr
        assert "another folder with -o" in done.stderr
    assert (tmp_path / "out" / "results.csv").read_bytes() == before
    done = run_cli("scan", "in", "-m", "model", "-o", "out", "--device", "cpu", cwd=tmp_path)
    assert [row["model"] for row in rows(tmp_path)] == [new, new]


def test_a_training_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "bad.png").write_bytes(b"no image")
    with pytest.raises(InspectadError):
        train(tmp_path / "good", None, tmp_path / "new" / "model")
    assert os.listdir(tmp_path) == ["good"]


def test_an_output_that_cannot_be_named_is_an_error_for_people(tmp_path: Path) -> None:
    """Found by a review: it was a traceback."""
    with pytest.raises(OutputError, match=r"cannot be written \(File name too long\)"), locked(tmp_path / ("x" * 300)):
        pass


def test_a_lock_that_another_user_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK_NAME).touch()

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("os.open", refuse)
    named = rf"{LOCK_NAME}: cannot be written; .* remove the file if none is"
    with pytest.raises(OutputError, match=named), locked(tmp_path):
        pass


def test_a_file_system_that_numbers_files_anew_each_time_is_taken_for_one_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_is_still", lambda *_: False)
    with locked(tmp_path) as warning:
        assert "its file system has no locks" in warning


def test_rows_of_a_scan_by_ray_are_not_mixed_with_others(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out" / "rows").mkdir(parents=True)
    (tmp_path / "out" / RESULTS_MARKER).touch()
    config = ScanConfig(images=(str(trained.good),), output=tmp_path / "out")
    with pytest.raises(OutputError, match="rows of a scan by --engine ray; choose another folder with -o"):
        scan(config, OnnxDetector.load(trained.model, "cpu"))


def test_a_url_is_no_folder_of_this_machine(trained: Trained, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("scan", trained.good, "-m", trained.model, "-o", "s3://bucket/out", cwd=tmp_path)
    assert done.returncode == 2
    assert "-o s3://bucket/out: not without --engine ray" in done.stderr
    assert not list(tmp_path.iterdir())

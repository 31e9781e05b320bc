"""Scans that are killed (kill -9) at random moments and gone on with: ``python tests/kills.py --kills 200``.

A scan's rows, heatmaps and maps are compared with those of a scan that nobody killed, all columns but the time taken,
pictures byte by byte. To save the time that Python and most packages take to load, each scan runs in a copy (fork) of
this process, which has loaded them; from reading the command line on it is the whole program. onnxruntime starts a
thread as soon as it is loaded, so that is left to the copies.
"""

import argparse
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from inspectad.cli import main as inspectad_main
from inspectad.demo_part import render_part
from inspectad.results import COLUMNS, FORMATS

IMAGES = 60
PART_HW = (160, 192)
MOST_SECONDS = 120.0  # for what should come to its end
BROKEN = "cam2/007.png"

Row = dict[str, object]


@dataclass
class Report:
    """What happened.

    Attributes:
        rounds: scans that came to their end and were compared.
        amid: kills that found some rows there, and some missing.
        torn: kills that left a torn row; temporary: temporary files.
        rows, pictures: compared, at the ends.
    """

    kills: int = 0
    rounds: int = 0
    amid: int = 0
    torn: int = 0
    temporary: int = 0
    rows: int = 0
    pictures: int = 0
    seconds: float = 0.0
    starts: Counter[str] = field(default_factory=Counter)


def write_images(folder: Path) -> None:
    """Eight parts, again and again below two folders, and a broken file."""
    for i in range(8):
        image = render_part(30 + i, "scratch" if i % 2 else None, PART_HW).image
        (folder / f"cam{i % 2 + 1}").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"cam{i % 2 + 1}/{i:03}.png"), np.ascontiguousarray(image[..., ::-1]))
    for i in range(8, IMAGES):
        os.link(folder / f"cam{i % 2 + 1}/{i % 8:03}.png", folder / f"cam{i % 2 + 1}/{i:03}.png")
    (folder / BROKEN).unlink()
    (folder / BROKEN).write_bytes(b"broken")


def start(arguments: list[str], log: Path) -> int:
    """The program, in a process of its own; returns its id."""
    # A lock that a thread holds would stay locked in the copy. Of numpy's own threads it knows.
    assert "onnxruntime" not in sys.modules
    assert cv2.getNumThreads() == 1
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        for descriptor in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["inspectad", *arguments]
        inspectad_main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """Wait for a process that should come to its end; its exit code."""
    deadline = time.monotonic() + MOST_SECONDS
    while (code := ended(child)) is None:
        assert time.monotonic() < deadline, "it hung"
        time.sleep(0.002)
    return code


def ended(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def kill(child: int, is_due: Callable[[], bool], after: float) -> int | None:
    """Wait until a kill is due, and so many seconds more. Returns: the exit code if it ended before."""
    deadline = time.monotonic() + MOST_SECONDS
    while not is_due() and time.monotonic() < deadline:
        if (code := ended(child)) is not None:
            return code
        time.sleep(0.001)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def read_rows(path: Path) -> tuple[list[Row], bool]:
    """Whole rows without the time taken, and whether a torn one follows. Read by other means than the program's."""
    whole, newline, rest = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    text = (whole + newline).decode()
    rows: list[Row] = (
        list(map(json.loads, text.splitlines()))
        if path.suffix == ".jsonl"
        else list(csv.DictReader(io.StringIO(text, newline="")))
    )
    for row in rows:
        assert tuple(row) == COLUMNS, row
        del row["elapsed_ms"]
    return rows, bool(rest)


def rows_in(path: Path) -> int:
    """Whole rows so far. A new scan sets an older one's rows aside: they may go between any two looks at them."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def files_below(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def check_whole(output: Path, reference: Path, kind: str, report: Report) -> None:
    """After its end: the same rows in the same order, the same pictures, and nothing else."""
    rows, is_torn = read_rows(output / f"results.{kind}")
    assert not is_torn
    assert rows == read_rows(reference / f"results.{kind}")[0]
    found, wanted = files_below(output), files_below(reference)
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for name, path in found.items():
        if name.startswith(("heatmaps/", "maps/")):
            assert path.read_bytes() == wanted[name].read_bytes(), name
            report.pictures += 1
    report.rows += len(rows)
    report.rounds += 1


def check_killed(output: Path, reference: Path, kind: str, report: Report) -> None:
    """After a kill: the first rows of all, none twice, and each with its pictures."""
    rows, is_torn = read_rows(output / f"results.{kind}")
    wanted = read_rows(reference / f"results.{kind}")[0]
    assert rows == wanted[: len(rows)]
    for row in rows:
        for picture in (f"heatmaps/{row['image']}.png", f"maps/{row['image']}.tiff"):
            assert (output / picture).exists() == (row["image"] != BROKEN), picture
    report.kills += 1
    report.amid += 0 < len(rows) < len(wanted)
    report.torn += is_torn
    report.temporary += sum(name.endswith(".tmp") for name in files_below(output))


def check_pictures(reference: Path, images: Path) -> None:
    """Those that all others are compared with: each decodes, and has the size of its image or of the input."""
    for name in files_below(images):
        if name != BROKEN:
            heatmap, anomaly_map = (cv2.imread(str(reference / p), cv2.IMREAD_UNCHANGED)
                                    for p in (f"heatmaps/{name}.png", f"maps/{name}.tiff"))  # fmt: skip
            assert heatmap.shape == (*PART_HW, 3)
            assert anomaly_map.dtype == np.float32
            assert np.isfinite(anomaly_map).all()


def run(model: Path, work: Path, kills: int, seed: int) -> Report:
    """Kill so many scans, and go on with each until it is through."""
    rng = random.Random(seed)
    started = time.monotonic()
    images, log = work / "images", work / "log"
    write_images(images)
    report = Report()

    def arguments(output: Path, kind: str) -> list[str]:
        options = ["-m", str(model), "-o", str(output), "--format", kind, "--heatmaps", "--maps", "--device", "cpu"]
        return ["scan", str(images), *options]

    seconds = 0.0
    for kind in FORMATS:
        begun = time.monotonic()
        assert finish(start(arguments(work / f"reference.{kind}", kind), log)) == 4, log.read_text()
        seconds = time.monotonic() - begun
        check_pictures(work / f"reference.{kind}", images)
    while report.kills < kills:
        kind = FORMATS[report.rounds % len(FORMATS)]
        output, reference = work / f"killed.{kind}", work / f"reference.{kind}"
        # Over the results of the last round, which are to be replaced, or from nothing.
        if rng.random() < 0.5:
            shutil.rmtree(output, ignore_errors=True)
        again: list[str] = []
        code: int | None = None
        while code is None:
            child = start([*arguments(output, kind), *again], log)
            report.starts["again" if again else "new"] += 1
            if report.kills >= kills:
                code = finish(child)
            elif rng.random() < 0.3:  # at any time, also before the first row
                code = kill(child, lambda: True, rng.uniform(0, seconds))
            else:  # behind some more rows, and 20 ms are several of them
                path = output / f"results.{kind}"
                more = rows_in(path) + rng.randrange(15)
                code = kill(child, lambda path=path, more=more: rows_in(path) > more, rng.uniform(0, 0.02))
            if code is None:
                check_killed(output, reference, kind, report)
                again = ["--resume"]
        assert code == 4, log.read_text()
        check_whole(output, reference, kind, report)
    report.seconds = time.monotonic() - started
    assert "Traceback" not in log.read_text()
    return report


def main() -> None:
    """The command; its last line is the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="model folder; else one is trained on rendered parts")
    options = parser.parse_args()
    cv2.setNumThreads(1)  # so that this process has no threads when it is copied
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = options.model or train(work / "model")
        report = run(model, work, options.kills, options.seed)
    print(  # noqa: T201
        f"{report.kills} kills survived, {report.amid} of them amid the rows; they left {report.torn} torn rows and "
        f"{report.temporary} temporary files. {report.rounds} scans came to their end in {report.starts['new']} new "
        f"and {report.starts['again']} resumed starts: {report.rows} rows and {report.pictures} pictures compared, "
        f"all equal ({report.seconds:.0f} s)"
    )


def train(model: Path) -> Path:
    """A small model of rendered parts."""
    good = model.parent / "good"
    good.mkdir()
    for seed in range(4):
        image = render_part(seed, None, PART_HW).image
        cv2.imwrite(str(good / f"{seed}.png"), np.ascontiguousarray(image[..., ::-1]))
    command = [sys.executable, "-m", "inspectad", "train", str(good), "-o", str(model), "--size", "96"]
    subprocess.run([*command, "--device", "cpu"], check=True, stderr=subprocess.DEVNULL)
    return model


if __name__ == "__main__":
    main()

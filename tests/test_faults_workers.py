"""One image's failure is that image's row; a broken model or machine ends the scan; nothing hangs; memory of a GPU."""

import csv
import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, Trained
from test_network import FakeDetector, ask_behind_one, picture

from inspectad import pipeline
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError, OutputError
from inspectad.network import Batched, Direct
from inspectad.pipeline import Pipeline
from inspectad.records import FloatArray, Prediction
from inspectad.results import COLUMNS
from inspectad.scan import ScanConfig, ScanSummary, scan


class Failing(Direct):
    """Raises for some of its calls, which are counted from 0."""

    def __init__(self, detector: OnnxDetector, errors: Callable[[int], BaseException | None]) -> None:
        super().__init__(detector)
        self._calls = 0
        self._errors = errors

    def score(self, pixels: np.ndarray) -> tuple[float, FloatArray]:
        error = self._errors(self._calls)
        self._calls += 1
        if error is not None:
            raise error
        return super().score(pixels)


@pytest.fixture
def many(trained: Trained, tmp_path: Path) -> Path:
    for i in range(24):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i:02}.png").hardlink_to(trained.good / f"good_{i % 6}.png")
    return tmp_path / "in"


def run(
    trained: Trained, images: Path, errors: Callable[[int], BaseException | None] = lambda _: None, **options: object
) -> ScanSummary:
    detector = OnnxDetector.load(trained.model, "cpu", threads=1)
    config = ScanConfig(images=(str(images),), output=images.parent / "out", workers=1, **options)
    return scan(config, detector, Failing(detector, errors))


def rows_in(images: Path) -> list[dict[str, str]]:
    text = (images.parent / "out" / "results.csv").read_text()
    return [
        {k: v for k, v in row.items() if k != "elapsed_ms"} for row in csv.DictReader(io.StringIO(text, newline=""))
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ZeroDivisionError("by nothing"),
            "internal error: ZeroDivisionError: by nothing (test_faults_workers.py, line",
        ),
        (InspectadError("the network failed"), "the network failed"),
        (MemoryError(), "too large for the memory of this machine"),
    ],
)
def test_an_image_that_makes_something_fail_gets_a_row_that_says_so(
    trained: Trained, many: Path, error: Exception, words: str
) -> None:
    run(trained, many)
    expected = rows_in(many)
    summary = run(trained, many, lambda i: error if i in (3, 4, 20) else None)
    assert summary.verdicts["UNREADABLE"] == 3
    for i, (row, wanted) in enumerate(zip(rows_in(many), expected, strict=True)):
        if i in (3, 4, 20):
            assert row["image"] == f"{i:02}.png"
            assert row["verdict"] == "UNREADABLE"
            assert row["error"].startswith(words)
        else:
            assert row == wanted


def test_ten_failures_in_a_row_end_the_scan(trained: Trained, many: Path) -> None:
    with pytest.raises(InspectadError, match=r"10 images in a row failed, the last with: internal error: KeyError"):
        run(trained, many, lambda i: KeyError(i) if i >= 5 else None)
    assert [row["verdict"] == "UNREADABLE" for row in rows_in(many)] == [False] * 5 + [True] * 9
    summary = run(trained, many, resume=True)
    assert summary.images == 24 - 14


def test_failures_with_good_images_between_do_not(trained: Trained, many: Path) -> None:
    summary = run(trained, many, lambda i: KeyError(i) if i % 10 else None)
    assert summary.verdicts["UNREADABLE"] == 24 - 3


def test_what_cannot_be_written_is_no_images_fault(
    trained: Trained, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("heatmap: cannot be written")

    monkeypatch.setattr("inspectad.output_links.write_atomically", full)
    with pytest.raises(OutputError, match="heatmap"):
        run(trained, many, heatmaps="all")
    assert rows_in(many) == []


# --- threads ---


@pytest.mark.parametrize(("started", "rows"), [(0, None), (1, None), (2, 24), (3, 24)])
def test_threads_that_cannot_be_started(
    trained: Trained, many: Path, monkeypatch: pytest.MonkeyPatch, started: int, rows: int | None
) -> None:
    """The first feeds the others."""
    real, seen = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if len(seen) >= started:
            raise RuntimeError("can't start new thread")
        seen.append(thread)
        real(thread)

    detector = OnnxDetector.load(trained.model, "cpu", threads=1)
    config = ScanConfig(images=(str(many),), output=many.parent / "out", workers=4)
    monkeypatch.setattr(threading.Thread, "start", start)
    if rows is None:
        with pytest.raises(InspectadError, match=r"no thread can be started \(can't start new thread\)"):
            scan(config, detector, Direct(detector))
    else:
        assert scan(config, detector, Direct(detector)).images == rows


@pytest.mark.parametrize(("method", "words"), [("_feed", "list of images broke off"), ("_work", "all threads")])
def test_threads_that_die_are_noticed(
    trained: Trained, many: Path, monkeypatch: pytest.MonkeyPatch, method: str, words: str
) -> None:
    monkeypatch.setattr(Pipeline, method, lambda *_: None)
    monkeypatch.setattr(pipeline, "_POLL_SECONDS", 0.02)
    with pytest.raises(InspectadError, match=words):
        run(trained, many)


def test_a_network_that_answers_too_little_leaves_nobody_waiting() -> None:
    class Short(FakeDetector):
        def predict_resized(self, batch: np.ndarray) -> Prediction:
            return (
                super().predict_resized(batch[:-1]) if len(batch) > 1 else Prediction(np.zeros(0), np.zeros((0, 4, 4)))
            )

    network = Batched([Short()], 2)
    with pytest.raises(InspectadError, match="0 answers for 1 images"):
        network.score(picture(1))
    network.close()


# --- GPU memory ---


def test_a_batch_too_large_for_the_memory_is_halved_and_none_as_large_tried_again() -> None:
    fake = FakeDetector(lambda batch: InspectadError("out of memory") if len(batch) > 4 else None)
    fake.may_run.clear()
    network = Batched([fake], 16)
    assert ask_behind_one(network, fake, 16 + 8) == list(range(25))
    network.close()
    assert fake.batches == [1, 16, 8, 4, 4, 8, 4, 4, 4, 4]


def test_one_poisonous_image_makes_no_later_batch_smaller() -> None:
    fake = FakeDetector(lambda batch: InspectadError("no") if (batch == 7).any() else None)
    fake.may_run.clear()
    network = Batched([fake], 8)
    with pytest.raises(InspectadError, match="no"):
        ask_behind_one(network, fake, 16)
    network.close()
    assert fake.batches[-1] == 8
    assert fake.batches.count(8) == 2


def test_a_scan_that_runs_out_of_memory_says_the_same(trained: Trained, many: Path) -> None:
    class Short:
        """The real network, with room for two images."""

        def __init__(self, real: OnnxDetector) -> None:
            self._real, self.provider, self.refused = real, real.provider, 0

        def predict_resized(self, batch: np.ndarray) -> Prediction:
            if len(batch) > 2:
                self.refused += 1
                raise InspectadError("out of memory")
            return self._real.predict_resized(batch)

    run(trained, many)
    expected = rows_in(many)
    detector = OnnxDetector.load(trained.model, "cpu", threads=1)
    short = Short(detector)
    network = Batched([short], 8)
    try:
        scan(ScanConfig(images=(str(many),), output=many.parent / "out", workers=16), detector, network)
    finally:
        network.close()
    assert 1 <= short.refused <= 3  # a batch of up to 8, and its halves
    for row, wanted in zip(rows_in(many), expected, strict=True):
        for column in COLUMNS:
            if column in ("score", "severity"):
                assert float(row[column]) == pytest.approx(float(wanted[column]), rel=1e-5)
            elif column != "elapsed_ms":
                assert row[column] == wanted[column]


def test_the_program_says_4_when_one_image_failed(trained: Trained, tmp_path: Path, run_cli: RunCli) -> None:
    prelude = """
from inspectad import judge
real = judge.find_regions
def fails(*arguments, seen=[]):
    seen.append(0)
    if len(seen) == 2:
        raise ValueError("strange map")
    return real(*arguments)
judge.find_regions = fails
"""
    options = ("-m", trained.model, "-o", tmp_path / "out", "--device", "cpu", "--workers", "1")
    done = run_cli("scan", trained.good, *options, prelude=prelude)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert "good_1.png,UNREADABLE" in done.stdout
    assert "internal error: ValueError: strange map" in done.stdout

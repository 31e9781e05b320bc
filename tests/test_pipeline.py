"""The pipeline's bound on memory, and that it ends wherever it is left."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inspectad.budget import Budget
from inspectad.detector import OnnxDetector
from inspectad.image_files import ImageFile, find_images
from inspectad.network import share
from inspectad.pipeline import Prepared, Scored, inspect_files
from inspectad.records import Inspection, Verdict


def ok_row(prepared: Prepared, scored: Scored | None) -> Inspection:
    assert scored is not None
    return Inspection(image=prepared.file.name, verdict=Verdict.OK, score=scored.score)


def test_the_budget_never_lets_more_through_than_its_limit_however_large_images_turn_out() -> None:
    limit, size = 1000, 300
    budget, held, most, lock = Budget(limit), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal held, most
        for _ in range(20):
            with budget.room() as room:
                room.holds(size)
                with lock:
                    held += size
                    most = max(most, held)
                time.sleep(0.0005)
                with lock:
                    held -= size

    with budget.room() as room:  # from the first image on the size is known
        room.holds(size)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert size <= most <= limit
    assert held == 0


def test_an_image_larger_than_the_whole_budget_is_let_through_alone() -> None:
    budget = Budget(10)
    entered = threading.Event()

    def enter() -> None:
        with budget.room():
            entered.set()

    with budget.room() as room:
        room.holds(10_000)
        waiting = threading.Thread(target=enter, daemon=True)
        waiting.start()
        assert not entered.wait(0.1)
    assert entered.wait(5)


def test_one_huge_image_does_not_hold_back_the_small_ones_for_ever() -> None:
    budget = Budget(1000)
    for size in (5000, *[10] * 40):
        with budget.room() as room:
            room.holds(size)
    entered = threading.Event()

    def enter() -> None:
        with budget.room():
            entered.set()

    with budget.room() as room:
        room.holds(10)
        threading.Thread(target=enter, daemon=True).start()
        assert entered.wait(5)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("workers", [1, 4])
def test_rows_come_in_the_order_of_the_files_each_once(trained, batch_size: int, workers: int) -> None:
    detector = OnnxDetector.load(trained.model, "cpu")
    files = find_images(trained.good) * 4
    rows = inspect_files(iter(files), detector.manifest, share([detector], batch_size), ok_row, workers=workers)
    assert [row.image for _, row in rows] == [f.name for f in files]


def test_rows_do_not_wait_for_the_next_path_of_a_slow_stream(trained) -> None:
    detector = OnnxDetector.load(trained.model, "cpu")
    file = find_images(trained.good)[0]
    seen = threading.Event()

    def stream() -> Iterator[ImageFile]:
        yield file
        assert seen.wait(20), "the row of the first image was held back until the second path came"
        yield file

    count = 0
    for _ in inspect_files(stream(), detector.manifest, share([detector], 8), ok_row, workers=2):
        count += 1
        seen.set()
    assert count == 2


def test_leaving_early_ends_all_threads(trained) -> None:
    detector = OnnxDetector.load(trained.model, "cpu")
    before = set(threading.enumerate())
    network = share([detector], 2)
    rows = inspect_files(iter(find_images(trained.good) * 50), detector.manifest, network, ok_row, workers=2)
    next(rows)
    rows.close()
    network.close()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_an_error_of_the_source_reaches_the_caller(trained) -> None:
    detector = OnnxDetector.load(trained.model, "cpu")

    def broken() -> Iterator[ImageFile]:
        yield find_images(trained.good)[0]
        raise RuntimeError("the list broke")

    with pytest.raises(RuntimeError, match="the list broke"):
        list(inspect_files(broken(), detector.manifest, share([detector]), ok_row, workers=2))


def test_an_image_that_cannot_be_read_is_finished_without_a_score(trained, tmp_path: Path) -> None:
    detector = OnnxDetector.load(trained.model, "cpu")
    (tmp_path / "bad.png").write_bytes(b"no image")
    told: list[Prepared] = []

    def finish(prepared: Prepared, scored: Scored | None) -> Inspection:
        told.append(prepared)
        assert scored is None
        return Inspection(image=prepared.file.name, verdict=Verdict.UNREADABLE, error=prepared.error)

    ((_, row),) = inspect_files(iter(find_images(tmp_path)), detector.manifest, share([detector]), finish, workers=2)
    assert row.verdict is Verdict.UNREADABLE
    assert row.error
    assert told[0].source_hw == (0, 0)
    assert np.isfinite(told[0].started)

"""What a soak found, and which promises it broke. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

WARM_UP: Final = 1_000  # images after which nothing may grow any more
MEMORY_BYTES: Final = 50 * 10**6
DISK_BYTES: Final = 100 * 10**6  # heatmaps of rows that this program has not yet read from its pipe
HANDLES: Final = 16  # workers open and close some all the time
THREADS: Final = 4
_SLOWER: Final = 2.0  # processor time an image, last quarter over first: beside other jobs it varies by itself


@dataclass(frozen=True, slots=True)
class Sample:
    """The scan's process at one moment.

    Attributes:
        images: rows so far.
        seconds, core_s: since its start; processor time.
        rss: resident memory, the most since the sample before; bytes.
        uss: what of it no other process shares.
        handles: open files (handles, on Windows).
        disk: bytes in its output but for the rows, and in its folder for temporary files.
    """

    images: int
    seconds: float
    core_s: float
    rss: int
    uss: int
    handles: int
    threads: int
    disk: int


@dataclass(frozen=True, slots=True)
class Ending:
    """How the process ended.

    Attributes:
        problem: what was wrong with that; empty if nothing.
        seconds: from the last row, or from the signal, to its end.
        left: files that it left beside the rows.
    """

    problem: str
    seconds: float
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SoakRun:
    """A whole soak."""

    images: int
    rows: int
    verdicts: Mapping[str, int]
    wrong: Mapping[str, int]
    examples: Mapping[str, str]
    samples: tuple[Sample, ...]
    ending: Ending


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that must hold, what was found, and whether it was kept."""

    what: str
    found: str
    limit: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Rise:
    """The highest of something until `WARM_UP`, and afterwards."""

    before: float
    after: float

    @property
    def more(self) -> float:
        return max(self.after - self.before, 0)


def rise(samples: Sequence[Sample], field: str) -> Rise | None:
    """Highest against highest, since images in work come and go; None where one of them is not known."""
    before = [getattr(s, field) for s in samples if s.images <= WARM_UP]
    after = [getattr(s, field) for s in samples if s.images > WARM_UP]
    return Rise(max(before), max(after)) if before and after else None


def slope(samples: Sequence[Sample], field: str = "rss") -> float | None:
    """Growth an image after the warm-up, by least squares."""
    points = [(s.images, getattr(s, field)) for s in samples if s.images > WARM_UP]
    if len(points) < 2:
        return None
    mean_x, mean_y = (sum(v) / len(points) for v in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else None


@dataclass(frozen=True, slots=True)
class Pace:
    """Images/s and milliseconds of processor time an image, over some of the images."""

    images_per_s: float
    core_ms: float


def paces(samples: Sequence[Sample]) -> tuple[Pace, Pace] | None:
    """Of the first and the last quarter of the images after the warm-up; None where there are too few samples."""
    late = [s for s in samples if s.images > WARM_UP]
    if len(late) < 8:
        return None
    quarter = (late[-1].images - late[0].images) / 4
    first = [s for s in late if s.images <= late[0].images + quarter]
    last = [s for s in late if s.images >= late[-1].images - quarter]
    if len(first) < 2 or len(last) < 2:
        return None
    return _pace(first[0], first[-1]), _pace(last[0], last[-1])


def _pace(a: Sample, b: Sample) -> Pace:
    images = max(b.images - a.images, 1)
    return Pace(images / max(b.seconds - a.seconds, 1e-9), 1000 * (b.core_s - a.core_s) / images)


def promises(run: SoakRun) -> tuple[Promise, ...]:
    """All that a soak checks."""
    found = [Promise("rows", f"{run.rows} rows", f"{run.images}, one an image", run.rows == run.images)]
    found += [Promise(what, _counted(run, what), "none", kept=False) for what in run.wrong]
    found += [
        _flat(run, "memory", "rss", MEMORY_BYTES, "MB", 1e6),
        _flat(run, "open files", "handles", HANDLES),
        _flat(run, "threads", "threads", THREADS),
        _flat(run, "temporary disk", "disk", DISK_BYTES, "MB", 1e6),
    ]
    found.append(_no_slower(run))
    left = ", ".join(run.ending.left[:3]) or "nothing"
    found.append(Promise("left beside the rows", left, "nothing", not run.ending.left))
    found.append(Promise("its end", run.ending.problem or "as it should", "as it should", not run.ending.problem))
    return tuple(found)


def _counted(run: SoakRun, what: str) -> str:
    return f"{run.wrong[what]}, the first {run.examples[what]}"


def _flat(run: SoakRun, what: str, field: str, limit: float, unit: str = "", scale: float = 1.0) -> Promise:
    unit = unit and f" {unit}"
    asked = f"{limit / scale:g}{unit} more after the first {WARM_UP} images"
    found = rise(run.samples, field)
    if found is None:
        return Promise(what, "not known, too few rows", asked, kept=False)
    text = f"{found.before / scale:.4g}{unit} at most until then, {found.after / scale:.4g}{unit} afterwards"
    return Promise(what, text, asked, found.more <= limit)


def _no_slower(run: SoakRun) -> Promise:
    found = paces(run.samples)
    asked = f"{_SLOWER:g} times as much in the last quarter as in the first"
    if found is None:
        return Promise("processor time an image", "not known, too few rows", asked, kept=False)
    first, last = found
    text = f"{first.core_ms:.3g} ms, then {last.core_ms:.3g} ms"
    return Promise("processor time an image", text, asked, last.core_ms <= _SLOWER * first.core_ms)

"""What rows a soak has seen: each image once, equal images alike, heatmaps whole. Finished heatmaps are taken away."""

import contextlib
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from inspectad.benchmark.soak_images import PER_FOLDER, Mix
from inspectad.end_mark import is_whole
from inspectad.judge import heatmap_path

_ROUNDING: Final = 1e-4  # relative; scores of equal images differ so much at most: batches round otherwise
LOST: Final = "images without a row"
DOUBLED: Final = "images with two rows"
UNKNOWN: Final = "rows of no image"
UNEQUAL: Final = "rows that differ from that of an equal image"
HEATMAP: Final = "heatmaps that are missing, torn, or of an unreadable image"


class Ledger:
    """Keeps one byte for each image, so that it does not grow itself."""

    def __init__(self, mix: Mix, output: Path) -> None:
        """Args: output: the folder that the scan writes to."""
        self.verdicts: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._mix = mix
        self._output = output
        self._seen = bytearray(mix.images)
        self._first: dict[Path, Mapping[str, str]] = {}
        folders = range(-(-mix.images // PER_FOLDER))
        self._left = [min(PER_FOLDER, mix.images - folder * PER_FOLDER) for folder in folders]

    @property
    def rows(self) -> int:
        """So many came."""
        return self.verdicts.total()

    @property
    def images(self) -> int:
        """So many have one."""
        return self.rows - self.wrong[UNKNOWN] - self.wrong[DOUBLED]

    def row(self, cells: Mapping[str, str]) -> tuple[int, bool] | None:
        """Note a row. Returns: the image's number and whether its folder is finished; None of none, or seen before."""
        name, verdict = cells["image"], cells["verdict"]
        self.verdicts[verdict] += 1
        number = self._mix.number(name)
        if number is None:
            self._note(UNKNOWN, name)
            return None
        if self._seen[number]:
            self._note(DOUBLED, name)
            return None
        self._seen[number] = 1
        first = self._first.setdefault(self._mix.source(number), cells)
        if not _is_equal(first, cells):
            self._note(UNEQUAL, f"{name}: {_said(cells)}, {first['image']}: {_said(first)}")
        self._take_heatmap(name, readable=verdict != "UNREADABLE")
        folder = number // PER_FOLDER
        self._left[folder] -= 1
        if not self._left[folder]:
            with contextlib.suppress(OSError):  # no heatmap in it
                heatmap_path(self._output, name).parent.rmdir()
        return number, not self._left[folder]

    def close(self) -> None:
        """No row comes any more."""
        lost = self._seen.count(0)
        if lost:
            self.wrong[LOST] = lost
            self.examples[LOST] = self._mix.name(self._seen.index(0))

    def _take_heatmap(self, name: str, *, readable: bool) -> None:
        path = heatmap_path(self._output, name)
        try:
            whole = is_whole(path.read_bytes())
            path.unlink()
        except FileNotFoundError:
            whole = None
        if whole is not (True if readable else None):
            self._note(HEATMAP, name)

    def _note(self, kind: str, example: str) -> None:
        self.wrong[kind] += 1
        self.examples.setdefault(kind, example)


def _is_equal(a: Mapping[str, str], b: Mapping[str, str]) -> bool:
    if any(a[column] != b[column] for column in ("verdict", "threshold", "model", "error")):
        return False
    return a["score"] == b["score"] or math.isclose(float(a["score"] or 0), float(b["score"] or 0), rel_tol=_ROUNDING)


def _said(cells: Mapping[str, str]) -> str:
    return " ".join(filter(None, (cells["verdict"], cells["score"], cells["error"])))

"""Training on large images by their tiles: some of them teach, all of them are judged."""

import itertools
import math
from collections.abc import Sequence
from typing import Final

from inspectad.records import ByteArray, FloatArray
from inspectad.tiles import Score, Span, Tiling, cut_tile, grid, score_tiles
from inspectad.training_data import ReadableImage, TrainingImages, spread

MOST_TEACHING: Final = 1024
"""Tiles that teach, of all images together."""


class TrainingTiles(TrainingImages):
    """Tiles by index: those that teach. An image is decoded once for all of its tiles.

    Attributes:
        tiles: how many there are in all.
    """

    def __init__(
        self,
        images: Sequence[ReadableImage],
        input_size_hw: tuple[int, int],
        full_scale: int,
        tiling: Tiling,
        most: int = MOST_TEACHING,
    ) -> None:
        """Args: most: so many tiles teach; fewer where they would not fit the memory for decoded images."""
        super().__init__(images, input_size_hw, full_scale)
        self.tiling: Tiling = tiling
        counts = [len(rows) * len(columns) for rows, columns in map(self._grid, range(len(images)))]
        self.tiles = sum(counts)
        self._teaching = choose_teaching(counts, min(most, self._capacity))
        self._tiles: dict[int, ByteArray] = {}

    def __len__(self) -> int:
        return len(self._teaching)

    def __getitem__(self, index: int) -> ByteArray:  # type: ignore[override]  # slices are not needed
        """Raises: TrainingError, see `source`."""
        if index not in self._tiles:
            self._cut(self._teaching[index][0])
        return self._tiles[index]

    def teaching(self, images: Sequence[int]) -> list[int]:
        """Indices of the tiles of these images."""
        wanted = set(images)
        return [index for index, (image, _) in enumerate(self._teaching) if image in wanted]

    def judge(self, image: int, score: Score) -> tuple[float, FloatArray]:
        """The highest score of all its tiles, and their maps as one."""
        return score_tiles(self.source(image), self.tiling, self.input_size_hw, score)

    def _cut(self, image: int) -> None:
        rows, columns = self._grid(image)
        source = self.source(image)
        for index, (owner, tile) in enumerate(self._teaching):
            if owner == image:
                row, column = rows[tile // len(columns)], columns[tile % len(columns)]
                self._tiles[index] = cut_tile(source, row, column, self.input_size_hw).copy()  # let the source go

    def _grid(self, image: int) -> tuple[list[Span], list[Span]]:
        return grid(self.images[image].size_hw, self.tiling, self.input_size_hw)


def choose_teaching(counts: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Which tiles teach: every place in some image before any place in two, and all images about equally often.

    Args: counts: tiles of each image; most: so many in all.
    Returns: (image, tile), by image.
    """
    images, places = len(counts), max(counts, default=0)
    # Each round takes a place from another image: after `images` rounds of such steps every one has had its turn.
    step = next(s for s in itertools.count(places) if math.gcd(s, images) == 1)
    chosen: set[tuple[int, int]] = set()
    for turn in range(images):
        for k, place in enumerate(spread(places, most - len(chosen))):
            image = (k + turn * step) % images
            chosen.add((image, place * counts[image] // places))
    return sorted(chosen)

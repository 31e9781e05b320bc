"""Large images in overlapping tiles: where the tiles lie, and how their maps become one map without seams. Pure.

The same network sees every tile. The image score is the highest tile score, so that a small defect counts as much in a
large image as in a small one. The map of the image is blended from the tiles' maps with weights that fall to nothing
towards a tile's edges and sum to one everywhere. It is kept at an eighth of the network's resolution, where the maps of
networks have their values (they are enlarged from there): 100 megapixels take 6 MB of it.
"""

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

from inspectad.errors import UsageError
from inspectad.images import MAX_INPUT_PX, MIN_INPUT_PX, resize
from inspectad.records import ByteArray, FloatArray

AUTO: Final = "auto"
OVERLAP: Final = 0.125
"""Least share of a tile's side that its neighbour sees as well: a defect up to that length lies whole in one tile."""
MAX_TILE_PX: Final = 16 * MAX_INPUT_PX
CELL_PX: Final = 8
"""Side of a place of the blended map, in pixels of the network's input."""

_Places = npt.NDArray[np.floating]
Score = Callable[[ByteArray], tuple[float, FloatArray]]
"""From an image or tile at the network's input size, uint8 (H, W, 3), to its score and anomaly map (H, W)."""
_AT_A_TIME: Final = 64  # tiles: so many maps are kept at most until they are blended


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How an image is cut.

    Attributes:
        tile_hw: height and width of a tile, source pixels; where an image is smaller, the tile is as small.
        overlap: least share of a tile's side that neighbours have in common.
    """

    tile_hw: tuple[int, int]
    overlap: float = OVERLAP

    def __str__(self) -> str:
        return f"{self.tile_hw[1]} x {self.tile_hw[0]} px, at least {self.overlap:.3g} of a side in common"


@dataclass(frozen=True, slots=True)
class Span:
    """A tile along one axis.

    Attributes:
        start, stop: the source pixels that it covers.
        cells: the places of the blended map whose centres lie in it.
        taps: (cells, map length) float32, from the tile's map to its share of these places: linear interpolation times
            the blending weight. Over all tiles the weights of a place sum to one.
    """

    start: int
    stop: int
    cells: slice
    taps: FloatArray


def parse_tile(value: str | int | None) -> int | str | None:
    """What ``--tile`` was given: None, `AUTO`, or the longer side of a tile in source pixels. Raises: UsageError."""
    if value is None or value == AUTO:
        return value
    try:
        pixels = int(value)
    except ValueError as error:
        raise UsageError(f"--tile {value}: give a number of pixels, or {AUTO}") from error
    if not MIN_INPUT_PX <= pixels <= MAX_TILE_PX:
        raise UsageError(
            f"--tile {value}: give the longer side of a tile in pixels, from {MIN_INPUT_PX} to {MAX_TILE_PX}"
        )
    return pixels


def tile_for(longer_px: int, input_size_hw: tuple[int, int]) -> Tiling:
    """Tiles of a longer side, with the aspect of the network's input."""
    height, width = (max(1, round(side * longer_px / max(input_size_hw))) for side in input_size_hw)
    return Tiling(tile_hw=(height, width))


def seen_aspect(source_hw: tuple[int, int], tiling: Tiling | None) -> float:
    """Width / height of what the network sees at a time of an image: all of it, or a tile."""
    height, width = source_hw if tiling is None else (min(pair) for pair in zip(source_hw, tiling.tile_hw, strict=True))
    return width / height


def split(length: int, tile: int, overlap: float, map_length: int) -> list[Span]:
    """Tiles along one axis: all of one length, evenly spread, the first at the start and the last at the end.

    In between they start at multiples of a place of the blended map, so that its places lie where the tiles' maps have
    their values, and no peak is flattened.

    Args: length of the source; tile and its least overlap; map_length: places of a tile's map along this axis.
    """
    tile = min(tile, length)
    count = max(1, round(length * map_length / (CELL_PX * tile)))
    cell = length / count
    starts = _starts(length, tile, overlap, cell)
    centres = (np.arange(count) + 0.5) * cell
    inside = [(centres > start) & (centres < start + tile) for start in starts]
    # The distance to the tile's nearer edge: neighbours fade into each other linearly.
    weights = [np.minimum(centres - start, start + tile - centres).clip(0) for start in starts]
    total = np.sum(weights, axis=0)
    spans = []
    for start, covered, weight in zip(starts, inside, weights, strict=True):
        first, last = np.flatnonzero(covered)[[0, -1]].tolist()
        cells = slice(first, last + 1)
        at = (centres[cells] - start) * (map_length / tile) - 0.5
        spans.append(Span(start, start + tile, cells, _taps(at, map_length, weight[cells] / total[cells])))
    return spans


def _starts(length: int, tile: int, overlap: float, cell: float) -> list[int]:
    if length <= tile:
        return [0]
    # A start is moved by up to one cell; the overlap must hold nevertheless.
    step = max(tile - math.ceil(overlap * tile) - math.ceil(cell), 1)
    gaps = math.ceil((length - tile) / step)
    return [
        *(round(math.floor(i * (length - tile) / gaps / cell + 1e-9) * cell) for i in range(gaps)),
        length - tile,
    ]


def _taps(at: _Places, length: int, weights: _Places) -> FloatArray:
    """Linear interpolation at these places of a map, times weights, as a matrix. Returns: (places, length)."""
    at = at.clip(0, length - 1)
    low = np.minimum(at.astype(np.int64), max(length - 2, 0))
    taps = np.zeros((len(at), length), np.float32)
    rows = np.arange(len(at))
    taps[rows, low] = (1 - (at - low)) * weights
    if length > 1:
        taps[rows, low + 1] = (at - low) * weights
    return taps


def grid(source_hw: tuple[int, int], tiling: Tiling, input_size_hw: tuple[int, int]) -> tuple[list[Span], list[Span]]:
    """Rows and columns of the tiles of an image. Args: input_size_hw: of the network, whose maps are as large."""
    rows, columns = (
        split(length, tile, tiling.overlap, size)
        for length, tile, size in zip(source_hw, tiling.tile_hw, input_size_hw, strict=True)
    )
    return rows, columns


def cut_tile(source: ByteArray, rows: Span, columns: Span, input_size_hw: tuple[int, int]) -> ByteArray:
    """One tile of an image, as the network sees it. Args: source (H, W, 3). Returns: (h, w, 3) at the input size."""
    return resize(source[rows.start : rows.stop, columns.start : columns.stop], input_size_hw)


def score_tiles(
    source: ByteArray,
    tiling: Tiling,
    input_size_hw: tuple[int, int],
    score: Score,
    pool: Executor | None = None,
) -> tuple[float, FloatArray]:
    """Image score and anomaly map of an image of any size.

    Args:
        source: (H, W, 3) uint8.
        score: the network; called from several threads where there is a pool.
        pool: cuts and scores tiles, some dozens at a time.
    Returns: the highest tile score (nan if one is), and the blended map, a place for each 8 x 8 pixels of the input.
    """
    rows, columns = grid((source.shape[0], source.shape[1]), tiling, input_size_hw)
    canvas = np.zeros((rows[-1].cells.stop, columns[-1].cells.stop), np.float32)

    def score_at(place: tuple[Span, Span]) -> tuple[float, FloatArray]:
        return score(cut_tile(source, *place, input_size_hw))

    highest = -math.inf
    places = list(product(rows, columns))
    for start in range(0, len(places), _AT_A_TIME):
        some = places[start : start + _AT_A_TIME]
        found = map(score_at, some) if pool is None else pool.map(score_at, some)
        for (row, column), (tile_score, tile_map) in zip(some, found, strict=True):
            canvas[row.cells, column.cells] += row.taps @ tile_map @ column.taps.T
            highest = float(np.maximum(highest, tile_score))  # which hands on nan, as max would not
    return highest, canvas

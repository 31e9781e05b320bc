"""Tiles of large images: they cover every pixel, their maps blend into one without seams, and the worst tile counts."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inspectad.errors import UsageError
from inspectad.tiles import CELL_PX, OVERLAP, Tiling, cut_tile, grid, parse_tile, score_tiles, split, tile_for

QUICK = settings(deadline=None, max_examples=200)
LENGTHS = st.integers(1, 4000)
TILES = st.integers(64, 700)
INPUTS = st.integers(4, 40).map(lambda n: 16 * n)
OVERLAPS = st.floats(0.01, 0.5)

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def at_source(field: Field, source_hw: tuple[int, int], size_hw: tuple[int, int]) -> np.ndarray:
    """A field over source coordinates (pixel i reaches from i to i + 1) at the centres of a raster laid over it."""
    ys, xs = ((np.arange(n) + 0.5) * side / n for n, side in zip(size_hw, source_hw, strict=True))
    return field(ys[:, None], xs[None, :])


def brightness(tile: np.ndarray) -> tuple[float, np.ndarray]:
    """A network whose map is the red of its image, and whose score is the highest of it."""
    return float(tile[..., 0].max()), tile[..., 0].astype(np.float32)


class FieldNetwork:
    """A synthetic network: from tiles whose pixels say where they are, to a map that is a field over the image."""

    def __init__(self, field: Field, source_hw: tuple[int, int], tiling: Tiling, input_hw: tuple[int, int]) -> None:
        self.field, self.input_hw = field, input_hw
        rows, columns = grid(source_hw, tiling, input_hw)
        self.places = iter([(r, c) for r in rows for c in columns])

    def __call__(self, tile: np.ndarray) -> tuple[float, np.ndarray]:
        assert tile.shape == (*self.input_hw, 3)
        r, c = next(self.places)
        size_hw = (r.stop - r.start, c.stop - c.start)
        local = at_source(lambda y, x: self.field(y + r.start, x + c.start), size_hw, self.input_hw).astype(np.float32)
        return float(local.max()), local


@QUICK
@given(LENGTHS, TILES, OVERLAPS, INPUTS)
def test_tiles_cover_every_pixel_are_of_one_size_and_overlap(length: int, tile: int, overlap: float, size: int) -> None:
    assume(CELL_PX * tile / size <= tile / 4)
    spans = split(length, tile, overlap, size)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert {s.stop - s.start for s in spans} == {min(tile, length)}
    for left, right in pairwise(spans):
        assert left.start < right.start
        assert left.stop - right.start >= overlap * tile - 1e-6
    if length <= tile:
        assert len(spans) == 1


@QUICK
@given(LENGTHS, TILES, OVERLAPS, INPUTS)
def test_weights_of_the_tiles_sum_to_one_at_every_place(length: int, tile: int, overlap: float, size: int) -> None:
    spans = split(length, tile, overlap, size)
    total = np.zeros(spans[-1].cells.stop)
    for span in spans:
        assert (span.taps >= 0).all()
        assert span.taps.shape == (span.cells.stop - span.cells.start, size)
        total[span.cells] += span.taps.sum(axis=1)
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_tiles_are_spread_evenly_and_not_more_than_needed() -> None:
    starts = [s.start for s in split(6000, 320, OVERLAP, 320)]
    assert len(starts) == 22
    gaps = {b - a for a, b in pairwise(starts)}
    assert max(gaps) - min(gaps) <= CELL_PX
    assert all(start % CELL_PX == 0 for start in starts)


@QUICK
@given(st.integers(60, 900), st.integers(60, 900), st.sampled_from([(64, 64), (128, 128), (200, 100), (333, 333)]))
def test_a_linear_field_is_given_back_wherever_tiles_meet(height: int, width: int, tile_hw: tuple[int, int]) -> None:
    def field(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return 3 * y / height - 2 * x / width + 5

    check_field(field, (height, width), Tiling(tile_hw=tile_hw), (128, 64) if tile_hw[0] > tile_hw[1] else (128, 128))


def check_field(field: Field, source_hw: tuple[int, int], tiling: Tiling, input_hw: tuple[int, int]) -> None:
    """The map by tiles against the same field computed in one go, with no tiles at all."""
    source = np.zeros((*source_hw, 3), np.uint8)
    network = FieldNetwork(field, source_hw, tiling, input_hw)
    score, blended = score_tiles(source, tiling, input_hw, network)
    whole = at_source(field, source_hw, blended.shape)
    # Between its outermost pixels' centres and the border a map has no more to say: half a pixel of the tile's map.
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(blended[inner], whole[inner], atol=2e-5 * float(np.abs(whole).max()))
    np.testing.assert_allclose(blended, whole, atol=0.05 * float(np.abs(whole).max()))
    assert score >= blended.max() - 1e-6


def test_a_curved_field_is_given_back_without_seams() -> None:
    def field(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return 2 + np.sin(y / 90) * np.cos(x / 70)

    source_hw, tiling, input_hw = (1000, 1500), Tiling(tile_hw=(320, 320)), (320, 320)
    _, blended = score_tiles(
        np.zeros((*source_hw, 3), np.uint8), tiling, input_hw, FieldNetwork(field, source_hw, tiling, input_hw)
    )
    whole = at_source(field, source_hw, blended.shape)
    assert blended.shape == (125, 188)
    assert np.abs(blended - whole)[1:-1, 1:-1].max() < 1e-3


def test_tiles_that_disagree_fade_into_each_other() -> None:
    """Even maps with an offset of their own leave no step: neighbours differ by a small part of the offset."""
    rows, columns = grid((320, 2000), Tiling(tile_hw=(320, 320)), (320, 320))
    levels = iter(np.arange(len(columns)) % 2)

    def score(tile: np.ndarray) -> tuple[float, np.ndarray]:
        return 0.0, np.full((320, 320), next(levels), np.float32)

    _, blended = score_tiles(np.zeros((320, 2000, 3), np.uint8), Tiling(tile_hw=(320, 320)), (320, 320), score)
    assert len(rows) == 1
    assert blended.min() == pytest.approx(0, abs=1e-6)
    assert blended.max() == pytest.approx(1, abs=1e-6)
    assert np.abs(np.diff(blended, axis=1)).max() < 0.3  # an overlap of 40 px has five places or more


@pytest.mark.parametrize("node", [10, 20, 33])
@pytest.mark.parametrize("length", [1000, 6000, 6001])
def test_no_peak_of_an_enlarged_map_is_flattened(node: int, length: int) -> None:
    """Maps were enlarged from a value each 8 pixels; a single high one stays high in every tile, wherever it lies."""
    from scipy.ndimage import zoom

    coarse = np.zeros(40)
    coarse[node] = 1
    enlarged = zoom(coarse, 8, order=1, mode="nearest", grid_mode=True)
    for span in split(length, 320, OVERLAP, 320)[:-1]:
        weight = span.taps.sum(axis=1)
        if weight[node] > 1 - 1e-6:
            assert (span.taps @ enlarged).max() > 0.93


def test_the_image_score_is_that_of_the_worst_tile() -> None:
    source = np.zeros((500, 700, 3), np.uint8)
    source[430, 650] = 200  # one pixel in the last tile

    highest, blended = score_tiles(source, Tiling(tile_hw=(128, 128)), (128, 128), brightness)
    assert highest == 200
    assert blended.shape == (62, 88)


def test_a_tile_without_a_number_makes_the_image_one_without() -> None:
    calls = iter([1.0, np.nan, 2.0, 3.0])

    def score(tile: np.ndarray) -> tuple[float, np.ndarray]:
        return next(calls), np.zeros((64, 64), np.float32)

    highest, _ = score_tiles(np.zeros((100, 100, 3), np.uint8), Tiling(tile_hw=(64, 64)), (64, 64), score)
    assert np.isnan(highest)


def test_a_tile_is_the_source_itself_at_the_network_s_scale() -> None:
    rng = np.random.default_rng(1)
    source = rng.integers(0, 256, (500, 700, 3), np.uint8)
    rows, columns = grid((500, 700), Tiling(tile_hw=(128, 128)), (128, 128))
    tile = cut_tile(source, rows[1], columns[-1], (128, 128))
    np.testing.assert_array_equal(tile, source[rows[1].start : rows[1].stop, 572:])


def test_an_image_smaller_than_a_tile_is_one_tile() -> None:
    seen = []

    def score(tile: np.ndarray) -> tuple[float, np.ndarray]:
        seen.append(tile)
        return brightness(tile)

    _, blended = score_tiles(np.full((30, 40, 3), 7, np.uint8), Tiling(tile_hw=(320, 320)), (64, 64), score)
    assert [tile.shape for tile in seen] == [(64, 64, 3)]
    np.testing.assert_allclose(blended, np.full((8, 8), 7))


def test_threads_change_nothing_and_a_failing_tile_is_heard_of() -> None:
    source = np.random.default_rng(2).integers(0, 256, (900, 1300, 3), np.uint8)
    tiling = Tiling(tile_hw=(128, 128))
    with ThreadPoolExecutor(3) as pool:
        alone = score_tiles(source, tiling, (128, 128), brightness)
        pooled = score_tiles(source, tiling, (128, 128), brightness, pool)
        assert alone[0] == pooled[0]
        np.testing.assert_array_equal(alone[1], pooled[1])
        with pytest.raises(ZeroDivisionError):
            score_tiles(source, tiling, (128, 128), lambda tile: (1 / 0, tile), pool)


def test_tiles_of_a_longer_side_have_the_aspect_of_the_input() -> None:
    assert tile_for(640, (320, 320)).tile_hw == (640, 640)
    assert tile_for(500, (160, 400)).tile_hw == (200, 500)


@pytest.mark.parametrize(("given", "meant"), [(None, None), ("auto", "auto"), ("320", 320), (640, 640)])
def test_what_the_option_takes(given: str | int | None, meant: str | int | None) -> None:
    assert parse_tile(given) == meant


@pytest.mark.parametrize("given", ["", "big", "0", "-5", "63", "40000", "1e3", 12])
def test_what_the_option_refuses(given: str | int) -> None:
    with pytest.raises(UsageError, match="--tile"):
        parse_tile(given)

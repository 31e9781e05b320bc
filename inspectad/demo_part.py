"""A small machined part, rendered: the photographs behind `inspectad demo`.

The brushed plate is a height map at twice the resolution, lit from one side, then photographed. Defects
change heights or reflectance, so that light, lens and noise treat them as they treat the rest. Lengths are in
design units from the plate's centre: one unit is one pixel at 400 x 480.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

DEFECTS: tuple[str, ...] = ("scratch", "dent", "stain", "missing_hole")
Floats = npt.NDArray[np.float32]

DESIGN_HW, SMALLEST_PX, SUPERSAMPLE = (400, 480), 96, 2
HOLES = ((-150, -112, 0, 13), (152, -114, 0, 13), (-146, 108, 0, 13), (60, 114, 0, 8), (138, 66, 0, 21))
CUTS = (*HOLES, (-35, -82, 52, 11))  # x, y, half length, radius: the slot is a drawn-out hole
PLATE, BEVEL, CHAMFER = (190, 155, 24), 4.0, 3.6  # half width and height, corner radius; two widths
TEXT, TEXT_AT, TEXT_UNIT = "A7-1042", (-112.0, -8.0), 4.6
GLYPHS = {  # strokes on a grid 4 wide and 6 high, "xy" after "xy"
    "A": ("062046", "1434"), "7": ("004026",), "-": ("1333",), "1": ("112026",), "4": ("36300444",),
    "0": ("103041453616050110",), "2": ("01103041420646",),
}  # fmt: skip
# Red, green, blue: colour of the mat, of the metal, what a stain absorbs, how much the lamp colours its side.
CHANNELS = ((0.95, 0.975, 0.36, 1.25), (1.0, 1.0, 0.54, 1.0), (1.05, 1.012, 0.82, 0.7))


@dataclass(frozen=True, slots=True)
class Part:
    """One photograph: image (H, W, 3) uint8 RGB; mask (H, W) uint8, 255 where a defect changes it, else 0."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]


@dataclass(slots=True)
class _Canvas:
    """Layers (h, w) in the plate's own frame, `scale` canvas pixels to a design unit."""

    light: tuple[float, float]  # (x, y) towards the lamp, y points down
    scale: float
    xs: Floats  # (1, w) design units
    ys: Floats  # (h, 1)
    height: Floats  # design units
    plate: Floats  # 1 on the plate
    hole: Floats  # 1 where one looks through it
    gloss: Floats  # added to the reflectance, relative
    stain: Floats  # 0 clean to 1 opaque
    mask: Floats  # 1 on a defect

    def window(self, x: float, y: float, radius: float) -> tuple[tuple[slice, slice], Floats, Floats]:
        """The square around a point: its slices, and x (1, w) and y (h, 1) relative to the point."""
        left, right = np.searchsorted(self.xs[0], (x - radius, x + radius))
        top, bottom = np.searchsorted(self.ys[:, 0], (y - radius, y + radius))
        return (slice(top, bottom), slice(left, right)), self.xs[:, left:right] - x, self.ys[top:bottom] - y

    def draw(self, paths: list[Floats], width: float, levels: npt.ArrayLike = 1.0) -> Floats:
        """(h, w) coverage 0 to 1 by anti-aliased lines through (N, 2) points, each at its level."""
        layer = np.zeros(self.height.shape, np.uint8)
        middle, thickness = (np.array(layer.shape[::-1]) - 1) / 2, max(1, round(width * self.scale))
        for path, level in zip(paths, np.broadcast_to(levels, len(paths)), strict=True):
            px = np.rint((path * self.scale + middle) * 16).astype(np.int32)
            cv2.polylines(layer, [px], False, 255 * float(level), thickness, cv2.LINE_AA, 4)
        return _floats(layer / np.float32(255))


def render_part(seed: int, defect: str | None = None, size_hw: tuple[int, int] = DESIGN_HW) -> Part:
    """Photograph one part; the defective part is the good one of its seed, changed where the mask says.

    seed: 0 or more; decides brushing, light, pose and noise, and the defect's place, size and strength.
    defect: one of DEFECTS, or None for a good part.
    size_hw: height and width in pixels, each at least 96; the part keeps its proportions.
    Raises ValueError: the defect is unknown, the seed negative or the size too small.
    """
    if defect not in (None, *DEFECTS):
        raise ValueError(f"unknown defect {defect!r}; known: {', '.join(DEFECTS)}")
    if min(size_hw) < SMALLEST_PX:
        raise ValueError(f"size_hw must be at least {SMALLEST_PX} x {SMALLEST_PX} px, got {size_hw}")
    rng, defect_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    angle = np.radians(-130 + rng.uniform(-7, 7))
    scale = SUPERSAMPLE * min(size_hw[0] / DESIGN_HW[0], size_hw[1] / DESIGN_HW[1])
    ys, xs = (_floats((np.arange(side) - (side - 1) / 2) / scale) for side in np.array(size_hw) * SUPERSAMPLE)
    layers = (np.zeros((len(ys), len(xs)), np.float32) for _ in range(6))
    canvas = _Canvas((float(np.cos(angle)), float(np.sin(angle))), scale, xs[None, :], ys[:, None], *layers)
    _machine(canvas, int(defect_rng.integers(len(HOLES))) if defect == "missing_hole" else None)
    mark = {"scratch": _scratch, "dent": _dent, "stain": _stain}.get(defect or "")
    if mark is not None:
        mark(canvas, defect_rng)
    return _photograph(canvas, _lit(canvas, rng), rng)


def _floats(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, np.float32)


def _outside(x: Floats, y: Floats, half_w: float, half_h: float, corner: float) -> Floats:
    """Distance to a rounded rectangle around the origin, negative inside."""
    dx, dy = abs(x) - (half_w - corner), abs(y) - (half_h - corner)
    return _floats(np.hypot(dx.clip(0), dy.clip(0)) + np.maximum(dx, dy).clip(max=0) - corner)


def _clouds(rng: np.random.Generator, hw: tuple[int, ...], cells: int) -> Floats:
    """(h, w) smooth noise, mean 0, standard deviation below 1."""
    knots = rng.standard_normal((cells, cells), np.float32)
    return _floats(cv2.resize(knots, (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC))


def _machine(canvas: _Canvas, missing: int | None) -> None:
    """Bevel the plate, engrave its number, mill the slot and drill all holes but the missing one."""
    outside = _outside(canvas.xs, canvas.ys, *PLATE)
    canvas.plate = _floats(np.clip(0.5 - outside * canvas.scale, 0, 1))
    canvas.height = _floats(-0.8 * np.clip(outside + BEVEL, 0, 2 * BEVEL))
    grids = [(i, np.array([*map(int, s)]).reshape(-1, 2)) for i, c in enumerate(TEXT) for s in GLYPHS[c]]
    strokes = [_floats((grid + np.array([5.7 * i, 0])) * TEXT_UNIT + TEXT_AT) for i, grid in grids]
    strokes.append(_floats([(-112, 35), (66, 35)]))
    canvas.height -= 1.1 * _floats(cv2.GaussianBlur(canvas.draw(strokes, 2.4), (0, 0), 0.45 * canvas.scale))
    for i, (x, y, half_length, radius) in enumerate(CUTS):
        at, xs, ys = canvas.window(x, y, half_length + radius + 2 * CHAMFER)
        outside = _outside(xs, ys, half_length + radius, radius, radius)
        if i == missing:
            canvas.mask[at] = outside < CHAMFER + 0.5
            continue
        wall = 1 - np.clip(-outside / (0.55 * radius), 0, 1)  # it keeps falling, so it catches light
        canvas.height[at] -= 0.8 * np.clip(CHAMFER - outside, 0, CHAMFER) + 0.2 * radius * (1 - wall**2)
        canvas.hole[at] = np.clip(0.5 - outside * canvas.scale, 0, 1)


def _place(rng: np.random.Generator, outline: npt.ArrayLike, clearance: float) -> tuple[float, float]:
    """Where the (N, 2) outline fits on the plate, `clearance` from its edge, holes and slot, or nearly so."""
    tries = rng.uniform(-1, 1, (96, 1, 2)) * PLATE[:2]
    x, y = np.moveaxis(_floats(tries + outline), -1, 0)
    room = -_outside(x, y, *PLATE) - BEVEL
    for cut_x, cut_y, half_length, radius in CUTS:
        away = _outside(x - cut_x, y - cut_y, half_length + radius, radius, radius)
        room = np.minimum(room, away - CHAMFER)
    best = int(np.argmax(np.minimum(room.min(axis=1), clearance)))  # the first that fits, else the roomiest
    return float(tries[best, 0, 0]), float(tries[best, 0, 1])


def _scratch(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A slightly bent groove, one flank bright and one dark, uneven along its length and weak at its ends."""
    length, angle, bend = rng.uniform(40, 140), rng.uniform(0, np.pi), rng.uniform(-0.2, 0.2)
    along, across = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    t = np.linspace(-0.5, 0.5, 33)[:, None]
    curve = length * (t * along + (0.25 - t**2) * bend * across)
    curve += _place(rng, curve, 3)
    width = max(rng.uniform(1.5, 3.0), 3 / canvas.scale)
    flank = across * width / 4 * (-1 if across @ canvas.light > 0 else 1)
    pressure = np.interp(np.arange(32), np.linspace(0, 31, 9), [0.3, *rng.uniform(0.55, 1, 7), 0.3])
    bright, dark = (
        canvas.draw([_floats(ends) for ends in np.stack([line[:-1], line[1:]], 1)], width / 2, pressure)
        for line in (curve + flank, curve - flank)
    )
    canvas.gloss = _floats(rng.uniform(0.34, 0.6) * (bright - 0.9 * dark))
    canvas.mask = canvas.draw([_floats(curve)], width + 1.5)


def _dent(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A shallow, slightly oval bowl: the flank that faces the lamp is bright, the other dark."""
    radius, slope, squeeze = rng.uniform(14, 30), rng.uniform(0.14, 0.25), rng.uniform(0.8, 1.0)
    at, x, y = canvas.window(*_place(rng, (0, 0), radius), radius * 1.1)
    cos, sin = np.cos(angle := rng.uniform(0, np.pi)), np.sin(angle)
    inside = np.clip(1 - ((x * cos + y * sin) ** 2 + ((y * cos - x * sin) / squeeze) ** 2) / radius**2, 0, 1)
    canvas.height[at] -= _floats(slope * radius / 1.54 * inside**2)
    canvas.mask[at] = inside > 0


def _stain(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Dried oil: a ragged, uneven, brownish film, a little darker along its rim."""
    radius = rng.uniform(9, 17)
    at, x, y = canvas.window(*_place(rng, (0, 0), radius * 1.2), radius * 2)
    depth = 1 - np.hypot(x, y) / radius
    depth += 0.32 * np.clip(_clouds(rng, depth.shape, 5) + 0.3 * _clouds(rng, depth.shape, 11), -1.5, 1.5)
    film = np.clip(depth * 3.5, 0, 1) * (0.7 + 0.3 * np.exp(-(((depth - 0.27) / 0.13) ** 2)))
    canvas.stain[at] = rng.uniform(0.36, 0.6) * film * (0.9 + 0.12 * _clouds(rng, depth.shape, 5))
    canvas.mask[at] = depth > 0


def _lit(canvas: _Canvas, rng: np.random.Generator) -> Floats:
    """(h, w) grey of the brushed plate under the lamp, before the lens; 0 black to 1 white."""
    slope = np.outer((1, 2, 1), (-1, 0, 1)) * canvas.scale / 8
    facing = _floats(cv2.filter2D(canvas.height, -1, -canvas.light[0] * slope - canvas.light[1] * slope.T))
    h, w = facing.shape
    fine = rng.standard_normal((h, w), np.float32)
    coarse = cv2.blur(rng.standard_normal((h // 3, w // 12), np.float32), (9, 1))
    streaks = 2.4 * cv2.blur(fine, (21, 1)) + 5.5 * cv2.blur(fine[::-1], (121, 1))
    streaks += 1.2 * cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    streaks += 0.4 * rng.standard_normal((h, 1), np.float32)
    metal = 1 + 1.15 * facing / (1 + abs(facing)) + canvas.gloss
    metal += rng.uniform(0.034, 0.044) * streaks + 0.018 * _clouds(rng, (h, w), 9)
    x = canvas.xs * (canvas.scale * 2 / w) - np.float32(rng.uniform(-0.45, -0.15))
    metal *= _floats(0.54 + 0.15 * np.exp(-((x / 0.6) ** 2)))  # the glare of a lamp runs across the grooves
    return _floats(metal + canvas.hole * (0.035 + 0.22 * np.clip(facing, 0, 1) - metal))


def _photograph(canvas: _Canvas, metal: Floats, rng: np.random.Generator) -> Part:
    """Lay the plate on its mat, up to 1 degree and 3 units off, and expose through a soft lens."""
    h, w, unit = *(side // SUPERSAMPLE for side in metal.shape), canvas.scale / SUPERSAMPLE
    sharp = cv2.merge([metal, canvas.plate, canvas.stain, canvas.mask])
    pose = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), rng.uniform(-1, 1), SUPERSAMPLE)
    pose[:, 2] += [w / 2 + rng.uniform(-3, 3) * canvas.scale, h / 2 + rng.uniform(-3, 3) * canvas.scale]
    soft = cv2.GaussianBlur(sharp, (0, 0), rng.uniform(0.95, 1.25))
    seen = cv2.warpAffine(soft, pose, (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    grey, plate, stain, mask = (_floats(layer) for layer in cv2.split(seen))
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)
    side = rng.uniform(0.06, 0.10) * (x * canvas.light[0] + y * canvas.light[1])
    exposure = 255 * rng.uniform(0.96, 1.04) * (1 - 0.05 * (x**2 + y**2))  # the lens darkens its corners
    fall = np.array([[1, 0, -8 * unit * canvas.light[0]], [0, 1, -8 * unit * canvas.light[1]]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(plate, fall, (w, h)), (0, 0), 6 * unit)
    rubber = cv2.GaussianBlur(rng.standard_normal((h, w), np.float32), (0, 0), 0.8) * 0.22
    mat = 0.16 * (1 + rubber + 0.05 * _clouds(rng, (h, w), 6)) * (1 - 0.75 * shadow) * (1 - plate)
    levels = _floats(cv2.merge([
        (mat * on_mat + grey * plate * on_metal * (1 - absorbs * stain)) * exposure * (1 + warmth * side)
        for on_mat, on_metal, absorbs, warmth in CHANNELS
    ]))  # fmt: skip
    levels += rng.standard_normal(levels.shape, np.float32) * _floats(0.8 + 0.1 * np.sqrt(levels.clip(0)))
    return Part(np.rint(levels).clip(0, 255).astype(np.uint8), np.uint8(255) * (mask > 0.08))

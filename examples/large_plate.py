"""A scratch three pixels wide on a plate of 24 megapixels: seen whole, and in tiles.

    python examples/large_plate.py                                   # 6,000 x 4,000 px, 6 good plates teach
    python examples/large_plate.py --width 1800 --good 4 --output small     # the same, smaller

Needs: inspectad[train]. Renders a brushed plate with holes, a window and a printed number; good plates differ in
brushing, light, position and noise. Trains on whole images and on tiles, scans a good and a scratched plate with each
model, with heatmaps, and says what they found.

Expected output (3.5 minutes on two cores):

    scratch            3907 2562 347 237
    whole  trained in 17 s
    whole  good.png     OK  0.86 of the threshold
    whole  scratch.png  OK  0.88 of the threshold
    tiles  trained in 152 s
    tiles  good.png     OK  0.94 of the threshold
    tiles  scratch.png  NG  1.27 of the threshold  3896 2552 360 256
"""

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np

import inspectad
from inspectad.records import Inspection
from inspectad.scan import ScanConfig, scan

HOLES = ((0.08, 0.10), (0.92, 0.10), (0.08, 0.90), (0.92, 0.90), (0.30, 0.62), (0.70, 0.35), (0.52, 0.80))
HOLE_PX = 56  # radius; a large plate has the features of a small one, and more room between them


def main() -> None:
    parser = argparse.ArgumentParser(description="Find a thin scratch on a large plate.")
    parser.add_argument("--output", type=Path, default=Path("large_plate"), help="new folder for images and models")
    parser.add_argument("--width", type=int, default=6000, help="of the plates, in pixels; they are 3 : 2")
    parser.add_argument("--good", type=int, default=6, help="good plates to train on")
    args = parser.parse_args()
    if args.output.exists():
        sys.exit(f"error: {args.output} exists; choose another folder with --output")

    size_hw = (args.width * 2 // 3, args.width)
    middle, length, angle = (round(0.68 * size_hw[1]), round(0.67 * size_hw[0])), 420, 0.6
    for i in range(args.good):
        write_png(args.output / "good" / f"{i:02}.png", render_plate(i, size_hw))
    write_png(args.output / "line" / "good.png", render_plate(1000, size_hw))
    write_png(args.output / "line" / "scratch.png", render_plate(1001, size_hw, (*middle, length, angle)))
    width, height = round(length * np.cos(angle)), round(length * np.sin(angle))
    print(f"scratch            {middle[0] - width // 2} {middle[1] - height // 2} {width} {height}")
    for name, tile in (("whole", None), ("tiles", "auto")):
        started = time.perf_counter()
        model = args.output / f"model_{name}"
        inspectad.train(args.output / "good", output=model, tile=tile)
        print(f"{name}  trained in {time.perf_counter() - started:.0f} s")
        for row in inspect(model, args.output / "line", args.output / f"results_{name}"):
            boxes = "; ".join(f"{b.x} {b.y} {b.width} {b.height}" for b in row.boxes)
            print(f"{name}  {row.image:12} {row.verdict}  {row.severity:.2f} of the threshold  {boxes}".rstrip())


def inspect(model: Path, images: Path, output: Path) -> list[Inspection]:
    """The rows of a scan with heatmaps."""
    rows: list[Inspection] = []
    scan(
        ScanConfig(images=(str(images),), output=output, heatmaps="all"),
        inspectad.Detector.load(model),
        on_row=rows.append,
    )
    return rows


def write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def render_plate(seed: int, size_hw: tuple[int, int], scratch: tuple[int, int, int, float] | None = None) -> np.ndarray:
    """A plate that fills the frame, uint8 (H, W, 3).

    Args:
        seed: of brushing, light, position and noise.
        scratch: x and y of its middle, its length in pixels, its angle in radians; it is three pixels wide.
    """
    rng = np.random.default_rng([seed, *size_hw])
    grain = rng.standard_normal(size_hw, np.float32)
    levels = 120 + 23 * cv2.blur(grain, (41, 1)) + 11 * cv2.blur(grain[::-1], (201, 1))
    cut, ink = _features(size_hw, rng.integers(-6, 7, 2))
    edge = cv2.Sobel(cut, cv2.CV_32F, 1, 1, ksize=3) + cv2.Sobel(cut, cv2.CV_32F, 0, 1, ksize=3)
    levels += (25 - levels) * cut + 60 * edge - ink
    if scratch is not None:
        levels += _scratch(size_hw, scratch)
    ys, xs = (np.linspace(-1, 1, side, dtype=np.float32) for side in size_hw)
    levels *= np.float32(rng.uniform(0.95, 1.05)) * (
        1 + np.float32(rng.uniform(0.05, 0.1)) * xs - 0.06 * ys[:, None] ** 2
    )
    levels += 2.5 * rng.standard_normal(size_hw, np.float32)
    return cv2.cvtColor(np.clip(np.rint(levels), 0, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def _features(size_hw: tuple[int, int], at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is cut out (0 to 1) and how dark the print is, both (H, W); moved by ``at`` (x, y)."""
    height, width = size_hw
    cut, ink = np.zeros(size_hw, np.uint8), np.zeros(size_hw, np.uint8)

    def place(x: float, y: float) -> tuple[int, int]:
        return round(x * width) + int(at[0]), round(y * height) + int(at[1])

    for hole in HOLES:
        cv2.circle(cut, place(*hole), HOLE_PX, 255, -1, cv2.LINE_AA)
    cv2.rectangle(cut, place(0.42, 0.18), place(0.58, 0.38), 255, -1)
    cv2.putText(ink, "PL-2044", place(0.12, 0.35), cv2.FONT_HERSHEY_SIMPLEX, 3.0, 60, 8, cv2.LINE_AA)
    return cv2.GaussianBlur(cut, (0, 0), 2.0).astype(np.float32) / 255, ink


def _scratch(size_hw: tuple[int, int], scratch: tuple[int, int, int, float]) -> np.ndarray:
    """What a scratch adds, (H, W): a bright flank and a dark one."""
    x, y, length, angle = scratch
    along, across = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    layer = np.zeros(size_hw, np.float32)
    for offset, level in ((-1, 38.0), (0, 12.0), (1, -34.0)):
        start, end = (np.rint(np.array((x, y)) + offset * across + side * along * length / 2) for side in (-1, 1))
        cv2.line(layer, start.astype(int).tolist(), end.astype(int).tolist(), level, 1)
    return layer


if __name__ == "__main__":
    main()

"""Make the picture of the README: some heatmaps of `inspectad demo` in one row.

Needs inspectad; run `inspectad demo` first. Usage: python demo_picture.py inspectad-demo demo.jpg
"""

import sys
from pathlib import Path

import cv2
import numpy as np

SHOWN = ("part_003", "part_010", "part_006", "part_008")  # good, scratch, dent, missing hole


def main() -> None:
    demo, target = Path(sys.argv[1]), Path(sys.argv[2])
    heatmaps = [cv2.imread(str(demo / "results" / "heatmaps" / f"{name}.png.png")) for name in SHOWN]
    if any(h is None for h in heatmaps):
        sys.exit(f"{demo}: no heatmaps in there; run 'inspectad demo -o {demo}' first")
    cv2.imwrite(str(target), np.hstack(heatmaps), [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(f"wrote {target}")


if __name__ == "__main__":
    main()

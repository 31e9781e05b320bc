"""Solar cells in the split that the literature on learning from few defects reports, as folders for the benchmark.

    pip install "inspectad[train]" elpv-dataset
    python examples/elpv_protocol.py                       # writes elpv/train/good, elpv/test/good, elpv/test/defect
    inspectad benchmark accuracy elpv --shots all --defect-shots 10,1 --seeds 3 --methods devnet --size 224

Needs: inspectad[train] and the package elpv-dataset (90 MB), see solar_cells.py for what is in it and its licence (CC
BY-NC-SA 4.0). The images stay on your disk; inspectad holds none of them.

The protocol is that of DevNet (Pang et al., arXiv 2108.00462) and DRA (Ding, Pang & Shen, CVPR 2022): a cell is good
when its probability of a defect is 0, defective when it is 1, and left out in between; a random quarter of the good
ones is the test, three quarters teach (377 and 1,131); 10 defects, or 1, are drawn from all 715, teach, and leave the
test. The benchmark makes that draw. Theirs split by scikit-learn's train_test_split with random state 42, and so does
this, in the order of the package's list: ``RandomState(42).permutation``, its first quarter being the test.

Expected output (2 s):

    elpv/train/good    1131
    elpv/test/good      377
    elpv/test/defect    715
"""

import argparse
import math
import sys
from pathlib import Path

import cv2
import numpy as np
from elpv_dataset.utils import load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the solar cells as a set for the benchmark.")
    parser.add_argument("--output", type=Path, default=Path("elpv"), help="new folder for the images")
    args = parser.parse_args()
    if args.output.exists():
        sys.exit(f"error: {args.output} exists; choose another folder with --output")  # or old images would mix in

    images, probability, _ = load_dataset()
    good, defects = np.flatnonzero(probability == 0.0), np.flatnonzero(probability == 1.0)
    train, test = split(good)
    for name, numbers in (("train/good", train), ("test/good", test), ("test/defect", defects)):
        write_images(args.output / name, images, numbers)
        print(f"{args.output.name}/{name:<13} {len(numbers):5}")


def split(good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Three quarters and one: what ``train_test_split(good, test_size=0.25, random_state=42)`` gives, but for order."""
    order = np.random.RandomState(42).permutation(len(good))
    count = math.ceil(0.25 * len(good))
    return np.sort(good[order[count:]]), np.sort(good[order[:count]])


def write_images(folder: Path, images: np.ndarray, numbers: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for number in numbers:
        cv2.imencode(".png", images[number])[1].tofile(folder / f"cell{number + 1:04}.png")


if __name__ == "__main__":
    main()

"""One-class detection with many normal images: anomem learns a class from nothing, and tells it from all the others.

    pip install "inspectad[train]"
    python examples/prototype_classes.py fashion_mnist.npz --classes 7 --draws 3
    python examples/prototype_classes.py cifar10.npz --classes 1 --draws 3 --device cuda --jobs 6
    python examples/prototype_classes.py cifar10.npz --classes 1 --init pretrained

Needs: inspectad[train], and a .npz file as for one_shot_classes.py, which says how images are resized and drawn.

One class is normal; ``--normals`` of its training images teach, and all test images are scored. Each training gives an
image AUROC for each of these:

- all: the detector as it is; stride_8, stride_16, stride_32: one of its scales alone; two: strides 16 and 32;
- mean_prototype: the same encoder with a memory of one prototype, the mean; kmeans: with the centres of k-means in
  place of the learnt prototypes, as many;
- pixels: distance to the nearest training image, of the pixels as they are in the file, which needs no training.

No published figure could be verified. ``--json FILE`` has all results, and is written anew after each training.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from one_shot_classes import SIDE, auroc, deviation, drawn, resized, run_all, score

PARTS = ("all", "two", "stride_8", "stride_16", "stride_32", "mean_prototype", "kmeans", "pixels")
MOST_CLUSTERED = 256
"""Training images whose places k-means and the mean are of."""


@dataclass(frozen=True)
class Job:
    """One training, and what it is scored on."""

    file: str
    label: int
    draw: int
    normals: int
    epochs: int | None
    init: str
    views: str
    test: int
    device: str
    threads: int


@dataclass(frozen=True)
class Result:
    """What came out: image AUROC of each of `PARTS`."""

    label: int
    draw: int
    normals: int
    aurocs: dict[str, float]
    fit_seconds: float
    notes: dict[str, str]
    warnings: list[str]


def main() -> None:
    args = parse()
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    jobs = [
        Job(
            file=str(args.file),
            label=int(label),
            draw=draw,
            normals=args.normals,
            epochs=args.epochs,
            init=args.init,
            views=args.views,
            test=args.test,
            device=device,
            threads=max(1, (os.cpu_count() or 1) // args.jobs),
        )
        for label in args.classes.split(",")
        for draw in range(args.draws)
    ]
    results: list[Result] = []
    print("class draw  " + "  ".join(f"{part:>9}" for part in PARTS) + "  train, s", flush=True)
    for result in run_all(run, jobs, args.jobs):
        results.append(result)
        figures = "  ".join(f"{100 * result.aurocs[part]:{max(9, len(part))}.1f}" for part in PARTS)
        print(f"{result.label:>5} {result.draw:>4}  {figures}  {result.fit_seconds:>8.0f}", flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    print("\nclass part            AUROC, %, mean ± standard deviation of the draws")
    for label in sorted({result.label for result in results}):
        for part in PARTS:
            found = [100 * result.aurocs[part] for result in results if result.label == label]
            print(f"{label:>5} {part:<15} {np.mean(found):.1f} ± {deviation(found):.1f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="anomem on a class of small pictures, against the other classes.")
    parser.add_argument("file", type=Path, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--classes", required=True, help="class numbers with commas between")
    parser.add_argument("--normals", type=int, default=1000, help="images of the class that teach, as far as there are")
    parser.add_argument("--draws", type=int, default=3, help="draws of these images, each with a training of its own")
    parser.add_argument("--epochs", type=int, help="of 20 steps; the method's own number if absent")
    parser.add_argument("--init", choices=("pretrained", "scratch"), default="scratch")
    parser.add_argument("--views", choices=("inspection", "paper"), default="paper")
    parser.add_argument("--test", type=int, default=0, help="score only so many test images, evenly spread; 0: all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each in a process of its own")
    parser.add_argument("--json", type=Path, help="write all results there")
    return parser.parse_args()


def run(job: Job) -> Result:
    """Train on the drawn images and score the test images in each way."""
    from inspectad.methods.anomem import AnoMemTrainer
    from inspectad.nn.settings import TrainSettings

    torch.set_num_threads(job.threads)
    with np.load(job.file, allow_pickle=False) as arrays:
        x_train, y_train, x_test, y_test = (arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    chosen = drawn(y_train, job.label, job.draw, job.normals)
    tested = np.arange(len(x_test)) if not job.test else np.linspace(0, len(x_test) - 1, job.test).astype(int)
    good = resized(x_train[chosen])
    settings = TrainSettings(
        input_size_hw=(SIDE, SIDE),
        backbone="resnet18" if job.init == "scratch" else "efficientnet_lite0",
        seed=job.draw,
        device=job.device,
        epochs=job.epochs,
        init=job.init,
        views=job.views,
    )
    begun = time.perf_counter()
    # It asks for images by number, and no more.
    fitted = AnoMemTrainer(list(good), [], settings).fit(range(len(good)), [])
    trained = time.perf_counter() - begun
    images, is_other = resized(x_test[tested]), y_test[tested] != job.label
    aurocs = {
        part: auroc(score(module, images, job.device), is_other)
        for part, module in variants(fitted.module.to(job.device), good, job)
    }
    aurocs["pixels"] = auroc(nearest_pixels(x_test[tested], x_train[chosen]), is_other)
    return Result(job.label, job.draw, len(good), aurocs, trained, fitted.notes, list(fitted.warnings))


def variants(module: torch.nn.Module, good: np.ndarray, job: Job) -> Iterator[tuple[str, torch.nn.Module]]:
    """The detector, its scales alone, and other memories for the same encoder."""
    from inspectad.nn.prototypes import PrototypeMemory, cluster

    yield "all", module
    units = module.units.clone()
    for part, kept in (("two", (1, 2)), ("stride_8", (0,)), ("stride_16", (1,)), ("stride_32", (2,))):
        # A scale whose unit is endless adds nothing.
        module.units.copy_(torch.tensor([units[s] if s in kept else torch.inf for s in range(len(units))]))
        yield part, module
    module.units.copy_(units)
    other = copy.deepcopy(module)
    other.one_class = None
    images = torch.from_numpy(good[:MOST_CLUSTERED]).to(job.device)
    with torch.inference_mode():
        maps = other.encoder.maps(images.permute(0, 3, 1, 2).float())
        vectors = [other.encoder.project(scale, found).flatten(0, 2) for scale, found in enumerate(maps)]
    for part in ("mean_prototype", "kmeans"):
        for scale, found in enumerate(vectors):
            count = len(module.memories[scale].prototypes)
            centres = found.mean(0, keepdim=True) if part == "mean_prototype" else cluster(found, count, job.draw)
            other.memories[scale] = PrototypeMemory(centres.clone()).requires_grad_(False).to(job.device)
        with torch.inference_mode():
            other.standardise([[found[i : i + 1] for found in maps] for i in range(len(images))])
        yield part, other


def nearest_pixels(images: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Euclidean distance of each image to the nearest good one."""
    first, second = (torch.from_numpy(x.reshape(len(x), -1)).float() for x in (images, good))
    return torch.cdist(first, second).min(dim=1).values.numpy()


if __name__ == "__main__":
    main()

"""One-shot one-class detection: htdg learns one image of a class, and tells that class from all the others.

    pip install "inspectad[train]"
    python examples/one_shot_classes.py fashion_mnist.npz --classes 7 --draws 3
    python examples/one_shot_classes.py fashion_mnist.npz --classes 7 --parts all,no_generator,finest_scale
    python examples/one_shot_classes.py mnist.npz --classes all --draws 5 --steps 1000 --device cuda --jobs 6

Needs: inspectad[train], and a .npz file with the arrays x_train, y_train, x_test, y_test: images uint8 (N, h, w) or
(N, h, w, 3), and a class number of each.

The protocol is that of Sheynin, Benaim & Wolf (ICCV 2021): one class is normal, so many images of it teach, and all
test images are scored; image AUROC of the other classes against it, over several draws of the images that teach.
Published, one image, mean of all classes: MNIST 79.3, FashionMNIST 83.9, CIFAR10 64.9; FashionMNIST's sneaker (class
7) 97.9 ± .7 and trouser (1) 97.2 ± 1.4, MNIST's "3" 94.3 ± 4.8. Images of any size are resized to 64 x 64 pixels, by
antialiased bicubic interpolation, rounded to 8 bits.

Draw d of a class teaches on the first images of numpy's ``default_rng(d).permutation`` of its training images, and d
is the seed of the training. ``--parts`` is the ablation: all is the whole method, no_generator has discriminators that
tell the transformations of the training image apart and generates nothing, finest_scale and coarsest_scale have that
scale alone. All patches of an image count (``--share``), as published for classes; ``inspectad train`` looks for
defects, and takes the least sure ones.

Prints the settings, a line for each training as it ends (in any order with --jobs), and a table of means. The images
that taught are named by their place in x_train. ``--json FILE`` has all of it, and is written anew after each training.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of several jobs must not spin while they wait

import numpy as np
import torch
import torch.nn.functional as F

SIDE = 64
PARTS = ("all", "no_generator", "finest_scale", "coarsest_scale")
SCORED_AT_A_TIME = {"cpu": 4, "cuda": 256}
"""Test images in a batch: on a CPU what they become should stay in its caches."""


@dataclass(frozen=True)
class Job:
    """One training, and what it is scored on."""

    file: str
    label: int
    draw: int
    part: str
    shots: int
    steps: int | None
    transformations: str
    share: float
    test: int
    device: str
    threads: int


@dataclass(frozen=True)
class Result:
    """Which images taught, by their place in x_train, and what came out."""

    label: int
    draw: int
    part: str
    images: list[int]
    auroc: float
    fit_seconds: float
    score_seconds: float
    notes: dict[str, str]


def main() -> None:
    args = parse()
    with np.load(args.file, allow_pickle=False) as arrays:
        known = np.unique(arrays["y_train"]).tolist()
    labels = known if args.classes == "all" else [int(text) for text in args.classes.split(",")]
    parts = args.parts.split(",")
    if unknown := {*(set(labels) - set(known)), *(set(parts) - set(PARTS))}:
        raise SystemExit(f"error: {unknown}: there are the classes {known} and the parts {', '.join(PARTS)}")
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    jobs = [
        Job(
            file=str(args.file),
            label=label,
            draw=draw,
            part=part,
            shots=args.shots,
            steps=args.steps,
            transformations=args.transformations,
            share=args.share,
            test=args.test,
            device=device,
            threads=args.threads,
        )
        for part in parts
        for label in labels
        for draw in range(args.draws)
    ]
    settings = describe(args, device, len(jobs))
    print("\n".join(f"{name:<16}{value}" for name, value in settings.items()), flush=True)
    print(f"\n{'part':<16}{'class':>5} {'draw':>4}  AUROC, %  train, s  score, s  images", flush=True)
    results: list[Result] = []
    started = time.perf_counter()
    for result in run_all(run, jobs, args.jobs):
        results.append(result)
        print(
            f"{result.part:<16}{result.label:>5} {result.draw:>4}  {100 * result.auroc:>8.1f}  "
            f"{result.fit_seconds:>8.1f}  {result.score_seconds:>8.1f}  {' '.join(map(str, result.images))}",
            flush=True,
        )
        if args.json is not None:
            write_json(args.json, settings, results)
    print(f"\n{'part':<16}{'class':>5} draws  AUROC, %, mean ± standard deviation")
    for part in parts:
        print_means(part, labels, [r for r in results if r.part == part])
    print(f"{time.perf_counter() - started:.0f} s in all")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="htdg on one image of a class, against the other classes.")
    parser.add_argument("file", type=Path, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--classes", default="all", help="class numbers with commas between, or all")
    parser.add_argument("--shots", type=int, default=1, help="images of the class that teach")
    parser.add_argument("--draws", type=int, default=3, help="draws of these images, each with a training of its own")
    parser.add_argument("--steps", type=int, help="training steps of each scale; the method's own number if absent")
    parser.add_argument("--transformations", choices=("rotations", "all"), default="rotations")
    parser.add_argument("--parts", default="all", help=f"of {','.join(PARTS)}")
    parser.add_argument("--share", type=float, default=1.0, help="of the patches that count, the least sure; 1: all")
    parser.add_argument("--test", type=int, default=0, help="score only so many test images, evenly spread; 0: all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch in each process; 0: cores / jobs")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each in a process of its own")
    parser.add_argument("--json", type=Path, help="write settings and results there")
    args = parser.parse_args()
    args.threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    return args


def describe(args: argparse.Namespace, device: str, trainings: int) -> dict[str, str]:
    """All settings, for people."""
    return {
        **{name: str(value) for name, value in vars(args).items() if name not in ("json", "device", "steps", "test")},
        "steps": "the method's own" if args.steps is None else str(args.steps),
        "test images": str(args.test or "all"),
        "trainings": str(trainings),
        "resize": f"{SIDE} x {SIDE}, bicubic, antialiased, rounded to 8 bits",
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
    }


def run_all(run: Callable[[Any], Any], jobs: Sequence[Any], processes: int) -> Iterator[Any]:
    """Results of a function of this level of a module, in the order in which they are done."""
    if processes <= 1:
        yield from map(run, jobs)
        return
    # Not by fork: CUDA does not survive it.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs]):
            yield done.result()


def run(job: Job) -> Result:
    """Train on the drawn images and score the test images."""
    from inspectad.methods.htdg import HTDGTrainer
    from inspectad.nn.patch_gan import sides_of
    from inspectad.nn.settings import TrainSettings

    torch.set_num_threads(job.threads)
    with np.load(job.file, allow_pickle=False) as arrays:
        x_train, y_train, x_test, y_test = (arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    chosen = drawn(y_train, job.label, job.draw, job.shots)
    tested = np.arange(len(x_test)) if not job.test else np.linspace(0, len(x_test) - 1, job.test).astype(int)
    good, sides = list(resized(x_train[chosen])), sides_of(SIDE)
    settings = TrainSettings(
        input_size_hw=(SIDE, SIDE),
        seed=job.draw,
        device=job.device,
        steps=job.steps,
        transformations=job.transformations,
    )
    trainer = HTDGTrainer(
        good,  # it asks for images by number, and no more
        [],
        settings,
        lowest_share=job.share,
        with_generator=job.part != "no_generator",
        sides={"finest_scale": sides[-1:], "coarsest_scale": sides[:1]}.get(job.part),
    )
    begun = time.perf_counter()
    fitted = trainer.fit(range(len(good)), [])
    trained = time.perf_counter()
    scores = score(fitted.module.to(job.device), resized(x_test[tested]), job.device)
    return Result(
        label=job.label,
        draw=job.draw,
        part=job.part,
        images=chosen.tolist(),
        auroc=auroc(scores, y_test[tested] != job.label),
        fit_seconds=trained - begun,
        score_seconds=time.perf_counter() - trained,
        notes=fitted.notes,
    )


def drawn(labels: np.ndarray, label: int, draw: int, shots: int) -> np.ndarray:
    """Which training images teach: (shots,) places in the array."""
    places = np.flatnonzero(labels == label)
    return places[np.random.default_rng(draw).permutation(len(places))[:shots]]


def resized(images: np.ndarray) -> np.ndarray:
    """Grey or RGB images uint8 (N, h, w[, 3]) to uint8 (N, 64, 64, 3)."""
    pixels = torch.from_numpy(images).float()
    pixels = pixels[:, None].expand(-1, 3, -1, -1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    enlarged = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(enlarged.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())


def score(module: torch.nn.Module, images: np.ndarray, device: str) -> np.ndarray:
    """Image scores (N,), higher is more anomalous."""
    with torch.inference_mode():
        batches = torch.from_numpy(images).split(SCORED_AT_A_TIME[device])
        return torch.cat([module(batch.to(device))[0].cpu() for batch in batches]).numpy()


def auroc(scores: np.ndarray, is_other: np.ndarray) -> float:
    """Chance that an image of another class scores above one of this class, ties counting half (Mann-Whitney)."""
    ordered = np.sort(scores[~is_other])
    below, upto = (np.searchsorted(ordered, scores[is_other], side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / len(ordered))


def print_means(part: str, labels: Sequence[int], results: Sequence[Result]) -> None:
    """A line for each class, and one for the mean over them, of means and of deviations."""
    figures = {label: [100 * r.auroc for r in results if r.label == label] for label in labels}
    means, spreads = ([f(found) for found in figures.values()] for f in (np.mean, deviation))
    for (label, found), mean, spread in zip(figures.items(), means, spreads, strict=True):
        print(f"{part:<16}{label:>5} {len(found):>5}  {mean:.1f} ± {spread:.1f}")
    if len(labels) > 1:
        print(f"{part:<16}{'mean':>5} {'':>5}  {np.mean(means):.1f} ± {np.mean(spreads):.1f}")


def deviation(figures: Sequence[float]) -> float:
    """Sample standard deviation; nan of one figure."""
    return float(np.std(figures, ddof=1)) if len(figures) > 1 else math.nan


def write_json(path: Path, settings: dict[str, str], results: Sequence[Result]) -> None:
    """Whole or not at all, so that a stop costs nothing."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps({"settings": settings, "results": [asdict(r) for r in results]}, indent=1))
    unfinished.replace(path)


if __name__ == "__main__":
    main()

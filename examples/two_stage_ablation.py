"""Is the second stage of utad worth it? Its own parts, a plain autoencoder and the memory bank, on the same images.

    pip install "inspectad[train]"
    python examples/two_stage_ablation.py ./bottle
    python examples/two_stage_ablation.py ./bottle --train 80 --test 40 --threads 2
    python examples/two_stage_ablation.py ./bottle --size 256 --device cuda

Needs: inspectad[train], and a folder in MVTec layout: train/good, test/good, test/<defect>, and ground_truth.

Trains utad on the good images (all, or --train of them, evenly spread), and a plain convolutional autoencoder of as
many weights on the same views of those that teach it, for as long; then a memory bank, at the input size of
``inspectad train``.
All test images are scored (or --test good ones and as many of each kind of defect), and these are measured, by image
AUROC (mean of the highest hundredth of the map) and by AUPRO (limit .3):

- two stages: the detector as it is; its map alone, without the distance of the code;
- two stages, r: the map of pixels and structure, r(x, x') + max(0, r(m, m') - r(x', m));
- impression, r: r(x, m), what the first stage alone finds; autoencoder, r: r of the image and its reconstruction;
- impression, Phi and autoencoder, Phi: the same two by the measure of the backbone that the detector has,
  standardised place by place in the same way;
- memory bank: ``inspectad train`` without --method.

Then the contradiction that two stages are to solve: PSNR, outside the defect, of the impression and of the restored
image; and, inside a black square that is pasted into good test images, of the restored image, the naive impression
(which keeps what is there) and the impression, all against the clean image. ``--json FILE`` has all of it.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.benchmark.datasets import read_dataset
from inspectad.image_files import ImageFile
from inspectad.images import choose_input_size, load_image, read_file
from inspectad.masks import mask_path, read_mask
from inspectad.methods.memory_bank import MemoryBankTrainer
from inspectad.methods.set_apart import set_apart
from inspectad.methods.utad import CPU_SIDE, LEAST_APART, SCHEDULES, SIDE, UTADTrainer, augmentation_of
from inspectad.metrics import PixelCounts, auroc
from inspectad.nn.batch_statistics import settle
from inspectad.nn.fit_impression import GoodImages
from inspectad.nn.fit_pyramid import fast
from inspectad.nn.perceptual import perceptual_distance
from inspectad.nn.reconstruction_map import anomaly_evidence, residual
from inspectad.nn.settings import TrainSettings
from inspectad.nn.two_stage import TwoStage
from inspectad.nn.views import Augmentation
from inspectad.onnx_graph import predict_with_module
from inspectad.pose import FIXED, pose_named
from inspectad.training_data import DefectImages, spread

WIDTHS = (64, 128, 256, 512, 1024)
"""Channels of the autoencoder's encoder, whose layers halve the image; 26.3 million weights, as utad has."""
SQUARE = 24 / 256
"""Side of what is pasted, as a share of the image's."""


def main() -> None:
    args = parse()

    torch.set_num_threads(args.threads)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    side = args.size or (SIDE if device == "cuda" else CPU_SIDE)
    data = read_dataset(args.folder)
    assert data.masks is not None, "there are no masks"
    assert data.test_good is not None, "there is no test/good"
    kinds: dict[str, list] = {}
    for file in data.defects:
        kinds.setdefault(file.name.split("/")[0], []).append(file)
    some = lambda files, count: [files[i] for i in spread(len(files), count or len(files))]  # noqa: E731
    taught, good = some(data.train_good, args.train), some(data.test_good, args.test)
    bad = [file for files in kinds.values() for file in some(files, args.test)]

    def seen(files: Sequence, size: tuple[int, int]) -> list[np.ndarray]:
        return [load_image(read_file(file.path), size, 255).pixels for file in files]

    def truth(file: ImageFile) -> np.ndarray:
        path = mask_path(data.masks, file.name)
        size = load_image(read_file(file.path), None, 255).pixels.shape[:2]
        found = np.zeros(size, np.uint8) if path is None else read_mask(path, size)
        return to_side(found, side)

    train_images = seen(taught, (side, side))
    good_images, bad_images = seen(good, (side, side)), seen(bad, (side, side))
    masks = [np.zeros((side, side), np.uint8)] * len(good) + [truth(file) for file in bad]
    settings = TrainSettings(
        input_size_hw=(side, side),
        seed=args.seed,
        device=device,
        steps=args.steps,
        pose=FIXED if args.pose == "fixed" else pose_named(args.pose, len(taught)),
    )
    apart = set_apart(range(len(train_images)), LEAST_APART)  # they teach utad nothing
    learnt = [image for i, image in enumerate(train_images) if i not in apart]
    unseen = [train_images[i] for i in apart] or train_images
    begun = time.perf_counter()
    fitted = UTADTrainer(train_images, [], settings).fit(range(len(train_images)), [], progress())
    seconds = time.perf_counter() - begun
    module = fitted.module.to(device)
    print(f"utad: {len(taught)} good images of {side} px, {seconds / 60:.1f} minutes on {device}", flush=True)
    plain = None
    if not args.alone:
        plain, steps = autoencoder(learnt, augmentation_of(settings.pose), device, args.seed, seconds)
        weights = f"{count(plain) / 1e6:.1f} of {count(module) / 1e6:.1f} million weights"
        print(f"autoencoder: {weights}, {steps} steps", flush=True)

    figures = {}
    for name, (scores, maps) in judged(module, plain, unseen, [*good_images, *bad_images], device).items():
        figures[name] = measured(scores, maps, masks, len(good))
    if not args.alone:
        figures["memory bank"] = memory_bank(args, taught, good, bad, masks, side, device)
    print(f"\n{len(good)} good and {len(bad)} defective test images\n{'':<22} image AUROC   AUPRO")
    for name, (image_auroc, overlap) in figures.items():
        print(f"{name:<22} {image_auroc:>11.3f} {overlap:>7.3f}")
    fidelity = fidelities(module, good_images, bad_images, masks[len(good) :], device)
    print("\nPSNR, dB")
    for name, value in fidelity.items():
        print(f"{name:<42} {value:>5.2f}")
    if args.json is not None:
        told = {"figures": figures, "psnr": fidelity, "seconds": seconds, "device": device, "notes": fitted.notes}
        args.json.write_text(json.dumps(told, indent=1), encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="utad against its own parts, an autoencoder and the memory bank.")
    parser.add_argument("folder", type=Path, help="in MVTec layout, with masks")
    parser.add_argument("--train", type=int, default=0, help="good images that teach; 0: all")
    parser.add_argument("--test", type=int, default=0, help="good test images, and of each kind of defect; 0: all")
    parser.add_argument("--size", type=int, default=0, help="side of the input; 0: that of inspectad train")
    parser.add_argument("--steps", type=int, help="of each stage; the method's own if absent")
    parser.add_argument("--pose", choices=("fixed", "mirrored", "any"), default="fixed")
    parser.add_argument("--alone", action="store_true", help="without the autoencoder and the memory bank")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def progress() -> Callable[..., None]:
    """A line a minute."""
    last = [time.monotonic()]

    def say(text: str, done: int, total: int, detail: str = "") -> None:
        if time.monotonic() - last[0] > 60:
            last[0] = time.monotonic()
            print(f"{text}: {done} of {total}, {detail}", flush=True)

    return say


def to_side(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask at the input's size, defective where any of its pixels is."""
    shares = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], side)
    return (shares[0, 0] > 0).to(torch.uint8).numpy()


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def autoencoder(
    images: Sequence[np.ndarray],
    views: Augmentation,
    device: str,
    seed: int,
    seconds: float,
) -> tuple[nn.Module, int]:
    """Learns for so long, by the mean squared error; rates fall as utad's do."""

    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[-1]), nn.LeakyReLU(0.2)]
    back = (*WIDTHS[::-1], WIDTHS[0])
    for before, after in pairwise(back):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, 1, 1, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    network = nn.Sequential(*layers, nn.Conv2d(WIDTHS[0], 3, 3, 1, 1), nn.Sigmoid())
    network.to(device=device, memory_format=torch.channels_last).train()
    adam = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-5, fused=True)
    given = GoodImages(images, views, torch.device(device), seed)
    begun, steps = time.perf_counter(), 0
    while (share := (time.perf_counter() - begun) / seconds) < 1:
        adam.param_groups[0]["lr"] = 1e-3 * (0.1 if share > 0.5 else 1) * (0.1 if share > 0.875 else 1)
        seen, _ = given.draw(steps, SCHEDULES[device].batch[0])
        with fast(torch.device(device)):
            made = network(seen)
        loss = F.mse_loss(made.float(), seen)
        adam.zero_grad()
        loss.backward()
        adam.step()
        steps += 1
        if device == "cuda":
            torch.cuda.synchronize()
    with torch.no_grad():
        settle(network, given.batches(8))
    return network, steps


@torch.inference_mode()
def judged(
    module: TwoStage, plain: nn.Module | None, unseen: Sequence[np.ndarray], images: Sequence[np.ndarray], device: str
) -> dict[str, tuple[list[float], list[np.ndarray]]]:
    """Scores and maps of images, in each way. Args: unseen: good images whose usual map standardises."""
    usual = [compared(module, plain, image, device) for image in unseen]
    found = [compared(module, plain, image, device) for image in images]
    ways: dict[str, tuple[list[float], list[np.ndarray]]] = {"two stages": ([], [])}
    for image in images:
        score, anomaly_map = module(torch.from_numpy(image)[None].to(device))
        ways["two stages"][0].append(float(score))
        ways["two stages"][1].append(anomaly_map[0].cpu().numpy())
    ways["two stages, map alone"] = ([top(m) for m in ways["two stages"][1]], ways["two stages"][1])
    for name in found[0]:
        maps = [of_image[name] for of_image in found]
        if name.endswith("Phi"):
            held = np.stack([of_image[name] for of_image in usual])
            mean, variance = held.mean(axis=0), held.var(axis=0)
            spread = np.sqrt(variance + variance.mean() + (0.05 * mean.mean()) ** 2)
            maps = [np.maximum(m - mean, 0) / spread for m in maps]
        ways[name] = ([top(m) for m in maps], maps)
    return ways


def compared(module: TwoStage, plain: nn.Module | None, image: np.ndarray, device: str) -> dict[str, np.ndarray]:
    """How an image differs from what is made of it, smoothed as the detector's map is."""

    pixels = pixels_of(image, device)
    made, size = module.reconstruct(pixels), (pixels.shape[2], pixels.shape[3])
    seen = module.backbone(255 * pixels)
    ways = {
        "two stages, r": anomaly_evidence(pixels, made.impression, made.restored, module.naive(pixels)),
        "impression, r": residual(pixels, made.impression),
        "impression, Phi": perceptual_distance(seen, module.backbone(255 * made.impression), size),
    }
    if plain is not None:
        again = plain(pixels)
        ways["autoencoder, r"] = residual(pixels, again)
        ways["autoencoder, Phi"] = perceptual_distance(seen, module.backbone(255 * again), size)
    return {name: module.blur(found)[0, 0].cpu().numpy() for name, found in ways.items()}


def pixels_of(image: np.ndarray, device: str) -> Tensor:
    """uint8 (S, S, 3) to (1, 3, S, S) in 0..1."""
    return torch.from_numpy(image)[None].to(device).permute(0, 3, 1, 2).float() / 255


def top(anomaly_map: np.ndarray) -> float:
    """Mean of the highest hundredth."""
    count = max(1, round(0.01 * anomaly_map.size))
    return float(np.sort(anomaly_map, axis=None)[-count:].mean())


def measured(scores: Sequence[float], maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], good: int) -> tuple:
    """Image AUROC and AUPRO; the first ``good`` are good images."""

    lowest, highest = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
    pixels = PixelCounts(lowest, highest)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.add(anomaly_map, mask)
    return auroc(np.array(scores[:good]), np.array(scores[good:])), pixels.aupro()


def memory_bank(
    args: argparse.Namespace, taught: Sequence, good: Sequence, bad: Sequence, masks: Sequence, side: int, device: str
) -> tuple:
    """The flagship on the same images; its maps are brought to the same size."""

    load = lambda file, size: load_image(read_file(file.path), size, 255).pixels  # noqa: E731
    size = choose_input_size([load(file, None).shape[:2] for file in taught])
    pose = FIXED if args.pose == "fixed" else pose_named(args.pose, len(taught))
    settings = TrainSettings(input_size_hw=size, seed=args.seed, device=device, pose=pose)
    images = [load(file, size) for file in taught]
    module = MemoryBankTrainer(images, DefectImages((), size, 255, ()), settings).fit(range(len(images)), []).module
    scores, maps = [], []
    for file in (*good, *bad):
        found = predict_with_module(module.to(device), [load(file, size)])
        scores.append(float(found.image_scores[0]))
        wide = torch.from_numpy(found.anomaly_maps)[None]
        maps.append(F.interpolate(wide, (side, side), mode="bilinear", align_corners=False)[0, 0].numpy())
    return measured(scores, maps, masks, len(good))


@torch.inference_mode()
def fidelities(
    module: TwoStage,
    good: Sequence[np.ndarray],
    bad: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    device: str,
) -> dict[str, float]:
    """PSNR of what the stages make, over all pixels of all images that are named."""
    errors: dict[str, list[tuple[float, int]]] = {}

    def add(name: str, made: Tensor, wanted: Tensor, where: Tensor) -> None:
        squares = (made - wanted).square().mean(dim=1)[0][where]
        errors.setdefault(name, []).append((float(squares.sum()), squares.numel()))

    for image, mask in zip(bad, masks, strict=True):
        wanted, outside = pixels_of(image, device), torch.from_numpy(mask == 0).to(device)
        found = module.reconstruct(wanted)
        add("outside the defect, impression", found.impression, wanted, outside)
        add("outside the defect, restored", found.restored, wanted, outside)
    for number, image in enumerate(good):
        wanted, side = pixels_of(image, device), image.shape[0]
        length = round(SQUARE * side)
        y, x = np.random.default_rng(number).integers(side // 4, 3 * side // 4 - length, 2)
        inside = torch.zeros((side, side), dtype=torch.bool, device=device)
        inside[y : y + length, x : x + length] = True
        pasted = torch.where(inside, 0.0, wanted)
        found, naive = module.reconstruct(pasted), module.naive(pasted)
        add("inside a pasted square, restored", found.restored, wanted, inside)
        add("inside a pasted square, naive impression", naive, wanted, inside)
        add("inside a pasted square, impression", found.impression, wanted, inside)
        add("inside a pasted square, the square itself", pasted, wanted, inside)
    return {
        name: -10 * math.log10(max(sum(s for s, _ in rows) / sum(n for _, n in rows), 1e-12))
        for name, rows in errors.items()
    }


if __name__ == "__main__":
    main()

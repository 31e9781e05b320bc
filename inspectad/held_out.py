"""Scores of good images from models that have not seen them."""

from collections.abc import Callable

import cv2
import numpy as np
from torch import nn

from inspectad.calibration import HeldOut, fold_of
from inspectad.methods import Trainer
from inspectad.onnx_graph import predict_with_module
from inspectad.records import ByteArray, FloatArray
from inspectad.training_data import TrainingImages


def score_held_out(
    trainer: Trainer, good: TrainingImages, max_folds: int, final: nn.Module, on_fold: Callable[[int, int], None]
) -> HeldOut:
    """Leave-one-out or cross-fitted scores; of a single image, the scores of altered copies of it.

    Args:
        max_folds: up to so many images one is left out at a time; above, a part of them.
        final: the model of all images, used where there is only one.
        on_fold: told (folds done, folds in all).
    """
    if len(good) == 1:
        scores, peaks = _scores(final, altered_copies(good[0]))
        # They stand for one image: the most different of them, since new parts differ more than copies do.
        return HeldOut(
            scores=scores.max(keepdims=True),
            peaks=peaks.max(keepdims=True),
            learnt_from=1,
            final_images=1,
            how="altered copies of the only good image",
            exchangeable=False,
        )
    folds = np.asarray(fold_of(len(good), max_folds))
    count = int(folds.max()) + 1
    scores, peaks = np.zeros(len(good), np.float32), np.zeros(len(good), np.float32)
    for fold in range(count):
        module = trainer.fit(np.flatnonzero(folds != fold).tolist())
        members = np.flatnonzero(folds == fold)
        for i in members.tolist():
            scores[i : i + 1], peaks[i : i + 1] = _scores(module, [good[i]])
        on_fold(fold + 1, count)
    how = "leave-one-out" if count == len(good) else f"cross-fitting in {count} parts"
    return HeldOut(
        scores=scores, peaks=peaks, learnt_from=len(good) * (1 - 1 / count), final_images=len(good), how=how
    )


def _scores(module: nn.Module, images: list[ByteArray]) -> tuple[FloatArray, FloatArray]:
    prediction = predict_with_module(module, images)
    return prediction.image_scores, prediction.anomaly_maps.max(axis=(1, 2))


def altered_copies(image: ByteArray) -> list[ByteArray]:
    """The image as the next part might look: shifted, turned by 2 degrees, brighter, darker, blurred, noisy.

    Args: image (H, W, 3) uint8. Returns: images of the same shape; the edge is continued by reflection.
    """
    height, width = image.shape[:2]
    copies = [_warp(image, 0.0, dx, dy) for dx, dy in ((3.0, 5.0), (-5.0, 3.0), (4.0, -4.0), (-3.0, -5.0))]
    copies += [_warp(image, angle, 0.0, 0.0) for angle in (-2.0, 2.0)]
    copies += [np.asarray(cv2.convertScaleAbs(image, alpha=gain), np.uint8) for gain in (0.9, 1.1)]
    copies.append(np.asarray(cv2.GaussianBlur(image, (0, 0), 0.8), np.uint8))
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    copies.append(np.clip(np.rint(image + noise), 0, 255).astype(np.uint8))
    return copies


def _warp(image: ByteArray, degrees: float, dx: float, dy: float) -> ByteArray:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (dx, dy)
    warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(warped, np.uint8)

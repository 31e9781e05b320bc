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
    """Leave-one-out or cross-fitted scores; of a single image, the scores of turned copies of it.

    Args:
        max_folds: up to so many images one is left out at a time; above, a part of them.
        final: the model of all images, used where there is only one.
        on_fold: told (folds done, folds in all).
    """
    if len(good) == 1:
        scores, peaks = _scores(final, turned_copies(good[0]))
        return HeldOut(
            scores=scores.mean(keepdims=True),  # two copies, but one image
            peaks=peaks.mean(keepdims=True),
            learnt_from=1,
            final_images=1,
            how="turned copies of the only good image",
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
    return HeldOut(scores=scores, peaks=peaks, learnt_from=len(good) * (1 - 1 / count), final_images=len(good), how=how)


def _scores(module: nn.Module, images: list[ByteArray]) -> tuple[FloatArray, FloatArray]:
    prediction = predict_with_module(module, images)
    return prediction.image_scores, prediction.anomaly_maps.max(axis=(1, 2))


def turned_copies(image: ByteArray) -> list[ByteArray]:
    """The image turned by 15 degrees either way: the nearest thing to another good part that one image can give.

    Measured on the five sets (README, "What was measured"): their mean score lies within a quarter of that of real
    good images, where copies that are shifted, brightened, blurred or noisy are off by a factor of two, either way.

    Args: image (H, W, 3) uint8. Returns: images of the same shape; the edge is continued by reflection.
    """
    height, width = image.shape[:2]
    turned = []
    for degrees in (-15.0, 15.0):
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        copy = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        turned.append(np.asarray(copy, np.uint8))
    return turned

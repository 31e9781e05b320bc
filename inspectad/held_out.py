"""Scores of good images and of defects from models that have not seen them."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import nn

from inspectad.calibration import HeldOut, fold_of, groups_of
from inspectad.methods import Method, Trainer
from inspectad.onnx_graph import predict_with_module
from inspectad.pose import Pose, turn
from inspectad.progress import Step
from inspectad.records import ByteArray, FloatArray
from inspectad.training_data import TrainingImages

_SMALL_TURN = 1.35  # what an image turned by 5 degrees lacks, as a factor, against a real other one (median of six)


def score_held_out(
    trainer: Trainer,
    good: TrainingImages,
    defects: TrainingImages,
    method: Method,
    final: nn.Module,
    pose: Pose,
    say: Step,
) -> tuple[HeldOut, FloatArray]:
    """Leave-one-out or cross-fitted scores, of good images and of defects; of a single good image, the scores of
    turned copies of it.

    Args:
        method: up to so many images as its ``max_folds`` one is left out at a time; above, a part of them.
        final: the model of all images, used where there is only one good one.
        pose: whose copies of the good images may be in the models.

    Returns: the good images' scores, and the defects' (M,).
    """
    # The only good image stays in all models.
    images = len(good.images)
    good_folds = fold_of(images, method.max_folds) if images > 1 else np.full(1, -1)
    parts = int(good_folds.max()) + 1
    defect_folds = _defect_folds(len(defects.images), parts, method)
    count = 1 + max(-1, *good_folds.tolist(), *defect_folds.tolist())
    scores, peaks = np.zeros(images, np.float32), np.zeros(images, np.float32)
    defect_scores = np.zeros(len(defects.images), np.float32)
    for fold in range(count):
        say("scoring images held out", fold, count)
        kept, kept_defects = (np.flatnonzero(folds != fold).tolist() for folds in (good_folds, defect_folds))
        report = partial(_say_part, say, f", without part {fold + 1} of {count}")
        module = trainer.fit(good.teaching(kept), defects.teaching(kept_defects), report).module
        score = partial(_score, module)
        for i in np.flatnonzero(good_folds == fold).tolist():
            scores[i], anomaly_map = good.judge(i, score)
            peaks[i] = anomaly_map.max()
        for i in np.flatnonzero(defect_folds == fold).tolist():
            defect_scores[i], _ = defects.judge(i, score)
    for i in np.flatnonzero(defect_folds < 0).tolist():
        defect_scores[i], _ = defects.judge(i, partial(_score, final))
    if images == 1:
        scores[:], peaks[:] = _stand_in(final, good, pose)
        how = "turned copies of the only good image"
    else:
        how = "leave-one-out" if parts == images else f"cross-fitting in {parts} parts"
    held_out = HeldOut(
        scores=scores,
        peaks=peaks,
        learnt_from=images * (1 - 1 / max(parts, 1)) if images > 1 else 1,
        final_images=images,
        how=how,
        exchangeable=images > 1,
        exponent=method.exponent,
    )
    # Models that a defect was left out of, but no good image, need no correction; calibration applies it to all.
    defect_scores[defect_folds >= max(parts, 1)] /= held_out.correction
    return held_out, defect_scores


def _defect_folds(defects: int, parts: int, method: Method) -> npt.NDArray[np.int64]:
    """Which model scores which defect, -1 for the final one. Args: parts: of the good images, 0 for a single one.

    A method that learns nothing from defects has never seen one, so no model is trained for their sake.
    """
    if method.learns_defects:
        return fold_of(defects, method.max_folds)
    return groups_of(defects, parts) if parts else np.full(defects, -1)


def _say_part(say: Step, part: str, text: str, done: int, total: int, detail: str = "", /) -> None:
    say(f"{text}{part}", done, total, detail)


def _stand_in(module: nn.Module, good: TrainingImages, pose: Pose) -> tuple[float, float]:
    """What another good image might score, from the only one there is, and the peak of its map: see `_guess`.

    A model of parts at any angle knows turned copies; half-way between two of them is as far as an angle can be. This
    is the only guess then, with the factor of 5 degrees. So are 5 degrees for a network that tells turns apart
    (``votes_on_turns``): at 15 its scores have risen less than those of other good images. HTDG on bottle, pill and
    sneakers, one draw each: the median of these is 1.32, 1.18 and 1.86 times the score at 5 degrees.
    """
    turns = ((15.0, 1.0), (5.0, _SMALL_TURN)) if pose.turns == 1 else ((180 / pose.turns, _SMALL_TURN),)
    if getattr(module, "votes_on_turns", False):
        turns = ((5.0, _SMALL_TURN),)
    score, anomaly_map = good.judge(0, partial(_guess, module, turns))
    return score, float(anomaly_map.max())


def _guess(module: nn.Module, turns: Sequence[tuple[float, float]], image: ByteArray) -> tuple[float, FloatArray]:
    """What another good image, or tile, in place of this one might score: the lowest guess from turned copies.

    Measured on the five sets and the demo's part, against the median of real good images: turned by 15 degrees the
    image scores .7 to 1.05 of it, but 2.2 times as much where a turn is itself a defect; turned by 5 degrees, .45 to
    1.1. Rather too low than too high: a false reject is seen at once, an escape is not. Of tiles, each is guessed at:
    a turned number is a defect, turned brushing is not, and both are on one plate.

    Args: turns: degrees, and what a score there is multiplied by.
    """
    guesses = []
    for degrees, factor in turns:
        found = predict_with_module(module, turned_copies(image, degrees))
        peaks, highest = found.anomaly_maps.max(axis=(1, 2)), found.anomaly_maps.max(axis=0)
        guesses.append((factor * float(found.image_scores.mean()), factor * peaks.mean() / peaks.max() * highest))
    return min(guesses, key=lambda guess: guess[0])


def _score(module: nn.Module, image: ByteArray) -> tuple[float, FloatArray]:
    return predict_with_module(module, [image]).only


def turned_copies(image: ByteArray, degrees: float) -> list[ByteArray]:
    """The image turned either way: the nearest thing to another good part that one image can give."""
    return [turn(image, -degrees), turn(image, degrees)]

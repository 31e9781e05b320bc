"""``inspectad train``: from folders of images to a calibrated model whose exported graph is proved."""

import dataclasses
import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from inspectad import __version__
from inspectad.atomic import remove_leftovers
from inspectad.calibration import Suspects, calibrate
from inspectad.checkpoint import FOLDER_NAME, Checkpoints, training_key
from inspectad.errors import TrainingError, UsageError
from inspectad.held_out import score_held_out
from inspectad.images import RESIZE_RULE
from inspectad.lock import locked
from inspectad.manifest import SCHEMA_VERSION, Calibration, Manifest, Parity, TrainedOn
from inspectad.methods import METHODS
from inspectad.metrics import auroc
from inspectad.model_file import ONNX_NAME, append_manifest, write_model
from inspectad.nn.backbone import weights_digest
from inspectad.nn.settings import SCRATCH, TrainSettings
from inspectad.onnx_graph import (
    FP32_LIMIT,
    compare,
    export_graph,
    has_ties,
    predict_with_graph,
    predict_with_module,
    require_parity,
)
from inspectad.progress import Step, silent
from inspectad.records import ByteArray
from inspectad.samples import check_samples_folder, write_samples
from inspectad.tiles import AUTO, Tiling, seen_aspect
from inspectad.train_config import (
    TrainConfig,
    check_config,
    choose_settings,
    choose_tiling,
    reduction,
    square_side,
)
from inspectad.training_data import (
    DefectImages,
    DefectMasks,
    ReadableImage,
    Selection,
    TrainingImages,
    find_masks,
    select,
    spread,
    survey,
)
from inspectad.training_tiles import TrainingTiles

HUGE: Final = 8.0
"""Of images so many times as long as the network's input, ``train`` says that small defects vanish in them."""
SAMPLES: Final = 16
"""Training images kept (at input size) in ``weights.safetensors``, for the parity proof and for int8 calibration."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What came out: the manifest, the sentences of warning, and what the user asked to be told."""

    path: Path
    manifest: Manifest
    warnings: tuple[str, ...]
    image_auroc: float
    seconds: float
    model_bytes: int


def train(config: TrainConfig, say: Step = silent) -> TrainReport:
    """Train, calibrate, prove parity, write the model.

    Raises:
        UsageError: settings that make no sense, or a folder that is not there.
        TrainingError: no usable image.
        ParityError: the exported graph differs; nothing is written.
        OutputError: the model cannot be written, or another training writes there; an earlier model stays whole.
    """
    check_config(config)
    if config.samples is not None:
        check_samples_folder(config.samples, [config.good, config.defects, config.masks])
    with locked(config.output) as warning:
        return _train(config, say, (warning,) if warning else ())


def _train(config: TrainConfig, say: Step, warnings: tuple[str, ...]) -> TrainReport:
    started = time.perf_counter()
    method = METHODS[config.method]
    selection = _select(config, say)
    if method.needs_defects and not selection.defects:
        raise UsageError(f"{config.method} learns from defects: give a folder of them, or use --method memory_bank")
    tiling, why = choose_tiling(config, selection.good)
    masks = _find_masks(config, selection, tiling)
    settings, reasons = choose_settings(config, selection.good, selection.full_scale, say, tiling)
    checkpoints = _checkpoints(config, selection, settings)
    if checkpoints.has_any():
        say("going on where the last training was stopped", 0, 1)
    show = partial(write_samples, config.samples) if config.samples is not None else None
    settings = dataclasses.replace(settings, checkpoints=checkpoints, show=show)
    given = _images(selection, masks, settings, tiling)
    trainer = method.trainer(given.good, given.known, settings)
    say("learning what good looks like", 0, 1)
    fitted = trainer.fit(range(len(given.good)), range(len(given.known)), say)
    module = fitted.module
    if config.samples is not None and fitted.samples is not None:
        write_samples(config.samples, fitted.samples)
    held_out, scores = score_held_out(trainer, given.good, given.defects, method, module, settings.pose, say)
    calibration, suspects = calibrate(held_out, scores, config.false_reject_rate)
    say("exporting and proving the graph", 0, 1)
    graph, parity, samples = _export_and_prove(module, given.good, given.known, calibration)
    weights = pack_weights(module, samples)
    notes = {**reasons, **_about_tiles(given, why), **fitted.notes}
    manifest = _manifest(config, settings, tiling, notes, selection, calibration, parity, weights)
    data = append_manifest(graph, manifest)
    write_model(config.output, data, manifest, weights)
    remove_leftovers(config.output)  # not before: they may hold the weights of the model that was there
    checkpoints.clear()
    return TrainReport(
        config.output / ONNX_NAME,
        manifest,
        (
            *warnings,
            *selection.warnings,
            *masks.warnings,
            *fitted.warnings,
            *_more_defects(selection),
            *_vanishing(config, selection),
            *_suspicions(selection, suspects, calibration),
        ),
        auroc(np.array(calibration.good_scores), np.array(calibration.defect_scores)),
        time.perf_counter() - started,
        len(data),
    )


def _select(config: TrainConfig, say: Step) -> Selection:
    say("reading images", 0, 1)
    if config.defects is None:
        return select(survey(config.good), None)
    if config.good.resolve() == config.defects.resolve():
        raise UsageError(f"{config.good}: is given both as good and as defects; give two folders")
    if config.masks is not None and config.masks.resolve() in (config.good.resolve(), config.defects.resolve()):
        raise UsageError(f"--masks {config.masks}: holds the images themselves; give the masks a folder of their own")
    # One may lie inside the other: what is in the inner folder belongs to the inner folder alone.
    inner = [folder for folder in (config.good, config.defects, config.masks) if folder is not None]
    good, defects = (survey(folder, [f for f in inner if f != folder]) for folder in (config.good, config.defects))
    return select(good, defects)


def _checkpoints(config: TrainConfig, selection: Selection, settings: TrainSettings) -> Checkpoints:
    """Of this training: other images, options or versions would give another model."""
    learnt = [f"{kind} {i.pixels_sha256}" for kind in ("good", "defects") for i in getattr(selection, kind)]
    versions = [config.method, str(selection.full_scale), str(torch.__version__)]
    return Checkpoints(config.output / FOLDER_NAME, training_key(settings, learnt, versions))


def _find_masks(config: TrainConfig, selection: Selection, tiling: Tiling | None) -> DefectMasks:
    if config.masks is None:
        return DefectMasks((None,) * len(selection.defects), ())
    if tiling is not None:
        raise UsageError(
            f"--masks {config.masks}: with tiles, defects set the threshold alone and masks teach nothing; "
            "leave --masks or --tile out"
        )
    return find_masks(config.masks, selection.defects)


@dataclass(frozen=True, slots=True)
class _Given:
    """What there is to train on.

    Attributes:
        good: what teaches what good looks like.
        known: the defects that teach what a defect looks like.
        defects: all defects, which the threshold is told of.
    """

    good: TrainingImages
    known: DefectImages
    defects: TrainingImages


def _images(selection: Selection, masks: DefectMasks, settings: TrainSettings, tiling: Tiling | None) -> _Given:
    size_hw, full_scale = settings.input_size_hw, selection.full_scale
    if tiling is None:
        known = DefectImages(selection.defects, size_hw, full_scale, masks.paths)
        return _Given(TrainingImages(selection.good, size_hw, full_scale), known, known)
    # Which of a defect's tiles show it is not known, so none of them teaches.
    return _Given(
        TrainingTiles(selection.good, size_hw, full_scale, tiling),
        DefectImages((), size_hw, full_scale, ()),
        TrainingTiles(selection.defects, size_hw, full_scale, tiling, most=0),
    )


def _about_tiles(given: _Given, why: str) -> dict[str, str]:
    """What people should know of the tiles. Args: why there are some or none; empty when nobody asked."""
    if not isinstance(given.good, TrainingTiles):
        return {"tiles": why} if why else {}
    notes = {"tiles": f"{why}; {len(given.good)} of {given.good.tiles} teach"}
    if given.defects.images:
        notes["weight of the defects"] = "0.00: which tile of an image shows its defect is not known"
    return notes


def _export_and_prove(
    module: nn.Module, good: TrainingImages, defects: TrainingImages, calibration: Calibration
) -> tuple[bytes, Parity, list[ByteArray]]:
    samples = [good[i] for i in spread(len(good), SAMPLES - min(len(defects), SAMPLES // 4))]
    samples += [defects[i] for i in spread(len(defects), SAMPLES // 4)]
    graph = export_graph(module, good.input_size_hw)
    reference = predict_with_module(module, samples)
    parity = compare(
        reference,
        predict_with_graph(graph, samples),
        calibration.threshold,
        FP32_LIMIT,
        "the trained network",
        calibration.unseen_scores,
        has_ties=has_ties(module),
    )
    require_parity(parity)
    return graph, parity, samples


def pack_weights(module: nn.Module, samples: Sequence[ByteArray]) -> bytes:
    """``weights.safetensors``: the module's tensors and the sample images, for ``export`` and further training."""
    from safetensors.torch import save

    tensors = {f"module.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    tensors["samples"] = torch.from_numpy(np.stack(samples))
    return bytes(save(tensors))


def unpack_weights(data: bytes) -> tuple[dict[str, Tensor], list[ByteArray]]:
    """Tensors of the module, and the sample images. Raises: TrainingError when the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        samples = tensors.pop("samples").numpy()
    except (SafetensorError, KeyError) as error:
        raise TrainingError(f"weights.safetensors is damaged ({error}); train again") from error
    return {k.removeprefix("module."): v for k, v in tensors.items()}, list(samples)


def _manifest(
    config: TrainConfig,
    settings: TrainSettings,
    tiling: Tiling | None,
    described: dict[str, str],
    selection: Selection,
    calibration: Calibration,
    parity: Parity,
    weights: bytes,
) -> Manifest:
    import onnx
    import onnxruntime

    aspects = [seen_aspect(i.size_hw, tiling) for i in selection.good]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"inspectad {__version__}",
        method=config.method,
        backbone=settings.backbone,
        backbone_sha256=weights_digest(settings.backbone, settings.backbone_weights)
        if METHODS[config.method].has_backbone and settings.init != SCRATCH
        else "",
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        precision="fp32",
        input_size_hw=settings.input_size_hw,
        resize_rule=RESIZE_RULE,
        full_scale=selection.full_scale,
        tiling=tiling,
        aspect_range=(min(aspects), max(aspects)),
        seed=config.seed,
        settings=described,
        calibration=calibration,
        parity=parity,
        good_images=_trained_on(selection.good),
        defect_images=_trained_on(selection.defects),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    )


def _trained_on(images: Sequence[ReadableImage]) -> tuple[TrainedOn, ...]:
    return tuple(TrainedOn(name=i.file.name, sha256=i.sha256) for i in images)


def _more_defects(selection: Selection) -> list[str]:
    good, defects = len(selection.good), len(selection.defects)
    if defects <= good:
        return []
    return [
        f"{defects} defects, but only {good} good images: what is good is learnt from good images alone, and so is how "
        "many of them will be called NG; add good images first"
    ]


def _vanishing(config: TrainConfig, selection: Selection) -> list[str]:
    side = square_side(config)
    times = reduction(selection.good, config.size_px, side)
    if config.tile is not None or times <= HUGE:
        return []
    advice = f"--tile {AUTO} inspects them piece by piece, with every pixel"
    if side is not None:
        advice = f"train on crops, or use --method memory_bank, which sees more than {side} x {side}"
    return [
        f"the images are {times:.0f} times as long as the network's input: a defect smaller than about "
        f"{8 * times:.0f} pixels vanishes; {advice}"
    ]


def _suspicions(selection: Selection, suspects: Suspects, calibration: Calibration) -> list[str]:
    usual = float(np.median(calibration.good_scores))
    warnings = [
        f"{selection.good[i].file.path}: scores {calibration.good_scores[i] / usual:.1f} times the usual good image; "
        "is it really good? The model learnt it; if it is a defect, move it to the defects and train again"
        for i in suspects.good
    ]
    return warnings + [
        f"{selection.defects[i].file.path}: scores like a good image "
        f"({calibration.defect_scores[i] / calibration.threshold:.2f} of the threshold); "
        "it is mislabelled, or a defect that this model cannot see"
        for i in suspects.defects
    ]

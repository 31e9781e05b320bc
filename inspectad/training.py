"""``inspectad train``: from folders of images to a calibrated model whose exported graph is proved."""

import dataclasses
import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from inspectad import __version__
from inspectad.calibration import Suspects, calibrate
from inspectad.errors import TrainingError, UsageError
from inspectad.foreground import part_share
from inspectad.held_out import score_held_out
from inspectad.images import RESIZE_RULE, choose_input_size
from inspectad.manifest import SCHEMA_VERSION, Calibration, Manifest, Parity, TrainedOn
from inspectad.methods import METHODS
from inspectad.metrics import auroc
from inspectad.model_file import ONNX_NAME, append_manifest, write_model
from inspectad.nn.backbone import load_backbone, weights_digest
from inspectad.nn.pose_evidence import examine_pose
from inspectad.nn.settings import TrainSettings
from inspectad.onnx_graph import (
    FP32_LIMIT,
    compare,
    export_graph,
    predict_with_graph,
    predict_with_module,
    require_parity,
)
from inspectad.pose import FIXED, Pose, pose_named
from inspectad.records import ByteArray
from inspectad.training_data import ReadableImage, Selection, TrainingImages, select, survey

SAMPLES: Final = 16
"""Training images kept (at input size) in ``weights.safetensors``, for the parity proof and for int8 calibration."""
_SHARES: Final = 16  # good images whose part is measured
SMALL_PART: Final = 0.25
SMALL_PART_SCALE: Final = 1.5
"""Parts at any angle that fill no more than `SMALL_PART` of the image get an input so many times as long, unless the
user chose its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What to train on and how.

    Attributes:
        size_px: longer side of the network's input; None chooses it from the images.
        false_reject_rate: share of good images that may be called NG.
        pose: in which ways parts lie, a name of `inspectad.pose.POSES`; ``auto`` asks the good images.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    good: Path
    defects: Path | None = None
    output: Path = Path("model")
    method: str = "memory_bank"
    size_px: int | None = None
    backbone: str = "efficientnet_lite0"
    backbone_weights: Path | None = None
    false_reject_rate: float = 0.1
    pose: str = "auto"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What came out: the manifest, the sentences of warning, and what the user asked to be told."""

    path: Path
    manifest: Manifest
    warnings: tuple[str, ...]
    image_auroc: float
    seconds: float
    model_bytes: int


Step = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many parts of it are: (text, done, total)."""


def train(config: TrainConfig, say: Step = lambda *_: None) -> TrainReport:
    """Train, calibrate, prove parity, write the model.

    Raises:
        UsageError: settings that make no sense, or a folder that is not there.
        TrainingError: no usable image.
        ParityError: the exported graph differs; nothing is written.
        OutputError: the model cannot be written; an earlier model stays whole.
    """
    started = time.perf_counter()
    check_config(config)
    selection = _select(config, say)
    settings, reasons = choose_settings(config, selection.good, selection.full_scale, say)
    good = TrainingImages(selection.good, settings.input_size_hw, selection.full_scale)
    defects = TrainingImages(selection.defects, settings.input_size_hw, selection.full_scale)
    method = METHODS[config.method]
    trainer = method.trainer(good, defects, settings)
    say("learning what good looks like", 0, 1)
    module = trainer.fit(range(len(good)))
    held_out = score_held_out(
        trainer, good, method.max_folds, module, settings.pose, lambda n, of: say("scoring images held out", n, of)
    )
    say("scoring defects", 0, 1)
    scores = np.array([predict_with_module(module, [image]).image_scores[0] for image in defects], np.float32)
    calibration, suspects = calibrate(held_out, scores, config.false_reject_rate)
    say("exporting and proving the graph", 0, 1)
    graph, parity, samples = _export_and_prove(module, good, defects, calibration)
    weights = pack_weights(module, samples)
    manifest = _manifest(config, settings, {**reasons, **trainer.describe()}, selection, calibration, parity, weights)
    data = append_manifest(graph, manifest)
    write_model(config.output, data, manifest, weights)
    return TrainReport(
        config.output / ONNX_NAME,
        manifest,
        (*selection.warnings, *_suspicions(selection, suspects, calibration)),
        auroc(np.array(calibration.good_scores), scores),
        time.perf_counter() - started,
        len(data),
    )


def check_config(config: TrainConfig) -> None:
    """Raises: UsageError: settings that make no sense, whatever the images are."""
    if config.method not in METHODS:
        raise UsageError(f"no method named {config.method!r}; there are: {', '.join(METHODS)}")
    if not 0 < config.false_reject_rate < 0.5:
        raise UsageError(f"--false-reject-rate {config.false_reject_rate}: give a share between 0 and 0.5, as 0.05")
    if config.size_px is not None and not 64 <= config.size_px <= 2048:
        raise UsageError(f"--size {config.size_px}: give the longer side in pixels, from 64 to 2048")
    if config.pose != "auto":
        pose_named(config.pose, 1)  # it refuses what is no name
    if config.output.exists() and not config.output.is_dir():
        raise UsageError(f"{config.output}: is a file; give a folder for the model with -o")


def choose_settings(
    config: TrainConfig, good: Sequence[ReadableImage], full_scale: int, say: Step = lambda *_: None
) -> tuple[TrainSettings, dict[str, str]]:
    """Input size and pose, from the good images where the user did not say.

    Small parts at any angle get a larger input: turning blurs the thin lines that a small one just about shows.

    Args: full_scale: white level of the good images.
    Returns: the settings, and what they rest on, for people.
    """
    sizes_hw = [image.size_hw for image in good]
    settings = TrainSettings(
        input_size_hw=choose_input_size(sizes_hw, config.size_px),
        backbone=config.backbone,
        backbone_weights=config.backbone_weights,
        seed=config.seed,
        device=torch_device(config.device),
    )
    # At the usual size, whatever size was asked for: it suffices, and was measured.
    images = TrainingImages(good, choose_input_size(sizes_hw), full_scale)
    pose, reason = _choose_pose(config, images, settings, say)
    reasons = {"pose": str(pose), "pose from": reason}
    if pose.turns > 1 and config.size_px is None:
        shares = [share for i in _spread(len(images), _SHARES) if (share := part_share(images[i])) is not None]
        if shares and np.median(shares) <= SMALL_PART:
            settings = dataclasses.replace(settings, input_size_hw=choose_input_size(sizes_hw, scale=SMALL_PART_SCALE))
            reasons["input"] = f"enlarged: parts at any angle that fill {np.median(shares):.0%} of the image"
    return dataclasses.replace(settings, pose=pose), reasons


def _choose_pose(config: TrainConfig, good: TrainingImages, settings: TrainSettings, say: Step) -> tuple[Pose, str]:
    """The pose that the user or the good images name, and what it rests on."""
    if config.pose != "auto":
        return pose_named(config.pose, len(good)), f"the option {config.pose}"
    if len(good) == 1:
        return FIXED, "one good image cannot tell how others lie: say --pose any if at any angle"
    backbone, _ = load_backbone(settings.backbone, settings.backbone_weights)
    evidence = examine_pose(
        good, backbone.to(settings.device), settings.device, lambda n, of: say("looking how parts lie", n, of)
    )
    return evidence.pose(len(good)), str(evidence)


def torch_device(name: str) -> str:
    """``auto``, ``cpu`` or ``cuda`` to what torch can use here. Raises: UsageError when there is no CUDA."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"no device named {name!r}; there are: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU here; 'inspectad doctor' says why")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _select(config: TrainConfig, say: Step) -> Selection:
    say("reading images", 0, 1)
    if config.defects is None:
        return select(survey(config.good), None)
    if config.good.resolve() == config.defects.resolve():
        raise UsageError(f"{config.good}: is given both as good and as defects; give two folders")
    # One may lie inside the other: what is in the inner folder belongs to the inner folder alone.
    return select(survey(config.good, config.defects), survey(config.defects, config.good))


def _export_and_prove(
    module: nn.Module, good: TrainingImages, defects: TrainingImages, calibration: Calibration
) -> tuple[bytes, Parity, list[ByteArray]]:
    samples = [good[i] for i in _spread(len(good), SAMPLES - min(len(defects), SAMPLES // 4))]
    samples += [defects[i] for i in _spread(len(defects), SAMPLES // 4)]
    graph = export_graph(module, good.input_size_hw)
    reference = predict_with_module(module, samples)
    parity = compare(
        reference,
        predict_with_graph(graph, samples),
        calibration.threshold,
        FP32_LIMIT,
        "the trained network",
        calibration.unseen_scores,
    )
    require_parity(parity)
    return graph, parity, samples


def _spread(count: int, wanted: int) -> list[int]:
    """``wanted`` indices evenly spread over ``count``, all of them when there are fewer."""
    return sorted({i * count // min(count, wanted) for i in range(min(count, wanted))})


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
    described: dict[str, str],
    selection: Selection,
    calibration: Calibration,
    parity: Parity,
    weights: bytes,
) -> Manifest:
    import onnx
    import onnxruntime

    aspects = [i.size_hw[1] / i.size_hw[0] for i in selection.good]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"inspectad {__version__}",
        method=config.method,
        backbone=settings.backbone,
        backbone_sha256=weights_digest(settings.backbone, settings.backbone_weights),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        precision="fp32",
        input_size_hw=settings.input_size_hw,
        resize_rule=RESIZE_RULE,
        full_scale=selection.full_scale,
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

"""A trained network, made again from its model folder: for ``export`` and ``explain``."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from inspectad.atomic import leftovers
from inspectad.detector import OnnxDetector
from inspectad.errors import ModelFileError
from inspectad.manifest import Manifest
from inspectad.methods import METHODS, Method
from inspectad.model_file import WEIGHTS_NAME, read_model_bytes
from inspectad.nn.settings import TrainSettings
from inspectad.records import ByteArray
from inspectad.training import unpack_weights


@dataclass(frozen=True, slots=True)
class Restored:
    """A network as ``fit`` returned it, on the CPU, and the training images that are kept with it, at input size."""

    module: nn.Module
    samples: list[ByteArray]


def read_manifest(model: Path) -> tuple[Manifest, Method]:
    """What a model says of itself, and its method.

    Raises: ModelFileError: no model, a damaged one, or of a method that is not known here.
    """
    manifest = OnnxDetector.load(model, device="cpu").manifest
    if manifest.method not in METHODS:
        raise ModelFileError(f"{model}: method {manifest.method!r} is not known here; install a newer inspectad")
    return manifest, METHODS[manifest.method]


def restore(model: Path, manifest: Manifest, verb: str, input_size_hw: tuple[int, int] | None = None) -> Restored:
    """Build the network of a model folder.

    Args: manifest: of `read_manifest`; verb: who needs it, for the message; input_size_hw: another one than its own.
    Raises: ModelFileError: the folder is incomplete or damaged, or ``model`` is a file without its folder.
    """
    tensors, samples = _weights(model, manifest, verb)
    settings = TrainSettings(input_size_hw=input_size_hw or manifest.input_size_hw, backbone=manifest.backbone)
    try:
        return Restored(METHODS[manifest.method].restore(tensors, settings), samples)
    except Exception as error:  # an unknown backbone, tensors that are missing or of other shapes: from anybody's file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelFileError(f"{model}: its weights do not fit its manifest ({reason}); train again") from error


def _weights(model: Path, manifest: Manifest, verb: str) -> tuple[dict[str, Tensor], list[ByteArray]]:
    folder = model if model.is_dir() else model.parent
    path = folder / WEIGHTS_NAME
    for candidate in (path, *leftovers(folder)):  # still beside it, where `train` was killed between its renames
        if candidate.is_file():
            data = read_model_bytes(candidate)
            if hashlib.sha256(data).hexdigest() == manifest.weights_sha256:
                return _unpacked(data, candidate, manifest)
    if not path.is_file():
        raise ModelFileError(
            f"{path}: not there; {verb} needs the model folder as 'train' wrote it, with {WEIGHTS_NAME} in it"
        )
    raise ModelFileError(f"{path}: damaged, or of another model (checksum); copy the whole folder, or train again")


def _unpacked(data: bytes, path: Path, manifest: Manifest) -> tuple[dict[str, Tensor], list[ByteArray]]:
    try:
        tensors, samples = unpack_weights(data)
    except TypeError as error:  # samples of a type that numpy does not have
        raise ModelFileError(f"{path}: damaged ({error}); train again") from error
    wanted = (*manifest.input_size_hw, 3)
    if not samples or any(sample.shape != wanted or sample.dtype != np.uint8 for sample in samples):
        raise ModelFileError(f"{path}: its sample images are not those of its manifest; train again")
    return tensors, samples

"""Backbones by name: how each is built, where its weights come from, and the proof that they are the right ones.

To add one: write a module with ``forward(float32 (B, 3, H, W) in 0..255) -> list of (B, C, h, w)``, coarser maps
last, every side of the first a multiple of every other's, and give it an entry in ``BACKBONES``.
"""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inspectad.embedded import embedded_weights
from inspectad.errors import TrainingError, UsageError
from inspectad.nn.efficientnet_lite import EfficientNetLite0


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """How a backbone is built and where its weights are.

    Attributes:
        build: makes the untrained network.
        embedded_sha256: SHA-256 of ``models/<name>/weights.safetensors``; empty when none is embedded.
        download: torchvision's name of the pretrained weights, tried when no file is given; empty for none.
        build_deep: the same with its last stage, where ``build`` leaves one out; None where it does not.
        deepest: which of the maps of ``build_deep`` (or else of ``build``) is the end of the last stage.
    """

    build: Callable[[], nn.Module]
    embedded_sha256: str = ""
    download: str = ""
    build_deep: Callable[[], nn.Module] | None = None
    deepest: int = -1


class TorchvisionFeatures(nn.Module):
    """Stages of a torchvision ResNet, with ImageNet's mean and deviation inside: at strides 8 and 16, or to 32."""

    def __init__(self, name: str, *, deep: bool = False) -> None:
        """Args: name of a ResNet in torchvision; deep: the stage at stride 32 too."""
        super().__init__()
        import torchvision  # only users of these backbones pay for the import

        resnet = torchvision.models.get_model(name, weights=None)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.layer1, self.layer2, self.layer3 = resnet.layer1, resnet.layer2, resnet.layer3
        self.layer4 = resnet.layer4 if deep else None
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Args: images float32 (B, 3, H, W) in 0..255. Returns: features at strides 8, 16, and if deep 32."""
        x = self.layer1(self.stem((images - self.get_buffer("mean")) / self.get_buffer("std")))
        at_8 = self.layer2(x)
        at_16 = self.layer3(at_8)
        return [at_8, at_16] if self.layer4 is None else [at_8, at_16, self.layer4(at_16)]

    def load_torchvision(self, state: dict[str, Tensor]) -> None:
        """Take a whole torchvision state dict, with its own names, and keep the stages in use."""
        unused = ("fc.",) if self.layer4 is not None else ("layer4.", "fc.")
        renamed = {
            name.replace("conv1.", "stem.0.", 1)
            if name.startswith("conv1.")
            else name.replace("bn1.", "stem.1.", 1)
            if name.startswith("bn1.")
            else name: value
            for name, value in state.items()
            if not name.startswith(unused)
        }
        self.load_state_dict(renamed)


def _resnet(name: str, download: str) -> BackboneSpec:
    return BackboneSpec(
        partial(TorchvisionFeatures, name),
        download=download,
        build_deep=partial(TorchvisionFeatures, name, deep=True),
    )


BACKBONES: Final[dict[str, BackboneSpec]] = {
    "efficientnet_lite0": BackboneSpec(
        EfficientNetLite0,
        embedded_sha256="21d6eca8d6084d04f3c355c3f79fe9ea2a948f37be6ab26fbe3d4fa36052e039",
        deepest=1,
    ),
    "resnet18": _resnet("resnet18", "ResNet18_Weights.IMAGENET1K_V1"),
    "wide_resnet50_2": _resnet("wide_resnet50_2", "Wide_ResNet50_2_Weights.IMAGENET1K_V1"),
}


def build_backbone(name: str, *, deep: bool = False) -> nn.Module:
    """An untrained backbone. Args: name: a key of ``BACKBONES``; deep: down to its last stage, see `BackboneSpec`."""
    spec = BACKBONES[name]
    return spec.build_deep() if deep and spec.build_deep is not None else spec.build()


def load_backbone(name: str, weights: Path | None = None, *, deep: bool = False) -> tuple[nn.Module, str]:
    """Build a backbone with its pretrained weights, in evaluation mode and frozen.

    Args:
        name: a key of ``BACKBONES``.
        weights: ``.safetensors``, or ``.pth`` read without executing anything; None for the embedded or published.
        deep: down to its last stage, see `BackboneSpec`.

    Returns: the network, and the SHA-256 of the weights' file ("" when torchvision fetched them).
    """
    if name not in BACKBONES:
        raise UsageError(f"no backbone named {name!r}; there are: {', '.join(BACKBONES)}")
    spec = BACKBONES[name]
    network = build_backbone(name, deep=deep)
    file = _weights_file(name, weights)
    if file is None:
        _load_published(network, name, spec.download)
    else:
        _load_file(network, file)
    digest = weights_digest(name, weights)
    if weights is None and digest != spec.embedded_sha256:
        raise TrainingError(f"{file}: the embedded weights are damaged; install inspectad again")
    return network.eval().requires_grad_(False), digest


def weights_digest(name: str, weights: Path | None = None) -> str:
    """SHA-256 of the file that `load_backbone` reads, "" when torchvision fetches the weights."""
    file = _weights_file(name, weights)
    if file is None:
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _weights_file(name: str, weights: Path | None) -> Path | None:
    """The file given, else the embedded one, else None: the published weights are to be fetched."""
    if weights is not None or not BACKBONES[name].embedded_sha256:
        return weights
    try:
        return embedded_weights(name)
    except FileNotFoundError as error:
        raise TrainingError(f"{error}; install inspectad again, or give --backbone-weights FILE") from error


def _load_file(network: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise UsageError(f"--backbone-weights {file}: no such file")
    try:
        is_safe = file.suffix == ".safetensors"
        if not is_safe:
            _check_unpacked_size(file)
        # weights_only refuses anything but tensors, so nothing in the file is executed
        state = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
        _load_state(network, state)
    except Exception as error:  # safetensors, pickle, zip and torch errors share no base, and none is our bug
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--backbone-weights {file}: not weights of this backbone ({reason})") from error


def _check_unpacked_size(file: Path) -> None:
    """A ``.pth`` is a zip file. Torch stores its tensors as they are, so what unpacks to more is no such file."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            unpacked = sum(entry.file_size for entry in packed.infolist())
        if unpacked > 2 * file.stat().st_size:
            raise ValueError(f"it would unpack to {unpacked} bytes")


def _load_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    if isinstance(network, TorchvisionFeatures):
        network.load_torchvision(state)
        return
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    network.load_state_dict({**counters, **state})


def _load_published(network: nn.Module, name: str, weights: str) -> None:
    from torchvision.models import get_weight

    try:
        state = get_weight(weights).get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # urllib, ssl and socket errors: what matters is what the user can do
        raise TrainingError(
            f"the weights of {name} could not be downloaded ({error}); on a machine with internet get {weights} "
            "from torchvision, copy the file here, and give --backbone-weights FILE"
        ) from error
    _load_state(network, dict(state))

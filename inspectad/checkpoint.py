"""How far a long training came, kept beside the model to be until there is one, so that a stop does not cost it all.

One file for each network that is being trained, safetensors: tensors and two strings, nothing that is executed. Files
are replaced whole (`inspectad.atomic`), and one that is damaged, or of another training, counts as none. They have no
suffix of an image and lie in a folder without a model, so neither ``train`` nor ``scan`` takes them for anything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inspectad import __version__
from inspectad.atomic import remove_leftovers
from inspectad.model_file import MAX_MODEL_BYTES
from inspectad.output_links import write_inside

if TYPE_CHECKING:
    from torch import Tensor

FOLDER_NAME: Final = "checkpoint"
"""Of the folder below the one for the model."""
_SUFFIX: Final = ".safetensors"
_KEY: Final = "inspectad_training"
_DIGEST: Final = "inspectad_tensors_sha256"
_SILENT: Final = ("checkpoints", "show")
"""Settings that have no say in what is learnt."""


class Checkpoints:
    """How far a long training came, kept in a folder until it ends; found again by the same training alone."""

    def __init__(self, folder: Path, key: str) -> None:
        """Args: folder: is made when it is needed, inside the folder for the model; key: of `training_key`."""
        self._folder = folder
        self._key = key

    def has_any(self) -> bool:
        """Whether this training was begun before."""
        return any(self.load(path.stem) is not None for path in sorted(self._folder.glob(f"*{_SUFFIX}")))

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What was saved last under a name, on the CPU.

        Returns: None where there is none, or one of another training (key), or a damaged one.
        """
        from safetensors import SafetensorError, safe_open

        path = self._path(name)
        try:
            if path.stat().st_size > MAX_MODEL_BYTES:
                return None
            with safe_open(path, framework="pt", device="cpu") as file:
                found: dict[str, str] = file.metadata() or {}
                if found.get(_KEY) != self._key:
                    return None
                tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError):
            return None
        return tensors if found.get(_DIGEST) == _digest(tensors) else None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace what was saved under a name, atomically.

        Args: name: letters, digits, ``-`` and ``_``; tensors: on any device.
        Raises: OutputError.
        """
        from safetensors.torch import save

        kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        data = save(kept, {_KEY: self._key, _DIGEST: _digest(kept)})
        write_inside(self._folder.parent, self._path(name), data)

    def clear(self) -> None:
        """The training is over: remove all, of other trainings too, and the folder, as far as that can be done."""
        if self._folder.is_symlink():  # never made by us, and what is behind it is not ours
            return
        remove_leftovers(self._folder)
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"*{_SUFFIX}"):
                path.unlink()
            self._folder.rmdir()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"


def training_key(settings: Any, images: Sequence[str], versions: Sequence[str]) -> str:  # noqa: ANN401  # a dataclass
    """What a training is known by: the same key, the same model.

    Args:
        settings: frozen values that have a say in what is learnt; those of `_SILENT` have none.
        images: digests of what is learnt from, in order.
        versions: of what else decides about the result.
    Returns: 64 hex digits.
    """
    told = {f.name: str(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.name not in _SILENT}
    text = json.dumps([told, list(images), [__version__, *versions]], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def fit_name(good: Sequence[int], defects: Sequence[int] = ()) -> str:
    """Of the checkpoint of one training among those of a calibration. Args: indices of the images it learns from."""
    return "fit-" + hashlib.sha256(f"{list(good)}/{list(defects)}".encode()).hexdigest()[:16]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values: safetensors itself notices no changed value."""
    import torch

    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()

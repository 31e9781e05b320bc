"""How far a long training came, in a folder of its own until it ends."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from inspectad.atomic import write_together

if TYPE_CHECKING:
    import torch


class Checkpoints:
    """How far a long training came, kept in a folder until it ends; found again by the same training alone."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key

    def load(self, name: str) -> "dict[str, torch.Tensor] | None":
        """None where there is none, or one of another training (key), or a damaged one."""
        from safetensors import SafetensorError, safe_open

        path = self._folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != self._key:
                    return None
                return {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return None

    def save(self, name: str, tensors: "dict[str, torch.Tensor]") -> None:
        """Replace it, atomically. Raises: OutputError."""
        from safetensors.torch import save

        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        data = bytes(save(contiguous, metadata={"key": self._key}))
        write_together({self._folder / f"{name}.safetensors": data})

    def clear(self) -> None:
        """The training is over: remove all and the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

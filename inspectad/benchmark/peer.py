"""anomalib's PatchCore on given images with given weights. Run by a Python of its own, that has anomalib 2 and no
inspectad: ``python peer.py JOB.json RESULT.json``.

JOB.json: ``train`` and ``test``, lists of image files; ``weights``, a safetensors file with timm's names of
``tf_efficientnet_lite0`` up to block 4; ``input_size_hw``; ``seed``.
RESULT.json: ``scores``, one a test image in their order; ``fit_s``; ``predict_s``; ``version`` of anomalib.

Everything that could cost the peer accuracy or time without being PatchCore is left out. All training images go
into its memory bank (its own way of setting a threshold would keep a fifth of them back), scores are raw (normalised
and clamped, as its users see them, many tie at 0 and 1), input is scaled as the weights expect, and no pictures are
drawn. Coreset and neighbours are its defaults; prediction is its own, from a folder, one image at a time.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anomalib
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from safetensors.torch import load_file
from torchvision.transforms.v2 import Compose, Normalize, Resize

MEAN, STD = 127 / 255, 128 / 255  # these weights were trained on (x - 127) / 128


def main() -> None:
    """Read the job, train, predict, write the result."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    work = Path(tempfile.mkdtemp(prefix="peer-"))
    try:
        result = run(job, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def run(job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Train on ``job["train"]`` and score ``job["test"]``; ``work`` is an empty folder."""
    copy_numbered(job["train"], work / "train")
    copy_numbered(job["train"][:1], work / "check")
    copies = copy_numbered(job["test"], work / "test")
    torch.manual_seed(job["seed"])
    model = build(job["input_size_hw"], job["weights"])
    data = Folder(
        name="peer",
        root=work,
        normal_dir="train",
        train_batch_size=8,
        eval_batch_size=1,
        num_workers=0,
        normal_test_dir="check",  # without images to validate on it does not train, or takes them from the others
        test_split_mode="from_dir",
        val_split_mode="same_as_test",
        seed=job["seed"],
    )
    engine = Engine(default_root_dir=work / "out", devices=1, enable_progress_bar=False, logger=False)
    started = time.perf_counter()
    engine.fit(model=model, datamodule=data)
    fitted = time.perf_counter()
    batches = engine.predict(model=model, data_path=work / "test", return_predictions=True)
    predicted = time.perf_counter()
    scores = {
        Path(path).name: score
        for batch in batches
        for path, score in zip(batch.image_path, batch.pred_score.flatten().tolist(), strict=True)
    }
    return {
        "scores": [scores[name] for name in copies],
        "fit_s": fitted - started,
        "predict_s": predicted - fitted,
        "version": anomalib.__version__,
    }


def build(input_size_hw: list[int], weights: str) -> Patchcore:
    """PatchCore on features at strides 8 and 16. Raises ValueError: the weights lack something that is used."""
    scale = Compose([Resize(input_size_hw, antialias=True), Normalize([MEAN] * 3, [STD] * 3)])
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=["blocks.2", "blocks.4"],
        pre_trained=False,
        pre_processor=PreProcessor(transform=scale),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    network = model.model.feature_extractor.feature_extractor
    state = load_file(weights)
    used = ("conv_stem.", "bn1.", *(f"blocks.{i}." for i in range(5)))  # what lies behind block 4 has no say
    wanted = {k for k in network.state_dict() if k.startswith(used) and not k.endswith("num_batches_tracked")}
    if missing := wanted - state.keys():
        raise ValueError(f"{weights} lacks {sorted(missing)[:3]}, {len(missing)} tensors in all")
    network.load_state_dict(state, strict=False)
    return model


def copy_numbered(files: list[str], folder: Path) -> list[str]:
    """Copy files under numbers, so that none hides another; returns the names given."""
    folder.mkdir()
    names = [f"{i:06}{Path(file).suffix.lower()}" for i, file in enumerate(files)]
    for file, name in zip(files, names, strict=True):
        shutil.copyfile(file, folder / name)
    return names


if __name__ == "__main__":
    main()

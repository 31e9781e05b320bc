"""``inspectad explain``: why a model scores images as it does, in the way of its own method; one picture an image."""

import time
from dataclasses import dataclass
from pathlib import Path

from inspectad.atomic import write_atomically
from inspectad.errors import InspectadError, UnreadableImageError, UsageError
from inspectad.image_files import RESULTS_MARKER, expand_arguments
from inspectad.images import decode_image, load_image, read_file, to_8_bit
from inspectad.judge import explanation_path
from inspectad.methods import METHODS
from inspectad.output_links import write_inside
from inspectad.png import encode_png
from inspectad.progress import Step, silent
from inspectad.restore import read_manifest, restore
from inspectad.train_config import torch_device


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainConfig:
    """What to explain, by which model folder, and where to write.

    Attributes:
        images: folders, files, glob patterns.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    images: tuple[str, ...]
    model: Path = Path("model")
    output: Path = Path("explain")
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class ExplainSummary:
    """How many pictures were written, in how many seconds, and (name, reason) of the images that could not be read."""

    pictures: int
    unreadable: tuple[tuple[str, str], ...]
    seconds: float


def explain(config: ExplainConfig, say: Step = silent) -> ExplainSummary:
    """Write a picture for each image, as the method draws it, under its name below the output folder.

    Raises:
        UsageError: nothing there under that name, or a method that has no explanation of its own.
        ModelFileError: the model folder is incomplete or damaged, or ``-m`` is a file without its folder.
        InspectadError: no image at all, or a picture that cannot be written. Pictures written so far stay.
    """
    started = time.perf_counter()
    manifest, method = read_manifest(config.model)
    if method.explain is None:
        others = ", ".join(name for name, other in METHODS.items() if other.explain is not None)
        raise UsageError(
            f"{manifest.method} has no explanation of its own (those with one: {others}); "
            "scan --heatmaps shows its anomaly map"
        )
    files = expand_arguments(config.images, exclude=config.output)
    if not files:
        raise InspectadError(f"{', '.join(config.images)}: no images in there (.png, .jpg, .bmp, .tif, .webp, ...)")
    module = restore(config.model, manifest, "explain").module.to(torch_device(config.device))
    write_atomically(config.output / RESULTS_MARKER, b"")  # so that no later scan takes these pictures for parts
    unreadable = []
    for done, file in enumerate(files):
        say("explaining", done, len(files), file.name)
        try:
            data = read_file(file.path)
            pixels = load_image(data, manifest.input_size_hw, manifest.full_scale).pixels
            source = to_8_bit(decode_image(data), manifest.full_scale)
        except UnreadableImageError as error:
            unreadable.append((file.name, str(error)))
            continue
        picture = method.explain(module, pixels, source, manifest.calibration)
        path = explanation_path(config.output, file.name)
        write_inside(config.output, path, encode_png(picture))
    return ExplainSummary(len(files) - len(unreadable), tuple(unreadable), time.perf_counter() - started)

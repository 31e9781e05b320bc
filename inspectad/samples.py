"""``train --samples``: a picture of what a generative method learnt, in a folder that the user named."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inspectad.errors import OutputError, UsageError
from inspectad.image_files import RESULTS_MARKER
from inspectad.output_links import write_inside
from inspectad.png import encode_png
from inspectad.records import ByteArray

SAMPLES_NAME: Final = "samples.png"


def check_samples_folder(folder: Path, images: Sequence[Path | None]) -> None:
    """Make the folder, and find out before a long training whether it can be written to.

    Args: images: the folders of images, where the picture would be taken for one of them the next time.
    Raises: UsageError: it is one of these, lies in one, or is a file. OutputError: it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--samples {folder}: is a file; give a folder")
    for other in images:
        if other is not None and folder.resolve().is_relative_to(other.resolve()):
            raise UsageError(
                f"--samples {folder}: lies in {other}, whose images it would mix with; give another folder"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"--samples {folder}: cannot be written to ({error.strerror or error}); mend its permissions, or choose "
            "another folder"
        ) from error


def write_samples(folder: Path, picture: ByteArray) -> None:
    """Write ``samples.png``, whole or not at all; nothing outside the folder, whatever links lie in it.

    Args: picture: uint8 RGB (h, w, 3).
    Raises: OutputError.
    """
    if not any(folder.iterdir()):  # a folder of ours alone, so that no later scan takes the picture for a part
        write_inside(folder, folder / RESULTS_MARKER, b"")
    write_inside(folder, folder / SAMPLES_NAME, encode_png(picture))

"""Which files are images, and what each is called in the results."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO, RawIOBase
from pathlib import Path, PurePosixPath
from typing import Final

from inspectad.errors import InspectadError, UsageError

IMAGE_SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
    | {".pgm", ".ppm", ".pbm", ".pnm", ".jp2"}
)
RESULTS_MARKER: Final = ".inspectad-results"
"""Lies in every folder that a scan wrote to, so that no later one takes heatmaps for images."""
OUTSIDE: Final = "_outside"
"""First part of the name of an image that lies outside the scanned root; see `relative_name`."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Where an image is and what it is called: ``name`` is its path relative to the root, with forward slashes."""

    path: Path
    name: str


def find_images(folder: Path, *exclude: Path) -> list[ImageFile]:
    """All image files below a folder, sorted by name; links are followed, each real folder is entered once.

    Files and folders whose name starts with a dot are left out (macOS and editors keep copies there that are no
    images), and so are the folders ``exclude`` and the output
    folders of earlier scans, so that results inside the input never become input.
    """
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder; check the spelling, or give the full path")
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give the folder that holds the images")
    if folder.resolve() in [e.resolve() for e in exclude]:
        raise UsageError(f"{folder}: is both input and output; choose another output folder with -o")
    found = (ImageFile(p, p.relative_to(folder).as_posix()) for p in _walk(folder, exclude))
    return sorted(found, key=lambda f: f.name)


def _walk(folder: Path, exclude: Sequence[Path]) -> Iterator[Path]:
    excluded = {e.resolve() for e in exclude}
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_list):
        stat = os.stat(here)
        if (stat.st_dev, stat.st_ino) in seen or Path(here).resolve() in excluded:
            folders.clear()  # a link back to where we were, or our own output
            continue
        if RESULTS_MARKER in files and Path(here) != folder:
            folders.clear()  # an earlier scan's output
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(here, name)


def _cannot_list(error: OSError) -> None:
    """A folder that is passed over in silence would be images without a verdict."""
    raise InspectadError(f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions or move it away")


def expand_arguments(arguments: Iterable[str], exclude: Path | None = None) -> list[ImageFile]:
    """The images that ``scan`` was asked for: folders (recursive), files and glob patterns, in the order given.

    Names are relative to the folder when one folder was given, else to what all arguments have in common.

    Raises:
        UsageError: an argument is neither a file nor a folder and matches nothing.
    """
    paths = [path for argument in arguments for path in _matches(argument, exclude)]
    excluded = [] if exclude is None else [exclude]
    if len(paths) == 1 and paths[0].is_dir():
        return find_images(paths[0], *excluded)
    root = common_root(paths)
    files: dict[str, ImageFile] = {}  # a file that two arguments name is inspected once
    for path in paths:
        for file in [f.path for f in find_images(path, *excluded)] if path.is_dir() else [path]:
            name = relative_name(file, root)
            files.setdefault(name, ImageFile(file, name))
    return list(files.values())


def _matches(argument: str, exclude: Path | None) -> list[Path]:
    """The file or folder of that name; else what the pattern matches, but for our own output."""
    if os.path.lexists(argument):
        return [Path(argument)]
    found = [Path(m) for m in sorted(glob.glob(argument, recursive=True))]
    if exclude is not None:
        output = exclude.resolve()
        found = [p for p in found if not p.resolve().is_relative_to(output)]
    if not found:
        raise UsageError(f"{argument}: no such file or folder; check the spelling, or give the full path")
    return found


def common_root(paths: Iterable[Path]) -> Path:
    """Deepest folder that contains all paths; the working folder where there is none (other drives)."""
    folders = [os.path.abspath(p if p.is_dir() else p.parent) for p in paths]
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        return Path.cwd()


def relative_name(path: Path, root: Path) -> str:
    """Path relative to the root with forward slashes; of a file outside it, the whole path below ``_outside/``.

    Never absolute and never with ``..``, so that a name joined to an output folder stays inside it.
    """
    absolute = Path(os.path.abspath(path))
    if absolute.is_relative_to(root):
        return absolute.relative_to(root).as_posix()
    drive = absolute.drive.replace(":", "").strip("\\/").replace("\\", "/")
    return PurePosixPath(OUTSIDE, drive, *absolute.parts[1:]).as_posix()


def read_path_list(stream: RawIOBase | BytesIO, root: Path, separator: bytes = b"\n") -> Iterator[ImageFile]:
    """Images named one a line (``scan -``), each as soon as its line is there; empty lines are skipped.

    Args:
        stream: unbuffered bytes; ``read`` returns what has arrived, so that a camera's stream is not held back.
        root: folder that names are made relative to.
        separator: ``b"\\0"`` for names that may hold newlines, as ``find -print0`` writes them.
    """
    rest = b""
    while chunk := stream.read(65536):
        *lines, rest = (rest + chunk).split(separator)
        yield from _listed(lines, root, separator)
    yield from _listed([rest], root, separator)


def _listed(lines: list[bytes], root: Path, separator: bytes) -> Iterator[ImageFile]:
    for line in lines:
        name = line.removesuffix(b"\r") if separator == b"\n" else line
        if name:
            path = Path(os.fsdecode(name))
            yield ImageFile(path, relative_name(path, root))

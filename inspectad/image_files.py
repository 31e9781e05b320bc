"""Which files are images, and what each is called in the results."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
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
_LONGEST_LINE: Final = 2**15  # bytes; no system has longer paths
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
    return sorted(walk_images(folder, *exclude), key=lambda f: f.name)


def walk_images(folder: Path, *exclude: Path) -> Iterator[ImageFile]:
    """The same files, each as soon as it is found, folder by folder. Raises, at the first: UsageError."""
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder; check the spelling, or give the full path")
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give the folder that holds the images")
    if folder.resolve() in [e.resolve() for e in exclude]:
        raise UsageError(f"{folder}: is both input and output; choose another output folder with -o")
    for path in _walk(folder, exclude):
        yield ImageFile(path, path.relative_to(folder).as_posix())


def is_image_name(name: str) -> bool:
    """Whether a file of this name, without folders, is taken for an image: by its suffix, and not hidden by a dot."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


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
            if is_image_name(name):
                yield Path(here, name)


def _cannot_list(error: OSError) -> None:
    """A folder that is passed over in silence would be images without a verdict."""
    raise InspectadError(f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions or move it away")


class ImageTree:
    """Image files below a folder that is watched: it changes meanwhile, and must not be given up for a folder in it.

    The same files and names as of `find_images`, except that a link to a folder inside this one is not followed: files
    have the name of where they really are, so that a link that moves on ("today") makes no second row.
    """

    def __init__(self, folder: Path, output: Path, on_error: Callable[[str, OSError], None]) -> None:
        self.folder = folder
        self._output = os.path.realpath(output)
        self._on_error = on_error

    def walk(self) -> Iterator[tuple[str, os.stat_result]]:
        """Names of all wanted files and their `os.stat`. Raises: OSError when the folder itself cannot be listed."""
        root = os.path.realpath(self.folder)
        folders, seen = [""], set()
        while folders:
            here = folders.pop()
            try:
                stat = os.stat(self.folder / here)
                with os.scandir(self.folder / here) as scan:
                    entries = list(scan)
            except OSError as error:
                if not here:
                    raise
                if not isinstance(error, FileNotFoundError):
                    self._on_error(here, error)
                continue
            if (stat.st_dev, stat.st_ino) in seen or (here and self._is_results(here)):
                continue
            seen.add((stat.st_dev, stat.st_ino))
            for entry in entries:
                name = f"{here}/{entry.name}" if here else entry.name
                with suppress(OSError):  # it is gone again
                    if is_image_name(entry.name) and not entry.is_dir():
                        yield name, entry.stat()
                    elif not entry.name.startswith(".") and entry.is_dir() and not _leads_into(root, entry):
                        folders.append(name)

    def is_wanted(self, name: str) -> bool:
        """Whether `walk` would give this file."""
        *folders, last = name.split("/")
        if not is_image_name(last) or any(folder.startswith(".") for folder in folders):
            return False
        return not any(self._is_results("/".join(folders[: i + 1])) for i in range(len(folders)))

    def _is_results(self, name: str) -> bool:
        path = self.folder / name
        return os.path.lexists(path / RESULTS_MARKER) or os.path.realpath(path) == self._output


def _leads_into(root: str, entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and Path(os.path.realpath(entry.path)).is_relative_to(root)


def expand_arguments(arguments: Iterable[str], exclude: Path | None = None) -> list[ImageFile]:
    """The images that ``scan`` was asked for: folders (recursive), files and glob patterns, in the order given.

    Names are relative to the folder when one folder was given, else to what all arguments have in common.

    Raises:
        UsageError: an argument is neither a file nor a folder and matches nothing.
    """
    paths = [path for argument in arguments for path in matches(argument, exclude)]
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


def matches(argument: str, exclude: Path | None) -> list[Path]:
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
    Raises:
        UsageError: a line so long that this is no list of paths.
    """
    rest = b""
    while chunk := stream.read(65536):
        *lines, rest = (rest + chunk).split(separator)
        yield from _listed(lines, root, separator)
        _check_length(rest)  # it would be kept until it ends
    yield from _listed([rest], root, separator)


def _check_length(line: bytes) -> None:
    if len(line) > _LONGEST_LINE:
        raise UsageError(
            f"standard input: a path of more than {_LONGEST_LINE} bytes; give one path a line, "
            "or -0 and zero bytes between them"
        )


def _listed(lines: list[bytes], root: Path, separator: bytes) -> Iterator[ImageFile]:
    for line in lines:
        _check_length(line)
        name = line.removesuffix(b"\r") if separator == b"\n" else line
        if name:
            path = Path(os.fsdecode(name))
            yield ImageFile(path, relative_name(path, root))

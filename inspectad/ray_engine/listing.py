"""Which images a job has, found by its workers: the rules of `inspectad.image_files`, on a disk or in an object store.

What passes between tasks is never a list of all names: `find_roots` gives folders and chunks of names, `walk` makes
chunks of a folder, as it is read.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Final

from inspectad.errors import UsageError
from inspectad.image_files import RESULTS_MARKER, common_root, is_image_name, matches, relative_name, walk_images
from inspectad.ray_engine.place import Place

CHUNK: Final = 16
"""Images that are inspected by one task: what a dead node's neighbours do again; some 0.4 s of one core."""
MOST_CHUNK: Final = 256  # in clusters of many cores
GPU_CHUNK: Final = 512

Name = bytes
"""Of an image, relative to the root, with forward slashes: bytes, since file names need not be UTF-8."""


@dataclass(frozen=True, slots=True)
class Root:
    """What all names are relative to, and what is to be listed: folders, and single files by their names."""

    place: Place
    folders: tuple[Place, ...]
    files: tuple[Name, ...]


def find_roots(arguments: Sequence[str], output: Place) -> Root:
    """What ``scan`` was asked for. Args: arguments as `absolute` gives them: folders, files and patterns.

    Raises: UsageError: one that is neither and matches nothing, or that is the output; or disks and stores mixed.
    """
    if len({a.partition("://")[0] if "://" in a else "" for a in arguments}) > 1:
        raise UsageError("images of one store at a time: all on disks, or all with the same beginning (s3://, gs://)")
    find = _stored_root if Place(arguments[0]).is_url else _disk_root
    root = find(arguments, output)
    if output in root.folders or (not output.is_url and _is_one_of(output, root.folders)):
        raise UsageError(f"{output}: is both input and output; choose another output folder with -o")
    return root


def _is_one_of(output: Place, folders: Iterable[Place]) -> bool:
    real = os.path.realpath(output.path)
    return any(not folder.is_url and os.path.realpath(folder.path) == real for folder in folders)


def _disk_root(arguments: Sequence[str], output: Place) -> Root:
    excluded = None if output.is_url else output.path
    paths = [path for argument in arguments for path in matches(argument, excluded)]
    top = paths[0] if len(paths) == 1 and paths[0].is_dir() else common_root(paths)
    folders = _outermost(str(p) for p in paths if p.is_dir())
    files = {relative_name(p, top) for p in paths if not p.is_dir() and not _is_below(str(p), folders)}
    return Root(Place(str(top)), tuple(map(Place, folders)), tuple(os.fsencode(f) for f in sorted(files)))


def _stored_root(arguments: Sequence[str], output: Place) -> Root:
    folders: list[str] = []
    files: list[str] = []
    for argument in arguments:
        for path, is_folder in _stored_matches(Place(argument), output):
            (folders if is_folder else files).append(path)
    folders = _outermost(folders)
    files = sorted({f for f in files if not _is_below(f, folders)})
    if len(folders) == 1 and not files:
        top = folders[0]
    else:
        above = {PurePosixPath(f) for f in folders} | {PurePosixPath(f).parent for f in files}
        top = os.path.commonpath(above) if above else ""
    scheme = arguments[0].partition("://")[0]
    names = tuple(os.fsencode(f[len(top) :].lstrip("/")) for f in files)
    return Root(Place(f"{scheme}://{top}"), tuple(Place(f"{scheme}://{f}") for f in folders), names)


def _stored_matches(place: Place, output: Place) -> list[tuple[str, bool]]:
    """Paths in the store, each with whether it is a folder."""
    file_system, path = place.store
    if place.asked(file_system.exists, path):
        found = [path]
    else:
        found = sorted(place.asked(file_system.glob, path)) if glob.has_magic(path) else []
        if output.is_url:
            found = [f for f in found if f != output.store[1] and not _is_below(f, [output.store[1]])]
    if not found:
        raise UsageError(f"{place}: no such file or folder; check the spelling, the endpoint and the credentials")
    if above := [f for f in found if ".." in f.split("/")]:  # in a store a name like others, in an output a way out
        raise UsageError(f"{above[0]}: a name with .. in it; give images of other names")
    return [(f.rstrip("/"), bool(place.asked(file_system.isdir, f))) for f in found]


def _outermost(folders: Iterable[str]) -> list[str]:
    """Without those that lie in others."""
    kept: list[str] = []
    for folder in sorted(set(folders)):
        if not _is_below(folder, kept):
            kept.append(folder)
    return kept


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in folders)


def walk(folder: Place, root: Place, output: Place) -> Iterator[Name]:
    """Names of the images below a folder, in an order that a second walk has too.

    Raises: InspectadError: a folder that cannot be listed; one passed over would be images without a verdict.
    """
    if folder.is_url:
        yield from _walk_store(folder, root, output)
        return
    prefix = "" if folder == root else f"{relative_name(folder.path, root.path)}/"
    for file in walk_images(folder.path, *([] if output.is_url else [output.path])):
        yield os.fsencode(prefix + file.name)


def _walk_store(folder: Place, root: Place, output: Place) -> Iterator[Name]:
    file_system, top = folder.store
    cut = len(root.store[1])
    excluded = output.store[1] if output.is_url else None
    waiting = [top]
    while waiting:
        here = waiting.pop()
        entries = folder.asked(partial(file_system.ls, detail=True), here)
        found = sorted((e["name"].rstrip("/"), e["type"] == "directory") for e in entries)
        if here != top and (f"{here}/{RESULTS_MARKER}", False) in found:
            continue  # an earlier scan's output
        below = []
        for path, is_folder in found:
            last = path.rpartition("/")[2]
            if path in (here, excluded):  # some stores list a folder in itself
                continue
            if is_folder:
                below += [] if last.startswith(".") else [path]
            elif is_image_name(last):
                yield os.fsencode(path[cut:].lstrip("/"))
        waiting += reversed(below)


def chunks(
    names: Iterable[Name], size: int, done: frozenset[str] = frozenset(), row_name: Callable[[str], str] = str
) -> Iterator[list[Name]]:
    """Names in lists of a size, without those that are done. Args: row_name: what rows call an image."""
    missing = (name for name in names if row_name(os.fsdecode(name)) not in done)
    while chunk := list(islice(missing, size)):
        yield chunk


def path_of(root: Place, name: Name) -> Place:
    """Where the image of that name is."""
    return root / os.fsdecode(name)

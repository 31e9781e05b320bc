"""The labelled sets of images that a benchmark runs on: folders in MVTec layout, or plain good and defects folders."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspectad.errors import UsageError
from inspectad.image_files import ImageFile, find_images

MASKS: Final = "ground_truth"
LAYOUTS: Final = (
    "a dataset holds train/good, test/good and test/<defect> (MVTec layout, with ground_truth/<defect>/<name>_mask.png "
    "where there are masks), or good and defects"
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A set of images with labels.

    Attributes:
        name: of its folder.
        train_good: what good training images are drawn from; named relative to their folder, sorted, like all here.
        test_good: the good test images; None in a plain folder, where those not drawn are the test.
        defects: what defect training images are drawn from; the others are the test.
        masks: folder of truth masks, found by the names of the defects.
        digest: of the names and sizes of all these files, 12 hex digits.
    """

    name: str
    train_good: tuple[ImageFile, ...]
    test_good: tuple[ImageFile, ...] | None
    defects: tuple[ImageFile, ...]
    masks: Path | None
    digest: str


def read_datasets(folders: Sequence[Path]) -> dict[str, Dataset]:
    """The sets by their names. Raises: UsageError: no such layout, or two folders of one name."""
    names = Counter(folder.resolve().name for folder in folders)
    twice = [f for f in folders if names[f.resolve().name] > 1]
    if twice:
        raise UsageError(
            f"{twice[0]} and {twice[1]} have the same name, by which rows are told apart; rename one of them"
        )
    # Absolute: Ray measures in processes that have other working folders.
    return {folder.resolve().name: read_dataset(folder.absolute()) for folder in folders}


def read_dataset(folder: Path) -> Dataset:
    """Find out the layout of a folder and its images. Raises: UsageError when it has none that we know."""
    files = find_images(folder)
    test_good: tuple[ImageFile, ...] | None
    if (folder / "train" / "good").is_dir():
        train_good, test_good = _below("train/good", files), _below("test/good", files)
        defects = tuple(f for f in _below("test", files) if not f.name.startswith("good/"))
        required = {"train/good": train_good, "test/good": test_good, "test/<defect>": defects}
    else:
        train_good, test_good, defects = _below("good", files), None, _plain_defects(folder, files)
        required = {"good": train_good, "defects": defects}
    missing = [place for place, found in required.items() if not found]
    if missing:
        raise UsageError(f"{folder}: no images in {' and '.join(missing)}; {LAYOUTS}")
    masks = folder / MASKS if (folder / MASKS).is_dir() else None
    digest = _digest(folder, (*train_good, *(test_good or ()), *defects, *_below(MASKS, files)))
    return Dataset(folder.resolve().name, train_good, test_good, defects, masks, digest)


def _plain_defects(folder: Path, files: Sequence[ImageFile]) -> tuple[ImageFile, ...]:
    """Images in ``defects``, or where there is no such folder, in all folders beside ``good`` and the masks."""
    if (folder / "defects").is_dir():
        return _below("defects", files)
    return tuple(f for f in files if "/" in f.name and not f.name.startswith(("good/", f"{MASKS}/")))


def _below(place: str, files: Sequence[ImageFile]) -> tuple[ImageFile, ...]:
    """The files below a folder, named relative to it."""
    start = f"{place}/"
    return tuple(ImageFile(f.path, f.name.removeprefix(start)) for f in files if f.name.startswith(start))


def _digest(folder: Path, files: Sequence[ImageFile]) -> str:
    lines = sorted(f"{f.path.relative_to(folder).as_posix()}\0{_size(f.path)}\n" for f in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _size(path: Path) -> int:
    """In bytes; -1 of a file that cannot be read, which shows when it is drawn or scored."""
    try:
        return path.stat().st_size
    except OSError:
        return -1

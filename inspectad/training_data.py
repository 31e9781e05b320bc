"""The training images: which of them can be used, of what depth and size, and their pixels in bounded memory."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from inspectad.cores import cores
from inspectad.errors import TrainingError, UnreadableImageError, UsageError
from inspectad.image_files import ImageFile, find_images
from inspectad.images import LoadedImage, decode_image, full_scale_of, load_image, read_file
from inspectad.masks import mask_path, read_mask
from inspectad.records import ByteArray, FloatArray
from inspectad.tiles import Score, Tiling

_CACHE_BYTES = 512 * 2**20  # decoded images kept; beyond it they are read again when they are needed again


@dataclass(frozen=True, slots=True)
class ReadableImage:
    """An image that was decoded once without complaint.

    Attributes:
        file: where it is.
        sha256: of the file.
        pixels_sha256: of the decoded pixels, equal for copies in other formats or with other metadata.
        size_hw: upright, in source pixels.
        is_8_bit: or else 16.
        highest: largest value of any pixel.
    """

    file: ImageFile
    sha256: str
    pixels_sha256: str
    size_hw: tuple[int, int]
    is_8_bit: bool
    highest: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in a folder: the usable images, and (name, reason) of those that are not."""

    folder: Path
    readable: tuple[ReadableImage, ...]
    unreadable: tuple[tuple[str, str], ...]


def survey(folder: Path, exclude: Sequence[Path] = ()) -> Survey:
    """Decode every image below a folder once, but for those in the folders ``exclude``.

    Raises: UsageError when there is no such folder.
    """
    readable, unreadable = [], []
    files = find_images(folder, *exclude)
    first = [_examine(file) for file in files[:1]]  # says how large they are, and so how many can be open at a time
    with ThreadPoolExecutor(_threads(first)) as pool:
        for file, result in zip(files, chain(first, pool.map(_examine, files[1:])), strict=True):
            if isinstance(result, ReadableImage):
                readable.append(result)
            else:
                unreadable.append((file.name, result))
    return Survey(folder, tuple(readable), tuple(unreadable))


def _threads(examined: Sequence[ReadableImage | str]) -> int:
    """How many images like these can be decoded at a time within `_CACHE_BYTES`; decoding holds each twice."""
    sizes = [math.prod(i.size_hw) * (6 if i.is_8_bit else 12) for i in examined if isinstance(i, ReadableImage)]
    return max(1, min(8, cores(), _CACHE_BYTES // max(sizes, default=1)))


def _examine(file: ImageFile) -> ReadableImage | str:
    try:
        data = read_file(file.path)
        image = decode_image(data)
    except UnreadableImageError as error:
        return str(error)
    pixels = image.pixels
    of_pixels = hashlib.sha256(str(pixels.shape).encode())
    of_pixels.update(pixels.data)
    return ReadableImage(
        file,
        hashlib.sha256(data).hexdigest(),
        of_pixels.hexdigest(),
        image.size_hw,
        image.is_8_bit,
        int(pixels.max()),
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """The images that training uses, and what was said about the others.

    Attributes:
        full_scale: white level, see `inspectad.images.full_scale_of`.
        warnings: one sentence each, naming the file.
    """

    good: tuple[ReadableImage, ...]
    defects: tuple[ReadableImage, ...]
    full_scale: int
    warnings: tuple[str, ...]


def select(good: Survey, defects: Survey | None) -> Selection:
    """Leave out what would mislead: unreadable files, copies, images in both folders, and images of another depth.

    Raises: TrainingError when no good image is left, or a defects folder holds none that can be read.
    """
    surveys = [good] if defects is None else [good, defects]
    warnings = [f"{s.folder / name}: left out, {reason}" for s in surveys for name, reason in s.unreadable]
    if not good.readable:
        raise TrainingError(_nothing_usable(good, "good"))
    if defects is not None and not defects.readable:
        raise TrainingError(_nothing_usable(defects, "defect"))
    good_images = _without_copies(good, warnings)
    defect_images = _without_copies(defects, warnings) if defects is not None else []
    both = {i.pixels_sha256: i for i in good_images}.keys() & {i.pixels_sha256: i for i in defect_images}.keys()
    for image in good_images:
        if image.pixels_sha256 in both:
            twin = next(i for i in defect_images if i.pixels_sha256 == image.pixels_sha256)
            warnings.append(
                f"{image.file.path}: is also among the defects ({twin.file.path}); left out of both, keep one of them"
            )
    good_images = [i for i in good_images if i.pixels_sha256 not in both]
    defect_images = [i for i in defect_images if i.pixels_sha256 not in both]
    good_images, defect_images = _of_one_depth(good_images, defect_images, warnings)
    if not good_images:
        raise TrainingError(f"{good.folder}: every good image is also among the defects; sort them first")
    highest = max(i.highest for i in (*good_images, *defect_images))
    full_scale = full_scale_of(highest, is_8_bit=good_images[0].is_8_bit)
    return Selection(tuple(good_images), tuple(defect_images), full_scale, tuple(warnings))


def _nothing_usable(found: Survey, kind: str) -> str:
    if not found.unreadable:
        return (
            f"{found.folder}: no {kind} images in there "
            "(looked for .png, .jpg, .bmp, .tif, .webp and the like, in subfolders too)"
        )
    name, reason = found.unreadable[0]
    return f"{found.folder}: none of its {len(found.unreadable)} image files can be used; {name}: {reason}"


def _without_copies(found: Survey, warnings: list[str]) -> list[ReadableImage]:
    first: dict[str, ReadableImage] = {}
    for image in found.readable:
        if twin := first.get(image.pixels_sha256):
            warnings.append(f"{image.file.path}: left out, the same picture as {twin.file.name}")
        first.setdefault(image.pixels_sha256, image)
    return list(first.values())


def _of_one_depth(
    good: list[ReadableImage], defects: list[ReadableImage], warnings: list[str]
) -> tuple[list[ReadableImage], list[ReadableImage]]:
    """Keep 8-bit or 16-bit images, whichever most good ones are; one white level cannot be right for both."""
    usual = Counter(i.is_8_bit for i in good).most_common(1)[0][0] if good else True
    for image in (*good, *defects):
        if image.is_8_bit != usual:
            bits = ("8-bit", "16-bit") if image.is_8_bit else ("16-bit", "8-bit")
            warnings.append(f"{image.file.path}: left out, it is {bits[0]} where most good images are {bits[1]}")
    return [i for i in good if i.is_8_bit == usual], [i for i in defects if i.is_8_bit == usual]


class TrainingImages(Sequence[ByteArray]):
    """What the network learns from, as it sees it, uint8 (H, W, 3), by index: here an image each.

    Attributes:
        tiling: how images are cut; None where each is seen whole.
    """

    tiling: Tiling | None = None

    def __init__(self, images: Sequence[ReadableImage], input_size_hw: tuple[int, int], full_scale: int) -> None:
        self.images = tuple(images)
        self.input_size_hw = input_size_hw
        self.full_scale = full_scale
        self._capacity = max(1, _CACHE_BYTES // (3 * input_size_hw[0] * input_size_hw[1]))
        self._cache: dict[int, ByteArray] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ByteArray:  # type: ignore[override]  # slices are not needed
        """Raises: TrainingError, see `source`."""
        if index in self._cache:
            return self._cache[index]
        if not 0 <= index < len(self.images):
            raise IndexError(index)
        prepared = self._load(index, self.input_size_hw).pixels
        if len(self._cache) < self._capacity:
            self._cache[index] = prepared
        return prepared

    def source(self, image: int) -> ByteArray:
        """An image in its own size. Raises: TrainingError when the file has changed or gone since the survey."""
        return self._load(image, None).pixels

    def _load(self, image: int, size_hw: tuple[int, int] | None) -> LoadedImage:
        path = self.images[image].file.path
        try:
            return load_image(read_file(path), size_hw, self.full_scale)
        except UnreadableImageError as error:
            raise TrainingError(f"{path}: changed while training ({error}); train again") from error

    def teaching(self, images: Sequence[int]) -> list[int]:
        """Indices of what there is to learn from of these images."""
        return list(images)

    def judge(self, image: int, score: Score) -> tuple[float, FloatArray]:
        """Score and anomaly map of one image, as a scan would find them. Args: score: the network."""
        return score(self[image])


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` indices evenly spread over ``count``, all of them when there are fewer."""
    return sorted({i * count // min(count, wanted) for i in range(min(count, wanted))})


@dataclass(frozen=True, slots=True)
class DefectMasks:
    """Where the masks of the defects are (None: it has none), and what was said about the others."""

    paths: tuple[Path | None, ...]
    warnings: tuple[str, ...]


def find_masks(folder: Path, defects: Sequence[ReadableImage]) -> DefectMasks:
    """The masks of defect images, each read once.

    Raises: UsageError: no such folder, it holds a mask of none of them, or a mask that does not fit its image.
    """
    if not folder.is_dir():
        raise UsageError(f"--masks {folder}: no such folder")
    paths = [mask_path(folder, image.file.name) for image in defects]
    if not defects:
        raise UsageError(f"--masks {folder}: no defect is left that it could be of; see the warnings, or leave it out")
    if not any(paths):
        expected = defects[0].file.name
        raise UsageError(
            f"--masks {folder}: holds the mask of none of the {len(defects)} defects; for {expected} it would be "
            f"{Path(expected).with_suffix('')}_mask.png or {Path(expected).with_suffix('.png')} in there"
        )
    warnings = []
    found: list[Path | None] = []
    for image, path in zip(defects, paths, strict=True):
        marked = path is not None and bool(read_mask(path, image.size_hw).any())
        if path is None:
            warnings.append(f"{image.file.path}: has no mask in {folder}; it teaches without one")
        elif not marked:
            warnings.append(f"{path}: marks nothing; {image.file.name} teaches without a mask")
        found.append(path if marked else None)
    return DefectMasks(tuple(found), tuple(warnings))


class DefectImages(TrainingImages):
    """Defects, and where in them the defect is, as far as there are masks."""

    def __init__(
        self,
        images: Sequence[ReadableImage],
        input_size_hw: tuple[int, int],
        full_scale: int,
        masks: Sequence[Path | None],
    ) -> None:
        super().__init__(images, input_size_hw, full_scale)
        self._masks = tuple(masks)

    def has_mask(self, index: int) -> bool:
        """Whether it is known where this defect is."""
        return self._masks[index] is not None

    def mask(self, index: int) -> ByteArray | None:
        """Nonzero where defective, in the source's pixels. Raises: UsageError when the file has changed or gone."""
        path = self._masks[index]
        return None if path is None else read_mask(path, self.images[index].size_hw)

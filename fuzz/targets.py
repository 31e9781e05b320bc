"""What is fuzzed: each target takes bytes and raises only when something is wrong that must not be.

Documented errors (`inspectad.errors`) are answers; any other exception is a finding, those of the checks here as well.
Crashes, hangs and memory are the runner's business.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from fuzz import seeds
from inspectad.csv_cells import name_of
from inspectad.end_mark import is_whole
from inspectad.errors import InspectadError, ModelFileError, OutputError, UnreadableImageError, UsageError
from inspectad.image_header import check_header
from inspectad.image_limits import max_pixels
from inspectad.tiff import is_tiff

INPUT_HW: Final = (64, 96)
"""Input size of the small model in the corpus."""


@dataclass(frozen=True, slots=True)
class Target:
    """Attributes:
    seeds: real inputs, made on first use.
    words: what the format has a meaning for.
    run: takes one input.
    share: of the inputs that a run over all targets gets, in proportion.
    """

    seeds: Callable[[], Sequence[bytes]]
    words: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], object]
    share: int


@cache
def _folder() -> Path:
    found = tempfile.TemporaryDirectory(prefix="inspectad-fuzz-")
    _KEPT.append(found)
    return Path(found.name)


_KEPT: Final[list[tempfile.TemporaryDirectory[str]]] = []  # deleted when the process ends


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


def image(data: bytes) -> None:
    """Decoding: the size is the one that the header says, and so was within the limit before memory was taken."""
    from inspectad.images import decode_image, load_image

    is_whole(data)
    try:
        width, height = check_header(data)
    except UnreadableImageError:
        width = height = 0
    try:
        decoded = decode_image(data)
    except UnreadableImageError as error:
        # Refused for memory: it was asked for, so the header did not tell the truth.
        assert not any(word in str(error) for word in ("allocate", "nsufficient memory")), error
    else:
        assert _is_announced(data, decoded.size_hw, (height, width)), (decoded.size_hw, (height, width))
        assert decoded.pixels.shape[2] == 3
        assert decoded.pixels.dtype in (np.uint8, np.uint16)
        assert height * width <= max_pixels()
        assert decoded.pixels.flags.c_contiguous
    for full_scale in (255, 4095):
        try:
            loaded = load_image(data, (16, 16), full_scale)
        except UnreadableImageError:
            continue
        assert loaded.pixels.shape == (16, 16, 3)
        assert loaded.pixels.dtype == np.uint8
        assert _is_announced(data, loaded.size_hw, (height, width)), (loaded.size_hw, (height, width))


def _is_announced(data: bytes, size_hw: tuple[int, int], header_hw: tuple[int, int]) -> bool:
    """Exactly, but for EXIF's turns, and for TIFF tags that are there twice: of these the larger one is expected."""
    if is_tiff(data):
        return all(a <= b for a, b in zip(sorted(size_hw), sorted(header_hw), strict=True))
    return size_hw in (header_hw, header_hw[::-1])


def mask(data: bytes) -> None:
    """Masks of defects: zeros and ones of the image's size, or an error that names the file."""
    from inspectad.masks import read_mask

    path = _file("mask.png", data)
    try:
        found = read_mask(path, (24, 32))
    except UsageError as error:
        assert str(path) in str(error)
        return
    assert found.shape == (24, 32)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) <= {0, 1}


def path_list(data: bytes) -> None:
    """``scan -`` and ``scan -0``: one image a name, whose heatmap lies in the output, and whose row reads back."""
    from inspectad.image_files import read_path_list
    from inspectad.judge import heatmap_path, map_path
    from inspectad.records import Inspection, Verdict
    from inspectad.results import COLUMNS, format_row

    root, output = Path("/line/images"), Path("/line/results")
    for separator in (b"\n", b"\0"):
        files = list(read_path_list(io.BytesIO(data), root, separator))
        assert len(files) <= data.count(separator) + 1
        for file in files:
            assert not file.name.startswith("/")
            assert ".." not in file.name.split("/")
            for path in (heatmap_path(output, file.name), map_path(output, file.name)):
                assert os.path.normpath(path).startswith(f"{output}/"), path
                assert len(os.fsencode(path.name)) <= 255
            row = Inspection(image=file.name, verdict=Verdict.UNREADABLE, error="it")
            text = format_row(row, "csv").decode("utf-8", "surrogateescape")
            (values,) = csv.reader(io.StringIO(text, newline=""))
            cells = dict(zip(COLUMNS, values, strict=True))
            assert name_of(cells["image"]) == file.name
            assert not cells["image"].lstrip().startswith(("=", "+", "-", "@")), cells["image"]


def results(data: bytes) -> None:
    """Reading back, and clearing by names from the file: nothing outside the output is touched."""
    from inspectad.benchmark.rows import read_rows
    from inspectad.results import read_done
    from inspectad.scan import ScanConfig, _clear

    outside = _file("heatmaps.png", b"not yours")
    output = _folder() / "output"
    output.mkdir(exist_ok=True)
    kind = "jsonl" if data[:1] == b"j" else "csv"
    path = output / f"results.{kind}"
    path.write_bytes(data[1:])
    with contextlib.suppress(OutputError):
        read_rows(path)
    try:
        done = read_done(path, kind)
        assert done.whole_bytes <= len(data[1:])
        path.write_bytes(data[1 : 1 + done.whole_bytes])
        assert read_done(path, kind) == done  # what --resume keeps is what it read
        _clear(ScanConfig(images=("x",), output=output))
        assert not path.exists()
    except OutputError:
        path.unlink(missing_ok=True)
    assert outside.read_bytes() == b"not yours"


def manifest(data: bytes) -> None:
    """A manifest is refused, or survives being written and read, and is YAML."""
    from inspectad.manifest import manifest_from_json, manifest_to_json
    from inspectad.model_file import manifest_yaml

    try:
        found = manifest_from_json(data.decode("utf-8", "replace"))
    except ModelFileError:
        return
    assert manifest_from_json(manifest_to_json(found)) == found
    manifest_yaml(found)


def model(data: bytes) -> None:
    """A model file with any byte changed is refused before the runtime sees it."""
    from inspectad.detector import OnnxDetector

    path = _file("model.onnx", data)
    try:
        detector = OnnxDetector.load(path, "cpu", threads=1)
    except ModelFileError as error:
        assert str(path) in str(error)
        return
    assert data in seeds.kept("model"), "a changed model was taken for whole"
    detector.predict(np.zeros((1, *INPUT_HW, 3), np.uint8))


def graph(data: bytes) -> None:
    """A graph that somebody made with matching checksums: refused, or run."""
    from inspectad.detector import OnnxDetector
    from inspectad.model_file import append_manifest

    try:
        detector = OnnxDetector.load(_file("graph.onnx", append_manifest(data, _small_manifest())), "cpu", threads=1)
        detector.predict(np.zeros((1, *INPUT_HW, 3), np.uint8))
    except InspectadError:
        pass


def weights(data: bytes) -> None:
    """``weights.safetensors`` with a matching checksum."""
    from inspectad.restore import restore

    folder = _folder() / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "weights.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    for method in ("memory_bank", "devnet"):
        described = dataclasses.replace(_small_manifest(), weights_sha256=digest, method=method)
        try:
            restore(folder, described, "export")
        except InspectadError:
            continue


def backbone(data: bytes) -> None:
    """``--backbone-weights``: .safetensors and .pth, into a network of a few numbers."""
    from torch import nn

    from inspectad.nn.backbone import _load_file

    path = _file("backbone.pth" if data[:2] == b"PK" or data[:1] == b"\x80" else "backbone.safetensors", data)
    try:
        _load_file(nn.Linear(3, 2), path)
    except UsageError as error:
        assert str(path) in str(error)


@cache
def _small_manifest():  # noqa: ANN202
    from inspectad.manifest import manifest_from_json

    return manifest_from_json(seeds.kept("manifest")[-1].decode())


_IMAGE_WORDS: Final = (
    *(b"\xff" + bytes([marker]) for marker in range(0xC0, 0x100, 3)),
    *(b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"gAMA"),
    *(b"VP8X", b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"ALPH", b"ICCP", b"EXIF", b"RIFF", b"WEBP"),
    *(b"jp2c", b"jp2h", b"ihdr", b"colr", b"pclr", b"cmap", b"\xff\x51", b"\xff\x52", b"\xff\x5c", b"\xff\x90"),
    *(b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"Exif\0\0", b"P5 ", b"P4\n", b"P7\n", b"65535 ", b"#"),
    *(bytes([tag, 1, kind, 0]) for tag in (0, 1, 2, 3, 6, 17, 21, 22, 23, 28, 61, 66, 67, 82, 83) for kind in (3, 4)),
)
_PATH_WORDS: Final = (
    b"\0",
    b"\n",
    b"\r\n",
    b"/",
    b"..",
    b"../",
    b"./",
    b"//",
    b"=",
    b";=",
    b'"',
    b"\xff",
    b"\x1b[2J",
    b"~",
)
_ROW_WORDS: Final = (
    *(b"\n", b'"', b"\r", b",", b"\0", b"null", b"{", b"}", b"[", b"\\ud800", b"../../../", b"/etc/", b"../heatmaps"),
    *(b"image", b"NG,", b"0.5,", b"UNREADABLE", b"\xff", b"'='", b"./"),
)
_ONNX_WORDS: Final = (
    *(b"ReduceMax", b"Cast", b"Loop", b"If", b"Expand", b"ConstantOfShape", b"com.microsoft", b"EPContext", b"Resize"),
    *(b"\x3a\x01", b"\x70\x01", b"\x6a\x00", b"\x7a\x00", b"location", b"*/_ORT_MEM_ADDR_/*", b"\xff\xff\xff\xff\x0f"),
)
_TENSOR_WORDS: Final = (
    *(
        b'"F32"',
        b'"BF16"',
        b'"U8"',
        b'"shape":[',
        b'"data_offsets":[0,',
        b"samples",
        b"module.",
        b"head.weight",
        b"PK\x03\x04",
    ),
    *(
        b"9223372036854775807",
        b"__metadata__",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"ctorch._utils\n",
        b"R",
        b".",
        b"(",
        b"\x80\x02",
    ),
)


def _kept(name: str) -> Callable[[], Sequence[bytes]]:
    return lambda: seeds.kept(name)


def _words(words: Sequence[bytes]) -> Callable[[], Sequence[bytes]]:
    return lambda: words


TARGETS: Final[dict[str, Target]] = {
    "image": Target(_kept("image"), _words(_IMAGE_WORDS), image, 40),
    "mask": Target(_kept("mask"), _words(_IMAGE_WORDS), mask, 10),
    "path_list": Target(seeds.path_lists, _words(_PATH_WORDS), path_list, 10),
    "results": Target(seeds.results, _words(_ROW_WORDS), results, 10),
    "manifest": Target(_kept("manifest"), seeds.manifest_words, manifest, 10),
    "model": Target(_kept("model"), _words(_ONNX_WORDS), model, 5),
    "graph": Target(_kept("graph"), _words(_ONNX_WORDS), graph, 5),
    "weights": Target(_kept("weights"), _words(_TENSOR_WORDS), weights, 5),
    "backbone": Target(_kept("backbone"), _words(_TENSOR_WORDS), backbone, 5),
}

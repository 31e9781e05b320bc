"""Make the real inputs of the corpus again: ``python -m fuzz.make_corpus``, when a format of ours has changed.

They are stored, since other versions of the encoders would write other bytes, and a seed would mean other inputs.
"""

import dataclasses
import io
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save

from fuzz.seeds import CORPUS
from inspectad.demo_part import render_part
from inspectad.manifest import manifest_to_json
from inspectad.model_file import append_manifest

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from test_model_file import INPUT_HW, MANIFEST, small_graph


def main() -> None:
    for target, name, data in (*_pictures(), *_models(), *_weights()):
        path = CORPUS / target / f"made-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _pictures() -> Iterator[tuple[str, str, bytes]]:
    for target, made in (("image", images()), ("mask", masks())):
        for number, data in enumerate(made):
            yield target, f"{number:02}", data


def _models() -> Iterator[tuple[str, str, bytes]]:
    whole = dataclasses.replace(MANIFEST, tiling=None)
    yield "manifest", "whole.json", manifest_to_json(whole).encode()
    yield "manifest", "tiles.json", manifest_to_json(MANIFEST).encode()
    yield "model", "small.onnx", append_manifest(small_graph(), whole)
    yield "graph", "small.onnx", small_graph()
    yield "graph", "layers.onnx", layered_graph()


def _weights() -> Iterator[tuple[str, str, bytes]]:
    few = {
        "samples": torch.zeros((1, *INPUT_HW, 3), dtype=torch.uint8),
        "module.head.weight": torch.zeros(2, 3),
        "module.abs_topk": torch.tensor(True),
        "module.banks.0.bank": torch.zeros(2, 2),
    }
    yield "weights", "few.safetensors", save(few)
    linear = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    yield "backbone", "linear.safetensors", save(linear)
    for name, is_zip in (("linear.pth", True), ("legacy.pth", False)):
        data = io.BytesIO()
        torch.save(linear, data, _use_new_zipfile_serialization=is_zip)
        yield "backbone", name, data.getvalue()


def layered_graph() -> bytes:
    """A graph of the operators that real ones have."""
    rng = np.random.default_rng(0)
    constants = {
        "kernel": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "bias": np.zeros(4, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "one": np.array([1]),
        "three": np.array([3]),
        "flat": np.array([0, -1]),
        "bank": rng.normal(size=(4, 5)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Pad", ["planes", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "kernel", "bias"], ["features"], strides=[2, 2]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("Transpose", ["positive"], ["vectors"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["vectors", "bank"], ["products"]),
        helper.make_node("ArgMax", ["products"], ["nearest"], axis=3, keepdims=0),
        helper.make_node("ReduceMax", ["products", "three"], ["highest"], keepdims=0),
        helper.make_node("Unsqueeze", ["highest", "one"], ["plane"]),
        helper.make_node("Resize", ["plane", "", "scales"], ["larger"], mode="linear"),
        helper.make_node("Squeeze", ["larger", "one"], ["anomaly_map"]),
        helper.make_node("Reshape", ["anomaly_map", "flat"], ["row"]),
        helper.make_node("TopK", ["row", "three"], ["top", "places"]),
        helper.make_node("ReduceMean", ["top", "one"], ["score"], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *INPUT_HW, 3])
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["batch", *INPUT_HW]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "layers", [image], outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


def images() -> tuple[bytes, ...]:
    """All formats of `IMAGE_SUFFIXES`, grey and colour, 8 and 16 bits, with and without what cameras add."""
    part = np.ascontiguousarray(render_part(3, "scratch", (160, 192)).image[40:64, 50:82])
    deep = part.astype(np.uint16) * 257
    found = [_encoded(".bmp", part), _encoded(".bmp", part[..., 0]), _encoded(".png", deep), _encoded(".tif", deep)]
    found += [_encoded(".tif", part, cv2.IMWRITE_TIFF_COMPRESSION, kind) for kind in (1, 5, 7, 8, 32773)]
    found += [_encoded(suffix, part[..., 0]) for suffix in (".pgm", ".pbm", ".pnm")] + [_encoded(".ppm", deep)]
    found += [_encoded(".pgm", part[..., 0], cv2.IMWRITE_PXM_BINARY, 0), _encoded(".jpg", part[..., 0])]
    found += [b"P3 # comment\n2 1\n255\n1 2 3 4 5 6\n", b"P1\n3 2\n1 0 1\n0 1 0\n"]
    for kind, more in (
        ("PNG", {}),
        ("PNG", {"dpi": (300, 300), "exif": _turned()}),
        ("JPEG", {"quality": 60}),
        ("JPEG", {"progressive": True, "exif": _turned(), "icc_profile": b"profile"}),
        ("JPEG", {"restart_marker_blocks": 2, "subsampling": "4:4:4"}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 40, "exif": _turned()}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True, "tile_size": (16, 16)}),
        ("BMP", {}),
        ("TIFF", {"compression": "jpeg"}),
    ):
        found.append(_by_pillow(part, kind, **more))
    with_alpha = np.dstack([part, part[..., 1]])
    found += [_by_pillow(with_alpha, "PNG"), _by_pillow(with_alpha, "WEBP"), _by_pillow(with_alpha, "TIFF")]
    palette = Image.fromarray(part).quantize(16)
    found += [
        _saved(palette, "PNG"),
        _saved(palette, "BMP"),
        _saved(palette, "TIFF"),
        _saved(palette.convert("1"), "PNG"),
    ]
    for big, tiles in product((False, True), (None, (16, 16))):
        found.append(_by_tifffile(deep if big else part, bigtiff=big, byteorder=">" if tiles else "<", tile=tiles))
    found.append(_by_tifffile(np.moveaxis(part, 2, 0), planarconfig="separate", photometric="rgb"))
    return tuple(found)


def masks() -> tuple[bytes, ...]:
    """Masks of 32 x 24 px, right and wrong ones."""
    mask = np.zeros((24, 32), np.uint8)
    mask[4:9, 3:20] = 255
    found = [
        _encoded(suffix, m) for suffix in (".png", ".bmp", ".tif", ".pgm") for m in (mask, mask.T.copy(), mask // 3)
    ]
    return (*found, _by_pillow(mask, "JPEG2000"), _saved(Image.fromarray(mask).convert("1"), "PNG"), *images()[:6])


def _encoded(suffix: str, image: npt.NDArray[np.generic], *options: int) -> bytes:
    return cv2.imencode(suffix, image, list(options))[1].tobytes()


def _by_pillow(image: npt.NDArray[np.uint8], kind: str, **options: object) -> bytes:
    return _saved(Image.fromarray(image), kind, **options)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _by_tifffile(image: npt.NDArray[np.generic], **options: object) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, image, metadata=None, **options)
    return data.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


if __name__ == "__main__":
    main()

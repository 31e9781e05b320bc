"""A model on disk: ``model.onnx`` complete by itself, ``manifest.yaml`` for people, ``weights.safetensors`` to go on.

``model.onnx`` is the serialised graph followed by ONNX metadata (protobuf messages concatenate): the manifest as
JSON, its SHA-256, and the graph's length and SHA-256. So one damaged byte anywhere is noticed before a verdict.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from inspectad.atomic import write_together
from inspectad.errors import ModelFileError
from inspectad.manifest import Manifest, manifest_from_json, manifest_to_json

ONNX_NAME: Final = "model.onnx"
MANIFEST_NAME: Final = "manifest.yaml"
WEIGHTS_NAME: Final = "weights.safetensors"
MAX_MODEL_BYTES: Final = 2**31 - 1  # protobuf's own limit

_KEY: Final = "inspectad_manifest"
_KEY_SHA: Final = "inspectad_manifest_sha256"
_GRAPH_BYTES: Final = "inspectad_graph_bytes"
_GRAPH_SHA: Final = "inspectad_graph_sha256"


def onnx_path(model: Path) -> Path:
    """The ONNX file of ``-m``: the file itself, or ``model.onnx`` in a folder.

    Raises: ModelFileError when there is none.
    """
    path = model / ONNX_NAME if model.is_dir() else model
    if not path.is_file():
        raise ModelFileError(
            f"{path}: no such model; make one with 'inspectad train GOOD_FOLDER -o {model}', or name another with -m"
        )
    return path


def read_model_bytes(path: Path) -> bytes:
    """The whole file of a model folder, once, so that what is hashed is what is run. Raises: ModelFileError."""
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelFileError(f"{path}: {size} bytes are more than a file of a model has; not one of ours")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from error


def append_manifest(graph: bytes, manifest: Manifest) -> bytes:
    """The graph with its manifest behind it: what ``model.onnx`` holds."""
    text = manifest_to_json(manifest)
    entries = {
        _KEY: text,
        _KEY_SHA: _sha256(text.encode()),
        _GRAPH_BYTES: str(len(graph)),
        _GRAPH_SHA: _sha256(graph),
    }
    return graph + _encode_metadata(entries)


def _encode_metadata(entries: Mapping[str, str]) -> bytes:
    """Protobuf of an onnx.ModelProto that has nothing but these ``metadata_props`` (field 14, of key 1 and value 2)."""

    def field(number: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while length > 0x7F:
            size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    return b"".join(field(14, field(1, k.encode()) + field(2, v.encode())) for k, v in entries.items())


def extract_manifest(metadata: Mapping[str, str], data: bytes) -> Manifest:
    """The manifest of a model file, after both checksums were found right.

    Args:
        metadata: the file's ONNX metadata, as the runtime read it.
        data: the whole file.
    Raises:
        ModelFileError: not made by inspectad, damaged, changed, or too new.
    """
    if _KEY not in metadata:
        raise ModelFileError("an ONNX file, but not one that inspectad made (no manifest in it)")
    length = metadata.get(_GRAPH_BYTES, "")
    is_whole = (
        length.isascii()
        and length.isdigit()
        and len(length) < 12
        and metadata.get(_GRAPH_SHA) == _sha256(data[: int(length)])
        and metadata.get(_KEY_SHA) == _sha256(metadata[_KEY].encode())
        # nothing may stand behind it: the runtime would merge a second graph into the first
        and data[int(length) :]
        == _encode_metadata({k: metadata[k] for k in (_KEY, _KEY_SHA, _GRAPH_BYTES, _GRAPH_SHA)})
    )
    manifest = manifest_from_json(metadata[_KEY])
    if not is_whole:
        raise ModelFileError("damaged, or changed after inspectad wrote it (checksum); copy it again or train again")
    return manifest


def write_model(folder: Path, model: bytes, manifest: Manifest, weights: bytes) -> None:
    """Write the three files: all beside their targets first, then three renames, ``model.onnx`` first.

    With it the folder holds the new model, whatever happens next: it is complete by itself, and who needs its weights
    finds them by their hash, in their place or still beside it (`inspectad.restore`).
    """
    write_together(
        {
            folder / ONNX_NAME: model,
            folder / WEIGHTS_NAME: weights,
            folder / MANIFEST_NAME: manifest_yaml(manifest).encode(),
        },
        durable=True,
    )


def manifest_yaml(manifest: Manifest) -> str:
    """The manifest for people to read; nothing reads it back."""
    import yaml

    data = dataclasses.asdict(manifest)
    text: str = yaml.safe_dump(_lists(data), sort_keys=False, allow_unicode=True, width=120)
    return text


def _lists(value: object) -> object:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_lists(v) for v in value]
    return value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""Another whole model without another training: the same graph under a manifest that says something else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime

from inspectad.detector import OnnxDetector
from inspectad.manifest import Manifest
from inspectad.model_file import append_manifest


def change_manifest(model: Path, **changes: Any) -> tuple[bytes, Manifest]:
    """What ``model.onnx`` of the other model holds, and its manifest."""
    manifest = replace(OnnxDetector.load(model, "cpu").manifest, **changes)
    data = (model / "model.onnx").read_bytes()
    length = onnxruntime.InferenceSession(data).get_modelmeta().custom_metadata_map["inspectad_graph_bytes"]
    return append_manifest(data[: int(length)], manifest), manifest

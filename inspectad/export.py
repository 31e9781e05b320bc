"""``inspectad export``: the trained network as one ONNX file of the wanted precision, with its difference measured."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from torch import nn

from inspectad.atomic import write_together
from inspectad.errors import UsageError
from inspectad.held_out import turned_copies
from inspectad.int8 import to_int8
from inspectad.manifest import Manifest, Parity
from inspectad.model_file import append_manifest
from inspectad.onnx_graph import (
    FP32_LIMIT,
    TRUNK_OPS,
    compare,
    export_graph,
    has_ties,
    predict_with_graph,
    predict_with_module,
    require_parity,
    trunk_nodes,
)
from inspectad.restore import read_manifest, restore

PRECISIONS: Final = ("fp32", "fp16", "int8")
_LIMITS: Final = {"fp32": FP32_LIMIT, "fp16": 0.05, "int8": 0.5}
"""Largest score or map difference allowed, see `inspectad.onnx_graph.compare`. For fp16 and int8 a bound on what is
plausible, not a promise: the measured difference and the changed verdicts are what is reported and stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Which model folder, to which file, how precise."""

    model: Path = Path("model")
    output: Path = Path("model.onnx")
    precision: str = "fp32"


def export(config: ExportConfig) -> tuple[Manifest, int]:
    """Export a trained model; returns its manifest (with the measured parity) and the file's size in bytes.

    Raises:
        UsageError: no such precision, or not for this method.
        ModelFileError: the model folder is incomplete or damaged, or ``-m`` is a file without its folder.
        ParityError: the graph differs from the network by more than its precision explains.
    """
    if config.precision not in PRECISIONS:
        raise UsageError(f"no precision named {config.precision!r}; there are: {', '.join(PRECISIONS)}")
    manifest, method = read_manifest(config.model)
    if config.precision == "int8" and not method.has_int8:
        raise UsageError(
            f"int8: {manifest.method} compares an image with what it makes of it, and the error of 8 bits on one side "
            "would count as a difference; export it as fp32 or fp16"
        )
    restored = restore(config.model, manifest, "export")
    module, samples = restored.module, restored.samples
    graph = export_graph(module, manifest.input_size_hw)
    if config.precision != "fp32":
        graph = to_fp16(graph, half_ops(module)) if config.precision == "fp16" else to_int8(graph, samples)
    calibration = manifest.calibration
    # Turned copies beside the samples: what is in the bank scores near zero, where no difference shows in a verdict.
    images = [*samples, *(copy for sample in samples for copy in turned_copies(sample, 5.0))]
    parity = compare(
        predict_with_module(module, images),
        predict_with_graph(graph, images),
        calibration.threshold,
        _LIMITS[config.precision],
        "the trained network",
        calibration.unseen_scores,
        has_ties=has_ties(module),
    )
    require_parity(parity)
    exported = dataclasses.replace(manifest, precision=config.precision, parity=parity)
    data = append_manifest(graph, exported)
    write_together({config.output: data}, durable=True)
    return exported, len(data)


def describe_parity(parity: Parity) -> str:
    """One line for people."""
    return (
        f"{parity.images} images against {parity.against}: largest difference {parity.score_difference:.1e} "
        f"(score), {parity.map_difference:.1e} (map), limit {parity.limit:g}; "
        f"{parity.verdict_changes} verdicts changed, {parity.could_flip} held-out images are near enough to the "
        "threshold to flip"
    )


def half_ops(module: nn.Module) -> frozenset[str]:
    """Operations that belong to a method's convolutional trunk beside the usual ones; see `to_fp16`."""
    return frozenset(getattr(module, "half_ops", ()))


def to_fp16(graph: bytes, more_ops: frozenset[str] = frozenset()) -> bytes:
    """Half precision for the convolutional trunk; pooling, distances and scores stay in single precision.

    Squared distances of nearly equal vectors cancel, and half precision has too few digits for what is left.
    onnxruntime's own converter casts back to half after each node that it is told to keep, which is just that loss;
    so the trunk is converted here, as one piece.

    Args: more_ops: what the trunk may consist of beside `TRUNK_OPS`.

    Raises: UsageError: there is no such trunk.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(graph)
    trunk = trunk_nodes(model, TRUNK_OPS | {"Slice"} | more_ops)  # devnet's second, smaller image shares the weights
    inside = [n for n in model.graph.node if n.name in trunk]
    outside = [n for n in model.graph.node if n.name not in trunk]
    if not any(n.op_type == "Conv" for n in inside):
        raise UsageError(
            "fp16: this model has no convolutional trunk that half precision would make faster; export it as fp32"
        )
    sizes = {name for node in inside if node.op_type == "Resize" for name in node.input[1:]}  # always single
    weights = {i.name: i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT and i.name not in sizes}
    for name in {name for node in inside for name in node.input} & weights.keys():
        half = numpy_helper.from_array(numpy_helper.to_array(weights[name]).astype(np.float16), f"{name}_fp16")
        model.graph.initializer.append(half)
    for node in inside:
        node.input[:] = [f"{name}_fp16" if name in weights else name for name in node.input]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    leaving = sorted(
        {name for node in outside for name in node.input} & {name for node in inside for name in node.output}
    )
    casts = [helper.make_node("Cast", [n], [f"{n}_fp32"], name=f"{n}_to_fp32", to=TensorProto.FLOAT) for n in leaving]
    for node in outside:
        node.input[:] = [f"{name}_fp32" if name in leaving else name for name in node.input]
    used = {name for node in (*inside, *outside) for name in node.input}
    kept = [i for i in model.graph.initializer if i.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([*inside, *casts, *outside])
    model.graph.initializer.extend(kept)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))

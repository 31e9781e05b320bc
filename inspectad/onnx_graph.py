"""From a trained torch module to a serialised ONNX graph, and the proof that both compute the same."""

import logging
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import nn

from inspectad.detector import create_session
from inspectad.errors import ParityError
from inspectad.manifest import Parity
from inspectad.records import ByteArray, Prediction

OPSET = 18
FP32_LIMIT = 1e-4
TIE_LIMIT = 5e-3
"""Of networks that use the direction to the nearest good patch (``has_ties``). Where two are equally near, rounding
decides which it is: one patch in some thousands, whose direction, unlike its distance, is then another one."""
_TIE_SHARE = 0.02  # of the places of a map that such ties may touch, or two of them, each of which
_TIE_PIXELS = 24 * 24  # reaches so far

TRUNK_OPS: Final = frozenset(
    {"Cast", "Transpose", "Sub", "Div", "Mul", "Add", "Pad", "Conv", "Clip", "Relu", "MaxPool", "BatchNormalization"}
)
"""What the convolutional trunk consists of, see `trunk_nodes`."""


def export_graph(module: nn.Module, input_size_hw: tuple[int, int]) -> bytes:
    """One self-contained graph: ``image`` uint8 (batch, H, W, 3) to ``score`` (batch,), ``anomaly_map`` (batch, H, W).

    Only the batch axis is dynamic. Names and notes of the training program are stripped: they hold paths of the
    machine, and the same network must give the same bytes.
    """
    import onnx

    module = module.cpu().eval()
    example = torch.zeros((2, *input_size_hw, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's deprecations are not the user's business
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["image"],
            output_names=["score", "anomaly_map"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # what dynamo=True returns
    model = program.model_proto
    strip_notes(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def strip_notes(model: "onnx.ModelProto") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Remove everything that does not take part in the computation."""
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph, model):
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.value_info[:]


def predict_with_module(module: nn.Module, images: Sequence[ByteArray]) -> Prediction:
    """Run a torch module on images at the input size, one at a time, so that memory does not grow with their number."""
    device = next(iter(module.buffers())).device
    scores, maps = [], []
    with torch.inference_mode():
        for image in images:
            score, anomaly_map = module(torch.from_numpy(image).unsqueeze(0).to(device))
            scores.append(score.cpu().numpy())
            maps.append(anomaly_map.cpu().numpy())
    return Prediction(np.concatenate(scores), np.concatenate(maps))


def predict_with_graph(graph: bytes, images: Sequence[ByteArray], batch_size: int = 4) -> Prediction:
    """Run a serialised graph on the CPU."""
    session, _ = create_session(graph)
    parts = [
        session.run(["score", "anomaly_map"], {"image": np.stack(images[i : i + batch_size])})
        for i in range(0, len(images), batch_size)
    ]
    return Prediction(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))


def compare(
    reference: Prediction,
    other: Prediction,
    threshold: float,
    limit: float,
    against: str,
    held_out: Sequence[float] = (),
    *,
    has_ties: bool = False,
) -> Parity:
    """How far two predictions of the same images are apart, relative to their largest value or the threshold.

    (The larger of the two: training images score near zero, and what matters is small against the threshold.)

    Args:
        held_out: scores of images that neither has seen, to count those that the difference could turn.
        has_ties: the few places of each map that ties may touch do not count, and the limit is `TIE_LIMIT` at least.
    """
    scale = [max(float(np.abs(a).max()), threshold) for a in (reference.image_scores, reference.anomaly_maps)]
    maps_apart = np.abs(reference.anomaly_maps - other.anomaly_maps)
    touched = min(0.5, max(_TIE_SHARE, 2 * _TIE_PIXELS / maps_apart[0].size)) if has_ties else 0.0
    map_apart = np.quantile(maps_apart.reshape(len(maps_apart), -1), 1 - touched, axis=1).max()
    apart = float(np.abs(reference.image_scores - other.image_scores).max())
    return Parity(
        images=len(reference.image_scores),
        score_difference=apart / scale[0],
        could_flip=int((np.abs(np.array(held_out) - threshold) <= apart).sum()),
        map_difference=float(map_apart) / scale[1],
        limit=max(limit, TIE_LIMIT) if has_ties else limit,
        verdict_changes=int(((reference.image_scores > threshold) != (other.image_scores > threshold)).sum()),
        against=against,
    )


def has_ties(module: nn.Module) -> bool:
    """Whether rounding may change a module's direction to the nearest good patch, see `TIE_LIMIT`."""
    return bool(getattr(module, "has_ties", False))


def require_parity(parity: Parity) -> None:
    """Refuse a graph that differs.

    Raises: ParityError.
    """
    worst = max(parity.score_difference, parity.map_difference)
    if not worst <= parity.limit:  # NaN too
        raise ParityError(
            f"the exported graph differs from {parity.against} by {worst:.2g} on "
            f"{parity.images} training images (limit {parity.limit:g}); no model was written. "
            "This is a defect of inspectad or of a library: please report it with the output of 'inspectad doctor'"
        )


def trunk_nodes(model: "onnx.ModelProto", ops: frozenset[str] = TRUNK_OPS) -> set[str]:  # type: ignore[name-defined]  # noqa: F821
    """Names of the nodes of the convolutional trunk: those reached from the image through these operations alone."""
    constants = {i.name for i in model.graph.initializer}
    known, names = {"image", ""}, set()
    for node in model.graph.node:
        if node.op_type in ops and all(name in known or name in constants for name in node.input):
            known.update(node.output)
            names.add(node.name)
    return names

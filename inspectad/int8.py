"""An exported graph in 8-bit whole numbers: the convolutional trunk, and the search for the nearest good patch.

What is left in float is what 8 bits would spoil: the first convolutions, and the distance to the patch that was found,
which is taken from the float vectors. A wrong neighbour is then at most as near as the right one, never nearer.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from inspectad.detector import create_session
from inspectad.nn.patches import NORM_COLUMNS
from inspectad.onnx_graph import trunk_nodes
from inspectad.records import ByteArray

if TYPE_CHECKING:
    import onnx

_FLOAT_CONVOLUTIONS: Final = 3
"""The trunk's first block stays in float: few weights, wide ranges. See README, "What was tried"."""
_MARGIN: Final = 1.2  # patches of defects may have larger components than those of good images
_BITS: Final = 127  # to either side of `_ZERO`
_ZERO: Final = 128  # what stands for 0 in an unsigned byte


def to_int8(graph: bytes, samples: list[ByteArray]) -> bytes:
    """Static 8-bit quantisation, per channel, ranges from the model's training images, by onnxruntime's quantiser.

    Convolutions have signed weights of 8 bits, for which x86 processors without VNNI add pairs of products in 16 bits
    that may overflow: scores are others there, and a scan says so (`inspectad.detector`).
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (str(Path(folder, name)) for name in ("fp32.onnx", "prepared.onnx", "int8.onnx"))
        Path(source).write_bytes(graph)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        searches = _searches(model)
        scales = _patch_scales(model, searches, samples)
        quantize_static(
            prepared,
            target,
            _Samples(samples),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=_quantisable(model),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        quantised = onnx.load(target)
    del quantised.graph.value_info[:]  # they say float of what is going to be whole numbers
    for search, scale in zip(searches, scales, strict=True):
        _quantise_search(quantised, search, scale)
    onnx.checker.check_model(quantised)
    return bytes(quantised.SerializeToString(deterministic=True))


def _quantisable(model: "onnx.ModelProto") -> list[str]:
    """Names of the trunk's convolutions behind the first few, and of the activations that follow them.

    Without the activations each would be a step of its own in float, between two conversions, on a range that it
    cuts off anyway: no faster, and image AUROC fell from .947 to .743 on pill with all convolutions in 8 bits.
    """
    trunk = trunk_nodes(model)
    inside = [n for n in model.graph.node if n.name in trunk]
    convolutions = [n for n in inside if n.op_type == "Conv"][_FLOAT_CONVOLUTIONS:]
    outputs = {name for n in convolutions for name in n.output}
    activations = [n for n in inside if n.op_type in ("Clip", "Relu") and n.input[0] in outputs]
    return [n.name for n in (*convolutions, *activations)]


@dataclass(frozen=True, slots=True)
class _Search:
    """A product of patches (N, D + `NORM_COLUMNS`) and a bank, see `inspectad.nn.patches`.

    Attributes:
        node: its name.
        patches: name of the patches, whose last columns are 1.
        keys: (D + `NORM_COLUMNS`, M).
    """

    node: str
    patches: str
    keys: npt.NDArray[np.float32]


def _searches(model: "onnx.ModelProto") -> list[_Search]:
    """The products whose highest value is looked for in groups; none in a graph of another method."""
    from onnx import numpy_helper

    constants = {i.name: i for i in model.graph.initializer}
    maxima = {n.input[0] for n in model.graph.node if n.op_type == "ReduceMax"}
    grouped = {n.input[0] for n in model.graph.node if n.op_type == "Reshape" and n.output[0] in maxima}
    return [
        _Search(n.name, n.input[0], numpy_helper.to_array(constants[n.input[1]]))
        for n in model.graph.node
        if n.op_type == "MatMul" and n.output[0] in grouped and n.input[1] in constants
    ]


def _patch_scales(model: "onnx.ModelProto", searches: list[_Search], samples: list[ByteArray]) -> list[float]:
    """What one unit of a patch's component is worth, for each search: from the largest on the sample images."""
    from onnx import ModelProto, helper

    if not searches:
        return []
    with_patches = ModelProto()
    with_patches.CopyFrom(model)
    names = [search.patches for search in searches]
    with_patches.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session, _ = create_session(with_patches.SerializeToString())
    largest = np.zeros(len(searches))
    for image in samples:
        found = session.run(names, {"image": image[np.newaxis]})
        largest = np.maximum(largest, [np.abs(a[:, :-NORM_COLUMNS]).max() for a in found])
    return [float(v) for v in _MARGIN * np.maximum(largest, 1e-6) / _BITS]


def _quantise_search(model: "onnx.ModelProto", search: _Search, scale: float) -> None:
    """Replace a product in float by one in 8 bits; what follows compares whole numbers then.

    The columns of ones become a whole number, the highest there is if components are small, and the bank's own share
    of them, the squared lengths, is divided by that; its unit is chosen so that they fit as well.

    Both factors are unsigned: a signed bank overflows the 16 bits in which processors without VNNI add pairs, and the
    neighbour found is another one then. With VNNI onnxruntime has one kernel for both.
    """
    from onnx import helper, numpy_helper

    vectors, norms = search.keys[:-NORM_COLUMNS], search.keys[-NORM_COLUMNS:]
    one = min(_BITS, round(1 / scale))
    unit = max(float(np.abs(vectors).max()), float(np.abs(norms).max()) / (one * scale)) / _BITS
    keys = np.concatenate([np.rint(vectors / unit), np.rint(norms / (one * scale * unit))])
    constants = {
        "scale": np.float32(scale),
        "zero": np.uint8(_ZERO),
        "keys": (keys + _ZERO).astype(np.uint8),
    }
    names = {key: f"{search.node}_{key}" for key in constants}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), names[k]) for k, v in constants.items())
    position = next(i for i, n in enumerate(model.graph.node) if n.name == search.node)
    node = model.graph.node[position]
    whole = f"{search.node}_patches"
    quantise = helper.make_node(
        "QuantizeLinear", [search.patches, names["scale"], names["zero"]], [whole], name=f"{search.node}_quantise"
    )
    product = helper.make_node(
        "MatMulInteger",
        [whole, names["keys"], names["zero"], names["zero"]],
        list(node.output),
        name=search.node,
    )
    unused = node.input[1]
    model.graph.node.remove(node)
    model.graph.node.insert(position, quantise)
    model.graph.node.insert(position + 1, product)
    if not any(unused in n.input for n in model.graph.node):
        kept = [i for i in model.graph.initializer if i.name != unused]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


class _Samples:
    """Feeds the sample images to onnxruntime's calibrator, one at a time."""

    def __init__(self, images: list[ByteArray]) -> None:
        self._batches: Iterator[dict[str, ByteArray]] = iter([{"image": image[np.newaxis]} for image in images])

    def get_next(self) -> dict[str, ByteArray] | None:
        return next(self._batches, None)

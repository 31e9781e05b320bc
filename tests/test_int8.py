"""8-bit graphs: what is quantised, and that the neighbours found in whole numbers are near enough to the nearest."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from inspectad.int8 import _quantise_search, _searches, to_int8
from inspectad.nn.patches import NORM_COLUMNS, nearest_residual
from inspectad.onnx_graph import export_graph, predict_with_graph
from inspectad.training import unpack_weights


class Search(nn.Module):
    """A detector without a network: patches are the colours, as vectors in 0..1, of an image 8 pixels wide."""

    def __init__(self, bank: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("bank", bank)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches = images.reshape(-1, 24).float() / 255 - 0.5
        far = nearest_residual(patches, self.bank).square().sum(dim=1).sqrt().view(images.shape[0], images.shape[1], 1)
        return far.flatten(1).amax(dim=1), far.expand(-1, -1, images.shape[2])


@pytest.fixture(scope="module")
def searched() -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """A search exported and quantised, its images, and its bank."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
    bank = (rng.random((300, 24)) - 0.5).astype(np.float32)
    bank[:40] *= 0.2  # lengths differ, so that the term of the lengths decides
    graph = export_graph(Search(torch.from_numpy(bank)), (8, 8))
    with_constants = onnx.load_from_string(graph)
    return with_constants, images, bank


@pytest.mark.parametrize("scale", [0.5 / 127, 1.2 / 127])  # with the second a one is 106 steps, not 127
def test_the_neighbour_found_in_8_bits_is_hardly_farther_than_the_nearest(searched, scale: float) -> None:
    original, images, bank = searched
    model = onnx.ModelProto()
    model.CopyFrom(original)
    (search,) = _searches(model)
    assert search.keys.shape == (24 + NORM_COLUMNS, 320)  # 300 vectors, filled up to whole groups
    _quantise_search(model, search, scale)
    found = predict_with_graph(model.SerializeToString(), list(images))
    patches = images.reshape(64, 8, 24).astype(np.float64) / 255 - 0.5
    exact = np.linalg.norm(patches[:, :, None] - bank[None, None], axis=-1)
    nearest = exact.min(axis=-1)
    ours = found.anomaly_maps[:, :, 0]
    assert np.all(ours >= nearest - 1e-6)  # the distance is of a real bank vector: never nearer than the nearest
    assert np.mean(ours / nearest) < 1.001
    assert np.max(ours / nearest) < 1.03
    assert np.mean(np.isclose(ours, nearest, atol=1e-6)) > 0.9  # mostly the very same


def test_trunk_and_searches_of_a_trained_model_are_in_8_bits(trained) -> None:
    from inspectad.restore import read_manifest, restore

    manifest, _ = read_manifest(trained.model)
    restored = restore(trained.model, manifest, "test")
    samples = unpack_weights((trained.model / "weights.safetensors").read_bytes())[1]
    model = onnx.load_from_string(to_int8(export_graph(restored.module, manifest.input_size_hw), samples[:2]))
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("MatMulInteger") == len(restored.module.banks)
    readers = {name: n.op_type for n in model.graph.node for name in n.input}
    quantised = [n for n in model.graph.node if n.op_type == "Conv" and "DequantizeLinear" in producers(model, n)]
    assert len(quantised) == 30  # of 33 in the trunk; the activation of each is the saturation of its own output
    assert all(readers[n.output[0]] == "QuantizeLinear" for n in quantised)


def producers(model: onnx.ModelProto, node: onnx.NodeProto) -> set[str]:
    return {n.op_type for n in model.graph.node if set(n.output) & set(node.input)}

"""The whole exported graph against its backbone alone, on one CPU thread."""

import time
from typing import Final

import numpy as np

from inspectad.benchmark.speed_ratios import TrunkRatio
from inspectad.detector import create_session
from inspectad.onnx_graph import trunk_nodes
from inspectad.records import ByteArray

_LEAST_RUNS: Final = 10


def cut_trunk(graph: bytes) -> bytes:
    """The graph up to where its values leave the convolutional trunk; these are its outputs."""
    import onnx
    from onnx import helper

    model = onnx.load_from_string(graph)
    trunk = trunk_nodes(model)
    inside = [n for n in model.graph.node if n.name in trunk]
    outside = [n for n in model.graph.node if n.name not in trunk]
    used = {name for node in outside for name in node.input} | {o.name for o in model.graph.output}
    leaving = sorted(used & {name for node in inside for name in node.output})
    read = {name for node in inside for name in node.input}
    kept = [i for i in model.graph.initializer if i.name in read]
    del model.graph.node[:], model.graph.output[:], model.graph.initializer[:]
    model.graph.node.extend(inside)
    model.graph.initializer.extend(kept)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in leaving)
    return bytes(model.SerializeToString())


def measure_trunk(graph: bytes, images: list[ByteArray], seconds: float) -> TrunkRatio:
    """Args: graph: fp32. images: at its input size, uint8 (H, W, 3); they take turns. seconds: for both."""
    sessions = [create_session(data, "cpu", threads=1)[0] for data in (graph, cut_trunk(graph))]
    for session in sessions:  # the first run allocates
        session.run(None, {"image": images[0][np.newaxis]})
    took: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while len(took[0]) < _LEAST_RUNS or time.perf_counter() < until:
        image = images[len(took[0]) % len(images)][np.newaxis]
        for session, times in zip(sessions, took, strict=True):
            begin = time.perf_counter()
            session.run(None, {"image": image})
            times.append(1000 * (time.perf_counter() - begin))
    whole, trunk = (float(np.median(times)) for times in took)
    return TrunkRatio(whole, trunk, whole / trunk, len(took[0]))

"""Exported graphs: the same answers as the trained network, in any runtime, with nothing of this machine inside."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import inspectad
from inspectad import onnx_graph
from inspectad.demo_part import render_part
from inspectad.detector import OnnxDetector
from inspectad.errors import ModelFileError, ParityError, UsageError
from inspectad.export import PRECISIONS, ExportConfig, describe_parity, export
from inspectad.held_out import turned_copies
from inspectad.images import decode_image, resize
from inspectad.records import Prediction
from inspectad.training import unpack_weights

EACH = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each precision, in a folder without anything else of the model."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {precision: folder / precision / "line.onnx" for precision in PRECISIONS}
    for precision, path in paths.items():
        export(ExportConfig(model=trained.model, output=path, precision=precision))
    return paths


@pytest.fixture(scope="module")
def samples(trained) -> np.ndarray:
    """What export compares on: the training images at input size, as kept with the weights, and turned copies."""
    kept = unpack_weights((trained.model / "weights.safetensors").read_bytes())[1]
    return np.stack([*kept, *(copy for image in kept for copy in turned_copies(image, 5.0))])


@pytest.fixture(scope="module")
def detector(trained) -> OnnxDetector:
    return OnnxDetector.load(trained.model, "cpu")


def fresh_parts() -> list[np.ndarray]:
    kinds = (None, "stain", None, "missing_hole", None, "dent", "scratch")
    return [render_part(300 + i, kind, (160, 192)).image for i, kind in enumerate(kinds)]


def files_below(folder: Path) -> list[np.ndarray]:
    return [decode_image(p.read_bytes()).pixels for p in sorted(folder.iterdir())]


@EACH
def test_the_recorded_parity_is_the_difference_to_the_trained_network(
    exported, detector: OnnxDetector, samples: np.ndarray, precision: str
) -> None:
    other = OnnxDetector.load(exported[precision], "cpu")
    ours, theirs = detector.predict_resized(samples), other.predict_resized(samples)
    parity, threshold = other.manifest.parity, detector.threshold
    difference = np.abs(ours.image_scores - theirs.image_scores).max() / max(ours.image_scores.max(), threshold)
    assert parity.images == len(samples)
    assert parity.score_difference == pytest.approx(difference, rel=0.05, abs=2e-4)  # torch against onnxruntime
    assert parity.score_difference <= parity.limit
    assert parity.map_difference <= parity.limit
    changed = (ours.image_scores > threshold) != (theirs.image_scores > threshold)
    assert parity.verdict_changes == int(changed.sum())
    calibration = other.manifest.calibration
    unseen = np.array((*calibration.good_scores, *calibration.defect_scores))
    apart = parity.score_difference * max(ours.image_scores.max(), threshold)
    assert parity.could_flip == int((np.abs(unseen - threshold) <= apart).sum())


def test_each_precision_has_its_own_limit_and_its_own_loss(exported) -> None:
    parity = {p: OnnxDetector.load(path, "cpu").manifest.parity for p, path in exported.items()}
    assert parity["fp32"].limit == 1e-4
    assert parity["fp32"].limit < parity["fp16"].limit < parity["int8"].limit
    assert parity["fp32"].score_difference < parity["fp16"].score_difference < parity["int8"].score_difference
    assert f"{parity['fp16'].map_difference:.1e} (map)" in describe_parity(parity["fp16"])


@EACH
def test_verdicts_on_the_training_images_are_those_of_the_model(
    trained, exported, detector: OnnxDetector, precision: str
) -> None:
    other = OnnxDetector.load(exported[precision], "cpu")
    images = files_below(trained.good) + files_below(trained.defects)
    assert other.verdicts(other.predict(images)) == detector.verdicts(detector.predict(images))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scores_of_fresh_parts_are_those_of_the_model(exported, detector: OnnxDetector, precision: str) -> None:
    other = OnnxDetector.load(exported[precision], "cpu")
    ours, theirs = detector.predict(fresh_parts()), other.predict(fresh_parts())
    tolerance = {"fp32": 1e-5, "fp16": 0.02}[precision]
    np.testing.assert_allclose(theirs.image_scores, ours.image_scores, rtol=tolerance)
    assert np.abs(theirs.anomaly_maps - ours.anomaly_maps).max() < 2 * tolerance * ours.anomaly_maps.max()


def test_smaller_numbers_make_smaller_files(exported) -> None:
    sizes = {precision: path.stat().st_size for precision, path in exported.items()}
    assert sizes["fp16"] < sizes["fp32"]
    assert sizes["int8"] < sizes["fp32"]


@EACH
def test_the_manifest_differs_in_precision_and_parity_only(exported, detector: OnnxDetector, precision: str) -> None:
    from dataclasses import replace

    manifest = OnnxDetector.load(exported[precision], "cpu").manifest
    assert manifest.precision == precision
    assert replace(manifest, precision="fp32", parity=detector.manifest.parity) == detector.manifest


@EACH
def test_any_onnx_runtime_can_run_the_file(exported, precision: str) -> None:
    session = onnxruntime.InferenceSession(str(exported[precision]), providers=["CPUExecutionProvider"])
    ours = OnnxDetector.load(exported[precision], "cpu")
    (image,) = session.get_inputs()
    batch = np.stack([resize(part, ours.input_size_hw) for part in fresh_parts()])
    score, anomaly_map = session.run(["score", "anomaly_map"], {image.name: batch})
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [*ours.input_size_hw, 3])
    assert (score.dtype, score.shape) == (np.float32, (7,))
    assert (anomaly_map.dtype, anomaly_map.shape) == (np.float32, (7, *ours.input_size_hw))
    prediction = ours.predict(fresh_parts())
    np.testing.assert_allclose(score, prediction.image_scores, rtol=1e-5)
    np.testing.assert_allclose(anomaly_map, prediction.anomaly_maps, rtol=1e-4, atol=1e-5)


@EACH
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_batch_of_any_size_scores_like_one_by_one(exported, precision: str, count: int) -> None:
    detector = OnnxDetector.load(exported[precision], "cpu")
    images = fresh_parts()[:count]
    together = detector.predict(images)
    alone = [detector.predict([image]) for image in images]
    np.testing.assert_allclose(together.image_scores, [p.image_scores[0] for p in alone], rtol=1e-5)
    np.testing.assert_allclose(together.anomaly_maps, np.concatenate([p.anomaly_maps for p in alone]), atol=1e-5)


def test_no_image_gives_no_score(detector: OnnxDetector) -> None:
    prediction = detector.predict([])
    assert prediction.image_scores.shape == (0,)
    assert prediction.anomaly_maps.shape == (0, *detector.input_size_hw)


def test_training_again_with_the_same_seed_gives_the_same_bytes(trained, tmp_path: Path) -> None:
    inspectad.train(trained.good, trained.defects, tmp_path / "again", size_px=96, device="cpu")
    for name in ("model.onnx", "weights.safetensors", "manifest.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (trained.model / name).read_bytes(), name


def test_exporting_again_gives_the_same_bytes(trained, exported, tmp_path: Path) -> None:
    export(ExportConfig(model=trained.model, output=tmp_path / "again.onnx", precision="int8"))
    assert (tmp_path / "again.onnx").read_bytes() == exported["int8"].read_bytes()


def test_no_file_names_this_machine(trained, exported) -> None:
    repository = Path(inspectad.__file__).parents[1]
    folders = [repository, Path.home(), trained.root, tempfile.gettempdir(), "site-packages", "/inspectad/"]
    for path in (*trained.model.iterdir(), *exported.values()):
        data = path.read_bytes()
        assert [str(f) for f in folders if str(f).encode() in data] == [], path.name


def shifted(predict):
    """A runtime that answers a little too high."""

    def predict_too_high(*arguments: object, **more: object) -> Prediction:
        right = predict(*arguments, **more)
        return Prediction(right.image_scores + 1, right.anomaly_maps)

    return predict_too_high


def test_a_graph_that_computes_something_else_is_not_exported(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectad.export.predict_with_graph", shifted(onnx_graph.predict_with_graph))
    with pytest.raises(ParityError, match="differs from the trained network"):
        export(ExportConfig(model=trained.model, output=tmp_path / "out" / "line.onnx", precision="fp16"))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_computes_something_else_is_not_trained(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectad.training.predict_with_graph", shifted(onnx_graph.predict_with_graph))
    with pytest.raises(ParityError, match="no model was written"):
        inspectad.train(trained.good, None, tmp_path / "out" / "model", size_px=64, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_is_no_number_is_no_parity() -> None:
    maps = np.zeros((2, 3, 3), np.float32)
    right = Prediction(np.array([0.5, 0.6], np.float32), maps)
    wrong = Prediction(np.array([0.5, np.nan], np.float32), maps)
    parity = onnx_graph.compare(right, wrong, 1.0, 1e-4, "a test")
    with pytest.raises(ParityError):
        onnx_graph.require_parity(parity)


def test_differences_are_relative_to_the_largest_value_or_the_threshold() -> None:
    maps = np.zeros((2, 3, 3), np.float32)
    maps[0, 0, 0] = 8.0
    right = Prediction(np.array([0.5, 0.25], np.float32), maps)
    other = Prediction(np.array([0.5, 0.75], np.float32), maps * np.float32(0.75))
    parity = onnx_graph.compare(right, other, 0.6, 1.0, "a test")
    assert parity.score_difference == pytest.approx(0.5 / 0.6)
    assert parity.map_difference == pytest.approx(2 / 8)
    assert (parity.images, parity.verdict_changes) == (2, 1)


def test_what_cannot_be_exported_is_refused(trained, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    output = tmp_path / "line.onnx"
    with pytest.raises(UsageError, match=r"fp8.*fp32, fp16, int8"):
        export(ExportConfig(model=model, output=output, precision="fp8"))
    weights = model / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match=r"weights\.safetensors: damaged"):
        export(ExportConfig(model=model, output=output))
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"weights\.safetensors: not there"):
        export(ExportConfig(model=model, output=output))
    assert not output.exists()

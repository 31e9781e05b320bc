"""The model on disk: what is written is read back, what is damaged is noticed, what is foreign is refused politely."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from inspectad.atomic import write_atomically, write_together
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError, ModelFileError, OutputError
from inspectad.images import FULL_SCALES, MAX_INPUT_PX, MIN_INPUT_PX, RESIZE_RULE
from inspectad.manifest import (
    SCHEMA_VERSION,
    Calibration,
    Manifest,
    Parity,
    TrainedOn,
    manifest_from_json,
    manifest_to_json,
)
from inspectad.model_file import append_manifest, manifest_yaml, onnx_path, write_model
from inspectad.tiles import MAX_TILE_PX, Tiling

QUICK = settings(deadline=None, max_examples=60)
INPUT_HW = (64, 96)

NUMBERS = st.floats(-1e200, 1e200)
SCORES = st.lists(st.floats(0, 1e6), max_size=4).map(tuple)
TEXTS = st.text(max_size=12) | st.sampled_from(["", " ", "no", "1", "null", "a: b", "- x", "\n", "é漢", "#", "\u2028"])
NAMES = TEXTS | st.binary(min_size=1, max_size=6).map(os.fsdecode)  # file names need not be UTF-8
COUNTS = st.integers(0, 10**6)
SIDES = st.integers(MIN_INPUT_PX, 2 * MAX_INPUT_PX)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)
IMAGES = st.lists(st.builds(TrainedOn, name=NAMES, sha256=HASHES), max_size=3).map(tuple)
POSITIVE = st.floats(1e-6, 1e6)
TILES = st.integers(1, MAX_TILE_PX)
TILINGS = st.builds(
    Tiling,
    tile_hw=st.tuples(TILES, TILES).filter(lambda tile: max(tile) >= MIN_INPUT_PX),
    overlap=st.floats(0.01, 0.5),
)
MANIFESTS = st.builds(
    Manifest,
    schema_version=st.just(SCHEMA_VERSION),
    created_by=TEXTS,
    method=TEXTS,
    backbone=TEXTS,
    backbone_sha256=HASHES,
    weights_sha256=HASHES,
    precision=TEXTS,
    input_size_hw=st.tuples(SIDES, SIDES),
    resize_rule=st.just(RESIZE_RULE),
    full_scale=st.sampled_from(FULL_SCALES),
    tiling=st.none() | TILINGS,
    aspect_range=st.tuples(POSITIVE, POSITIVE),
    seed=st.integers(-(2**60), 2**60),
    settings=st.dictionaries(TEXTS, TEXTS, max_size=3),
    calibration=st.builds(
        Calibration,
        threshold=POSITIVE,
        map_threshold=POSITIVE,
        false_reject_rate=NUMBERS,
        supported_rate=NUMBERS,
        expected_rate=NUMBERS,
        rule=TEXTS,
        held_out=TEXTS,
        good_scores=SCORES,
        defect_scores=SCORES,
        correction=NUMBERS,
        false_rejects=COUNTS,
        escapes=COUNTS,
    ),
    parity=st.builds(
        Parity,
        images=COUNTS,
        score_difference=NUMBERS,
        map_difference=NUMBERS,
        limit=NUMBERS,
        verdict_changes=COUNTS,
        against=TEXTS,
    ),
    good_images=IMAGES,
    defect_images=IMAGES,
    versions=st.dictionaries(TEXTS, TEXTS, max_size=3),
)

MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    created_by="inspectad 0",
    method="memory_bank",
    backbone="efficientnet_lite0",
    backbone_sha256="0" * 64,
    weights_sha256="1" * 64,
    precision="fp32",
    input_size_hw=INPUT_HW,
    resize_rule=RESIZE_RULE,
    full_scale=255,
    tiling=Tiling(tile_hw=(200, 300)),
    aspect_range=(1.5, 1.5),
    seed=0,
    settings={"bank_size": "7"},
    calibration=Calibration(
        threshold=100.0,
        map_threshold=120.0,
        false_reject_rate=0.01,
        supported_rate=0.2,
        expected_rate=0.01,
        rule="extrapolated",
        held_out="leave-one-out",
        good_scores=(80.0, 90.0),
        defect_scores=(200.0,),
        correction=1.0,
        false_rejects=0,
        escapes=0,
    ),
    parity=Parity(
        images=1, score_difference=0.0, map_difference=0.0, limit=1e-4, verdict_changes=0, could_flip=0, against="it"
    ),
    good_images=(TrainedOn(name="a.png", sha256="2" * 64),),
    defect_images=(TrainedOn(name="sub/b.png", sha256="3" * 64),),
    versions={"python": "3"},
)


def small_graph() -> bytes:
    """Score: the brightest value. Map: the brightest channel of each pixel."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *INPUT_HW, 3])
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["batch", *INPUT_HW]),
    ]
    axes = [
        helper.make_tensor("all", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("c", TensorProto.INT64, [1], [3]),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["x", "all"], ["score"], keepdims=0),
        helper.make_node("ReduceMax", ["x", "c"], ["anomaly_map"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "small", [image], outputs, axes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def small_model() -> bytes:
    return append_manifest(small_graph(), MANIFEST)


def load(path: Path, data: bytes) -> OnnxDetector:
    path.write_bytes(data)
    return OnnxDetector.load(path, "cpu", threads=1)


@QUICK
@given(MANIFESTS)
def test_a_manifest_survives_json(manifest: Manifest) -> None:
    text = manifest_to_json(manifest)
    assert manifest_from_json(text) == manifest
    assert text.isascii()
    assert json.loads(text)["calibration"]["threshold"] == manifest.calibration.threshold


@settings(QUICK, max_examples=25)
@given(MANIFESTS.filter(lambda m: "\x85" not in str(dataclasses.asdict(m)).encode().decode("unicode_escape")))
def test_manifest_yaml_says_the_same_as_the_manifest(manifest: Manifest) -> None:
    # By way of bytes, as it is written; and JSON, which has no tuples either.
    data = manifest_yaml(manifest).encode()
    assert yaml.safe_load(data) == json.loads(manifest_to_json(manifest))


def test_the_same_manifest_gives_the_same_text() -> None:
    turned = dataclasses.replace(MANIFEST, versions={"b": "2", "a": "1"})
    assert manifest_to_json(turned) == manifest_to_json(dataclasses.replace(turned, versions={"a": "1", "b": "2"}))


def test_unknown_keys_are_tolerated_everywhere() -> None:
    data = json.loads(manifest_to_json(MANIFEST))
    for place in (data, data["calibration"], data["parity"], data["good_images"][0]):
        place["of_a_later_version"] = {"x": [1, 2]}
    assert manifest_from_json(json.dumps(data)) == MANIFEST


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys that the schema names (not those inside free dictionaries)."""
    if isinstance(value, dict) and path[-1:] not in (("settings",), ("versions",)):
        return [p for key, inner in value.items() for p in [(*path, key), *places(inner, (*path, key))]]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return places(value[0], (*path, 0))
    return []


def parent_of(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


ALL_PLACES = places(json.loads(manifest_to_json(MANIFEST)))
EVERY_PLACE = pytest.mark.parametrize("path", ALL_PLACES, ids=lambda p: ".".join(map(str, p)))


def test_every_field_of_the_schema_is_tried_below() -> None:
    kinds = (Manifest, Tiling, Calibration, Parity, TrainedOn, TrainedOn)
    assert len(ALL_PLACES) == sum(len(dataclasses.fields(kind)) for kind in kinds)


@EVERY_PLACE
def test_a_missing_key_is_named(path: tuple[Any, ...]) -> None:
    data = json.loads(manifest_to_json(MANIFEST))
    del parent_of(data, path)[path[-1]]
    with pytest.raises(ModelFileError, match=f"damaged.*{path[-1]}"):
        manifest_from_json(json.dumps(data))


WRONG = {
    int: [None, True, "text", 3.5, [], {}],
    float: [None, True, "text", [], {}, 10**400, float("nan"), float("-inf")],
    str: [None, True, 3, 3.5, [], {}],
    list: [None, True, "text", 3, {}, [None], [[]]],
    dict: [None, True, "text", 3, [], {"k": 1}, {"k": None}],
}


@EVERY_PLACE
def test_a_value_of_the_wrong_type_is_refused_with_its_place(path: tuple[Any, ...]) -> None:
    right = manifest_to_json(MANIFEST)
    for wrong in WRONG[type(parent_of(json.loads(right), path)[path[-1]])]:
        if wrong is None and path == ("tiling",):
            continue  # whole images
        data = json.loads(right)
        parent_of(data, path)[path[-1]] = wrong
        with pytest.raises(ModelFileError, match=f"damaged.*{path[-1]}") as caught:
            manifest_from_json(json.dumps(data))
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        '"x"',
        "{}",
        '{"schema_version": "1"}',
        '{"schema_version": 1}',
        "[" * 10**5,
        "\ud800",
    ],
    ids=lambda t: repr(t[:20]),
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match="damaged"):
        manifest_from_json(text)


@pytest.mark.parametrize("depth", [200, 500, 900, 1100])
def test_a_deeply_nested_value_is_refused(depth: int) -> None:
    data = manifest_to_json(MANIFEST).replace('"seed":0', f'"seed":{"[" * depth}{"]" * depth}')
    with pytest.raises(ModelFileError, match="damaged"):
        manifest_from_json(data)


@QUICK
@given(st.text() | st.recursive(st.none() | st.booleans() | NUMBERS | TEXTS, st.lists, max_leaves=5).map(json.dumps))
def test_any_text_is_a_manifest_or_refused(text: str) -> None:
    with pytest.raises(ModelFileError):
        manifest_from_json(text)


def test_a_newer_schema_says_what_to_do() -> None:
    data = json.loads(manifest_to_json(MANIFEST)) | {"schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(ModelFileError, match=r"newer inspectad \(schema 3, this one reads up to 2\); install"):
        manifest_from_json(json.dumps(data))


def test_a_model_of_the_first_schema_sees_whole_images() -> None:
    data = json.loads(manifest_to_json(MANIFEST)) | {"schema_version": 1}
    del data["tiling"]
    assert manifest_from_json(json.dumps(data)) == dataclasses.replace(MANIFEST, schema_version=1, tiling=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": -1.0}, "threshold"),
        ({"map_threshold": 0.0}, "threshold"),
        ({"threshold": float("nan")}, "calibration.threshold is 'nan'"),
        ({"good_scores": (float("inf"),)}, "calibration.good_scores is 'inf'"),
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    broken = dataclasses.replace(MANIFEST, calibration=dataclasses.replace(MANIFEST.calibration, **change))
    with pytest.raises(ModelFileError, match=message):
        manifest_from_json(manifest_to_json(broken))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize_rule": "nearest"}, "resize rule"),
        ({"full_scale": 256}, "white level"),
        ({"input_size_hw": (0, 6)}, "input size"),
        ({"input_size_hw": (4, 10**9)}, "input size"),
        ({"input_size_hw": (32, 96)}, "tiling"),
        ({"tiling": Tiling(tile_hw=(0, 300))}, "tiling"),
        ({"tiling": Tiling(tile_hw=(300, 10**6))}, "tiling"),
        ({"tiling": Tiling(tile_hw=(300, 300), overlap=0.0)}, "tiling"),
        ({"tiling": Tiling(tile_hw=(300, 300), overlap=0.9)}, "tiling"),
        ({"good_images": (TrainedOn(name="a", sha256="x"),)}, "hash"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        manifest_from_json(manifest_to_json(dataclasses.replace(MANIFEST, **change)))


def test_the_small_model_works(small_model: bytes, tmp_path: Path) -> None:
    detector = load(tmp_path / "model.onnx", small_model)
    image = np.zeros((*INPUT_HW, 3), np.uint8)
    image[1, 2] = (10, 130, 20)
    prediction = detector.predict_resized(image[np.newaxis])
    assert detector.manifest == MANIFEST
    assert prediction.image_scores.tolist() == [130.0]
    assert np.argwhere(prediction.anomaly_maps[0]).tolist() == [[1, 2]]
    assert [v.value for v in detector.verdicts(prediction)] == ["NG"]


def test_flipping_any_one_byte_is_noticed(small_model: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for position in range(0, len(small_model), 3):
        damaged = bytearray(small_model)
        damaged[position] ^= int(rng.choice([1, 2, 4, 8, 16, 32, 64, 128, 255]))
        with pytest.raises(ModelFileError, match=r"model\.onnx"):
            load(tmp_path / "model.onnx", bytes(damaged))


@pytest.mark.parametrize("part", [0, 1, 100, 0.3, 0.5, 0.9, -200, -1])
def test_a_file_that_was_cut_short_is_noticed(small_model: bytes, tmp_path: Path, part: float) -> None:
    end = int(part * len(small_model)) if isinstance(part, float) else part
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        load(tmp_path / "model.onnx", small_model[:end])


def more_protobuf(small_model: bytes) -> dict[str, bytes]:
    renamed = onnx.ModelProto(producer_name="somebody else")
    noted = onnx.ModelProto()
    noted.metadata_props.add(key="note", value="added later")
    return {
        "rubbish": b"\x00\x01\x02",
        "a producer": renamed.SerializeToString(),
        "metadata": noted.SerializeToString(),
        "the whole file again": small_model,
    }


@pytest.mark.parametrize("what", ["rubbish", "a producer", "metadata", "the whole file again"])
def test_what_was_added_to_the_end_is_noticed(small_model: bytes, tmp_path: Path, what: str) -> None:
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        load(tmp_path / "model.onnx", small_model + more_protobuf(small_model)[what])


def test_a_trained_model_with_a_flipped_byte_is_refused(trained, tmp_path: Path) -> None:
    whole = (trained.model / "model.onnx").read_bytes()
    for position in np.random.default_rng(1).integers(0, len(whole), 12).tolist():
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        with pytest.raises(ModelFileError, match=r"model\.onnx"):
            load(tmp_path / "model.onnx", bytes(damaged))


def test_a_damaged_model_says_nothing_on_stdout(
    small_model: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    at = small_model.index(b"ReduceMax")
    for damaged in (small_model[:at] + b"\xff" + small_model[at + 1 :], small_model[:100], b"no model"):
        with pytest.raises(ModelFileError):
            load(tmp_path / "model.onnx", damaged)
    assert capfd.readouterr().out == ""  # it carries nothing but rows


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not one that inspectad made"):
        load(tmp_path / "model.onnx", small_graph())


def test_a_graph_that_does_not_fit_its_manifest_is_refused(tmp_path: Path) -> None:
    data = append_manifest(small_graph(), dataclasses.replace(MANIFEST, input_size_hw=(96, 64)))
    with pytest.raises(ModelFileError, match="its graph is not what its manifest says"):
        load(tmp_path / "model.onnx", data)


@pytest.mark.parametrize("name", ["nothing", "nothing.onnx"])
def test_a_model_that_is_not_there_says_how_to_make_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match="inspectad train"):
        onnx_path(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"model\.onnx: no such model"):
        onnx_path(tmp_path / "empty")


def test_the_three_files_of_a_model_are_written(small_model: bytes, tmp_path: Path) -> None:
    odd = dataclasses.replace(MANIFEST, good_images=(TrainedOn(name=os.fsdecode(b"\xff.png"), sha256="2" * 64),))
    write_model(tmp_path / "new" / "model", small_model, odd, b"weights")
    assert sorted(os.listdir(tmp_path / "new" / "model")) == ["manifest.yaml", "model.onnx", "weights.safetensors"]
    assert (tmp_path / "new" / "model" / "model.onnx").read_bytes() == small_model
    read = yaml.safe_load((tmp_path / "new" / "model" / "manifest.yaml").read_bytes())
    assert read["good_images"][0]["name"] == os.fsdecode(b"\xff.png")


def test_when_one_write_fails_nothing_is_replaced_and_nothing_stays(tmp_path: Path) -> None:
    first, blocked = tmp_path / "first", tmp_path / "file" / "second"
    first.write_bytes(b"old")
    (tmp_path / "file").write_bytes(b"a file where a folder should be")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match="second: cannot be written"):
        write_together({first: b"new", blocked: b"new"})
    assert first.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_the_old_files_and_no_temporary_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    targets = {tmp_path / name: b"new" for name in ("a", "b", "c")}
    for path in targets:
        path.write_bytes(b"old")
    opened = []

    def failing_open(path: Path, mode: str) -> Any:
        opened.append(path)
        if len(opened) == 3:
            raise error
        return open(path, mode)

    monkeypatch.setattr("inspectad.atomic.open", failing_open, raising=False)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write_together(targets)
    assert len(opened) == 3
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old", "b": b"old", "c": b"old"}


@QUICK
@given(st.binary(max_size=200))
def test_what_is_written_atomically_is_there_whole(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "atomic" / "file"
    write_atomically(path, data)
    assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["file"]


@settings(QUICK, max_examples=40)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_model(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with pytest.raises(InspectadError):
        load(tmp_path_factory.getbasetemp() / "any.onnx", data)
